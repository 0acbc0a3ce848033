//! A moment, whole microseconds since 1970 UTC; on the wire naive ISO 8601, as existing clients expect.

use std::fmt;
use std::str::FromStr;

use super::text::serde_as_text;

/// Microseconds since 1970-01-01T00:00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

/// Why a text is not a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is `YYYY-MM-DDTHH:MM:SS[.ffffff]` in UTC, from 1970 on, got `{got}`")]
pub struct TimeError {
    /// The text, cut to 80 characters.
    pub got: String,
}

impl Time {
    /// The latest moment that has a text form: the end of the year 9999.
    pub const MAX: Self = Self(253_402_207_199_999_999);

    /// The clock's time. The one place where the node reads it; pure code gets it as an argument.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |elapsed| u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This moment and `ms` milliseconds.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000)))
    }

    /// Milliseconds from `earlier` to this moment; 0 if that is later.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

impl fmt::Display for Time {
    /// The fraction is left out when it is zero, as Python's `isoformat` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = i64::try_from(self.0.min(Self::MAX.0)).expect("MAX fits");
        let moment = jiff::Timestamp::from_microsecond(micros).expect("up to MAX every moment has a date");
        let moment = jiff::tz::TimeZone::UTC.to_datetime(moment);
        write!(f, "{}T{:02}:{:02}:{:02}", moment.date(), moment.hour(), moment.minute(), moment.second())?;
        match self.0.min(Self::MAX.0) % 1_000_000 {
            0 => Ok(()),
            fraction => write!(f, ".{fraction:06}"),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let error = || TimeError { got: text.chars().take(80).collect() };
        let naive = text.strip_suffix('Z').unwrap_or(text);
        let shaped = naive.len() >= 19 && naive.as_bytes()[10] == b'T' && naive.as_bytes()[4] == b'-';
        // Finer than a microsecond would not survive the way into a block.
        let fine = naive.get(19..).is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && rest.len() <= 7));
        if !shaped || !fine {
            return Err(error());
        }
        let moment: jiff::civil::DateTime = naive.parse().map_err(|_| error())?;
        let moment = jiff::tz::TimeZone::UTC.to_timestamp(moment).map_err(|_| error())?;
        u64::try_from(moment.as_microsecond()).map(Self).map_err(|_| error())
    }
}

serde_as_text!(Time);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_look_as_existing_clients_expect() {
        assert_eq!(Time(1_735_689_600_000_000).to_string(), "2025-01-01T00:00:00");
        assert_eq!(Time(1_775_826_000_000_123).to_string(), "2026-04-10T13:00:00.000123");
        assert_eq!("2026-04-10T13:00:00.5Z".parse(), Ok(Time(1_775_826_000_500_000)));
        for bad in [
            "",
            "2026-04-10",
            "2026-04-10 13:00:00",
            "2026-13-10T13:00:00",
            "1969-12-31T23:59:59",
            "2026-04-10T13:00:00.1234567",
        ] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_time_reads_back_what_it_writes(micros in 0..=Time::MAX.0) {
            prop_assert_eq!(Time(micros).to_string().parse(), Ok(Time(micros)));
        }
    }
}
