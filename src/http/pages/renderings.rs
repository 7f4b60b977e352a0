//! Views that are open somewhere, each rendered once for everybody who has it open.
//!
//! A task for each view renders it when something has changed, and when nothing tells it for a while; it ends with the
//! last page that shows it. What is a viewer's own, the token of the forms, is a place holder until it is sent.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::cache::Overviews;
use super::{Output, Place, Rendered, Visitor};
use crate::domain::Attempt;
use crate::http::{App, Problem};

/// Changes that come closer together are told as one.
const AT_LEAST: Duration = Duration::from_millis(400);
/// What nobody tells of (progress, signs of life, other workers, the clock) is looked for this often.
const AT_MOST: Duration = Duration::from_millis(1500);

/// The views that somebody has open.
pub(super) struct Renderings {
    open: Mutex<Vec<Weak<View>>>,
    overviews: Arc<Overviews>,
    /// What stands for a viewer's token: nobody can have put it into a row.
    place_holder: String,
}

/// One view, as operators or as others see it.
struct View {
    place: Place,
    operator: bool,
    shown: watch::Sender<Option<Arc<Shown>>>,
    /// Somebody has come who has to be told at once.
    wanted: Notify,
}

/// A view as it was at one moment.
pub(super) struct Shown {
    /// When its rendering was begun.
    begun: Instant,
    pub(super) what: Result<Parts, String>,
}

/// What of a view may change.
pub(super) struct Parts {
    pub(super) title: String,
    pub(super) parts: Vec<ShownPart>,
    pub(super) output: Option<ShownOutput>,
}

/// A part, ready to be sent but for the place holder.
pub(super) struct ShownPart {
    pub(super) id: &'static str,
    pub(super) hash: String,
    json: String,
}

/// A job's output, the same.
pub(super) struct ShownOutput {
    pub(super) attempt: Attempt,
    pub(super) ended: bool,
    pub(super) at: Option<u64>,
    pub(super) json: String,
}

/// One page that shows a view.
pub(super) struct Looker {
    /// Keeps the view open.
    _view: Arc<View>,
    shown: watch::Receiver<Option<Arc<Shown>>>,
    since: Instant,
    csrf: String,
    place_holder: String,
}

impl Renderings {
    pub(super) fn new(overviews: Arc<Overviews>) -> Self {
        let place_holder = crate::http::auth::random_key().unwrap_or_default();
        Self { open: Mutex::default(), overviews, place_holder }
    }

    /// Shows this view to one more page.
    pub(super) fn look(&self, app: &App, place: Place, visitor: &Visitor) -> Looker {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|view| view.strong_count() > 0);
        // Without random numbers nothing can stand for a token, and every page is one of its own.
        let shares = !self.place_holder.is_empty();
        let is_it = |view: &Arc<View>| shares && view.place == place && view.operator == visitor.operator;
        let view = open.iter().filter_map(Weak::upgrade).find(is_it).unwrap_or_else(|| {
            let view = Arc::new(View {
                place,
                operator: visitor.operator,
                shown: watch::Sender::new(None),
                wanted: Notify::new(),
            });
            open.push(Arc::downgrade(&view));
            let csrf = if shares { &self.place_holder } else { &visitor.csrf };
            let everybody = Visitor { name: None, operator: visitor.operator, csrf: csrf.clone() };
            tokio::spawn(keep(app.clone(), Arc::clone(&self.overviews), everybody, Arc::downgrade(&view)));
            view
        });
        // What was rendered before this page was may be older than what it shows.
        let (shown, since) = (view.shown.subscribe(), Instant::now());
        view.wanted.notify_one();
        let place_holder = self.place_holder.clone();
        Looker { _view: view, shown, since, csrf: visitor.csrf.clone(), place_holder }
    }
}

/// Renders a view for as long as somebody has it open.
async fn keep(app: App, overviews: Arc<Overviews>, everybody: Visitor, view: Weak<View>) {
    let mut changes = app.handle().changes();
    let mut stop = app.stop();
    while let Some(open) = view.upgrade() {
        changes.mark_unchanged();
        let begun = Instant::now();
        let rendered = super::render(&app, &overviews, &everybody, &open.place, false).await;
        open.shown.send_replace(Some(Arc::new(Shown::of(begun, rendered, &everybody.csrf))));
        let changed = async {
            // Only time wakes it once nobody can tell of changes any more.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            // A little later: what changes now often changes again at once.
            sleep_until(begun + AT_LEAST).await;
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = open.shown.closed() => {}
            () = open.wanted.notified() => {}
            () = changed => {}
            () = sleep_until(begun + AT_MOST) => {}
        }
    }
}

impl Shown {
    fn of(begun: Instant, rendered: Result<Rendered, Problem>, csrf: &str) -> Self {
        let what = rendered.map(|Rendered { title, parts, later, output, .. }| {
            let parts = parts.into_iter().chain(later).map(|part| {
                let hash = super::live::hash(&part.body.0, csrf);
                let json = json!({ "id": part.id, "class": part.class, "html": part.body.0, "hash": hash });
                ShownPart { id: part.id, hash, json: json.to_string() }
            });
            let output = output.map(|Output { attempt, ended, at, markup }| {
                let json = json!({ "attempt": attempt.0, "html": markup.into_string() }).to_string();
                ShownOutput { attempt, ended, at, json }
            });
            Parts { title, parts: parts.collect(), output }
        });
        let what = what.map_err(|problem| {
            tracing::debug!(?problem, "an open page can't be rendered");
            problem.detail().to_owned()
        });
        Self { begun, what }
    }
}

impl Looker {
    /// The view as it is now, once it is another one than before; `None` where it is shown no more. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Arc<Shown>> {
        loop {
            self.shown.changed().await.ok()?;
            if let Some(shown) = self.take() {
                return Some(shown);
            }
        }
    }

    /// The same, if it is another one already.
    pub(super) fn fresh(&mut self) -> Option<Arc<Shown>> {
        if self.shown.has_changed().unwrap_or(false) { self.take() } else { None }
    }

    fn take(&mut self) -> Option<Arc<Shown>> {
        self.shown.borrow_and_update().clone().filter(|shown| shown.begun >= self.since)
    }

    /// What is sent of a part.
    pub(super) fn personal(&self, part: &ShownPart) -> String {
        if self.place_holder.is_empty() {
            return part.json.clone();
        }
        part.json.replace(&self.place_holder, &self.csrf)
    }
}
