//! Addition, subtraction, comparison, remainders, and picking numbers by their sum.

use super::Problem;
use super::family::Size;
use crate::Form;
use crate::draw::Draw;

/// A number of exactly so many digits; of one digit also 0.
fn number(draw: &mut Draw, digits: usize) -> u64 {
    let low = if digits == 1 { 0 } else { 10_u64.pow(digits as u32 - 1) };
    draw.between(low, 10_u64.pow(digits as u32) - 1)
}

fn two_numbers(draw: &mut Draw, size: Size) -> (u64, u64) {
    let (long, short) = (size.draw(draw), size.draw_extra(draw));
    (number(draw, long), number(draw, short))
}

/// Digits from the right.
fn columns(mut number: u64) -> Vec<u64> {
    let mut digits = vec![number % 10];
    while number >= 10 {
        number /= 10;
        digits.push(number % 10);
    }
    digits
}

pub(super) fn addition(draw: &mut Draw, size: Size) -> Problem {
    let (mut a, mut b) = two_numbers(draw, size);
    if draw.one_in(2) {
        std::mem::swap(&mut a, &mut b);
    }
    Problem {
        prompt: format!("{a}+{b}="),
        canonical: format!("{}+{}", a.min(b), a.max(b)),
        answer: (a + b).to_string(),
        work: column_sums(a, b),
        form: Form::Integer {},
    }
}

fn column_sums(a: u64, b: u64) -> String {
    let (a, b) = (columns(a), columns(b));
    let mut carry = 0;
    let mut steps = Vec::new();
    for place in 0..a.len().max(b.len()) {
        let (x, y) = (a.get(place).copied().unwrap_or(0), b.get(place).copied().unwrap_or(0));
        let sum = x + y + carry;
        steps.push(if carry == 0 { format!("{x}+{y}={sum}") } else { format!("{x}+{y}+{carry}={sum}") });
        carry = sum / 10;
    }
    steps.join(" ")
}

pub(super) fn subtraction(draw: &mut Draw, size: Size) -> Problem {
    let (a, b) = two_numbers(draw, size);
    let (a, b) = (a.max(b), a.min(b));
    Problem {
        prompt: format!("{a}-{b}="),
        canonical: format!("{a}-{b}"),
        answer: (a - b).to_string(),
        work: column_differences(a, b),
        form: Form::Integer {},
    }
}

fn column_differences(a: u64, b: u64) -> String {
    let (a, b) = (columns(a), columns(b));
    let mut borrowed = 0;
    let mut steps = Vec::new();
    for (place, &digit) in a.iter().enumerate() {
        let below = b.get(place).copied().unwrap_or(0);
        let needs = digit < below + borrowed;
        let above = if needs { digit + 10 - borrowed } else { digit - borrowed };
        steps.push(format!("{above}-{below}={}", above - below));
        borrowed = u64::from(needs);
    }
    steps.join(" ")
}

pub(super) fn comparison(draw: &mut Draw, size: Size) -> Problem {
    let (digits, equal) = (size.draw(draw), size.draw_extra(draw));
    let a = number(draw, digits);
    let tail = 10_u64.pow((digits - equal) as u32);
    let b = loop {
        let low = if equal == 0 { number(draw, digits) } else { a / tail * tail + draw.below(tail) };
        if low != a {
            break low;
        }
    };
    Problem {
        prompt: format!("larger: {a} or {b}?"),
        canonical: format!("{} {}", a.min(b), a.max(b)),
        answer: a.max(b).to_string(),
        work: digit_comparison(a, b),
        form: Form::Integer {},
    }
}

fn digit_comparison(a: u64, b: u64) -> String {
    let mut steps = Vec::new();
    for (x, y) in columns(a).into_iter().rev().zip(columns(b).into_iter().rev()) {
        let sign = match x.cmp(&y) {
            std::cmp::Ordering::Less => '<',
            std::cmp::Ordering::Equal => '=',
            std::cmp::Ordering::Greater => '>',
        };
        steps.push(format!("{x}{sign}{y}"));
        if x != y {
            break;
        }
    }
    steps.join(" ")
}

pub(super) fn modular(draw: &mut Draw, size: Size) -> Problem {
    let (digits, divisor) = (size.draw(draw), size.draw_extra(draw) as u64);
    let dividend = number(draw, digits);
    Problem {
        prompt: format!("{dividend}%{divisor}="),
        canonical: format!("{dividend}%{divisor}"),
        answer: (dividend % divisor).to_string(),
        work: running_remainders(dividend, divisor),
        form: Form::Integer {},
    }
}

fn running_remainders(dividend: u64, divisor: u64) -> String {
    let mut rest = 0;
    let mut steps = Vec::new();
    for digit in columns(dividend).into_iter().rev() {
        let so_far = rest * 10 + digit;
        rest = so_far % divisor;
        steps.push(format!("{so_far}%{divisor}={rest}"));
    }
    steps.join(" ")
}

pub(super) fn picking(draw: &mut Draw, size: Size) -> Problem {
    let (amount, count) = (size.draw(draw), size.draw_extra(draw));
    let mut numbers: Vec<u64> = (1..=20).collect();
    draw.shuffle(&mut numbers);
    numbers.truncate(amount);
    let mut places: Vec<usize> = (0..amount).collect();
    draw.shuffle(&mut places);
    let sum = places[..count].iter().map(|&place| numbers[place]).sum();
    let (answer, work) = first_pick(&numbers, count, sum);
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    Problem {
        prompt: format!("pick {count} with sum {sum}: {}", join(&numbers, " ")),
        canonical: format!("{count} {sum} {}", join(&sorted, " ")),
        answer,
        work,
        form: Form::Pick { numbers, count, sum },
    }
}

/// Tries the choices in order of place; the numbers of the first that fits, and the sums up to it.
fn first_pick(numbers: &[u64], count: usize, sum: u64) -> (String, String) {
    let mut steps = Vec::new();
    let mut places: Vec<usize> = (0..count).collect();
    loop {
        let picked: Vec<u64> = places.iter().map(|&place| numbers[place]).collect();
        let total: u64 = picked.iter().sum();
        steps.push(format!("{}={total}", join(&picked, "+")));
        if total == sum || !next_choice(&mut places, numbers.len()) {
            return (join(&picked, " "), steps.join(" "));
        }
    }
}

/// The next choice of places in lexicographic order; false after the last.
fn next_choice(places: &mut [usize], n: usize) -> bool {
    let count = places.len();
    let Some(at) = (0..count).rev().find(|&at| places[at] < n - count + at) else {
        return false;
    };
    places[at] += 1;
    for later in at + 1..count {
        places[later] = places[later - 1] + 1;
    }
    true
}

fn join(numbers: &[u64], between: &str) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_steps() {
        assert_eq!(column_sums(37, 45), "7+5=12 3+4+1=8");
        assert_eq!(column_sums(995, 8), "5+8=13 9+0+1=10 9+0+1=10");
        assert_eq!(column_differences(82, 45), "12-5=7 7-4=3");
        assert_eq!(column_differences(100, 1), "10-1=9 9-0=9 0-0=0");
        assert_eq!(digit_comparison(371, 375), "3=3 7=7 1<5");
        assert_eq!(running_remainders(137, 5), "1%5=1 13%5=3 37%5=2");
        assert_eq!(first_pick(&[3, 9, 7, 5], 2, 12), ("3 9".into(), "3+9=12".into()));
        assert_eq!(first_pick(&[3, 8, 7, 5], 2, 12), ("7 5".into(), "3+8=11 3+7=10 3+5=8 8+7=15 8+5=13 7+5=12".into()));
    }
}
