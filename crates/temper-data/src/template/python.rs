//! What templates expect of Python: how values print, `json.dumps`, `strftime` and a few string methods.

use minijinja::value::{Kwargs, Value as Jinja, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The date that `strftime_now` tells (at midnight), so that rendering does not depend on the clock.
///
/// The default is 26 July 2024, the date that Llama 3 templates fall back to when they are given none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Date {
    /// Year of the Gregorian calendar.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl Default for Date {
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26 }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const DAYS_BEFORE: [u16; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

impl Date {
    fn is_leap(self) -> bool {
        self.year.is_multiple_of(4) && !self.year.is_multiple_of(100) || self.year.is_multiple_of(400)
    }

    fn month_index(self) -> usize {
        usize::from(self.month.clamp(1, 12)) - 1
    }

    /// Day of the year, from 1.
    fn ordinal(self) -> u16 {
        let leap_day = u16::from(self.is_leap() && self.month > 2);
        DAYS_BEFORE[self.month_index()] + leap_day + u16::from(self.day)
    }

    /// Day of the week, 0 for Sunday: whole years shift it by one, leap years by one more.
    fn weekday(self) -> usize {
        let past = usize::from(self.year).saturating_sub(1);
        (past + past / 4 - past / 100 + past / 400 + usize::from(self.ordinal())) % 7
    }

    /// The date in C's `strftime` language.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                // glibc's flag for "no padding"
                Some('-') => out.push_str(unpadded(&self.directive(chars.next())?)),
                directive => out.push_str(&self.directive(directive)?),
            }
        }
        Ok(out)
    }

    fn directive(self, directive: Option<char>) -> Result<String, Error> {
        let (year, month, day) = (self.year, self.month, self.day);
        Ok(match directive {
            Some('Y') => format!("{year:04}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => MONTHS[self.month_index()].into(),
            Some('b' | 'h') => MONTHS[self.month_index()][..3].into(),
            Some('A') => DAYS[self.weekday()].into(),
            Some('a') => DAYS[self.weekday()][..3].into(),
            Some('w') => self.weekday().to_string(),
            Some('j') => format!("{:03}", self.ordinal()),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('H' | 'M' | 'S') => "00".into(),
            Some('I') => "12".into(),
            Some('p') => "AM".into(),
            Some('T') => "00:00:00".into(),
            Some('R') => "00:00".into(),
            Some('%') => "%".into(),
            Some('Z' | 'z') => String::new(),
            other => {
                let shown = other.map_or_else(|| "%".into(), |c| format!("%{c}"));
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: unknown directive {shown}"),
                ));
            }
        })
    }
}

fn unpadded(text: &str) -> &str {
    let trimmed = text.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() { "0" } else { trimmed }
}

/// `{{ value }}` as Python's `str` writes it.
pub(super) fn print(out: &mut Output, state: &State, value: &Jinja) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => escape_formatter(out, state, value),
        _ => out.write_str(&text(value)).map_err(Error::from),
    }
}

/// Whether Python would loop over the value: an undefined one yes, none no.
pub(super) fn is_iterable(value: &Jinja) -> bool {
    value.is_undefined() || !value.is_none() && value.try_iter().is_ok()
}

/// Whether the value has a length and items, as strings and dictionaries have.
pub(super) fn is_sequence(value: &Jinja) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

/// Python's `str`.
pub(super) fn text(value: &Jinja) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Bool | ValueKind::None | ValueKind::Number => {
            serde_json::to_value(value).map_or_else(|_| value.to_string(), |value| repr(&value))
        }
        _ => value.to_string(),
    }
}

/// Python's `repr` of plain data.
fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number_text(number),
        Value::String(text) => repr_string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<_> =
                map.iter().map(|(key, value)| format!("{}: {}", repr_string(key), repr(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
    }
}

fn repr_string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.extend(["\\x", &format!("{:02x}", c as u32)]),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn number_text(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_repr(float),
        _ => number.to_string(),
    }
}

/// Python's shortest float: plain for exponents from -4 to 15, else with a signed two-digit exponent.
fn float_repr(float: f64) -> String {
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ if float.fract() == 0.0 => format!("{float:.1}"),
        _ => float.to_string(),
    }
}

/// How `json.dumps` lays out its text.
struct Layout {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// The `tojson` filter of transformers: `json.dumps(x, ensure_ascii=False, indent, separators, sort_keys)`.
#[allow(clippy::needless_pass_by_value, reason = "minijinja hands filters their arguments by value")]
pub(super) fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let layout = layout(&options)?;
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    dump(&value, &layout, 0, &mut out);
    Ok(Jinja::from(out))
}

fn layout(options: &Kwargs) -> Result<Layout, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    Ok(Layout { indent, item, key, ascii, sorted })
}

fn dump(value: &Value, layout: &Layout, depth: usize, out: &mut String) {
    match value {
        Value::String(text) => dump_string(text, layout.ascii, out),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::Array(items) => dump_items(items.iter(), ['[', ']'], layout, depth, out, |item, out| {
            dump(item, layout, depth + 1, out);
        }),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            if layout.sorted {
                pairs.sort_by_key(|(key, _)| *key);
            }
            dump_items(pairs.into_iter(), ['{', '}'], layout, depth, out, |(key, value), out| {
                dump_string(key, layout.ascii, out);
                out.push_str(&layout.key);
                dump(value, layout, depth + 1, out);
            });
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn dump_items<T>(
    items: impl ExactSizeIterator<Item = T>,
    [open, close]: [char; 2],
    layout: &Layout,
    depth: usize,
    out: &mut String,
    mut write: impl FnMut(T, &mut String),
) {
    out.push(open);
    let empty = items.len() == 0;
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&layout.item);
        }
        new_line(layout, depth + 1, out);
        write(item, out);
    }
    if !empty {
        new_line(layout, depth, out);
    }
    out.push(close);
}

fn new_line(layout: &Layout, depth: usize, out: &mut String) {
    if let Some(indent) = layout.indent {
        out.push('\n');
        out.push_str(&" ".repeat(indent * depth));
    }
}

fn dump_string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.extend(["\\u", &format!("{:04x}", c as u32)]),
            c if ascii && !c.is_ascii() => {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Python methods that minijinja-contrib lacks, then its own.
pub(super) fn method(state: &State, value: &Jinja, name: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)
    {
        return result;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Jinja]) -> Option<Result<Jinja, Error>> {
    Some(match name {
        "removeprefix" => one_argument(args).map(|prefix| Jinja::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one_argument(args).map(|suffix| Jinja::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => one_argument(args).map(|sep| three(text.split_once(sep), sep, [text, "", ""])),
        "rpartition" => one_argument(args).map(|sep| three(text.rsplit_once(sep), sep, ["", "", text])),
        "rsplit" => rsplit(text, args),
        "find" => one_argument(args).map(|part| characters_before(text, text.find(part))),
        "rfind" => one_argument(args).map(|part| characters_before(text, text.rfind(part))),
        _ => return None,
    })
}

fn one_argument(args: &[Jinja]) -> Result<&str, Error> {
    from_args(args).map(|(text,)| text)
}

/// Python counts characters where Rust counts bytes.
fn characters_before(text: &str, byte: Option<usize>) -> Jinja {
    Jinja::from(byte.map_or(-1, |byte| text[..byte].chars().count() as i64))
}

fn three(found: Option<(&str, &str)>, separator: &str, otherwise: [&str; 3]) -> Jinja {
    let parts = found.map_or(otherwise, |(before, after)| [before, separator, after]);
    parts.into_iter().map(Jinja::from).collect()
}

fn rsplit(text: &str, args: &[Jinja]) -> Result<Jinja, Error> {
    let (separator, limit): (&str, Option<usize>) = from_args(args)?;
    let parts = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut pieces: Vec<&str> = text.rsplitn(parts, separator).collect();
    pieces.reverse();
    Ok(pieces.into_iter().map(Jinja::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates_follow_strftime() {
        let date = Date { year: 2024, month: 12, day: 5 };
        let text = date.format("%A %a %d %b %B %Y %y %m %j %-d %F %% %H:%M").unwrap();
        assert_eq!(text, "Thursday Thu 05 Dec December 2024 24 12 340 5 2024-12-05 % 00:00");
        assert_eq!(Date::default().format("%A, %d %B %Y").unwrap(), "Friday, 26 July 2024");
        assert_eq!(Date { year: 2100, month: 3, day: 1 }.format("%a %j").unwrap(), "Mon 060");
        assert!(date.format("%Q").is_err());
        assert!(date.format("%").is_err());
    }

    #[test]
    fn floats_print_as_in_python() {
        for (float, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(float_repr(float), expected);
        }
    }

    #[test]
    fn values_print_as_in_python() {
        let value = json!({"a": [1, 2.0, null, true], "it's": "x\n"});
        assert_eq!(repr(&value), r#"{'a': [1, 2.0, None, True], "it's": 'x\n'}"#);
    }
}
