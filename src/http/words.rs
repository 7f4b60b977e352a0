//! How times, lengths of time and sizes are said to people, on the page and on the command line.

use crate::domain::Timestamp;

/// How long ago `time` was, with its one largest unit, such as `5m`; `in 5m` where it lies ahead.
#[must_use]
pub fn age(time: Timestamp, now: Timestamp) -> String {
    if time > now { format!("in {}", rough(time.since(now).as_secs())) } else { rough(now.since(time).as_secs()) }
}

/// A length of time with its one largest unit, such as `5m`.
#[must_use]
pub fn rough(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length of time with its two largest units, such as `1h 20m` or `350ms`.
#[must_use]
pub fn duration_of(milliseconds: i64) -> String {
    let milliseconds = u64::try_from(milliseconds).unwrap_or(0);
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    match seconds {
        0 => format!("{rest}ms"),
        1..60 => format!("{seconds}.{}s", rest / 100),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A number with its thousands apart, by narrow spaces that don't break.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) && digits.len() > 4 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// What was counted, with a `+` where there may be more.
#[must_use]
pub fn counted(number: u64, or_more: bool) -> String {
    let number = thousands(number);
    if or_more { format!("{number}+") } else { number }
}

/// An amount of memory, such as `18 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut tenths = bytes * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 { format!("{}.{} {name}", tenths / 10, tenths % 10) } else { format!("{} {name}", tenths / 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_roughly() {
        let at = Timestamp::from_unix_millis;
        let ages = [(0, 59_000), (0, 61_000), (0, 7_200_000), (0, 400_000_000), (90_000, 0)];
        assert_eq!(ages.map(|(time, now)| age(at(time), at(now))), ["59s", "1m", "2h", "4d", "in 1m"]);
        assert_eq!(
            [7, 1_550, 61_000, 4_800_000, 176_400_000].map(duration_of),
            ["7ms", "1.5s", "1m 1s", "1h 20m", "2d 1h"]
        );
    }

    #[test]
    fn numbers_and_sizes_can_be_read() {
        assert_eq!(
            (thousands(7), thousands(1234), thousands(1_234_567)),
            ("7".into(), "1234".into(), "1\u{202f}234\u{202f}567".into())
        );
        assert_eq!(
            (size(12), size(1536), size(18 << 20), size(3 << 40)),
            ("12 B".into(), "1.5 KiB".into(), "18 MiB".into(), "3.0 TiB".into())
        );
    }
}
