//! Text for people: escaping and numbers.

use std::fmt::Write as _;

use serde_json::Value;

/// Text that is safe between tags and inside quoted attributes. Control characters, which models do emit, and marks that
/// turn the direction of text, are spelled out instead of reaching the page.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\u{1F}' | '\u{7F}'..='\u{9F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// All parts, one after the other.
pub(super) fn concat(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect()
}

/// At most `limit` characters, and how many were left out.
pub(super) fn shorten(text: &str, limit: usize) -> (&str, usize) {
    match text.char_indices().nth(limit) {
        Some((end, _)) => (&text[..end], text[end..].chars().count()),
        None => (text, 0),
    }
}

/// A number with about four significant digits: `0.1234`, `12.3`, `8,412`, `1e-5`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e7).contains(&size) {
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trim(digits));
    }
    if size >= 1000.0 {
        return thousands(value.round());
    }
    let decimals = 3 - size.log10().floor() as i32;
    trim(&format!("{value:.*}", decimals.clamp(1, 6) as usize)).to_owned()
}

fn trim(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// A whole number with commas.
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    if value < 0.0 { format!("\u{2212}{out}") } else { out }
}

/// `1 step`, `2,000 steps`.
pub(super) fn count(n: f64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n), if n == 1.0 { "" } else { "s" })
}

/// `42.1%`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// With a sign: `+4.2`, `−4.2`, `0.0`.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let zero = text.chars().all(|c| c == '0' || c == '.');
    match () {
        () if zero => text,
        () if value < 0.0 => format!("\u{2212}{text}"),
        () => format!("+{text}"),
    }
}

/// `4.2 s`, `3 min 20 s`, `1 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A JSON scalar as text; nothing for null, lists and tables.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_inert() {
        assert_eq!(escape("<a b='\"&"), "&lt;a b=&#39;&quot;&amp;");
        assert_eq!(escape("a\0b\x1b[1m\n\u{202e}c"), "a\\u{0}b\\u{1b}[1m\n\\u{202e}c");
    }

    #[test]
    fn numbers_read_well() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.12345, "0.1235"),
            (12.345, "12.35"),
            (-2.5, "-2.5"),
            (8412.4, "8,412"),
            (1e-5, "1e-5"),
            (1.25e-5, "1.25e-5"),
            (5e-4, "0.0005"),
            (3.0e9, "3e9"),
            (0.002, "0.002"),
            (999.95, "1000"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            (signed(0.04, 1), signed(-0.01, 1), signed(-3.25, 1)),
            ("0.0".into(), "0.0".into(), "\u{2212}3.2".into())
        );
        assert_eq!(
            (duration(5.25), duration(200.0), duration(3900.0)),
            ("5.2 s".into(), "3 min 20 s".into(), "1 h 5 min".into())
        );
        assert_eq!((count(1.0, "step"), count(1234.0, "step")), ("1 step".into(), "1,234 steps".into()));
    }

    #[test]
    fn shortening_counts_characters() {
        assert_eq!(shorten("ąęó", 2), ("ąę", 1));
        assert_eq!(shorten("ab", 2), ("ab", 0));
    }
}
