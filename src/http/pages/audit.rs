//! The audit trail: who did what, when and from where.

use maud::{Markup, html};

use super::parts::{ago, encoded, name};
use crate::domain::Timestamp;
use crate::store::{AuditRow, Page};

/// A page of the trail; `actor` is what the address asks for.
pub(super) fn audit(page: &Page<AuditRow, i64>, actor: &str, now: Timestamp) -> Markup {
    let of = if actor.is_empty() { String::new() } else { format!("&actor={}", encoded(actor)) };
    html! {
        h1 { "Audit" }
        form.filter method="get" action="/audit" role="search" aria-label="Filter the audit trail" {
            label { "Who" input type="search" name="actor" value=(actor) maxlength="200"; }
            div.buttons { button type="submit" { "Filter" } @if !actor.is_empty() { a.button.quiet href="/audit" { "Clear" } } }
        }
        section.panel {
            @if page.rows.is_empty() { p.muted { "Nobody has done anything yet." } } @else {
                div.scroll tabindex="0" role="region" aria-label="Audit trail" {
                    table {
                        thead { tr { th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "Did" } th scope="col" { "To" } th scope="col" { "Outcome" } th scope="col" { "By way of" } th scope="col" { "From" } } }
                        tbody {
                            @for row in &page.rows {
                                tr {
                                    td { (ago(row.time, now)) }
                                    td { (name(&row.actor)) }
                                    td { (name(&row.action)) }
                                    td { @match row.target.strip_prefix("job ").and_then(|id| id.parse::<i64>().ok()) {
                                        Some(id) => a href={ "/jobs/" (id) } { (name(&row.target)) },
                                        None => (name(&row.target)),
                                    } }
                                    td { (name(&row.outcome)) }
                                    td { (name(&row.via)) }
                                    td { @if let Some(address) = &row.address { (name(address)) } }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(cursor) = page.next_cursor { nav.pages aria-label="Pages" { a.button rel="next" href={ "/audit?cursor=" (cursor) (of) } { "Older" } } }
        }
    }
}
