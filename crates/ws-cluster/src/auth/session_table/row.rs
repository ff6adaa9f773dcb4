//! The meaning of the columns of a session's row: a user or group as text, and the time at which a session ends. Pure.

use std::time::SystemTime;

use mysql_async::Value;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, format_description::well_known::Rfc3339};

/// The end of the year 9999 as a Unix time, which is the end of DATETIME's range. A larger number is in another unit
/// than seconds.
const END_OF_SECONDS: f64 = 253_402_300_800.0;
/// From here on, DATETIME means "never": its last day.
const NEVER: f64 = END_OF_SECONDS - 86_400.0;
/// From here on, a number means "never" in any unit: the largest that BIGINT holds.
const LARGEST: f64 = 9_223_372_036_854_775_807.0;
/// Maximum size of an id or name, in bytes.
const MAX_SIZE: usize = 1_024;

/// Returns an id or name: text as it is, without the NULs that BINARY pads with, or the decimal text of a number.
/// Returns `None` for NULL and for the empty text.
pub(super) fn text(value: Value) -> Result<Option<String>, &'static str> {
    let text = match value {
        Value::NULL => return Ok(None),
        Value::Bytes(mut bytes) => {
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            String::from_utf8(bytes).map_err(|_| "is not text in UTF-8 (for a binary id, ask for its HEX)")?
        }
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Date(..) | Value::Time(..) => return Err("is a date or time, not an id"),
    };
    if text.len() > MAX_SIZE {
        return Err("is longer than 1024 bytes");
    }
    if text.contains(char::is_control) {
        return Err("has control characters (for a BIT, ask for it + 0)");
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Returns the time at which a session ends: a Unix time as a number or numeric text, or a date and time in UTC. `None`
/// means never.
pub(super) fn expiry(value: Value) -> Result<Option<SystemTime>, &'static str> {
    match value {
        Value::NULL => Ok(None),
        // The conversion to f64 is exact far beyond the year 9999.
        Value::Int(number) => Ok(from_unix(number as f64)),
        Value::UInt(number) => Ok(from_unix(number as f64)),
        Value::Float(number) => Ok(from_unix(number.into())),
        Value::Double(number) => Ok(from_unix(number)),
        Value::Bytes(bytes) => parse_text(str::from_utf8(&bytes).map_err(|_| UNFIT)?.trim_matches(is_padding)),
        Value::Date(year, month, day, hour, minute, second, micros) => {
            if (month, day) == (0, 0) {
                return Err(ZERO);
            }
            let date = Month::try_from(month).and_then(|month| Date::from_calendar_date(year.into(), month, day));
            let time = Time::from_hms_micro(hour, minute, second, micros);
            let (Ok(date), Ok(time)) = (date, time) else { return Err(UNFIT) };
            Ok(instant(PrimitiveDateTime::new(date, time).assume_utc()))
        }
        Value::Time(..) => Err("is a time of day without a date"),
    }
}

const UNFIT: &str = "is neither a Unix time nor a date and time";
const ZERO: &str = "is the zero date";

fn is_padding(char: char) -> bool {
    char.is_whitespace() || char == '\0'
}

/// Returns the time that a number means. The size shows the unit: a time in milliseconds, read as seconds, would lie
/// beyond the year 9999.
fn from_unix(number: f64) -> Option<SystemTime> {
    let unit = [1.0, 1e3, 1e6, 1e9].into_iter().find(|unit| number < END_OF_SECONDS * unit);
    let seconds = number / unit.filter(|_| number < LARGEST)?;
    // Times before 1970 have passed, as 1970 has.
    Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs_f64(seconds.max(0.0)))
}

fn instant(time: OffsetDateTime) -> Option<SystemTime> {
    ((time.unix_timestamp() as f64) < NEVER).then(|| time.max(OffsetDateTime::UNIX_EPOCH).into())
}

/// Parses a Unix time, or a date and time as the database writes it, which is what an expression such as COALESCE makes
/// of a DATETIME.
fn parse_text(text: &str) -> Result<Option<SystemTime>, &'static str> {
    // Rust also parses the words "infinity" and "NaN" as numbers.
    if text.contains(|char: char| char.is_ascii_digit())
        && !text.contains("inf")
        && let Ok(number) = text.parse()
    {
        return Ok(from_unix(number));
    }
    if text.starts_with("0000-00-00") {
        return Err(ZERO);
    }
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00:00"));
    let offset = if time.contains(['Z', 'z', '+', '-']) { "" } else { "Z" };
    let time = OffsetDateTime::parse(&format!("{date}T{time}{offset}"), &Rfc3339).map_err(|_| UNFIT)?;
    Ok(instant(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Value {
        Value::Bytes(text.into())
    }

    /// Returns the values that a column with these bytes may have.
    fn values(input: &[u8]) -> Vec<Value> {
        let mut number = [0; 8];
        number.iter_mut().zip(input).for_each(|(own, byte)| *own = *byte);
        let [a, b, c, d, e, f, g, h] = number;
        let micros = u32::from_be_bytes([e, f, g, h]);
        vec![
            Value::Bytes(input.to_vec()),
            Value::Int(i64::from_be_bytes(number)),
            Value::UInt(u64::from_be_bytes(number)),
            Value::Double(f64::from_be_bytes(number)),
            Value::Float(f32::from_be_bytes([a, b, c, d])),
            Value::Date(u16::from_be_bytes([a, b]), c, d, e, f, g, micros),
            Value::Time(a > 127, micros, b, c, d, micros),
        ]
    }

    #[test]
    fn a_hostile_row_has_a_meaning_or_is_refused() {
        let corpus: [&[u8]; 6] = [
            b"2026-03-01 12:34:56.250000",
            b"1700000000.5",
            b"9999-12-31T23:59:59Z",
            b"0000-00-00 00:00:00",
            b"ann\0\0\0",
            &[0xff; 8],
        ];
        crate::fuzz::search(&corpus, |input| {
            for value in values(input) {
                if let Ok(Some(id)) = text(value.clone())
                    && (id.is_empty() || id.contains(char::is_control))
                {
                    return Err(format!("{id:?} is no id"));
                }
                if let Ok(Some(at)) = expiry(value.clone())
                    && at.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.as_secs_f64() > LARGEST)
                {
                    return Err(format!("{value:?} ends at {at:?}"));
                }
            }
            Ok(())
        });
    }

    /// Returns the expiry in milliseconds since 1970.
    fn millis(value: Value) -> Option<u128> {
        expiry(value).unwrap().map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis())
    }

    #[test]
    fn ids_are_text_and_numbers_their_decimal_text() {
        assert_eq!(text(bytes("alice")), Ok(Some("alice".into())));
        assert_eq!(text(Value::Int(-7)), Ok(Some("-7".into())));
        assert_eq!(text(Value::UInt(u64::MAX)), Ok(Some("18446744073709551615".into())));
        assert_eq!(text(bytes("18446744073709551616.50")), Ok(Some("18446744073709551616.50".into())));
        assert_eq!(text(Value::Double(7.0)), Ok(Some("7".into())));
        assert_eq!(text(Value::Int(0)), Ok(Some("0".into())));
        assert_eq!(text(bytes("alice\0\0\0")), Ok(Some("alice".into())));
        for none in [Value::NULL, bytes(""), bytes("\0\0")] {
            assert_eq!(text(none), Ok(None));
        }
        for odd in [
            Value::Bytes(vec![0xff]),
            bytes("a\0b"),
            bytes("\u{1}"),
            bytes(&"x".repeat(MAX_SIZE + 1)),
            Value::Date(2026, 1, 1, 0, 0, 0, 0),
            Value::Time(false, 0, 1, 0, 0, 0),
        ] {
            assert!(text(odd.clone()).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn an_expiry_may_be_a_unix_time() {
        assert_eq!(millis(Value::Int(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(millis(Value::UInt(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(millis(Value::UInt(u32::MAX.into())), Some(4_294_967_295_000));
        assert_eq!(millis(Value::Double(1_700_000_000.5)), Some(1_700_000_000_500));
        assert_eq!(millis(bytes(" 1700000000 ")), Some(1_700_000_000_000));
        assert_eq!(millis(bytes("1700000000\0\0")), Some(1_700_000_000_000));
        assert_eq!(millis(bytes("1700000000.25")), Some(1_700_000_000_250));
        assert_eq!(millis(Value::Int(0)), Some(0));
        assert_eq!(millis(Value::NULL), None);
    }

    #[test]
    fn an_expiry_before_1970_has_passed() {
        for past in [
            Value::Int(-1),
            Value::Int(i64::MIN),
            bytes("-1700000000.5"),
            Value::Double(f64::NEG_INFINITY),
            Value::Date(1969, 12, 31, 0, 0, 0, 0),
            Value::Date(1, 1, 1, 0, 0, 0, 0),
        ] {
            assert_eq!(millis(past.clone()), Some(0), "{past:?}");
        }
    }

    #[test]
    fn an_expiry_may_count_milliseconds_and_less() {
        assert_eq!(millis(Value::Int(1_700_000_000_500)), Some(1_700_000_000_500));
        assert_eq!(millis(bytes("1700000000500")), Some(1_700_000_000_500));
        assert_eq!(millis(Value::Int(1_700_000_000_500_000)), Some(1_700_000_000_500));
        assert_eq!(millis(Value::Int(1_700_000_000_500_000_000)), Some(1_700_000_000_500));
    }

    #[test]
    fn the_end_of_time_is_never() {
        for never in [
            Value::Date(9999, 12, 31, 23, 59, 59, 999_999),
            Value::Date(9999, 12, 31, 0, 0, 0, 0),
            bytes("9999-12-31 23:59:59.999999"),
            bytes("9999-12-31"),
            Value::Int(i64::MAX),
            Value::UInt(u64::MAX),
            bytes("18446744073709551615"),
            bytes("99999999999999999999999999999999999999.99"),
            Value::Double(1e300),
            Value::Double(f64::INFINITY),
            Value::Float(f32::MAX),
        ] {
            assert_eq!(expiry(never.clone()), Ok(None), "{never:?}");
        }
    }

    #[test]
    fn an_expiry_may_be_a_date_and_time_in_utc() {
        assert_eq!(millis(Value::Date(1970, 1, 1, 0, 0, 0, 0)), Some(0));
        assert_eq!(millis(Value::Date(2000, 2, 29, 12, 34, 56, 0)), Some(951_827_696_000));
        assert_eq!(millis(Value::Date(2026, 3, 1, 0, 0, 0, 500_000)), Some(1_772_323_200_500));
        assert_eq!(millis(Value::Date(9999, 12, 30, 23, 59, 59, 0)), Some(253_402_214_399_000));
        assert_eq!(millis(bytes("2000-02-29 12:34:56")), Some(951_827_696_000));
        assert_eq!(millis(bytes("2000-02-29T12:34:56.250000Z")), Some(951_827_696_250));
        assert_eq!(millis(bytes("2000-02-29 12:34:56+00:30")), Some(951_825_896_000));
        assert_eq!(millis(bytes("2026-03-01")), Some(1_772_323_200_000));
    }

    #[test]
    fn other_values_are_no_expiry() {
        for value in [
            Value::Date(0, 0, 0, 0, 0, 0, 0),
            Value::Date(2026, 0, 0, 0, 0, 0, 0),
            Value::Date(2026, 3, 0, 0, 0, 0, 0),
            Value::Date(2025, 2, 29, 0, 0, 0, 0),
            Value::Time(false, 0, 1, 0, 0, 0),
            bytes(""),
            bytes("0000-00-00 00:00:00"),
            bytes("soon"),
            bytes("NaN"),
            bytes("infinity"),
            bytes("2026-03-01 24:00:00"),
            bytes("2026-03-01 12:00"),
            bytes("2026-03-01 12:00:00+02"),
            bytes("08:00:00"),
            Value::Bytes(vec![0xff]),
        ] {
            assert!(expiry(value.clone()).is_err(), "{value:?}");
        }
    }
}
