//! The hook by which an operator stops writers that know nothing of guards, and lets them go on.
//!
//! It is told by a POST, and believed when it answers 2xx. Where there is a probe, that is not enough: writes under the applications' own
//! permissions have to be refused, all of them and all the time, until a freeze counts; and to be let through, until one is lifted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cells_streams::Post;
use cells_streams::sink::InvalidWebhook;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;

use crate::cells::Regions;
use crate::domain::{CellId, MigrationId, PartitionKey};

/// Says which order of which worker a request is. No two orders have the same: a receiver that has done it may answer 2xx and do nothing.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What the hook is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// To let no write of the tenant's writers land in the cell any more, whenever it was sent.
    Freeze,
    /// To let them write in the cell, in which the tenant lives, and in no other.
    Thaw,
}

/// What the hook is told. Part of the API.
#[derive(Debug, Serialize)]
pub struct Order<'a> {
    pub action: Action,
    #[serde(serialize_with = "text")]
    pub migration: MigrationId,
    /// Of the worker that asks.
    pub number: u64,
    /// Of what that worker orders; the same again until it is answered by 2xx. An order of a lower number than one that came before, or
    /// of the same and a lower `order`, is late, and void.
    pub order: u64,
    pub tenant: &'a PartitionKey,
    pub cell: &'a CellId,
    pub source: &'a CellId,
    pub target: &'a CellId,
}

fn text<S: serde::Serializer>(id: &MigrationId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// How writers are stopped.
pub struct Freeze {
    hook: Post,
    headers: HeaderMap,
    timeout: Duration,
    /// How long a freeze has to have held, as confirmed without a break, until it counts.
    pub settle: Duration,
    /// Longest time from the hook's first answer to a freeze until the fence.
    pub budget: Duration,
    /// Cells under the applications' permissions.
    pub probe: Option<Arc<Regions>>,
}

/// What a [`Freeze`] is made of.
pub struct FreezeSettings<'a> {
    pub url: &'a str,
    /// Sent as a bearer token.
    pub token: Option<&'a str>,
    /// Longest wait for one answer of the hook.
    pub timeout: Duration,
    pub settle: Duration,
    pub budget: Duration,
}

impl Freeze {
    /// # Errors
    /// A URL or token that no request can be made with, or system certificates that cannot be read.
    pub fn new(
        settings: &FreezeSettings<'_>,
        probe: Option<Arc<Regions>>,
    ) -> Result<Self, InvalidFreeze> {
        let hook = Post::new(settings.url)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = settings.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| InvalidFreeze::Token)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let FreezeSettings { timeout, settle, budget, .. } = *settings;
        Ok(Self { hook, headers, timeout, settle, budget, probe })
    }

    /// Tells the hook once.
    ///
    /// # Errors
    /// Why it is not known to have done it, in words for operators. It may have done it.
    pub async fn tell(&self, order: &Order<'_>, patience: Duration) -> Result<(), String> {
        let body = serde_json::to_vec(order).map_err(|error| error.to_string())?;
        let mut headers = self.headers.clone();
        let key = format!("{}-{}-{}", order.migration, order.number, order.order);
        if let Ok(key) = HeaderValue::from_str(&key) {
            headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY), key);
        }
        let patience = patience.min(self.timeout);
        let answer = self.hook.send(headers, Bytes::from(body), patience).await;
        match answer {
            Ok(head) if head.status.is_success() => Ok(()),
            Ok(head) => Err(format!("the freeze hook answered {}", head.status.as_u16())),
            Err(why) => {
                tracing::warn!(migration = %order.migration, why, "the freeze hook does not answer");
                Err("the freeze hook did not answer; the log says why".to_owned())
            }
        }
    }
}

/// Settings by which no hook can be told.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFreeze {
    #[error("migration_freeze_url: {0}")]
    Url(#[from] InvalidWebhook),
    #[error("migration_freeze_token cannot be sent in a header")]
    Token,
}
