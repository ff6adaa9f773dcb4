//! Reads and shows values as people write them in flags, variables and files: text, switches, counts, sizes and times.

use std::time::Duration;

use ws_cluster::Dialect;

use crate::{Failure, Outcome};

/// Maximum value of a limit that has a flag. A larger value is a mistake.
pub(crate) const LARGEST: u64 = 1 << 30;

/// Units of time, in milliseconds.
const TIMES: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000)];
/// Units of size, in bytes.
const SIZES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a text. White space around it, such as a line break at the end of a secret, is removed.
pub(crate) fn text(text: &str) -> Result<String, &'static str> {
    Ok(text.trim().to_owned())
}

pub(crate) fn dialect(text: &str) -> Result<Dialect, ws_cluster::ParseDialectError> {
    text.trim().parse()
}

/// Reads the value of a switch in a variable or a file. On the command line a switch has no value.
pub(crate) fn switch(text: &str) -> Result<bool, &'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use 1, true, yes or on, or 0, false, no or off"),
    }
}

pub(crate) fn count<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.trim().parse().ok().filter(|number: &u64| *number > 0);
    let fits = |number: u64| T::try_from(number).ok().filter(|_| number <= LARGEST);
    number.and_then(fits).ok_or_else(|| format!("use a whole number from 1 to {LARGEST}"))
}

/// Reads a number per second; 0 means no limit.
pub(crate) fn rate(text: &str) -> Result<u32, String> {
    if text.trim() == "0" { Ok(0) } else { count(text) }
}

/// Reads a number of bytes, or a number with one of the units K, M and G, which are powers of 1024.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    size_up_to(text, LARGEST)
}

/// Reads a size like [`size`], with another maximum.
pub(crate) fn size_up_to(text: &str, largest: u64) -> Result<usize, String> {
    let (number, unit) = split(text);
    let unit = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => Some(1),
        "K" | "KB" | "KIB" => Some(1 << 10),
        "M" | "MB" | "MIB" => Some(1 << 20),
        "G" | "GB" | "GIB" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.filter(|number| *number > 0).zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    let bytes = bytes.filter(|bytes| *bytes <= largest).and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("use a number of bytes from 1 to {largest}, or one with a unit, as 64K or 1M"))
}

/// Reads a number of seconds, or a whole number with one of the units ms, s, min and h; at most a year.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    let (number, unit) = split(text);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" => Some(1_000),
        "m" => Some(60_000),
        unit => TIMES.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size),
    };
    let time = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit)).map(Duration::from_millis);
    let time = time.filter(|time| *time <= LONGEST);
    time.ok_or_else(|| "use a whole number of seconds, or one with a unit: 500ms, 25s, 5min or 1h".to_owned())
}

/// Splits a text into a number and the unit that follows it.
fn split(text: &str) -> (Option<u64>, &str) {
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    (digits.trim_end().parse().ok(), &text[digits.len()..])
}

/// Shows a size in its largest unit that leaves a whole number, as `size` reads it.
pub(crate) fn show_size(bytes: u64) -> String {
    match SIZES.iter().rev().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

/// Shows a time in its largest unit that leaves a whole number, as `duration` reads it.
pub(crate) fn show_duration(time: Duration) -> String {
    let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match TIMES.iter().rev().find(|(_, unit)| time >= *unit && time.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", time / unit),
        None => format!("{time}s"),
    }
}

/// Returns the items of a flag that may be repeated, or have several values separated by commas. A comma may follow the
/// last item.
pub(crate) fn items(given: &[String], flag: &str) -> Outcome<Vec<String>> {
    let split = |text: &String| {
        let text = text.trim();
        let text = text.strip_suffix(',').unwrap_or(text);
        text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>()
    };
    let items: Vec<_> = given.iter().flat_map(split).collect();
    match items.iter().any(String::is_empty) {
        true => Err(Failure::setup(format!("{flag} has an empty item: give a value, or leave the flag out"))),
        false => Ok(items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!(size("65536"), Ok(65_536));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size(" 1 MiB\n"), Ok(1 << 20));
        for wrong in ["", "0", "K", "-1", "1T", "1.5M", "2G", "18446744073709551616", "0x10", "1 0"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(count::<u32>("7"), Ok(7));
        for wrong in ["", "0", "-1", "1e3", "4294967296", "7K"] {
            assert!(count::<u32>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units_and_limits() {
        for (text, milliseconds) in [
            ("10", 10_000),
            ("0", 0),
            ("500ms", 500),
            (" 25 s\n", 25_000),
            ("5min", 300_000),
            ("5m", 300_000),
            ("1H", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in ["", "s", "-1", "1.5s", "1d", "18446744073709551615", "9999999h", "1 2"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for bytes in [1, 1_000, 1 << 10, 65_536, 3 << 20, 1 << 30] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes as usize));
        }
        assert_eq!(show_size(64 << 10), "64 KiB");
        for milliseconds in [0, 1, 500, 1_000, 90_000, 300_000, 7_200_000] {
            let time = Duration::from_millis(milliseconds);
            assert_eq!(duration(&show_duration(time)), Ok(time));
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn items_are_trimmed_and_the_last_comma_does_not_count() {
        let items = |given: &[&str]| {
            items(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), "--key").map_err(|why| why.text)
        };
        assert_eq!(items(&["a, b ,c,\n", "d"]).unwrap(), ["a", "b", "c", "d"]);
        assert_eq!(items(&[]).unwrap(), [""; 0]);
        for wrong in ["", ",", "a,,b", ",a", "a,,", " "] {
            assert!(items(&[wrong]).unwrap_err().contains("--key has an empty item"), "{wrong:?}");
        }
    }
}
