//! Identifiers, templates, names, schedules and URLs.

use std::str::FromStr;
use std::time::Duration;

use crate::domain::admission::{IdentifierPattern, Request, admit};
use crate::domain::database_url::DatabaseUrl;
use crate::domain::schedule::Schedule;
use crate::domain::template::{Placeholder, Template};
use crate::domain::{FlowType, JobId, JobStatus, RunToken, Timestamp, WorkerId};

/// The first line is an identifier, the second a template, the third a pattern, the fourth a name, the fifth a schedule,
/// the sixth a time zone, the rest a URL.
pub fn all(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.splitn(7, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (identifier, template, pattern, name, line, zone, url) =
        (next(), next(), next(), next(), next(), next(), next());
    identifiers(identifier, pattern);
    templates(template, identifier);
    names(name);
    schedules(line, zone);
    if let Ok(url) = DatabaseUrl::from_str(url) {
        // It is shown in logs, and must not show a password there.
        assert!(!url.to_string().contains(":hunter2@"));
    }
}

fn identifiers(identifier: &str, pattern: &str) {
    let default = IdentifierPattern::new(IdentifierPattern::DEFAULT).expect("the default pattern");
    for pattern in [Some(default), IdentifierPattern::new(pattern).ok()].into_iter().flatten() {
        match pattern.check(identifier) {
            Ok(()) => {
                assert!(!identifier.is_empty() && identifier.len() <= 1024 && !identifier.chars().any(char::is_control))
            }
            Err(refusal) => assert!(
                !refusal.to_string().chars().any(char::is_control) || pattern.as_str().chars().any(char::is_control)
            ),
        }
    }
    let pattern = IdentifierPattern::new(IdentifierPattern::DEFAULT).expect("the default pattern");
    let request =
        Request { identifier: Ok(identifier), payload: Ok(()), schedule_deadline: Timestamp::from_unix_millis(10) };
    if admit(request, &pattern, Timestamp::from_unix_millis(0)).is_ok() {
        // Nothing that an option parser or a shell would take for something else.
        assert!(identifier.starts_with(|c: char| c.is_ascii_alphanumeric()));
        assert!(identifier.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@/+-".contains(&b)));
    }
}

fn templates(text: &str, value: &str) {
    let Ok(template) = Template::parse(text) else { return };
    assert_eq!(Template::parse(&template.to_string()).as_ref(), Ok(&template), "it reads back as it is shown");
    let mut asked = 0;
    let counted = std::cell::RefCell::new(&mut asked);
    let filled = template.fill(|_: Placeholder| {
        **counted.borrow_mut() += 1;
        value
    });
    if template.as_plain().is_some() {
        assert_eq!(asked, 0);
    }
    // A value is put in whole, as often as it was asked for, and is not looked at again.
    assert!(filled.len() >= asked * value.len());
}

fn names(name: &str) {
    if let Ok(flow) = FlowType::from_str(name) {
        assert_eq!(flow.as_str(), name);
        assert!(flow.workflow_id(JobId(7)).ends_with("(7)"));
    }
    if let Ok(worker) = WorkerId::from_str(name) {
        assert!(!worker.as_str().contains('/'));
    }
    if let Ok(token) = RunToken::from_str(name) {
        assert_eq!(token.as_str().len(), 32);
    }
    if let Ok(status) = JobStatus::from_str(name) {
        assert_eq!(status.as_str(), name);
    }
}

fn schedules(line: &str, zone: &str) {
    for zone in [zone, "Europe/Berlin"] {
        let Ok(schedule) = Schedule::new(line, zone) else { continue };
        // The night of a DST change of 2026, and a plain one.
        for start in [1_774_742_400_000, 1_792_886_400_000, 1_780_000_000_000] {
            let mut now = Timestamp::from_unix_millis(start);
            for _ in 0..4 {
                let Some(next) = schedule.next_after(now) else { break };
                assert!(next > now, "{line:?} in {zone:?} stands still at {now:?}");
                assert!(schedule.is_due(now, next));
                assert!(next.since(now) >= Duration::from_secs(1));
                now = next;
            }
        }
    }
}
