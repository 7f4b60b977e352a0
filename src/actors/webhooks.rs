//! Events to webhooks: one task for each receiver, so that a slow one delays nobody else.
//!
//! Started by the root. What is sent, and how far that has come, is the store's to know; what is here at a time is a handful
//! of requests, and what dies with this process is sent again by the next.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::root::keep_running;
use super::status::ErrorChain;
use super::{AbortOnDrop, Shared};
use crate::config::WebhookConfig;
use crate::domain::delivery::next_try;
use crate::outgoing::Receiver;
use crate::store::{Delivery, Error, JobRow, Sent, StreamedEvent, Undelivered};

/// Requests to one receiver at a time.
const AT_ONCE: usize = 8;
/// How much longer than a request its delivery is nobody else's: to write down what came of it.
const MARGIN: Duration = Duration::from_secs(30);
/// However often the tables change, there are not more looks than this.
const PAUSE: Duration = Duration::from_millis(50);
/// What other workers write is not always told.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// The `source` of every event (CloudEvents 1.0).
const SOURCE: &str = "callsheet";

/// Sends events to this receiver for as long as what it returns is kept.
pub(super) fn deliver(shared: &Arc<Shared>, receiver: &Arc<Receiver>) -> AbortOnDrop {
    let (shared, receiver) = (Arc::clone(shared), Arc::clone(receiver));
    keep_running("sending events", move || work(Arc::clone(&shared), Arc::clone(&receiver)))
}

async fn work(shared: Arc<Shared>, receiver: Arc<Receiver>) {
    let mut changes = shared.changed.subscribe();
    let mut under_way = JoinSet::new();
    let mut failing = false;
    let mut count_at = Instant::now();
    shared.metrics.add_webhook(&receiver.webhook.name);
    loop {
        let wait = match step(&shared, &receiver, &mut under_way).await {
            Ok(wait) => {
                failing = false;
                wait
            }
            Err(error) => {
                // Once, not for each look while it lasts.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(webhook = receiver.webhook.name, error = %ErrorChain(&error), "events can't be delivered now");
                }
                LOOK_ANYWAY
            }
        };
        if Instant::now() >= count_at {
            count(&shared, &receiver.webhook).await;
            count_at = Instant::now() + LOOK_ANYWAY;
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            Some(ended) = under_way.join_next() => if let Err(failure) = ended {
                tracing::error!(webhook = receiver.webhook.name, %failure, "sending an event panicked; it is sent again");
            },
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Shows what waits; a database that is away leaves the figures as they were.
async fn count(shared: &Shared, webhook: &WebhookConfig) {
    match shared.store.undelivered(&webhook.name).await {
        Ok(Undelivered { events, oldest }) => shared.metrics.webhook_undelivered(&webhook.name, events, oldest),
        Err(error) => tracing::debug!(error = %ErrorChain(&error), "what waits for a webhook can't be counted"),
    }
}

/// Begins to send what is due, as far as there is room, and says when to look again.
async fn step(shared: &Arc<Shared>, receiver: &Arc<Receiver>, under_way: &mut JoinSet<()>) -> Result<Duration, Error> {
    let webhook = &receiver.webhook;
    let describe =
        |event: &StreamedEvent, job: Option<&JobRow>| is_wanted(webhook, event).then(|| cloud_event(event, job));
    while shared.store.spread_events(&webhook.name, &describe).await? {}
    while under_way.try_join_next().is_some() {}
    let room = AT_ONCE.saturating_sub(under_way.len());
    if room == 0 {
        return Ok(LOOK_ANYWAY);
    }
    let due = shared.store.take_deliveries(&webhook.name, webhook.timeout + MARGIN, room).await?;
    for delivery in due {
        under_way.spawn(send(Arc::clone(shared), Arc::clone(receiver), delivery));
    }
    let next = shared.store.next_delivery(&webhook.name).await?;
    Ok(next.map_or(LOOK_ANYWAY, |next| next.min(LOOK_ANYWAY)))
}

async fn send(shared: Arc<Shared>, receiver: Arc<Receiver>, delivery: Delivery) {
    let webhook = &receiver.webhook;
    let (id, timestamp) = (format!("msg_{}", delivery.event_id), shared.clock.now().unix_millis() / 1000);
    let headers = [
        ("Content-Type", "application/cloudevents+json; charset=utf-8".to_owned()),
        ("webhook-id", id.clone()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", receiver.key.sign(&id, timestamp, &delivery.body)),
    ];
    let error = match tokio::time::timeout(webhook.timeout, receiver.poster.post(&headers, &delivery.body)).await {
        Ok(Ok(200..=299)) => None,
        Ok(Ok(status)) => Some(format!("the answer was status {status}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {}", humantime::format_duration(webhook.timeout))),
    };
    let event = delivery.event_id;
    let (sent, result) = match error {
        None => (Sent::Delivered, "delivered"),
        Some(error) => match next_try(delivery.tries, delivery.first, delivery.now) {
            Some(wait) => {
                tracing::debug!(
                    webhook = webhook.name,
                    event,
                    error,
                    ?wait,
                    "an event was not taken and is sent again"
                );
                (Sent::Again(wait, error), "retried")
            }
            None => {
                tracing::error!(
                    webhook = webhook.name,
                    event,
                    error,
                    "an event was not taken for a day and is given up"
                );
                (Sent::Failed(error), "failed")
            }
        },
    };
    shared.metrics.webhook_sent(&webhook.name, result);
    if let Err(error) = shared.store.delivered(&webhook.name, &delivery, &sent).await {
        tracing::warn!(webhook = webhook.name, event, error = %ErrorChain(&error), "what came of an event can't be written; it is sent again");
    }
}

fn is_wanted(webhook: &WebhookConfig, event: &StreamedEvent) -> bool {
    (webhook.types.is_empty() || webhook.types.iter().any(|flow| flow.as_str() == event.job_type))
        && (webhook.statuses.is_empty()
            || webhook.statuses.iter().any(|status| status.as_str() == event.event.to_status))
}

/// The event as CloudEvents 1.0 has it in JSON. Everything in it is of the moment of the change, but the identifier, which
/// does not change.
fn cloud_event(streamed: &StreamedEvent, job: Option<&JobRow>) -> String {
    let event = &streamed.event;
    let time = chrono::DateTime::from_timestamp_millis(event.time.unix_millis()).unwrap_or_default();
    json!({
        "specversion": "1.0",
        "id": event.id.to_string(),
        "source": SOURCE,
        "type": format!("callsheet.job.{}", event.to_status.to_ascii_lowercase()),
        "subject": event.job_id.to_string(),
        "time": time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        "datacontenttype": "application/json",
        "data": {
            "job_id": event.job_id.0,
            "type": streamed.job_type,
            "identifier": job.map(|job| &job.identifier),
            "attempt": event.attempt.0,
            "from_status": event.from_status,
            "to_status": event.to_status,
            "worker_id": event.worker_id,
            "message": event.message,
        },
    })
    .to_string()
}
