//! What every page has around it, and the two files that it needs: a stylesheet and a script, served from the binary
//! under names that change with what is in them.

use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::parts::{csrf, shapes};
use super::{Part, Visitor};
use crate::domain::Timestamp;

/// The views that the head of every page leads to.
const VIEWS: [(&str, &str); 5] =
    [("/", "Overview"), ("/jobs", "Jobs"), ("/actors", "Actors"), ("/workers", "Workers"), ("/audit", "Audit")];

/// A file that pages need.
pub(crate) struct Asset {
    /// Its path, which names what is in it.
    pub(crate) path: String,
    pub(crate) content_type: &'static str,
    pub(crate) text: &'static str,
}

impl Asset {
    fn new(name: &str, ending: &str, content_type: &'static str, text: &'static str) -> Self {
        let hash: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { path: format!("/assets/{name}.{hash}.{ending}"), content_type, text }
    }
}

static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("callsheet", "css", "text/css; charset=utf-8", include_str!("assets/callsheet.css")));
static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("callsheet", "js", "text/javascript; charset=utf-8", include_str!("assets/callsheet.js"))
});
static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("callsheet", "svg", "image/svg+xml", include_str!("assets/callsheet.svg")));

/// The files that pages need.
pub(crate) fn assets() -> [&'static Asset; 3] {
    [&STYLE, &SCRIPT, &ICON]
}

/// A page that is shown to somebody.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    /// The path of the view that it belongs to.
    pub(super) view: &'a str,
    pub(super) visitor: &'a Visitor,
    /// What has just been done, or could not be.
    pub(super) notice: Option<Notice<'a>>,
    /// By the database's clock.
    pub(super) now: Timestamp,
    /// The address whose changes are told; `None` where nothing on the page changes.
    pub(super) live: Option<&'a str>,
}

/// A sentence about what has just been done.
#[derive(Clone, Copy)]
pub(super) struct Notice<'a> {
    pub(super) sentence: &'a str,
    pub(super) is_bad: bool,
}

impl Frame<'_> {
    /// The page with this in its middle.
    pub(super) fn around(&self, body: &Markup) -> Markup {
        html! {
            (head(self.title))
            body data-now=(self.now.unix_millis()) data-live=[self.live] {
                a.skip href="#main" { "Skip to the content" }
                (shapes())
                header.top {
                    a.brand href="/" { "Callsheet" }
                    nav aria-label="Views" {
                        @for (path, label) in VIEWS {
                            @if path == self.view { a href=(path) aria-current="page" { (label) } } @else { a href=(path) { (label) } }
                        }
                    }
                    div.who {
                        @if self.live.is_some() { span #live role="status" { "not live" } }
                        @if let Some(name) = &self.visitor.name {
                            span.name { (name) @if !self.visitor.operator { " (viewer)" } }
                            form.inline method="post" action="/sign-out" { (csrf(self.visitor)) button.small.quiet type="submit" { "Sign out" } }
                        }
                    }
                }
                main #main tabindex="-1" {
                    // What is said here is read aloud, so it stays while parts are replaced.
                    @if self.live.is_some() { p #news.hidden role="status" {} }
                    @if let Some(notice) = self.notice {
                        p class={ "notice " (if notice.is_bad { "bad" } else { "ok" }) } role="status" { (notice.sentence) }
                    }
                    (body)
                }
            }
        }
    }
}

/// A page for somebody who is nobody yet.
pub(super) fn bare(title: &str, body: &Markup) -> Markup {
    html! { (head(title)) body.bare { header.top { a.brand href="/" { "Callsheet" } } main #main { (body) } } }
}

/// The parts, each in its element.
pub(super) fn laid_out(parts: &[Part], visitor: &Visitor) -> Markup {
    html! {
        @for part in parts {
            section id=(part.id) class=(part.class) data-part=(super::live::hash(&part.body.0, &visitor.csrf)) { (part.body) }
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        (DOCTYPE)
        (PreEscaped("<html lang=\"en\">"))
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="referrer" content="same-origin";
            title { (title) " · Callsheet" }
            link rel="stylesheet" href=(STYLE.path);
            link rel="icon" href=(ICON.path) type="image/svg+xml";
            script src=(SCRIPT.path) defer {}
        }
    }
}
