//! Numbers as people and models write them.
//!
//! Read are: signs (also U+2212), thousands commas, decimals, `1.5e3`, `1.5 x 10^3`, fractions `3/4` and mixed numbers
//! `1 1/2`, LaTeX `\frac{3}{4}`, a currency sign before and a percent sign after. A digit that follows a letter (`cm2`,
//! `x1`) is part of a name, not a number. A minus between two operands (`10-4`) is an operator, not a sign.

/// A number read from text: exact where it fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number {
    value: Value,
    /// A percent sign followed.
    percent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    /// `num / den`, `den > 0`.
    Ratio { num: i128, den: i128 },
    /// Too long for a ratio.
    Float(f64),
}

/// Exponents and digit counts above this are kept as floats, so that products of two ratios rarely overflow.
const EXACT_DIGITS: usize = 18;

impl Number {
    /// Same value? With `tolerance` 0 exactly; else `|a - b| <= tolerance * max(1, |gold|)`. A percentage equals both its
    /// number and its hundredth (`50%` is 50 and 0.5), because texts and answer keys drop the sign freely.
    pub(crate) fn equals(self, gold: Self, tolerance: f64) -> bool {
        if self.value.near(gold.value, tolerance) {
            return true;
        }
        match (self.percent, gold.percent) {
            (true, false) => self.value.hundredth().near(gold.value, tolerance),
            (false, true) => self.value.near(gold.value.hundredth(), tolerance),
            _ => false,
        }
    }
}

impl Number {
    /// The number in one spelling, equal for equal values (a percentage keeps its sign).
    pub(crate) fn spelling(self) -> String {
        let value = match self.value {
            Value::Ratio { num, den } => {
                let divisor = gcd(num.unsigned_abs(), den.unsigned_abs()).max(1).cast_signed();
                match (num / divisor, den / divisor) {
                    (num, 1) => num.to_string(),
                    (num, den) => format!("{num}/{den}"),
                }
            }
            Value::Float(value) => format!("{value:e}"),
        };
        if self.percent { value + "%" } else { value }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Value {
    fn near(self, gold: Self, tolerance: f64) -> bool {
        let (a, b) = (self.float(), gold.float());
        if tolerance > 0.0 && (a - b).abs() <= tolerance * b.abs().max(1.0) {
            return true;
        }
        match (self, gold) {
            (Self::Ratio { num: p, den: q }, Self::Ratio { num: r, den: s }) => {
                match (p.checked_mul(s), r.checked_mul(q)) {
                    (Some(left), Some(right)) => left == right,
                    _ => a == b,
                }
            }
            _ => a.is_finite() && a == b,
        }
    }

    fn hundredth(self) -> Self {
        match self {
            Self::Ratio { num, den } => Self::Ratio { num, den: den * 100 },
            Self::Float(value) => Self::Float(value / 100.0),
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Ratio { num, den } => num as f64 / den as f64,
            Self::Float(value) => value,
        }
    }

    fn negated(self) -> Self {
        match self {
            Self::Ratio { num, den } => Self::Ratio { num: -num, den },
            Self::Float(value) => Self::Float(-value),
        }
    }

    /// From the digits before and after the point and a power of ten.
    fn decimal(whole: &str, fraction: &str, exponent: i64) -> Self {
        let whole = whole.trim_start_matches('0');
        let scale = exponent - fraction.len() as i64;
        if whole.len() + fraction.len() + scale.unsigned_abs() as usize <= EXACT_DIGITS {
            let digits = format!("{whole}{fraction}");
            let num: i128 = if digits.is_empty() { 0 } else { digits.parse().unwrap_or_default() };
            let power = 10_i128.pow(scale.unsigned_abs() as u32);
            return if scale < 0 { Self::Ratio { num, den: power } } else { Self::Ratio { num: num * power, den: 1 } };
        }
        Self::Float(format!("0{whole}.{fraction}0e{exponent}").parse().unwrap_or(f64::INFINITY))
    }

    /// `self / other`, if there is such a number.
    fn over(self, other: Self) -> Option<Self> {
        match (self, other) {
            (_, Self::Ratio { num: 0, .. }) => None,
            (Self::Ratio { num: p, den: q }, Self::Ratio { num: r, den: s }) => {
                Some(match (p.checked_mul(s), q.checked_mul(r)) {
                    (Some(num), Some(den)) => Self::Ratio { num, den },
                    _ => Self::Float(self.float() / other.float()),
                })
            }
            _ => Some(Self::Float(self.float() / other.float())),
        }
    }

    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ratio { num: p, den: 1 }, Self::Ratio { num: r, den: s }) => {
                match p.checked_mul(s).and_then(|ps| ps.checked_add(r)) {
                    Some(num) => Self::Ratio { num, den: s },
                    None => Self::Float(self.float() + other.float()),
                }
            }
            _ => Self::Float(self.float() + other.float()),
        }
    }
}

/// The first number in the text.
pub(crate) fn first_number(text: &str) -> Option<Number> {
    numbers(text).next()
}

/// The last number in the text.
pub(crate) fn last_number(text: &str) -> Option<Number> {
    numbers(text).last()
}

/// Every number in the text, in order.
pub(crate) fn numbers(text: &str) -> impl Iterator<Item = Number> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let (found, next) = scan(text, at);
            at = next;
            if found.is_some() {
                return found;
            }
        }
        None
    })
}

/// Looks at one place: a number that begins there, and where to look next.
fn scan(text: &str, at: usize) -> (Option<Number>, usize) {
    let bytes = text.as_bytes();
    if bytes[at] == b'\\' {
        return latex_fraction(text, at).unwrap_or((None, at + 1));
    }
    let starts = digit(bytes, at) || (bytes[at] == b'.' && digit(bytes, at + 1) && (at == 0 || !digit(bytes, at - 1)));
    if !starts {
        return (None, at + 1);
    }
    if at > 0 && text[..at].ends_with(char::is_alphabetic) {
        return (None, decimal(bytes, at).1);
    }
    let (value, end) = quantity(text, at);
    let (percent, end) = percent_sign(bytes, end);
    let value = if negative(&text[..at]) { value.negated() } else { value };
    (Some(Number { value, percent }), end)
}

/// A decimal, then perhaps `/den` or a fraction that makes it a mixed number.
fn quantity(text: &str, at: usize) -> (Value, usize) {
    let bytes = text.as_bytes();
    let (value, end) = decimal(bytes, at);
    if bytes.get(end) == Some(&b'/') && digit(bytes, end + 1) {
        let (den, after) = decimal(bytes, end + 1);
        return value.over(den).map_or((value, end), |ratio| (ratio, after));
    }
    if bytes.get(end) == Some(&b' ') && end - at == run(bytes, at) {
        return mixed(bytes, end + 1).map_or((value, end), |(part, after)| (value.plus(part), after));
    }
    (value, end)
}

/// The fraction of a mixed number: `1/2`, smaller than one and whole in both parts.
fn mixed(bytes: &[u8], at: usize) -> Option<(Value, usize)> {
    let slash = at + run(bytes, at);
    let end = slash + 1 + run(bytes, slash + 1);
    if slash == at || bytes.get(slash) != Some(&b'/') || end == slash + 1 || bytes.get(end) == Some(&b'/') {
        return None;
    }
    let part = decimal_digits(bytes, at, slash).over(decimal_digits(bytes, slash + 1, end))?;
    (part.float() < 1.0).then_some((part, end))
}

fn decimal_digits(bytes: &[u8], from: usize, to: usize) -> Value {
    Value::decimal(&ascii(&bytes[from..to]), "", 0)
}

/// Digits with thousands commas, a fraction and an exponent, starting at a digit or a point.
fn decimal(bytes: &[u8], at: usize) -> (Value, usize) {
    let mut end = at + run(bytes, at);
    if (1..=3).contains(&(end - at)) {
        while bytes.get(end) == Some(&b',') && run(bytes, end + 1) == 3 {
            end += 4;
        }
    }
    let whole = ascii(&bytes[at..end]);
    let mut fraction = String::new();
    if bytes.get(end) == Some(&b'.') && digit(bytes, end + 1) {
        let stop = end + 1 + run(bytes, end + 1);
        fraction = ascii(&bytes[end + 1..stop]);
        end = stop;
    }
    let (exponent, end) = exponent(bytes, end);
    (Value::decimal(&whole, &fraction, exponent), end)
}

/// `e3`, `E-3`, ` x 10^3`, `*10^{-3}`, ` \times 10^3`; (0, at) if there is none.
fn exponent(bytes: &[u8], at: usize) -> (i64, usize) {
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let end = at + 1 + sign + run(bytes, at + 1 + sign);
        let letter_follows = bytes.get(end).is_some_and(u8::is_ascii_alphabetic);
        if end > at + 1 + sign && !letter_follows {
            return (signed(&bytes[at + 1..end]), end);
        }
    }
    power_of_ten(bytes, at).unwrap_or((0, at))
}

fn power_of_ten(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let at = spaces(bytes, at);
    let times = [b"\\times".as_slice(), "\u{d7}".as_bytes(), b"x", b"*"];
    let sign = times.into_iter().find(|sign| bytes[at.min(bytes.len())..].starts_with(sign))?;
    let at = spaces(bytes, at + sign.len());
    let rest = bytes.get(at..)?.strip_prefix(b"10^")?;
    let brace = usize::from(rest.first() == Some(&b'{'));
    let minus = usize::from(rest.get(brace) == Some(&b'-'));
    let digits = run(rest, brace + minus);
    if digits == 0 || (brace == 1 && rest.get(brace + minus + digits) != Some(&b'}')) {
        return None;
    }
    Some((signed(&rest[brace..brace + minus + digits]), at + 3 + 2 * brace + minus + digits))
}

/// An exponent; beyond what a float can hold it is cut off, not wrapped.
fn signed(text: &[u8]) -> i64 {
    let minus = text.first() == Some(&b'-');
    let digits = ascii(text).trim_start_matches(['+', '-']).to_owned();
    let size = digits.parse::<i64>().unwrap_or(9999).min(9999);
    if minus { -size } else { size }
}

/// `\frac{3}{4}`, `\dfrac{3}{4}`, `\tfrac{3}{4}`.
fn latex_fraction(text: &str, at: usize) -> Option<(Option<Number>, usize)> {
    let bytes = text.as_bytes();
    let head = ["\\frac{", "\\dfrac{", "\\tfrac{"].into_iter().find(|head| text[at..].starts_with(head))?;
    let top = at + head.len();
    let middle = top + run(bytes, top);
    let bottom = middle + 2;
    let end = bottom + run(bytes, bottom);
    if middle == top || !text[middle..].starts_with("}{") || end == bottom || bytes.get(end) != Some(&b'}') {
        return None;
    }
    let value = decimal_digits(bytes, top, middle).over(decimal_digits(bytes, bottom, end))?;
    let value = if negative(&text[..at]) { value.negated() } else { value };
    Some((Some(Number { value, percent: false }), end + 1))
}

/// Whether the text before a number ends in its minus sign, with a currency sign between or before.
fn negative(before: &str) -> bool {
    const CURRENCY: [char; 4] = ['$', '\u{20ac}', '\u{a3}', '\u{a5}'];
    let before = before.trim_end_matches(CURRENCY).trim_end_matches('\\');
    let Some(left) = before.strip_suffix('-').or_else(|| before.strip_suffix('\u{2212}')) else {
        return false;
    };
    !left.ends_with(|c: char| c.is_alphanumeric() || c == ')' || c == ']')
}

fn percent_sign(bytes: &[u8], at: usize) -> (bool, usize) {
    let mark = spaces(bytes, at);
    let mark = mark + usize::from(bytes.get(mark) == Some(&b'\\'));
    if bytes.get(mark) == Some(&b'%') { (true, mark + 1) } else { (false, at) }
}

fn spaces(bytes: &[u8], at: usize) -> usize {
    at + usize::from(bytes.get(at) == Some(&b' '))
}

fn digit(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(u8::is_ascii_digit)
}

/// Length of the run of digits at a place.
fn run(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..).map_or(0, |rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

/// ASCII bytes as text, without commas.
fn ascii(bytes: &[u8]) -> String {
    bytes.iter().filter(|&&byte| byte != b',').map(|&byte| byte as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[&str]) {
        let found: Vec<Number> = numbers(text).collect();
        let expected: Vec<Number> = expected.iter().map(|one| plain(one)).collect();
        assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
        for (a, b) in found.iter().zip(&expected) {
            assert!(Number { percent: false, ..*a }.equals(*b, 0.0), "{text}: {found:?}, expected {expected:?}");
        }
    }

    /// `p/q` or a whole number, read by other code than the one under test.
    fn plain(text: &str) -> Number {
        let (num, den) = text.split_once('/').unwrap_or((text, "1"));
        Number { value: Value::Ratio { num: num.parse().unwrap(), den: den.parse().unwrap() }, percent: false }
    }

    #[test]
    fn reads_what_people_write() {
        check("72", &["72"]);
        check("The answer is 5.", &["5"]);
        check("It costs $1,234,567.50!", &["123456750/100"]);
        check("1,2 and 1,2345 and 12,345", &["1", "2", "1", "2345", "12345"]);
        check("x = -4, 10-4, (3)-4, 5 -6", &["-4", "10", "4", "3", "4", "5", "-6"]);
        check("-$4 and $-4 and \u{2212}4", &["-4", "-4", "-4"]);
        check(".5 0.25 007 v1.2.3", &["1/2", "1/4", "7", "3"]);
        check("3/4 cup, 1 1/2 cups, 2 5/2, 1/0, 1/2/3", &["3/4", "3/2", "2", "5/2", "1", "0", "1/2", "3"]);
        check(
            "1.5e3 2E-2 1.5 x 10^3 2*10^{-1} 3 \\times 10^2 3\u{d7}10^2",
            &["1500", "1/50", "1500", "1/5", "300", "300"],
        );
        check("-\\frac{3}{4} \\dfrac{1}{2} \\boxed{42} \\frac{a}{2}", &["-3/4", "1/2", "42", "2"]);
        check("24 cm2, H2O, 3rd, 12:30", &["24", "3", "12", "30"]);
        check("\u{663}\u{664} caf\u{e9}5 \u{ff15}", &[]);
        check("5 apples", &["5"]);
        check("", &[]);
    }

    #[test]
    fn percentages_equal_both_readings() {
        let number = |text| last_number(text).unwrap();
        assert!(number("50%").equals(number("50"), 0.0));
        assert!(number("50 \\%").equals(number("0.5"), 0.0));
        assert!(number("0.5").equals(number("50%"), 0.0));
        assert!(!number("50%").equals(number("0.5%"), 0.0));
        assert!(!number("50").equals(number("0.5"), 0.0));
    }

    #[test]
    fn tolerance_is_relative_above_one() {
        let number = |text| last_number(text).unwrap();
        assert!(number("0.333").equals(number("1/3"), 1e-3));
        assert!(!number("0.333").equals(number("1/3"), 0.0));
        assert!(number("1001").equals(number("1000"), 1e-3));
        assert!(!number("1001").equals(number("1000"), 1e-4));
        assert!(!number("109200001").equals(number("109200000"), 0.0));
    }

    #[test]
    fn long_numbers_stay_numbers() {
        let nines = "9".repeat(400);
        assert!(!last_number(&nines).unwrap().equals(last_number("9").unwrap(), 0.0));
        assert!(last_number("1e30").unwrap().equals(last_number(&format!("1{}", "0".repeat(30))).unwrap(), 0.0));
        assert!(last_number("1e99999999999999999999").is_some());
        assert!(last_number("1 x 10^99999").is_some());
        assert!(!last_number("123456789012345678").unwrap().equals(last_number("123456789012345679").unwrap(), 0.0));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = numbers(&text).count();
        }

        #[test]
        fn never_panics_near_numbers(text in "[-+0-9.,/%$eExX*^{} \\\\a\u{2212}\u{d7}]{0,24}|(\\\\frac\\{|10\\^|1/2| |,|9){0,12}") {
            let _ = numbers(&text).count();
        }

        #[test]
        fn integers_round_trip_with_commas(value in -1_000_000_000_000_i64..1_000_000_000_000) {
            let digits = value.unsigned_abs().to_string();
            let mut grouped = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 { grouped.push(','); }
                grouped.push(digit);
            }
            let sign = if value < 0 { "-" } else { "" };
            let read = last_number(&format!("so it is {sign}${grouped}.")).unwrap();
            prop_assert!(read.equals(plain(&value.to_string()), 0.0));
        }
    }
}
