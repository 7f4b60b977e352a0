//! The timeline: when the last runs were, how long they took and how they ended. Runs that don't overlap share a lane,
//! so a sequential flow reads as one.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::parts::{name, plain_name, remark, shape};
use crate::domain::{JobId, JobStatus, Timestamp};
use crate::http::words::{duration_of, rough};
use crate::store::{EndedRow, Overview};

/// How far back the timeline may reach: its name in the address, and milliseconds.
pub(super) const SPANS: [(&str, i64); 5] =
    [("15m", 900_000), ("1h", 3_600_000), ("6h", 21_600_000), ("24h", 86_400_000), ("7d", 604_800_000)];
/// More lanes than this would be a carpet; what does not fit shares the last one.
const MOST_LANES: usize = 8;
/// The width of the drawing in its own units.
const WIDTH: i64 = 1000;
/// In pixels.
const LANE: usize = 14;

/// The statuses that a bar has, each drawn over those before it.
const DRAWN: [JobStatus; 4] = [JobStatus::Completed, JobStatus::Cancelled, JobStatus::Progress, JobStatus::Error];

/// One run as it is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bar {
    job: JobId,
    status: JobStatus,
    start: Timestamp,
    end: Timestamp,
    title: String,
}

/// The timeline of everything that the overview has read; `span` is what the address asks for.
pub(super) fn timeline(overview: &Overview, concurrency: &BTreeMap<String, u32>, span: Option<&str>) -> Markup {
    let flows = bars(overview);
    let chosen = SPANS.iter().find(|(label, _)| Some(*label) == span).copied();
    let (label, length) = chosen.unwrap_or_else(|| fitting(overview.now, flows.values().flatten()));
    let start = overview.now.unix_millis() - length;
    let unread = unread(&overview.ended, overview.lane());
    let unread: BTreeMap<&str, i64> = unread
        .into_iter()
        .map(|(flow, until)| (flow, across(until, start, length)))
        .filter(|(_, width)| *width > 0)
        .collect();
    html! {
        div.panel-head {
            h2 #timeline-title { "Timeline" }
            nav.spans aria-label="How far back the timeline reaches" {
                @for (name, _) in SPANS {
                    @if name == label { a aria-current="true" href={ "?span=" (name) } { (name) } } @else { a href={ "?span=" (name) } { (name) } }
                }
            }
        }
        @if flows.is_empty() {
            p.muted { "No run has been seen yet." }
        } @else {
            div.timeline role="group" aria-labelledby="timeline-title" {
                @for (flow, bars) in &flows {
                    @let shown: Vec<&Bar> = bars.iter().filter(|bar| bar.end.unix_millis() >= start).collect();
                    @let lanes = lanes(&shown, concurrency.get(flow).copied());
                    @let count = lanes.iter().max().map_or(1, |most| most + 1);
                    div.lane-name { (name(flow)) }
                    @if shown.is_empty() {
                        div.lane-empty { "no run in this time" }
                    } @else {
                        svg.lanes viewBox={ "0 0 " (WIDTH) " " (count * LANE) } width="100%" height=(count * LANE)
                            preserveAspectRatio="none" role="group" aria-label={ "runs of " (plain_name(flow)) } {
                            @if let Some(width) = unread.get(flow.as_str()) {
                                path.unread d=((0..count).map(|lane| format!("M0 {}h{width}", lane * LANE + LANE / 2)).collect::<String>()) {}
                            }
                            @let spots = spots(&shown, &lanes, start, length);
                            @for status in DRAWN { g class=(shape(status)) {
                                @for ((lane, x, width), (bar, more)) in spots.iter().filter(|(_, (bar, _))| bar.status == status) {
                                    a href={ "/jobs/" (bar.job) } tabindex="-1" {
                                        title { (bar.title) @if *more > 0 { ", and " (more) " more here" } }
                                        path d={ "M" (x) " " (lane * LANE + LANE / 2) "h" (width) } {}
                                    }
                                }
                            } }
                        }
                    }
                }
                div.lane-name {}
                div.lane-axis aria-hidden="true" {
                    span { (label) " ago" } span { (half(length)) " ago" } span { "now" }
                }
            }
            p.legend {
                @for status in [JobStatus::Progress, JobStatus::Completed, JobStatus::Error, JobStatus::Cancelled] {
                    span { span class={ "key " (shape(status)) } aria-hidden="true" {} (status.as_str()) }
                }
                @if !unread.is_empty() { span { span.key.unread aria-hidden="true" {} "not read: only the last " (overview.lane()) " of each flow are shown" } }
            }
        }
    }
}

/// The flows of which as many jobs were read as ever are, and the end of the earliest of these: what ended before is not known.
fn unread(ended: &[EndedRow], most: usize) -> BTreeMap<&str, Timestamp> {
    let mut flows: BTreeMap<&str, (usize, Timestamp)> = BTreeMap::new();
    for row in ended {
        let (count, earliest) = flows.entry(&row.job_type).or_insert((0, row.completed_time));
        *count += 1;
        *earliest = row.completed_time.min(*earliest);
    }
    flows.into_iter().filter(|(_, (count, _))| *count >= most).map(|(flow, (_, until))| (flow, until)).collect()
}

/// The lane, start and width of what is drawn, and the bar that it is of. Of bars that would cover each other the gravest is
/// drawn, with how many more there are.
fn spots<'a>(
    bars: &[&'a Bar],
    lanes: &[usize],
    start: i64,
    length: i64,
) -> BTreeMap<(usize, i64, i64), (&'a Bar, usize)> {
    let gravity = |bar: &Bar| DRAWN.iter().position(|status| *status == bar.status);
    let mut spots = BTreeMap::new();
    for (bar, lane) in bars.iter().copied().zip(lanes) {
        let (x, width) = place(bar, start, length);
        let (shown, more) = spots.entry((*lane, x, width)).or_insert((bar, 0));
        if !std::ptr::eq(*shown, bar) {
            *more += 1;
        }
        if gravity(bar) >= gravity(shown) {
            *shown = bar;
        }
    }
    spots
}

fn bars(overview: &Overview) -> BTreeMap<String, Vec<Bar>> {
    let mut flows: BTreeMap<String, Vec<Bar>> = BTreeMap::new();
    let mut types: BTreeMap<JobId, (&str, &str)> = BTreeMap::new();
    for row in &overview.ended {
        types.insert(row.id, (&row.job_type, &row.identifier));
        let Some(start) = row.started_time else { continue };
        let bar = bar(row.id, row.status, &row.identifier, start, row.completed_time);
        flows.entry(row.job_type.clone()).or_default().push(bar);
    }
    for row in &overview.open {
        types.insert(row.id, (&row.job_type, &row.identifier));
        let (JobStatus::Progress, Some(start)) = (row.status, row.started_time) else { continue };
        let bar = bar(row.id, row.status, &row.identifier, start, overview.now.max(start));
        flows.entry(row.job_type.clone()).or_default().push(bar);
    }
    for run in &overview.earlier {
        let Some((flow, identifier)) = types.get(&run.job) else { continue };
        let mut bar = bar(run.job, JobStatus::Error, identifier, run.started_time, run.completed_time);
        bar.title = format!("{} (attempt {}, tried again)", bar.title, run.attempt);
        flows.entry((*flow).to_owned()).or_default().push(bar);
    }
    for bars in flows.values_mut() {
        bars.sort_by_key(|bar| (bar.start, bar.job));
    }
    flows
}

fn bar(job: JobId, status: JobStatus, identifier: &str, start: Timestamp, end: Timestamp) -> Bar {
    let took = duration_of(i64::try_from(end.since(start).as_millis()).unwrap_or(i64::MAX));
    let verb = if status == JobStatus::Progress { "running for" } else { "took" };
    let title = format!("{} {job} {}, {verb} {took}", status.as_str(), remark(identifier, 40));
    Bar { job, status, start, end, title }
}

/// The shortest span that shows most of what was read.
fn fitting<'a>(now: Timestamp, bars: impl Iterator<Item = &'a Bar>) -> (&'static str, i64) {
    let mut ages: Vec<i64> = bars.map(|bar| now.unix_millis() - bar.start.unix_millis()).collect();
    ages.sort_unstable();
    let most = ages.get(ages.len() * 3 / 4).copied().unwrap_or(0);
    SPANS.into_iter().find(|(_, length)| *length >= most).unwrap_or(SPANS[SPANS.len() - 1])
}

/// The lane of each bar, which must be in the order of their starts.
fn lanes(bars: &[&Bar], concurrency: Option<u32>) -> Vec<usize> {
    let mut ends: Vec<Timestamp> = Vec::new();
    bars.iter()
        .map(|bar| {
            // A sequential flow has one run at a time, whatever two clocks say about its edges.
            let free = if concurrency == Some(1) {
                0
            } else {
                ends.iter().position(|end| *end <= bar.start).unwrap_or(ends.len())
            };
            let lane = free.min(MOST_LANES - 1);
            match ends.get_mut(lane) {
                Some(end) => *end = bar.end.max(*end),
                None => ends.push(bar.end),
            }
            lane
        })
        .collect()
}

fn half(milliseconds: i64) -> String {
    let seconds = u64::try_from(milliseconds / 2000).unwrap_or(0);
    if seconds < 3600 { format!("{}m {}s", seconds / 60, seconds % 60).replace(" 0s", "") } else { rough(seconds) }
}

/// How far across the drawing a time is.
fn across(time: Timestamp, start: i64, length: i64) -> i64 {
    (time.unix_millis() - start).clamp(0, length) * WIDTH / length
}

/// Where a bar starts and how wide it is.
fn place(bar: &Bar, start: i64, length: i64) -> (i64, i64) {
    let (left, right) = (across(bar.start, start, length), across(bar.end, start, length));
    // However short, it can be seen and met with a pointer.
    let width = (right - left).max(3);
    (left.min(WIDTH - width), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: i64, end: i64) -> Bar {
        bar(JobId(1), JobStatus::Completed, "a", Timestamp::from_unix_millis(start), Timestamp::from_unix_millis(end))
    }

    #[test]
    fn runs_that_follow_each_other_share_a_lane() {
        let bars = [run(0, 10), run(10, 20), run(15, 30), run(20, 25), run(30, 40)];
        let bars: Vec<&Bar> = bars.iter().collect();
        assert_eq!(lanes(&bars, None), [0, 0, 1, 0, 0]);
        assert_eq!(lanes(&bars, Some(1)), [0; 5]);
    }

    #[test]
    fn a_failure_is_not_covered_by_what_was_drawn_over_it() {
        let failed = Bar { status: JobStatus::Error, ..run(10, 11) };
        let bars = [run(10, 11), failed.clone(), run(12, 13), run(500, 900)];
        let bars: Vec<&Bar> = bars.iter().collect();
        let drawn: Vec<_> = spots(&bars, &[0; 4], 0, 1_000_000).into_values().collect();
        assert_eq!(drawn, [(&failed, 3)]);
        assert_eq!(spots(&bars, &[0, 0, 0, 1], 0, 1_000_000).len(), 2);
        assert_eq!(spots(&bars, &[0; 4], 0, 1_000).len(), 3, "two are of one moment");
    }

    #[test]
    fn the_span_fits_what_there_is() {
        let now = Timestamp::from_unix_millis(10_000_000);
        let label = |starts: &[i64]| {
            fitting(now, starts.iter().map(|start| run(*start, now.unix_millis())).collect::<Vec<_>>().iter()).0
        };
        assert_eq!(label(&[]), "15m");
        assert_eq!(label(&[9_999_000, 9_500_000]), "15m");
        assert_eq!(label(&[9_999_000, 7_000_000, 7_000_000]), "1h");
        assert_eq!(label(&[-100_000_000_000]), "7d");
    }

    proptest! {
        #[test]
        fn bars_of_a_lane_never_overlap_and_stay_on_the_drawing(mut times in prop::collection::vec((0i64..1000, 0i64..200), 0..30)) {
            times.sort_unstable();
            let bars: Vec<Bar> = times.iter().map(|(start, length)| run(*start, start + length)).collect();
            let bars: Vec<&Bar> = bars.iter().collect();
            let lanes = lanes(&bars, None);
            for (a, lane) in bars.iter().zip(&lanes) {
                let (x, width) = place(a, 300, 500);
                prop_assert!(x >= 0 && x + width <= WIDTH);
                for (b, other) in bars.iter().zip(&lanes) {
                    if *lane < MOST_LANES - 1 && lane == other && !std::ptr::eq(*a, *b) {
                        prop_assert!(a.end <= b.start || b.end <= a.start);
                    }
                }
            }
        }
    }
}
