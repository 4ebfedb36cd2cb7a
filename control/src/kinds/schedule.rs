//! A cron job's schedule: five fields, or `@hourly` and its kin, in a time zone.
//!
//! What it means is what upstream's parser takes it to mean, to the words of its errors: a day matches by its month day **or**
//! its weekday when both are restricted, `N/STEP` runs to the end of the range, there is no `L`, `W`, `#` or seventh weekday; an
//! hour that the clock leaves out in spring is left out, and one that it has twice in autumn counts twice. No library has
//! exactly that, and a schedule that meant something else here would be found at night.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// A schedule without a time in as many years has none.
const YEARS_MAX: i16 = 5;

/// When something is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    Fields(Fields),
    /// `@every`, in whole seconds.
    Every(SignedDuration),
}

/// A bit for each value that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether days, or weekdays, are all of them by `*` or `?`.
    any_day: bool,
    any_weekday: bool,
}

struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The time zone of that name.
///
/// # Errors
/// In Go's words, when there is none.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    match name {
        "" | "UTC" => Ok(TimeZone::UTC),
        name => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}")),
    }
}

impl Schedule {
    /// Reads a schedule; `TZ=…` in front of it wins over the time zone.
    ///
    /// # Errors
    /// In the words of upstream's parser.
    pub fn read(text: &str, default_zone: &TimeZone) -> Result<Schedule, String> {
        let mut spec = text;
        let mut zone = default_zone.clone();
        if let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            zone = self::zone(name).map_err(|error| format!("provided bad location {name}: {error}"))?;
            spec = rest.trim();
        }
        if spec.is_empty() {
            return Err("empty spec string".into());
        }
        if spec.starts_with('@') {
            return Ok(Schedule { when: descriptor(spec)?, zone });
        }
        let parts: Vec<&str> = spec.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
        };
        let (minutes, _) = field(minutes, &MINUTES)?;
        let (hours, _) = field(hours, &HOURS)?;
        let (days, any_day) = field(days, &DAYS)?;
        let (months, _) = field(months, &MONTHS)?;
        let (weekdays, any_weekday) = field(weekdays, &WEEKDAYS)?;
        let fields = Fields { minutes, hours, days, months, weekdays, any_day, any_weekday };
        Ok(Schedule { when: When::Fields(fields), zone })
    }

    /// The first time after another; `None` when there is none for years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = Timestamp::from_second(after.as_second()).ok()?;
        match &self.when {
            When::Every(delay) => after.checked_add(*delay).ok(),
            When::Fields(fields) => fields.next(after, &self.zone),
        }
    }

    /// The last time after one and not after another.
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let first = self.next(after).filter(|first| *first <= until)?;
        if let When::Every(delay) = &self.when {
            let whole = until.duration_since(first).as_secs() / delay.as_secs().max(1);
            return first.checked_add(SignedDuration::from_secs(whole * delay.as_secs())).ok();
        }
        // The next time grows with the time that is asked for: search where it passes the end.
        let (mut low, mut high) = (after.as_second(), until.as_second());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let next = Timestamp::from_second(middle).ok().and_then(|middle| self.next(middle));
            if next.is_some_and(|next| next <= until) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        self.next(Timestamp::from_second(low).ok()?)
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if [self.minutes, self.hours, self.days, self.months, self.weekdays].contains(&0) {
            return None;
        }
        // The next whole minute.
        let first = after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let first = Timestamp::from_second(first).ok()?.to_zoned(zone.clone());
        let mut date = first.date();
        let last_year = date.year().saturating_add(YEARS_MAX);
        while date.year() <= last_year {
            if !has(self.months, u64::try_from(date.month()).ok()?) {
                date = date.first_of_month().checked_add(1.month()).ok()?;
                continue;
            }
            if self.day(date) {
                let start =
                    if date == first.date() { first.clone() } else { date.to_zoned(zone.clone()).ok()? };
                if let Some(found) = self.within(date, start) {
                    return Some(found);
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn day(&self, date: Date) -> bool {
        let day = u64::try_from(date.day()).is_ok_and(|day| has(self.days, day));
        let weekday = u64::try_from(date.weekday().to_sunday_zero_offset());
        let weekday = weekday.is_ok_and(|weekday| has(self.weekdays, weekday));
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }

    /// By the minutes that the clock really shows on that day.
    fn within(&self, date: Date, mut time: Zoned) -> Option<Timestamp> {
        while time.date() == date {
            let (hour, minute) = (u64::try_from(time.hour()).ok()?, u64::try_from(time.minute()).ok()?);
            let step = if has(self.hours, hour) {
                if has(self.minutes, minute) {
                    return Some(time.timestamp());
                }
                1
            } else {
                60 - i64::from(time.minute())
            };
            time = time.checked_add(SignedDuration::from_mins(step)).ok()?;
        }
        None
    }
}

fn has(bits: u64, value: u64) -> bool {
    bits & (1 << value) != 0
}

fn descriptor(spec: &str) -> Result<When, String> {
    let fields = |spec: &str| match Schedule::read(spec, &TimeZone::UTC)?.when {
        When::Fields(fields) => Ok(When::Fields(fields)),
        When::Every(_) => Err(format!("unrecognized descriptor: {spec}")),
    };
    match spec {
        "@yearly" | "@annually" => fields("0 0 1 1 *"),
        "@monthly" => fields("0 0 1 * *"),
        "@weekly" => fields("0 0 * * 0"),
        "@daily" | "@midnight" => fields("0 0 * * *"),
        "@hourly" => fields("0 * * * *"),
        _ => {
            let Some(text) = spec.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {spec}"));
            };
            let delay: SignedDuration =
                text.parse().map_err(|error| format!("failed to parse duration {spec}: {error}"))?;
            Ok(When::Every(SignedDuration::from_secs(delay.as_secs().max(1))))
        }
    }
}

/// The bits of a field, and whether it is all by `*` or `?`.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut any) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (more, star) = range(part, bounds)?;
        bits |= more;
        any |= star;
    }
    Ok((bits, any))
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let by_slash: Vec<&str> = text.split('/').collect();
    let by_hyphen: Vec<&str> = by_slash[0].split('-').collect();
    let mut star = matches!(by_hyphen[0], "*" | "?");
    let (first, mut last) = match by_hyphen[..] {
        _ if star => (bounds.min, bounds.max),
        [one] => (value(one, bounds)?, value(one, bounds)?),
        [first, last] => (value(first, bounds)?, value(last, bounds)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match by_slash[..] {
        [_] => 1,
        [_, step] => {
            let step = integer(step)?;
            if by_hyphen.len() == 1 {
                last = bounds.max;
            }
            star &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if first < bounds.min {
        return Err(format!("beginning of range ({first}) below minimum ({}): {text}", bounds.min));
    }
    if last > bounds.max {
        return Err(format!("end of range ({last}) above maximum ({}): {text}", bounds.max));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {text}"));
    }
    let step = usize::try_from(step).ok().filter(|step| *step > 0);
    let step = step.ok_or_else(|| format!("step of range should be a positive number: {text}"))?;
    Ok(((first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value), star))
}

fn value(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    let named = bounds.names.iter().zip(bounds.min..).find(|(name, _)| **name == lower);
    named.map_or_else(|| integer(text), |(_, value)| Ok(value))
}

fn integer(text: &str) -> Result<u64, String> {
    let quoted = coracle_api::field::quoted(text);
    let failed =
        |why: &str| format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: {why}");
    let number: i64 = match text.parse() {
        Ok(number) => number,
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(failed("value out of range"));
        }
        Err(_) => return Err(failed("invalid syntax")),
    };
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, place: &str) -> Result<Schedule, String> {
        Schedule::read(text, &zone(place)?)
    }

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[track_caller]
    fn check(text: &str, place: &str, after: &str, expected: &[&str]) {
        let schedule = read(text, place).expect("a schedule");
        let mut found = Vec::new();
        let mut last = time(after);
        while found.len() < expected.len() {
            let Some(next) = schedule.next(last) else { break };
            found.push(next.to_string());
            last = next;
        }
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn times_come_one_after_another() {
        let start = "2026-01-01T00:00:00Z";
        check(
            "*/20 * * * *",
            "UTC",
            start,
            &["2026-01-01T00:20:00Z", "2026-01-01T00:40:00Z", "2026-01-01T01:00:00Z"],
        );
        check("* * * * *", "UTC", "2026-01-01T00:00:59.9Z", &["2026-01-01T00:01:00Z"]);
        check("59 23 31 12 *", "UTC", start, &["2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"]);
        check("0 0 29 FEB ?", "UTC", start, &["2028-02-29T00:00:00Z"]);
        check(
            "30 6-16/5 * * mon-Fri",
            "UTC",
            "2026-01-02T11:30:00Z",
            &["2026-01-02T16:30:00Z", "2026-01-05T06:30:00Z"],
        );
        // N/STEP goes on to the end.
        check(
            "50/5 0 * * *",
            "UTC",
            start,
            &["2026-01-01T00:50:00Z", "2026-01-01T00:55:00Z", "2026-01-02T00:50:00Z"],
        );
        check(
            "1,5,3 0 1 1 *",
            "UTC",
            start,
            &["2026-01-01T00:01:00Z", "2026-01-01T00:03:00Z", "2026-01-01T00:05:00Z", "2027-01-01T00:01:00Z"],
        );
        check("@hourly", "UTC", start, &["2026-01-01T01:00:00Z"]);
        check("@daily", "UTC", start, &["2026-01-02T00:00:00Z"]);
        check("@weekly", "UTC", start, &["2026-01-04T00:00:00Z"]);
        check("@monthly", "UTC", start, &["2026-02-01T00:00:00Z"]);
        check("@yearly", "UTC", start, &["2027-01-01T00:00:00Z"]);
        check("@every 1h30m", "UTC", start, &["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"]);
    }

    #[test]
    fn a_day_matches_by_its_month_or_its_week_when_both_are_given() {
        let start = "2026-01-01T00:00:00Z";
        // Fridays, and the thirteenth.
        check(
            "0 0 13 * 5",
            "UTC",
            start,
            &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"],
        );
        check("0 0 13 * *", "UTC", start, &["2026-01-13T00:00:00Z", "2026-02-13T00:00:00Z"]);
        check("0 0 * * 5", "UTC", start, &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"]);
        // A step is a restriction.
        check(
            "0 0 */30 * 5",
            "UTC",
            start,
            &[
                "2026-01-02T00:00:00Z",
                "2026-01-09T00:00:00Z",
                "2026-01-16T00:00:00Z",
                "2026-01-23T00:00:00Z",
                "2026-01-30T00:00:00Z",
                "2026-01-31T00:00:00Z",
            ],
        );
    }

    #[test]
    fn time_zones_leave_hours_out_and_have_others_twice() {
        let berlin = "Europe/Berlin";
        check("0 3 * * *", berlin, "2026-01-01T00:00:00Z", &["2026-01-01T02:00:00Z"]);
        check("0 3 * * *", berlin, "2026-07-01T00:00:00Z", &["2026-07-01T01:00:00Z"]);
        // 29 March has no 02:30; 25 October has two.
        check(
            "30 2 * * *",
            berlin,
            "2026-03-27T12:00:00Z",
            &["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"],
        );
        check(
            "30 2 * * *",
            berlin,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check("TZ=Asia/Tokyo 0 9 * * *", berlin, "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z"]);
        assert_eq!(zone("Moon/Base"), Err("unknown time zone Moon/Base".into()));
    }

    #[test]
    fn the_last_time_that_has_passed() {
        let check = |text: &str, after: &str, until: &str, expected: Option<&str>| {
            let found = read(text, "UTC").expect("a schedule").latest(time(after), time(until));
            assert_eq!(found.map(|time| time.to_string()).as_deref(), expected, "{text} {after} {until}");
        };
        let start = "2026-01-01T00:00:00Z";
        check("0 * * * *", start, "2026-01-01T00:59:59Z", None);
        check("0 * * * *", start, "2026-01-01T01:00:00Z", Some("2026-01-01T01:00:00Z"));
        check("0 * * * *", start, "2026-01-09T17:30:00Z", Some("2026-01-09T17:00:00Z"));
        check("0 * * * *", "2026-01-09T17:30:00Z", start, None);
        check("* 0 1 1 *", start, "2031-07-01T00:00:00Z", Some("2031-01-01T00:59:00Z"));
        check("@every 7m", start, "2026-01-01T01:00:00Z", Some("2026-01-01T00:56:00Z"));
        check("0 0 31 2 *", start, "2040-01-01T00:00:00Z", None);
    }

    #[test]
    fn what_is_wrong_is_said_as_upstream_says_it() {
        let check = |text: &str, expected: &str| assert_eq!(read(text, "UTC"), Err(expected.into()));
        check("", "empty spec string");
        check("* * * *", "expected exactly 5 fields, found 4: [* * * *]");
        check("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]");
        check("60 * * * *", "end of range (60) above maximum (59): 60");
        check("* * 0 * *", "beginning of range (0) below minimum (1): 0");
        check("* * * * 7", "end of range (7) above maximum (6): 7");
        check("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3");
        check("*/0 * * * *", "step of range should be a positive number: */0");
        check("1-2-3 * * * *", "too many hyphens: 1-2-3");
        check("*/2/3 * * * *", "too many slashes: */2/3");
        check("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax");
        check("* * L * *", "failed to parse int from L: strconv.Atoi: parsing \"L\": invalid syntax");
        check("* * * * 5#2", "failed to parse int from 5#2: strconv.Atoi: parsing \"5#2\": invalid syntax");
        check(
            "99999999999999999999 * * * *",
            "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
        );
        check("@sometimes", "unrecognized descriptor: @sometimes");
        check("TZ=Moon/Base * * * * *", "provided bad location Moon/Base: unknown time zone Moon/Base");
        assert!(
            read("@every soon", "UTC")
                .expect_err("no duration")
                .starts_with("failed to parse duration @every soon")
        );
        // Nothing at all matches, and it is no error.
        assert_eq!(read(", * * * *", "UTC").expect("a schedule").next(time("2026-01-01T00:00:00Z")), None);
        // Far ends of time.
        let yearly = read("@yearly", "UTC").expect("a schedule");
        assert_eq!(yearly.next(Timestamp::MAX), None);
        assert!(yearly.next(Timestamp::MIN).is_some());
    }
}
