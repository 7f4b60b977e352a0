//! An SVG of few bytes for plotters to draw on: all shapes of one colour are one path, and the stylesheet has the colours, so
//! that the same drawing serves light and dark, and nothing in it needs a style of its own.

use std::convert::Infallible;
use std::fmt::Write as _;

use maud::{Markup, html};
use plotters::style::RGBColor;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

type Done = Result<(), DrawingErrorKind<Infallible>>;

/// The classes of the stylesheet, behind `fill-` or `stroke-`; what plotters calls a colour is the place in this list.
const INKS: [&str; 6] = ["text", "grid", "middle", "completed", "error", "cancelled"];

pub(super) const TEXT: RGBColor = RGBColor(0, 0, 0);
pub(super) const GRID: RGBColor = RGBColor(0, 0, 1);
pub(super) const MIDDLE: RGBColor = RGBColor(0, 0, 2);
pub(super) const COMPLETED: RGBColor = RGBColor(0, 0, 3);
pub(super) const FAILED: RGBColor = RGBColor(0, 0, 4);
pub(super) const CANCELLED: RGBColor = RGBColor(0, 0, 5);

fn ink(colour: BackendColor) -> &'static str {
    INKS.get(usize::from(colour.rgb.2)).copied().unwrap_or(INKS[0])
}

/// How shapes are inked; those of one kind and colour are one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stroke {
    /// Not at all: they are filled.
    None,
    Line(u32),
    /// The diameter of dots.
    Dot(u32),
}

/// What was drawn: the paths, in the order in which their first shapes came, and the texts above them.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    size: (u32, u32),
    paths: Vec<(&'static str, Stroke, String)>,
    texts: Vec<(&'static str, &'static str, Markup)>,
}

impl Drawing {
    pub(super) fn new(size: (u32, u32)) -> Self {
        Self { size, ..Self::default() }
    }

    /// The drawing as a picture that `summary` tells in words.
    pub(super) fn into_markup(self, class: &str, summary: &str) -> Markup {
        let Self { size: (width, height), paths, texts } = self;
        html! {
            svg class=(class) role="img" aria-label=(summary) viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) {
                @for (ink, stroke, d) in paths {
                    @match stroke {
                        Stroke::None => path class={ "fill-" (ink) } d=(d) {},
                        Stroke::Line(1) => path class={ "stroke-" (ink) } d=(d) {},
                        Stroke::Line(width) => path class={ "stroke-" (ink) } stroke-width=(width) d=(d) {},
                        Stroke::Dot(width) => path class={ "stroke-" (ink) } stroke-width=(width) stroke-linecap="round" d=(d) {},
                    }
                }
                @for (ink, anchor, markup) in texts { g class={ "fill-" (ink) } text-anchor=(anchor) { (markup) } }
            }
        }
    }

    fn path<S: BackendStyle>(&mut self, style: &S, stroke: Stroke) -> &mut String {
        let ink = ink(style.color());
        let known = self.paths.iter().position(|(known, how, _)| (*known, *how) == (ink, stroke));
        let place = known.unwrap_or_else(|| {
            self.paths.push((ink, stroke, String::new()));
            self.paths.len() - 1
        });
        &mut self.paths[place].2
    }
}

/// A drawing that plotters may have, and whoever lent it has back.
pub(super) struct Lent<'a>(pub(super) &'a mut Drawing);

// Writing to a String does not fail, so `write!` needs no look at what it says.
impl DrawingBackend for Lent<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.size
    }

    fn ensure_prepared(&mut self) -> Done {
        Ok(())
    }

    fn present(&mut self) -> Done {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Done {
        self.draw_rect((x, y), (x + 1, y + 1), &color, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Done {
        let stroke = if fill { Stroke::None } else { Stroke::Line(style.stroke_width()) };
        let ((x, y), (width, height)) = (from, (to.0 - from.0, to.1 - from.1));
        let _ = write!(self.0.path(style, stroke), "M{x} {y}h{width}v{height}h{}z", -width);
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Done {
        let d = self.0.path(style, Stroke::Line(style.stroke_width()));
        for (place, (x, y)) in path.into_iter().enumerate() {
            let _ = write!(d, "{}{x} {y}", if place == 0 { 'M' } else { 'L' });
        }
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, centre: BackendCoord, radius: u32, style: &S, _: bool) -> Done {
        // A line of next to no length with round ends.
        let _ = write!(self.0.path(style, Stroke::Dot(radius * 2)), "M{} {}h.01", centre.0, centre.1);
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Done {
        let anchor = match style.anchor().h_pos {
            HPos::Left => "start",
            HPos::Center => "middle",
            HPos::Right => "end",
        };
        let dy = match style.anchor().v_pos {
            VPos::Top => ".76em",
            VPos::Center => ".5ex",
            VPos::Bottom => "-.5ex",
        };
        let markup = html! { text x=(x) y=(y) dy=(dy) { (text) } };
        let ink = ink(style.color());
        match self.0.texts.iter_mut().find(|(known, place, _)| (*known, *place) == (ink, anchor)) {
            Some((_, _, before)) => before.0.push_str(&markup.0),
            None => self.0.texts.push((ink, anchor, markup)),
        }
        Ok(())
    }
}
