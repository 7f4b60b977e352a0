//! What is due: the cron line of a flow's scheduler, in its time zone.
//!
//! A tick only says "there may be work": a missed or doubled one loses and doubles nothing. What a recurring job does has
//! to come exactly once: [`Schedule::next_fire`].

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};

use super::Timestamp;

/// A five-field cron line (or `@hourly` and its like) in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    line: String,
    cron: Cron,
    timezone: Tz,
}

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// Not five fields of cron, nor a nickname of it.
    #[error("{line:?} is no cron line of five fields (minute, hour, day of month, month, day of week): {reason}")]
    Syntax {
        /// The line.
        line: String,
        /// What the parser says.
        reason: String,
    },
    /// A line such as `0 0 31 2 *`, which matches no day of any year.
    #[error("{0:?} never comes due")]
    NeverDue(String),
    /// A zone that the IANA database does not name.
    #[error("{0:?} is no time zone of the IANA database, such as UTC or Europe/Berlin")]
    UnknownTimezone(String),
}

impl Schedule {
    /// The schedule of this cron line in this IANA time zone.
    ///
    /// Day of month and day of week are combined by *or* where both are given, as cron(8) does.
    ///
    /// # Errors
    /// Where the line is not five fields, never comes due, or the zone is unknown.
    pub fn new(line: &str, timezone: &str) -> Result<Self, InvalidSchedule> {
        let timezone = timezone.parse::<Tz>().map_err(|_| InvalidSchedule::UnknownTimezone(timezone.to_owned()))?;
        let cron = parse(line)
            .map_err(|error| InvalidSchedule::Syntax { line: line.to_owned(), reason: reason(line, &error) })?;
        let schedule = Self { line: line.to_owned(), cron, timezone };
        // From a fixed day, so that whether a configuration is valid does not depend on when it is read.
        if schedule.next_after(Timestamp::from_unix_millis(0)).is_none() {
            return Err(InvalidSchedule::NeverDue(line.to_owned()));
        }
        Ok(schedule)
    }

    /// The name of its time zone in the IANA database.
    #[must_use]
    pub fn timezone(&self) -> &'static str {
        self.timezone.name()
    }

    /// The cron line as it was written.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    /// When this schedule comes due for the first time after `time`; `None` past the end of the calendar.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let utc: DateTime<Utc> = Utc.timestamp_millis_opt(time.unix_millis()).single()?;
        let next = self.cron.find_next_occurrence(&utc.with_timezone(&self.timezone), false).ok()?;
        Some(Timestamp::from_unix_millis(next.timestamp_millis()))
    }

    /// When what has to come exactly once comes for the first time after `time`; `None` past the end of the calendar.
    ///
    /// A line that names hours means the clock on the wall, and each of its times comes once: one that a change of clocks
    /// skips comes in the moment after the gap (several of them together), one that comes twice only the first time. Where
    /// the hour is `*` time flows as it does: the line comes whenever clocks show one of its minutes. croner makes this
    /// difference too, but takes a line with two hours or two minutes for one of the second kind.
    #[must_use]
    pub fn next_fire(&self, time: Timestamp) -> Option<Timestamp> {
        if self.is_of_every_hour() {
            return self.next_after(time);
        }
        let utc: DateTime<Utc> = Utc.timestamp_millis_opt(time.unix_millis()).single()?;
        // The clock on the wall, as if it were never changed.
        let mut wall = utc.with_timezone(&self.timezone).naive_local().and_utc();
        loop {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let fire = Timestamp::from_unix_millis(self.first_at(wall.naive_utc())?.timestamp_millis());
            if fire > time {
                return Some(fire);
            }
        }
    }

    fn is_of_every_hour(&self) -> bool {
        let mut fields = self.line.split_whitespace();
        match fields.next() {
            Some(nickname) if nickname.starts_with('@') => nickname.eq_ignore_ascii_case("@hourly"),
            _ => matches!(fields.next(), Some("*" | "*/1")),
        }
    }

    /// The first moment at which clocks show this time; that after the gap where they skip it.
    fn first_at(&self, wall: NaiveDateTime) -> Option<DateTime<Tz>> {
        (0..=LONGEST_GAP_MINUTES).find_map(|minutes| {
            match self.timezone.from_local_datetime(&wall.checked_add_signed(TimeDelta::minutes(minutes))?) {
                MappedLocalTime::Single(time) | MappedLocalTime::Ambiguous(time, _) => Some(time),
                MappedLocalTime::None => None,
            }
        })
    }

    /// Whether this schedule came due after `last` and up to `now`.
    ///
    /// A clock that was set back makes `now` lie before `last`; nothing is due then, and nothing is due twice.
    #[must_use]
    pub fn is_due(&self, last: Timestamp, now: Timestamp) -> bool {
        self.next_after(last).is_some_and(|next| next <= now)
    }
}

/// A whole day, which Samoa left out in 2011 when it went to the other side of the date line.
const LONGEST_GAP_MINUTES: i64 = 24 * 60;

fn parse(line: &str) -> Result<Cron, CronError> {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(line)
}

/// What is wrong with a line, and in which field, which the parser does not tell.
fn reason(line: &str, error: &CronError) -> String {
    const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];
    let written: Vec<&str> = line.split_whitespace().collect();
    if written.first().is_none_or(|first| first.starts_with('@')) {
        return said(error);
    }
    if written.len() != FIELDS.len() {
        return format!("it has {}", written.len());
    }
    // Alone among fields that are right, the wrong one gives itself away.
    let wrong = FIELDS.iter().zip(&written).enumerate().find_map(|(index, (name, text))| {
        let mut alone = ["*"; FIELDS.len()];
        alone[index] = text;
        Some((name, text, parse(&alone.join(" ")).err()?))
    });
    match wrong {
        Some((name, text, error)) => format!("the {name}, {text:?}: {}", said(&error)),
        None => said(error),
    }
}

/// The parser's words without its own names for things.
fn said(error: &CronError) -> String {
    let text = match error {
        CronError::ComponentError(text) if text.contains("out of bounds") => "one of its numbers is out of bounds",
        CronError::ComponentError(text) | CronError::InvalidPattern(text) | CronError::IllegalCharacters(text) => text,
        _ => &error.to_string(),
    };
    text.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_unix_millis(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis())
    }

    #[test]
    fn the_minute_tick_is_due_once_a_minute() {
        let schedule = Schedule::new("*/1 * * * *", "UTC").unwrap();
        assert!(!schedule.is_due(at("2026-11-23T10:00:00Z"), at("2026-11-23T10:00:59Z")));
        assert!(schedule.is_due(at("2026-11-23T10:00:59Z"), at("2026-11-23T10:01:00Z")));
        assert!(!schedule.is_due(at("2026-11-23T10:01:00Z"), at("2026-11-23T09:01:00Z")));
    }

    #[test]
    fn a_zone_moves_the_hour_over_a_dst_change() {
        let schedule = Schedule::new("0 9 * * *", "Europe/Berlin").unwrap();
        assert_eq!(schedule.next_after(at("2026-03-28T12:00:00Z")), Some(at("2026-03-29T07:00:00Z")));
        assert_eq!(schedule.next_after(at("2026-03-27T12:00:00Z")), Some(at("2026-03-28T08:00:00Z")));
    }

    /// Every time that a schedule is due from `from` until before `to`.
    fn due_between(schedule: &Schedule, from: &str, to: &str) -> Vec<Timestamp> {
        let (mut now, end) = (Timestamp::from_unix_millis(at(from).unix_millis() - 1), at(to));
        let mut due = Vec::new();
        while let Some(next) = schedule.next_after(now).filter(|next| *next < end) {
            due.push(next);
            now = next;
        }
        due
    }

    /// The nights of 2026 in which clocks are changed, each as three hours around it: forward, then back.
    const CHANGES: [(&str, [&str; 2], [&str; 2]); 3] = [
        (
            "Europe/Berlin",
            ["2026-03-28T23:30:00Z", "2026-03-29T02:30:00Z"],
            ["2026-10-24T23:30:00Z", "2026-10-25T02:30:00Z"],
        ),
        (
            "America/New_York",
            ["2026-03-08T05:30:00Z", "2026-03-08T08:30:00Z"],
            ["2026-11-01T04:30:00Z", "2026-11-01T07:30:00Z"],
        ),
        // Half an hour only.
        (
            "Australia/Lord_Howe",
            ["2026-10-03T14:00:00Z", "2026-10-03T17:00:00Z"],
            ["2026-04-04T13:30:00Z", "2026-04-04T16:30:00Z"],
        ),
    ];

    #[test]
    fn the_minute_tick_goes_on_through_both_dst_changes() {
        for (zone, forward, back) in CHANGES {
            let schedule = Schedule::new("*/1 * * * *", zone).unwrap();
            for [from, to] in [forward, back] {
                let due = due_between(&schedule, from, to);
                assert_eq!(due.len(), 180, "{zone} {from}");
                assert!(
                    due.windows(2).all(|pair| pair[1].since(pair[0]) == std::time::Duration::from_secs(60)),
                    "{zone}"
                );
            }
        }
    }

    #[test]
    fn a_time_of_day_comes_once_a_day_through_both_dst_changes() {
        // 02:30 does not exist in the first night, and comes twice in the second.
        for (zone, night) in [("Europe/Berlin", "29"), ("Europe/Berlin", "25")] {
            let schedule = Schedule::new("30 2 * * *", zone).unwrap();
            let month = if night == "29" { "03" } else { "10" };
            let (from, to) = (format!("2026-{month}-{night}T00:00:00Z"), format!("2026-{month}-{night}T12:00:00Z"));
            assert_eq!(due_between(&schedule, &from, &to).len(), 1, "{month}");
        }
    }

    /// When a line fires from the start of this day on, for so many hours, as a UTC day and time each.
    fn fires(line: &str, zone: &str, day: &str, hours: i64) -> Vec<String> {
        let schedule = Schedule::new(line, zone).unwrap();
        let start = at(&format!("{day}T00:00:00Z")).unix_millis();
        let (mut now, mut fires) = (Timestamp::from_unix_millis(start - 1), Vec::new());
        while let Some(next) = schedule.next_fire(now).filter(|next| next.unix_millis() < start + hours * 3_600_000) {
            fires.push(DateTime::from_timestamp_millis(next.unix_millis()).unwrap().format("%dT%H:%M").to_string());
            now = next;
        }
        fires
    }

    #[test]
    fn a_time_that_is_named_fires_once_a_day_whatever_clocks_do() {
        // Europe/Berlin on 29 March: 01:59 is followed by 03:00, which is 01:00 in UTC.
        assert_eq!(fires("30 2 * * *", "Europe/Berlin", "2026-03-29", 24), ["29T01:00"]);
        assert_eq!(fires("0,30 2,4 * * *", "Europe/Berlin", "2026-03-29", 12), ["29T01:00", "29T02:00", "29T02:30"]);
        assert_eq!(fires("0 */2 * * *", "Europe/Berlin", "2026-03-29", 5), ["29T01:00", "29T02:00", "29T04:00"]);
        assert_eq!(fires("0 3 * * *", "Europe/Berlin", "2026-03-29", 24), ["29T01:00"]);
        // On 25 October 02:00 to 02:59 comes twice, from 00:00 and from 01:00 in UTC.
        assert_eq!(fires("30 2 * * *", "Europe/Berlin", "2026-10-25", 24), ["25T00:30"]);
        assert_eq!(
            fires("0,30 2,3 * * *", "Europe/Berlin", "2026-10-25", 12),
            ["25T00:00", "25T00:30", "25T02:00", "25T02:30"]
        );
        assert_eq!(fires("0 */2 * * *", "Europe/Berlin", "2026-10-25", 6), ["25T00:00", "25T03:00", "25T05:00"]);
        // America/New_York on 8 March and 1 November.
        assert_eq!(fires("15 2 * * *", "America/New_York", "2026-03-08", 24), ["08T07:00"]);
        assert_eq!(fires("15 1 * * *", "America/New_York", "2026-11-01", 24), ["01T05:15"]);
        // Half an hour: Lord Howe Island's 02:00 is followed by 02:30 on 4 October; on 5 April 01:30 to 01:59 comes twice.
        assert_eq!(fires("15 2 * * *", "Australia/Lord_Howe", "2026-10-03", 24), ["03T15:30"]);
        assert_eq!(fires("45 1 * * *", "Australia/Lord_Howe", "2026-04-04", 24), ["04T14:45"]);
        // Midnight itself: Santiago's 00:00 is followed by 01:00 on 6 September.
        assert_eq!(fires("@daily", "America/Santiago", "2026-09-06", 24), ["06T04:00"]);
        // A whole day: there was no 30 December 2011 in Samoa.
        assert_eq!(fires("0 12 30 12 *", "Pacific/Apia", "2011-12-30", 48), ["30T10:00"]);
        assert_eq!(fires("0 12 * * *", "UTC", "2026-03-29", 24), ["29T12:00"]);
    }

    #[test]
    fn a_line_of_every_hour_goes_with_time_itself() {
        let each_hour = |day: u32| (0..6).map(|hour| format!("{day}T{hour:02}:30")).collect::<Vec<_>>();
        assert_eq!(fires("30 * * * *", "Europe/Berlin", "2026-03-29", 6), each_hour(29));
        assert_eq!(fires("30 * * * *", "Europe/Berlin", "2026-10-25", 6), each_hour(25));
        assert_eq!(fires("@hourly", "America/New_York", "2026-11-01", 12).len(), 12);
        assert_eq!(fires("*/15 * * * *", "America/New_York", "2026-03-08", 24).len(), 96);
    }

    #[test]
    fn lines_that_are_no_schedule_are_refused() {
        assert!(matches!(Schedule::new("* * * * * *", "UTC"), Err(InvalidSchedule::Syntax { .. })));
        assert!(matches!(Schedule::new("61 * * * *", "UTC"), Err(InvalidSchedule::Syntax { .. })));
        assert!(matches!(Schedule::new("0 0 31 2 *", "UTC"), Err(InvalidSchedule::NeverDue(_))));
        assert!(matches!(Schedule::new("* * * * *", "Mars/Olympus"), Err(InvalidSchedule::UnknownTimezone(_))));
    }

    #[test]
    fn a_wrong_line_is_told_by_its_field() {
        let said =
            |line| Schedule::new(line, "UTC").unwrap_err().to_string().split_once("week): ").unwrap().1.to_owned();
        assert_eq!(said("0 25 * * *"), "the hour, \"25\": one of its numbers is out of bounds");
        assert_eq!(said("* * 40 13 *"), "the day of month, \"40\": one of its numbers is out of bounds");
        assert_eq!(said("* * *"), "it has 3");
        assert!(said("* * * * tuesdayish").starts_with("the day of week, \"tuesdayish\": "));
    }

    proptest! {
        /// The scheduler's loop in small: it looks each minute, and somebody sets the clock now and then.
        #[test]
        fn a_clock_that_is_set_neither_doubles_ticks_nor_stops_them(steps in prop::collection::vec(prop_oneof![4 => Just(0_i64), 1 => -5_400_000_i64..5_400_000], 2..40)) {
            let schedule = Schedule::new("*/1 * * * *", "Europe/Berlin").unwrap();
            let (mut now, mut evaluated) = (1_790_000_000_000_i64, Timestamp::from_unix_millis(1_790_000_000_000));
            for step in steps {
                now += 60_000 + step;
                let due = schedule.is_due(evaluated, Timestamp::from_unix_millis(now));
                // One that is due at all is due once, and where nobody has set the clock it is.
                prop_assert!(due || step != 0);
                prop_assert!(!due || Timestamp::from_unix_millis(now) > evaluated);
                evaluated = Timestamp::from_unix_millis(now);
                prop_assert!(!schedule.is_due(evaluated, Timestamp::from_unix_millis(now)));
            }
        }

        #[test]
        fn the_next_occurrence_lies_ahead(time in 0_i64..4_000_000_000_000, minute in 0..60) {
            let schedule = Schedule::new(&format!("{minute} * * * *"), "America/New_York").unwrap();
            let time = Timestamp::from_unix_millis(time);
            prop_assert!(schedule.next_after(time).unwrap() > time);
        }
    }
}
