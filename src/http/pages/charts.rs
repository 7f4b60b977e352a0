//! Charts, drawn by plotters on an SVG of ours.

use std::convert::Infallible;
use std::fmt::Write as _;

use maud::{Markup, html};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::svg::{CANCELLED, COMPLETED, Drawing, FAILED, GRID, Lent, MIDDLE, TEXT};
use crate::domain::JobStatus;
use crate::http::words::{duration_of, thousands};
use crate::store::Ended;

type Area<'a> = DrawingArea<Lent<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<Infallible>>;

/// In pixels; narrow enough that its text can be read on a phone.
const WIDTH: i32 = 460;
const THROUGHPUT_HEIGHT: i32 = 180;
const LEFT: i32 = 44;
const RIGHT: i32 = 8;
const TOP: i32 = 10;
const BOTTOM: i32 = 24;
/// The height of a flow's row.
const ROW: i32 = 26;

/// What has ended in each of the last stretches, the oldest first, as stacked bars. `labels` stand under the axis, from
/// its start to its end.
pub(super) fn throughput(ended: &[Ended], labels: &[&str]) -> Markup {
    svg("chart", (WIDTH, THROUGHPUT_HEIGHT), &summary_of(ended), |area| {
        let most = ended.iter().map(|ended| ended.all()).max().unwrap_or(0).max(1);
        let step = round_step(most);
        let top = most.div_ceil(step) * step;
        let height = THROUGHPUT_HEIGHT - TOP - BOTTOM;
        let y = |count: u64| THROUGHPUT_HEIGHT - BOTTOM - scaled(count, top, height);
        for line in (0..=top).step_by(usize::try_from(step).unwrap_or(1)) {
            area.draw(&PathElement::new([(LEFT, y(line)), (WIDTH - RIGHT, y(line))], GRID.stroke_width(1)))?;
            text(area, &thousands(line), (LEFT - 6, y(line)), HPos::Right, VPos::Center)?;
        }
        let room = WIDTH - LEFT - RIGHT;
        let parts = i32::try_from(ended.len()).unwrap_or(1).max(1);
        for (part, ended) in (0..).zip(ended) {
            let (left, right) = (LEFT + room * part / parts + 1, LEFT + room * (part + 1) / parts - 1);
            let mut below = 0;
            for (count, colour) in [(ended.completed, COMPLETED), (ended.cancelled, CANCELLED), (ended.failed, FAILED)]
            {
                if count > 0 {
                    // A single failure among thousands must be seen, so nothing is lower than two pixels.
                    let (from, to) = (y(below), y(below + count).min(y(below) - 2));
                    area.draw(&Rectangle::new([(left, to), (right, from)], colour.filled()))?;
                    below += count;
                }
            }
        }
        let last = i32::try_from(labels.len()).unwrap_or(1).max(2) - 1;
        for (place, label) in (0..).zip(labels) {
            let anchor = if place == 0 {
                HPos::Left
            } else if place == last {
                HPos::Right
            } else {
                HPos::Center
            };
            text(area, label, (LEFT + room * place / last, THROUGHPUT_HEIGHT - BOTTOM + 8), anchor, VPos::Top)?;
        }
        Ok(())
    })
}

/// The last runs of one flow: how they ended, and how long they took in milliseconds.
pub(super) struct Durations {
    /// The flow.
    pub(super) name: String,
    /// Its runs.
    pub(super) runs: Vec<(JobStatus, i64)>,
}

/// How long the last runs took: a row a flow, a dot a run, on a logarithmic scale.
pub(super) fn durations(flows: &[Durations]) -> Markup {
    let rows = i32::try_from(flows.len()).unwrap_or(i32::MAX / ROW).clamp(1, 100);
    let height = TOP + rows * ROW + BOTTOM;
    let lengths = || flows.iter().flat_map(|flow| flow.runs.iter().map(|(_, length)| (*length).max(1)));
    let ticks = ticks_around(lengths().min().unwrap_or(1), lengths().max().unwrap_or(1));
    let (first, last) = (ticks.first().copied().unwrap_or(1), ticks.last().copied().unwrap_or(2));
    const NAMES: i32 = 176;
    let x = |length: i64| {
        let part = (logarithm(length) - logarithm(first)) / (logarithm(last) - logarithm(first)).max(f64::EPSILON);
        NAMES + rounded(part.clamp(0.0, 1.0) * f64::from(WIDTH - NAMES - 16))
    };
    svg("chart", (WIDTH, height), &durations_summary(flows), |area| {
        // Where there are many, every second one is enough, and fits on a phone.
        let is_labelled = |place: usize| ticks.len() <= 6 || (ticks.len() - 1 - place).is_multiple_of(2);
        for (place, tick) in ticks.iter().enumerate() {
            area.draw(&PathElement::new([(x(*tick), TOP), (x(*tick), height - BOTTOM)], GRID.stroke_width(1)))?;
            if is_labelled(place) {
                text(area, &round_duration(*tick), (x(*tick), height - BOTTOM + 8), HPos::Center, VPos::Top)?;
            }
        }
        for (row, flow) in (0..rows).zip(flows) {
            let y = TOP + row * ROW + ROW / 2;
            text(area, &short(&flow.name), (0, y), HPos::Left, VPos::Center)?;
            if let Some(median) = median(&flow.runs) {
                area.draw(&Rectangle::new([(x(median) - 1, y - 10), (x(median) + 1, y + 10)], MIDDLE.filled()))?;
            }
            // A little up and down, so that equal runs don't hide each other.
            for (place, (status, length)) in (0..).zip(&flow.runs) {
                let (at, colour) = ((x((*length).max(1)), y + (place * 5) % 13 - 6), colour(*status));
                if *status == JobStatus::Error {
                    // Another shape, too: colour is never all that tells.
                    for (dx, dy) in [(3, 3), (3, -3)] {
                        let ends = [(at.0 - dx, at.1 - dy), (at.0 + dx, at.1 + dy)];
                        area.draw(&PathElement::new(ends, colour.stroke_width(2)))?;
                    }
                } else {
                    area.draw(&Circle::new(at, 3, colour.filled()))?;
                }
            }
        }
        Ok(())
    })
}

fn svg(class: &str, (width, height): (i32, i32), summary: &str, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Markup {
    let mut drawing = Drawing::new((u32::try_from(width).unwrap_or(1), u32::try_from(height).unwrap_or(1)));
    // It is drawn into a text, which takes everything.
    let drawn = draw(&Lent(&mut drawing).into_drawing_area());
    if drawn.is_ok() {
        drawing.into_markup(class, summary)
    } else {
        html! {}
    }
}

fn text(area: &Area<'_>, said: &str, at: (i32, i32), horizontal: HPos, vertical: VPos) -> Drawn {
    let style = TextStyle::from(("sans-serif", 14).into_font()).color(&TEXT).pos(Pos::new(horizontal, vertical));
    area.draw(&Text::new(said.to_owned(), at, style))
}

fn colour(status: JobStatus) -> RGBColor {
    match status {
        JobStatus::Completed => COMPLETED,
        JobStatus::Error => FAILED,
        JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress | JobStatus::Cancelled => CANCELLED,
    }
}

/// `count` of `most` as pixels of `room`.
fn scaled(count: u64, most: u64, room: i32) -> i32 {
    let room = u64::try_from(room).unwrap_or(0);
    i32::try_from(u128::from(count) * u128::from(room) / u128::from(most.max(1))).unwrap_or(0)
}

/// 1, 2 or 5 times a power of ten, so that three to six of it reach `most`.
fn round_step(most: u64) -> u64 {
    let mut power = 1;
    loop {
        for step in [power, power * 2, power * 5] {
            if most.div_ceil(step) <= 5 {
                return step;
            }
        }
        let Some(next) = u64::checked_mul(power, 10) else { return power };
        power = next;
    }
}

/// Lengths of time, in milliseconds, that a person would put on a scale from `least` to `most`.
fn ticks_around(least: i64, most: i64) -> Vec<i64> {
    const ROUND: [i64; 11] =
        [1, 10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000, 21_600_000, 86_400_000, 172_800_000];
    let from = ROUND.iter().rposition(|tick| *tick <= least).unwrap_or(0);
    let to = ROUND.iter().position(|tick| *tick >= most).unwrap_or(ROUND.len() - 1).max(from + 1);
    ROUND.get(from..=to.min(ROUND.len() - 1)).unwrap_or(&ROUND).to_vec()
}

fn round_duration(milliseconds: i64) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds}ms"),
        1_000..60_000 => format!("{}s", milliseconds / 1_000),
        60_000..3_600_000 => format!("{}m", milliseconds / 60_000),
        3_600_000..86_400_000 => format!("{}h", milliseconds / 3_600_000),
        _ => format!("{}d", milliseconds / 86_400_000),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a place on a scale")]
fn logarithm(milliseconds: i64) -> f64 {
    (milliseconds.max(1) as f64).ln()
}

#[expect(clippy::cast_possible_truncation, reason = "a place on a scale of a few hundred pixels")]
fn rounded(pixels: f64) -> i32 {
    pixels.round() as i32
}

fn median(runs: &[(JobStatus, i64)]) -> Option<i64> {
    let mut lengths: Vec<i64> =
        runs.iter().filter(|(status, _)| *status == JobStatus::Completed).map(|(_, length)| *length).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied()
}

fn short(name: &str) -> String {
    const ROOM: usize = 18;
    if name.chars().nth(ROOM).is_some() {
        name.chars().take(ROOM - 1).chain(['…']).collect()
    } else {
        name.to_owned()
    }
}

fn summary_of(ended: &[Ended]) -> String {
    let sum = |of: fn(&Ended) -> u64| ended.iter().map(of).sum::<u64>();
    format!(
        "Jobs that ended: {} completed, {} failed, {} cancelled",
        sum(|ended| ended.completed),
        sum(|ended| ended.failed),
        sum(|ended| ended.cancelled)
    )
}

fn durations_summary(flows: &[Durations]) -> String {
    let mut summary = "How long the last runs took".to_owned();
    for flow in flows {
        let median = median(&flow.runs)
            .map_or_else(|| "none completed".to_owned(), |m| format!("half within {}", duration_of(m)));
        // Writing to a text does not fail.
        let _ = write!(summary, "; {}: {} runs, {median}", flow.name, flow.runs.len());
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_no_style_and_no_colour_of_its_own() {
        let ended = [Ended { completed: 3, failed: 1, cancelled: 1 }, Ended::default()];
        let flows = [Durations {
            name: "<A&\"B>".to_owned(),
            runs: vec![(JobStatus::Completed, 900), (JobStatus::Error, 70_000), (JobStatus::Cancelled, 1)],
        }];
        for chart in [throughput(&ended, &["then", "now"]), durations(&flows), durations(&[])] {
            let chart = chart.into_string();
            assert!(!chart.contains("style=") && !chart.contains("=\"#"), "{chart}");
            assert!(chart.contains("role=\"img\"") && !chart.contains("<A&"), "{chart}");
        }
        let drawn = throughput(&ended, &["then", "now"]).into_string();
        assert!(drawn.contains("fill-error") && drawn.contains("3 completed, 1 failed, 1 cancelled"), "{drawn}");
    }

    #[test]
    fn scales_are_round() {
        assert_eq!([1, 4, 7, 50, 51, 999, 1_000_000].map(round_step), [1, 1, 2, 10, 20, 200, 200_000]);
        assert_eq!(ticks_around(900, 50_000), [100, 1_000, 10_000, 60_000]);
        assert_eq!(ticks_around(1, 1), [1, 10]);
        assert_eq!(*ticks_around(i64::MAX - 1, i64::MAX).last().unwrap(), 172_800_000);
    }
}
