//! Moments on the two clocks that a container's life is told by, and their text in logs and records.

use crate::sys;
use std::time::Duration;

/// Length of `2026-01-02T03:04:05.123456789Z`.
pub const RFC3339_LENGTH: usize = 30;

/// A moment on both clocks. Which boot the second one belongs to is known to whoever holds the stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `CLOCK_REALTIME`, whole seconds since 1970: a hint, since boards boot without the time.
    pub wall_seconds: i64,
    /// Nanoseconds within that second, below 1e9.
    pub wall_nanoseconds: u32,
    /// `CLOCK_BOOTTIME`.
    pub boottime: Duration,
}

impl Stamp {
    /// Reads both clocks.
    pub fn now() -> Stamp {
        let (wall_seconds, wall_nanoseconds) = sys::clock(libc::CLOCK_REALTIME);
        let (seconds, nanoseconds) = sys::clock(libc::CLOCK_BOOTTIME);
        Stamp { wall_seconds, wall_nanoseconds, boottime: Duration::new(seconds.unsigned_abs(), nanoseconds) }
    }

    /// The wall time as CRI logs write it: RFC 3339, UTC, always nine decimals. Years 0 to 9999.
    pub fn rfc3339(&self) -> [u8; RFC3339_LENGTH] {
        let (year, month, day) = civil(self.wall_seconds.div_euclid(86_400));
        let second = self.wall_seconds.rem_euclid(86_400);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let mut put = |mut value: i64, end: usize, width: usize| {
            for digit in text[end - width..end].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(year, 4, 4);
        put(month, 7, 2);
        put(day, 10, 2);
        put(second / 3600, 13, 2);
        put(second / 60 % 60, 16, 2);
        put(second % 60, 19, 2);
        put(i64::from(self.wall_nanoseconds), 29, 9);
        text
    }
}

/// Days since 1970 as year, month and day of the proleptic Gregorian calendar (Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_are_written_as_rfc3339() {
        let check = |wall_seconds, wall_nanoseconds, expected: &str| {
            let stamp = Stamp { wall_seconds, wall_nanoseconds, boottime: Duration::ZERO };
            assert_eq!(std::str::from_utf8(&stamp.rfc3339()), Ok(expected));
        };
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000000001Z");
        check(1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z");
        check(-1, 5, "1969-12-31T23:59:59.000000005Z");
        check(4_102_444_800, 120_000_000, "2100-01-01T00:00:00.120000000Z");
    }

    #[test]
    fn both_clocks_advance() {
        let (first, second) = (Stamp::now(), Stamp::now());
        assert!(first.boottime <= second.boottime && first.wall_seconds > 0);
    }
}
