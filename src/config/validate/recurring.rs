//! `[[flows.TYPE.recurring]]`: jobs that are enqueued by the clock.

use toml::Spanned;

use super::Validator;
use crate::config::RecurringConfig;
use crate::config::written::{Flow, Recurring};
use crate::domain::admission::IdentifierPattern;
use crate::domain::recurring::{CatchUp, Overlap};

/// In bytes; it is a part of the unique key of its jobs, with a time behind it.
const LONGEST_ENTRY_NAME: usize = 200;

impl Validator<'_> {
    pub(super) fn recurring(&mut self, written: &Flow, pattern: Option<&IdentifierPattern>) -> Vec<RecurringConfig> {
        let mut entries: Vec<RecurringConfig> = Vec::new();
        for entry in &written.recurring {
            let Some(config) = self.recurring_entry(entry, written.timezone.as_ref(), pattern) else { continue };
            if entries.iter().any(|other| other.name == config.name) {
                let place = entry.get_ref().name.as_ref().map_or(entry.span(), Spanned::span);
                self.notes
                    .add(place, format!("two recurring entries of this flow have the name {:?}", config.name))
                    .help("the database knows an entry's last fire by its name, which is its identifier where none is given");
            }
            entries.push(config);
        }
        entries
    }

    fn recurring_entry(
        &mut self,
        entry: &Spanned<Recurring>,
        timezone: Option<&Spanned<String>>,
        pattern: Option<&IdentifierPattern>,
    ) -> Option<RecurringConfig> {
        let Recurring { name, schedule, timezone: own_zone, identifier, payload, priority, catch_up, overlap } =
            entry.get_ref();
        for (key, written) in [("schedule", schedule), ("identifier", identifier)] {
            if written.is_none() {
                self.notes.add(entry.span(), format!("this recurring entry has no `{key}`")).missing();
            }
        }
        if let (Some(identifier), Some(pattern)) = (identifier, pattern)
            && let Err(refusal) = pattern.check(identifier.get_ref())
        {
            self.notes.add(identifier.span(), format!("`identifier` can't be used: {refusal}"));
        }
        let name = name.as_ref().or(identifier.as_ref());
        if let Some(name) = name.filter(|name| {
            name.get_ref().is_empty()
                || name.get_ref().len() > LONGEST_ENTRY_NAME
                || name.get_ref().contains(char::is_control)
        }) {
            let message =
                format!("a recurring entry's `name` has 1 to {LONGEST_ENTRY_NAME} bytes, none of a control character");
            self.notes.add(name.span(), message).help("without `name` it is the identifier");
        }
        if let Some(payload) = payload
            && let Err(refusal) = crate::domain::payload::check(payload.get_ref())
        {
            self.notes.add(payload.span(), format!("`payload` {refusal}"));
        }
        let priority = priority.as_ref().and_then(|priority| {
            let number = i32::try_from(*priority.get_ref()).ok();
            if number.is_none() {
                let message = format!("`priority` must be {} to {}, not {}", i32::MIN, i32::MAX, priority.get_ref());
                self.notes.add(priority.span(), message);
            }
            number
        });
        const CATCH_UP: &str = "of the fires that no service was there for, \"skip\" leaves all out, \"one\" makes up for the \
            last, \"all\" for each";
        const OVERLAP: &str =
            "\"allow\" enqueues another job while an earlier one has not ended, \"skip\" leaves that fire out";
        let catch_up =
            self.word("catch_up", catch_up.as_ref(), &CatchUp::ALL.map(|policy| (policy.as_str(), policy)), CATCH_UP);
        let overlap =
            self.word("overlap", overlap.as_ref(), &Overlap::ALL.map(|policy| (policy.as_str(), policy)), OVERLAP);
        let schedule = schedule.as_ref().and_then(|line| self.schedule(Some(line), own_zone.as_ref().or(timezone)));
        Some(RecurringConfig {
            name: name?.get_ref().clone(),
            schedule: schedule?,
            identifier: identifier.as_ref()?.get_ref().clone(),
            payload: payload.as_ref().map(|payload| payload.get_ref().clone()),
            priority: priority.unwrap_or(0),
            catch_up: catch_up.unwrap_or(CatchUp::One),
            overlap: overlap.unwrap_or(Overlap::Allow),
        })
    }
}
