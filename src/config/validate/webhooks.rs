//! `[[webhooks]]`: who is told of ends.

use std::time::Duration;

use toml::Spanned;

use super::{Bounds, LONGEST_TOKEN_NAME, SecretWords, Validator, bounds};
use crate::config::written::Webhook;
use crate::config::{WebhookConfig, WebhookUrl};
use crate::domain::{FlowType, JobStatus};

const WEBHOOK: Bounds = bounds(1, 300, "whoever takes longer should answer first and work afterwards");
const OF_WEBHOOK: SecretWords = SecretWords {
    both: "a webhook has either `secret_env` or `secret_file`, not both",
    neither: "this webhook has neither `secret_env` nor `secret_file`",
    what_it_is: "requests are signed with it; it is whsec_ and the base64 of 24 to 64 random bytes",
};

impl Validator<'_> {
    pub(super) fn webhooks(&mut self, written: &[Spanned<Webhook>]) -> Vec<WebhookConfig> {
        let mut webhooks: Vec<WebhookConfig> = Vec::new();
        for webhook in written {
            let Some(config) = self.webhook(webhook) else { continue };
            if webhooks.iter().any(|other| other.name == config.name) {
                let message = format!("two webhooks have the name {:?}", config.name);
                self.notes.add(webhook.span(), message).help("the database knows by it what has been sent");
            }
            webhooks.push(config);
        }
        webhooks
    }

    fn webhook(&mut self, webhook: &Spanned<Webhook>) -> Option<WebhookConfig> {
        let Webhook { name, url, secret_env, secret_file, types, statuses, timeout, certificate_authority } =
            webhook.get_ref();
        for (key, written) in [("name", name), ("url", url)] {
            if written.is_none() {
                self.notes.add(webhook.span(), format!("this webhook has no `{key}`")).missing();
            }
        }
        if let Some(name) = name.as_ref().filter(|name| {
            let name = name.get_ref();
            name.is_empty() || name.len() > LONGEST_TOKEN_NAME || name.contains(char::is_control)
        }) {
            let message =
                format!("a webhook's `name` has 1 to {LONGEST_TOKEN_NAME} bytes, none of a control character");
            self.notes.add(name.span(), message);
        }
        let address = url.as_ref().and_then(|url| {
            let parsed = url.get_ref().parse::<WebhookUrl>();
            if let Err(reason) = parsed {
                // Its path is often all that protects a receiver.
                let message = format!("`url` can't be used: {reason}");
                self.notes
                    .add(url.span(), message)
                    .help("for example \"https://example.org/hooks/callsheet\"")
                    .private();
            }
            parsed.ok()
        });
        let secret = self.secret_place((secret_env.as_ref(), secret_file.as_ref()), webhook.span(), &OF_WEBHOOK);
        let types = types.iter().flatten().filter_map(|text| match text.get_ref().parse::<FlowType>() {
            Ok(flow) => Some(flow),
            Err(error) => {
                self.notes.add(text.span(), format!("{:?} is no job type", text.get_ref())).help(error.to_string());
                None
            }
        });
        let types = types.collect();
        let statuses = statuses.iter().flatten().filter_map(|text| match text.get_ref().parse::<JobStatus>() {
            Ok(status) => Some(status),
            Err(error) => {
                self.notes.add(text.span(), error.to_string());
                None
            }
        });
        let statuses = statuses.collect();
        let timeout = self.duration("timeout", timeout.as_ref(), &WEBHOOK).unwrap_or(Duration::from_secs(15));
        let certificate_authority = certificate_authority.as_ref().map(|file| {
            self.path("certificate_authority", file);
            self.directory.join(file.get_ref())
        });
        Some(WebhookConfig {
            name: name.as_ref()?.get_ref().clone(),
            url: address?,
            secret: secret?,
            types,
            statuses,
            timeout,
            certificate_authority,
        })
    }
}
