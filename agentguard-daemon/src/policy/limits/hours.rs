//! Working hours with time zones and daylight saving, and a fixed end.
//!
//! Hours are those of the clock on the wall in their zone: when it is put forward they are an hour shorter,
//! when it is put back an hour longer. Zones are those that are built into the program.

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan as _, Zoned};

use super::schema::{Outside, ScheduleRule};
use crate::policy::diagnostic::{PatternError, PolicyError, Source};
use crate::policy::examples::pattern_error;
use crate::policy::schema::At;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Hours of the week in one zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Hours {
    /// From Monday.
    days: [bool; 7],
    /// Minutes since midnight.
    begin: u16,
    /// Minutes since midnight; not after `begin` where it is on the next day.
    end: u16,
    zone: TimeZone,
    /// As written.
    text: String,
}

/// When an agent may work.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One of them must hold; where there is none, it is always.
    pub hours: Vec<Hours>,
    /// The end of everything.
    pub until: Option<Timestamp>,
    /// What happens outside.
    pub outside: Outside,
    /// Why.
    pub reason: Option<String>,
    /// File and line.
    pub place: String,
}

/// What a schedule says of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the agent may work.
    pub open: bool,
    /// When that changes next, if within eight days.
    pub until: Option<Timestamp>,
}

impl Hours {
    /// `Mon-Fri 08:00-19:00 Europe/London`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [days, times, zone] = words.as_slice() else {
            return Err(PatternError::new(
                0,
                text.len(),
                "hours are days, times and a time zone",
                "write for example `Mon-Fri 08:00-19:00 Europe/London`",
            ));
        };
        let at = |word: &str| text.find(word).unwrap_or(0);
        let (begin, end) = parse_times(times).ok_or_else(|| {
            PatternError::new(
                at(times),
                times.len(),
                format!("`{}` are no times of a day", times.escape_debug()),
                "write `08:00-19:00`; `22:00-06:00` goes on to the next day, and `24:00` is a day's end",
            )
        })?;
        let days = parse_days(days).ok_or_else(|| {
            PatternError::new(
                at(days),
                days.len(),
                format!("`{}` are no days of the week", days.escape_debug()),
                "write `Mon-Fri`, `Sat,Sun` or `daily`",
            )
        })?;
        let zone = TimeZoneDatabase::bundled().get(zone).map_err(|_| {
            PatternError::new(
                at(zone),
                zone.len(),
                format!("there is no time zone `{}`", zone.escape_debug()),
                "write a name such as `Europe/London`, `America/New_York` or `UTC`",
            )
        })?;
        Ok(Self {
            days,
            begin,
            end,
            zone,
            text: text.to_owned(),
        })
    }

    /// The same for all texts that mean the same: `mon,tue 8:00-19:00 Europe/London`.
    pub fn plainly(&self) -> String {
        let days = DAYS.iter().zip(self.days);
        let days: Vec<&str> = days.filter(|(_, is)| *is).map(|(day, _)| *day).collect();
        let time = |minutes: u16| format!("{}:{:02}", minutes / 60, minutes % 60);
        let zone = self.zone.iana_name().unwrap_or("UTC");
        format!(
            "{} {}-{} {zone}",
            days.join(","),
            time(self.begin),
            time(self.end)
        )
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a moment is within.
    pub fn contains(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone()).datetime();
        let minute =
            u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        let today = usize::from(local.weekday().to_monday_zero_offset().unsigned_abs());
        let yesterday = (today + 6) % 7;
        if self.begin < self.end {
            self.days[today] && (self.begin..self.end).contains(&minute)
        } else {
            (self.days[today] && minute >= self.begin)
                || (self.days[yesterday] && minute < self.end)
        }
    }

    /// Moments at which it may begin or end, within eight days.
    fn edges(&self, now: Timestamp) -> Vec<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        let at = |date: Date, minute: u16| -> Option<Timestamp> {
            let (date, minute) = match minute {
                DAY => (date.tomorrow().ok()?, 0),
                minute => (date, minute),
            };
            let hour = i8::try_from(minute / 60).ok()?;
            let time = date.at(hour, i8::try_from(minute % 60).ok()?, 0, 0);
            Some(time.to_zoned(self.zone.clone()).ok()?.timestamp())
        };
        let mut edges: Vec<Timestamp> = (-1..=8)
            .filter_map(|days| today.checked_add(days.days()).ok())
            .flat_map(|date| [at(date, self.begin), at(date, self.end)])
            .flatten()
            .collect();
        // The clock itself may jump over a time.
        edges.extend(self.zone.following(now).take(1).map(|it| it.timestamp()));
        edges
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let text = text.to_ascii_lowercase();
    if text == "daily" {
        return Some([true; 7]);
    }
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let find = |name: &str| DAYS.iter().position(|day| *day == name);
        let (first, last) = (find(first)?, find(last)?);
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

fn parse_times(text: &str) -> Option<(u16, u16)> {
    let minute = |text: &str| -> Option<u16> {
        let (hour, minute) = text.split_once(':')?;
        let plain = hour.len() == 2 && minute.len() == 2;
        let digits = hour
            .bytes()
            .chain(minute.bytes())
            .all(|it| it.is_ascii_digit());
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        let total = hour * 60 + minute;
        (plain && digits && minute < 60 && total <= DAY).then_some(total)
    };
    let (begin, end) = text.split_once('-')?;
    let (begin, end) = (minute(begin)?, minute(end)?);
    (begin != end && begin < DAY && end > 0).then_some((begin, end))
}

impl Schedule {
    /// What it says of a moment.
    pub fn at(&self, now: Timestamp) -> Verdict {
        let open = self.is_open(now);
        let mut edges: Vec<Timestamp> = self.hours.iter().flat_map(|it| it.edges(now)).collect();
        edges.extend(self.until);
        edges.sort_unstable();
        let changes = |edge: &Timestamp| *edge > now && self.is_open(*edge) != open;
        Verdict {
            open,
            until: edges.into_iter().find(changes),
        }
    }

    fn is_open(&self, now: Timestamp) -> bool {
        let hours = self.hours.is_empty() || self.hours.iter().any(|it| it.contains(now));
        hours && self.until.is_none_or(|until| now < until)
    }

    /// In words.
    pub fn text(&self) -> String {
        let mut text: Vec<String> = self.hours.iter().map(|it| it.text.clone()).collect();
        text.extend(self.until.map(|until| format!("until {until}")));
        text.join(", ")
    }
}

/// The schedule that a section means.
pub fn lower(source: &Source, rule: &At<ScheduleRule>) -> Result<Schedule, PolicyError> {
    let (span, rule) = (rule.span, &rule.value);
    let mut hours = Vec::new();
    for text in rule.hours.iter().flat_map(|list| &list.0) {
        hours.push(
            Hours::parse(&text.value)
                .map_err(|error| pattern_error(source, text.span, &text.value, error))?,
        );
    }
    let until = match &rule.until {
        Some(text) => Some(moment(&text.value).ok_or_else(|| {
            PolicyError::at(
                source,
                text.span,
                format!("`{}` is no moment", text.value.escape_debug()),
                "write it with a zone: `2026-12-31T18:00:00Z`, or `2026-12-31T18:00[Europe/London]`",
            )
        })?),
        None => None,
    };
    if hours.is_empty() && until.is_none() {
        return Err(PolicyError::at(
            source,
            span,
            "the schedule says nothing",
            "write `hours`, `until` or both; or remove the section",
        ));
    }
    Ok(Schedule {
        hours,
        until,
        outside: rule.outside.as_ref().map_or(Outside::Freeze, |it| it.value),
        reason: rule.reason.clone(),
        place: format!("{}:{}", source.path().display(), source.line(span.offset)),
    })
}

/// A moment with an offset or a zone.
pub fn moment(text: &str) -> Option<Timestamp> {
    let zoned = || text.parse::<Zoned>().map(|it| it.timestamp()).ok();
    text.parse().ok().or_else(zoned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(hours: &[&str], until: Option<&str>) -> Schedule {
        Schedule {
            hours: hours.iter().map(|it| Hours::parse(it).unwrap()).collect(),
            until: until.map(|it| moment(it).unwrap()),
            outside: Outside::Freeze,
            reason: None,
            place: String::new(),
        }
    }

    fn check(schedule: &Schedule, rows: &[(&str, bool, &str)]) {
        for (now, open, until) in rows {
            let expected = Verdict {
                open: *open,
                until: moment(until),
            };
            assert_eq!(schedule.at(now.parse().unwrap()), expected, "{now}");
        }
    }

    #[test]
    fn london_works_by_its_own_clock_in_winter_and_in_summer() {
        // 29 March 2026 is when it is put forward; 25 October when it is put back.
        check(
            &schedule(&["Mon-Fri 08:00-19:00 Europe/London"], None),
            &[
                ("2026-01-15T08:00:00Z", true, "2026-01-15T19:00:00Z"),
                ("2026-01-15T07:59:59Z", false, "2026-01-15T08:00:00Z"),
                ("2026-07-15T07:00:00Z", true, "2026-07-15T18:00:00Z"),
                ("2026-07-15T18:00:00Z", false, "2026-07-16T07:00:00Z"),
                ("2026-03-27T19:00:00Z", false, "2026-03-30T07:00:00Z"),
                ("2026-10-23T18:00:00Z", false, "2026-10-26T08:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_night_belongs_to_the_day_that_it_begins_on() {
        let night = schedule(&["Fri 22:00-06:00 UTC"], None);
        check(
            &night,
            &[
                ("2026-01-16T21:59:00Z", false, "2026-01-16T22:00:00Z"),
                ("2026-01-17T05:59:59Z", true, "2026-01-17T06:00:00Z"),
                ("2026-01-17T22:30:00Z", false, "2026-01-23T22:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_time_that_does_not_exist_begins_when_the_clock_has_jumped_over_it() {
        // New York jumps from 02:00 to 03:00 on 8 March 2026, at 07:00Z.
        check(
            &schedule(&["daily 02:30-05:00 America/New_York"], None),
            &[
                ("2026-03-08T06:59:59Z", false, "2026-03-08T07:00:00Z"),
                ("2026-03-08T07:00:00Z", true, "2026-03-08T09:00:00Z"),
            ],
        );
    }

    #[test]
    fn several_hours_and_an_end() {
        let both = schedule(
            &["Mon 08:00-12:00 UTC", "Mon 12:00-24:00 UTC"],
            Some("2026-01-19T20:00:00Z"),
        );
        check(
            &both,
            &[
                ("2026-01-19T11:00:00Z", true, "2026-01-19T20:00:00Z"),
                ("2026-01-19T20:00:00Z", false, "never"),
            ],
        );
        assert!(
            Schedule {
                until: None,
                ..both
            }
            .at("2026-01-19T23:59:59Z".parse().unwrap())
            .open
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "Mon-Fri",
            "Mon 8:00-9:00 UTC",
            "Mon 09:00-09:00 UTC",
            "Mon 09:00-25:00 UTC",
            "Mun 09:00-10:00 UTC",
            "Mon 09:00-10:00 Mars/Base",
            "Mon 09:60-10:00 UTC",
            "Mon 24:00-10:00 UTC",
            "Mon- 09:00-10:00 UTC",
            "Mon 09:00-10:00 UTC x",
        ] {
            assert!(Hours::parse(text).is_err(), "{text}");
        }
    }

    /// Against a search minute by minute.
    #[test]
    fn the_next_change_is_the_first() {
        let schedule = schedule(
            &[
                "Sat,Sun 23:30-02:15 Europe/London",
                "Wed 10:00-11:00 Asia/Kolkata",
            ],
            None,
        );
        for day in 0..20_i64 {
            let now = "2026-03-15T13:00:00Z".parse::<Timestamp>().unwrap() + (day * 24).hours();
            let open = schedule.is_open(now);
            let first = (1..8 * 24 * 60)
                .map(|minute: i64| now + minute.minutes())
                .find(|it| schedule.is_open(*it) != open);
            assert_eq!(schedule.at(now).until, first, "{now}");
        }
    }
}
