//! HTTP POSTs of JSON lines.
//!
//! Invariant: a delivery is accepted exactly if, for each of its parts in their order, some attempt was answered with a 2xx status. All
//! attempts for the same records bear the same idempotency key, also those of another consumer that offers the same page again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::{Parts, Sink, SinkError};
use crate::backoff::Backoff;
use crate::json::Json;
use crate::post::{InvalidWebhook, Post};
use crate::{Delivery, Gap};

/// Says which part of which delivery a request is: a receiver that has done it answers 2xx and does nothing.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// How to post.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// Longest wait for one attempt's answer.
    pub timeout: Duration,
    /// Attempts for one part of a delivery; after them the delivery is refused, and the consumer offers it again after a wait of its own.
    pub attempts: u32,
    /// Largest body, in bytes. A delivery that is larger is posted in parts, one after the other; a change that is larger is posted alone.
    /// A part that is answered by 413 is halved, down to one change.
    pub max_body: usize,
    /// First wait between attempts; it doubles up to `backoff_max`, with jitter.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Sent with each request, such as an `authorization`.
    pub headers: HeaderMap,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            attempts: 5,
            max_body: 1_000_000,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            headers: HeaderMap::new(),
        }
    }
}

/// Posts each delivery to one address, as `application/x-ndjson`.
#[derive(Debug)]
pub struct WebhookSink {
    post: Post,
    options: WebhookOptions,
    json: Json,
    backoff: Mutex<Backoff>,
}

impl WebhookSink {
    /// `http://` or `https://`, the latter trusted by the system's certificates.
    ///
    /// # Errors
    ///
    /// If the address is no such one, attempts are none, or the system's certificates cannot be read.
    pub fn new(uri: &str, options: WebhookOptions, json: Json) -> Result<Self, InvalidWebhook> {
        let post = Post::new(uri)?;
        if options.attempts == 0 {
            return Err(InvalidWebhook("attempts is 0".into()));
        }
        let backoff = Backoff::new(options.backoff_min, options.backoff_max, rand::random());
        Ok(Self { post, options, json, backoff: Mutex::new(backoff) })
    }

    /// The same address with other lines, such as those of another table, on the same connections.
    pub fn posting(&self, json: Json) -> Self {
        let (min, max) = (self.options.backoff_min, self.options.backoff_max);
        Self {
            post: self.post.clone(),
            options: self.options.clone(),
            json,
            backoff: Mutex::new(Backoff::new(min, max, rand::random())),
        }
    }

    async fn attempt(&self, key: &HeaderValue, body: &Bytes) -> Result<(), Failure> {
        let mut headers = self.options.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY), key.clone());
        let answer = self.post.send(headers, body.clone(), self.options.timeout).await;
        let answer = answer.map_err(Failure::retry)?;
        let status = answer.status;
        if status.is_success() {
            return Ok(());
        }
        let after = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
        let too_large = status == StatusCode::PAYLOAD_TOO_LARGE;
        Err(Failure {
            what: format!("answered {status}"),
            again: may_pass(status),
            after,
            too_large,
        })
    }

    /// Tries until a part is accepted, or no attempt is left or any use.
    async fn deliver_part(&self, key: &HeaderValue, body: &Bytes) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            let Err(failure) = self.attempt(key, body).await else { return Ok(()) };
            if !failure.again || attempt >= self.options.attempts {
                return Err(failure);
            }
            let wait = self.backoff.lock().wait(attempt);
            sleep(wait.max(failure.after.unwrap_or_default().min(self.options.backoff_max))).await;
            attempt += 1;
        }
    }
}

struct Failure {
    what: String,
    again: bool,
    after: Option<Duration>,
    too_large: bool,
}

impl Failure {
    fn retry(what: String) -> Self {
        Self { what, again: true, after: None, too_large: false }
    }
}

/// Whether another attempt soon may be answered otherwise. What is not is offered again too, but after the consumer's longer wait.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY]
            .contains(&status)
}

/// The same for the same records, whoever offers them.
fn idempotency_key(delivery: &Delivery, events: &Range<usize>) -> HeaderValue {
    let mut digest = Sha256::new();
    let mut part = |text: &str| {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    };
    part(delivery.source().group.as_str());
    part(delivery.source().stream.as_str());
    part(delivery.shard().as_str());
    match delivery {
        Delivery::Events(batch) => {
            let events = batch.events.get(events.clone()).unwrap_or_default();
            for event in [events.first(), events.last()].into_iter().flatten() {
                part(event.record.sequence.as_str());
            }
            part(&events.len().to_string());
        }
        Delivery::Gap(Gap { after, cause, .. }) => {
            part(cause.as_str());
            part(after.as_ref().map_or("", |after| after.as_str()));
        }
    }
    let hex: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&hex).unwrap_or(HeaderValue::from_static("0"))
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let lines = self.json.each_line(delivery);
        let mut parts = Parts::new(lines.iter().map(String::len), self.options.max_body);
        while let Some(part) = parts.take() {
            let body = lines.get(part.clone()).unwrap_or_default().concat();
            let posted =
                self.deliver_part(&idempotency_key(delivery, &part), &Bytes::from(body)).await;
            if let Err(failure) = posted
                && !(failure.too_large && parts.halve(&part))
            {
                return Err(SinkError(format!("the webhook: {}", failure.what)));
            }
        }
        Ok(())
    }
}
