//! What the columns of a session's row mean: a user or group as text, and the time at which a session ends. Pure.

use std::time::{Duration, SystemTime};

use mysql_async::Value;

/// Midnight before the first day of the year 10000, as a Unix time: the end of what DATETIME can say. A number
/// beyond it counts something else than seconds.
const END_OF_TIME: f64 = 253_402_300_800.0;

/// An id or name: text as it stands, a number as its decimal text; `None` for NULL and for the empty text.
pub(super) fn text(value: Value) -> Result<Option<String>, &'static str> {
    let text = match value {
        Value::NULL => return Ok(None),
        Value::Bytes(bytes) => String::from_utf8(bytes).map_err(|_| "is not text in UTF-8")?,
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Date(..) | Value::Time(..) => return Err("is a date or time, not an id"),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// When a session ends: a Unix time as a number or numeric text, or a date and time in UTC; `None` (never) for NULL.
pub(super) fn expiry(value: Value) -> Result<Option<SystemTime>, &'static str> {
    let seconds = match value {
        Value::NULL => return Ok(None),
        // The database counts in 64 bits and time in f64, which is exact far beyond the year 9999.
        Value::Int(number) => number as f64,
        Value::UInt(number) => number as f64,
        Value::Float(number) => number.into(),
        Value::Double(number) => number,
        Value::Bytes(bytes) => str::from_utf8(&bytes).ok().map(str::trim).and_then(written).ok_or(UNFIT)?,
        Value::Date(year, month, day, hour, minute, second, micros) => {
            let date = [year.into(), month.into(), day.into()];
            instant(date, [hour.into(), minute.into(), second.into()]).ok_or(UNFIT)? + f64::from(micros) / 1e6
        }
        Value::Time(..) => return Err(UNFIT),
    };
    if seconds.is_nan() {
        return Err(UNFIT);
    }
    if seconds >= END_OF_TIME {
        return Err("lies beyond the year 9999: give seconds, not milliseconds, and NULL for no end");
    }
    Ok(Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds.max(0.0))))
}

const UNFIT: &str = "is neither a Unix time nor a date and time";

/// A Unix time, or a date and time as the database writes it, which is what an expression like COALESCE makes of
/// a DATETIME.
fn written(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let (time, fraction) = match time.trim_end_matches('Z').split_once('.') {
        Some((time, fraction)) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => {
            (time, format!("0.{fraction}").parse().ok()?)
        }
        Some(_) => return None,
        None => (time.trim_end_matches('Z'), 0.0),
    };
    Some(instant(three(date, '-')?, three(time, ':')?)? + fraction)
}

/// Three numbers with a separator between.
fn three(text: &str, separator: char) -> Option<[u32; 3]> {
    let mut numbers = text.split(separator).map(|number| number.parse().ok());
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

/// The Unix time of a date and time in UTC; `None` where there is no such day, as with MySQL's zero date.
fn instant([year, month, day]: [u32; 3], [hour, minute, second]: [u32; 3]) -> Option<f64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    };
    let exists = year <= 9999 && (1..=12).contains(&month) && (1..=length).contains(&day);
    if !exists || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Howard Hinnant's days_from_civil: years begin in March, so that the leap day is the last one.
    let [year, month, day] = [year, month, day].map(i64::from);
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400) as f64 + f64::from(hour * 3_600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Value {
        Value::Bytes(text.into())
    }

    /// The expiry in milliseconds since 1970.
    fn millis(value: Value) -> Option<u128> {
        expiry(value).unwrap().map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis())
    }

    #[test]
    fn ids_are_text_and_numbers_their_decimal_text() {
        assert_eq!(text(bytes("alice")), Ok(Some("alice".into())));
        assert_eq!(text(Value::Int(-7)), Ok(Some("-7".into())));
        assert_eq!(text(Value::UInt(u64::MAX)), Ok(Some("18446744073709551615".into())));
        assert_eq!(text(Value::Double(7.0)), Ok(Some("7".into())));
        assert_eq!(text(Value::Int(0)), Ok(Some("0".into())));
        assert_eq!(text(Value::NULL), Ok(None));
        assert_eq!(text(bytes("")), Ok(None));
        assert!(text(Value::Bytes(vec![0xff])).is_err());
        assert!(text(Value::Date(2026, 1, 1, 0, 0, 0, 0)).is_err());
    }

    #[test]
    fn an_expiry_may_be_a_unix_time() {
        assert_eq!(millis(Value::Int(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(millis(Value::UInt(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(millis(Value::Double(1_700_000_000.5)), Some(1_700_000_000_500));
        assert_eq!(millis(bytes(" 1700000000 ")), Some(1_700_000_000_000));
        assert_eq!(millis(bytes("1700000000.25")), Some(1_700_000_000_250));
        assert_eq!(millis(Value::Int(0)), Some(0));
        assert_eq!(millis(Value::Int(-1)), Some(0));
        assert_eq!(millis(Value::NULL), None);
    }

    #[test]
    fn an_expiry_may_be_a_date_and_time_in_utc() {
        assert_eq!(millis(Value::Date(1970, 1, 1, 0, 0, 0, 0)), Some(0));
        assert_eq!(millis(Value::Date(2000, 2, 29, 12, 34, 56, 0)), Some(951_827_696_000));
        assert_eq!(millis(Value::Date(2026, 3, 1, 0, 0, 0, 500_000)), Some(1_772_323_200_500));
        assert_eq!(millis(Value::Date(9999, 12, 31, 23, 59, 59, 0)), Some(253_402_300_799_000));
        assert_eq!(millis(bytes("2000-02-29 12:34:56")), Some(951_827_696_000));
        assert_eq!(millis(bytes("2000-02-29T12:34:56.250000Z")), Some(951_827_696_250));
        assert_eq!(millis(Value::Date(1969, 12, 31, 0, 0, 0, 0)), Some(0));
    }

    #[test]
    fn anything_else_is_no_expiry() {
        for value in [
            Value::Date(0, 0, 0, 0, 0, 0, 0),
            Value::Date(2025, 2, 29, 0, 0, 0, 0),
            Value::Time(false, 0, 1, 0, 0, 0),
            bytes(""),
            bytes("soon"),
            bytes("NaN"),
            bytes("2026-03-01"),
            bytes("2026-03-01 24:00:00"),
            bytes("2026-03-01 12:00"),
            bytes("2026-03-01 12:00:00+02"),
            Value::Bytes(vec![0xff]),
            Value::Double(f64::INFINITY),
            Value::Int(1_700_000_000_000),
        ] {
            assert!(expiry(value.clone()).is_err(), "{value:?}");
        }
    }
}
