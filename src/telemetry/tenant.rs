//! How a tenant is named in a span: by a keyed hash, so that its calls can be found together without being read.
//!
//! An unkeyed hash would not do: partition keys are guessable (`customer-12345`) and could be found by trying. With a
//! key that is shared by the replicas the label is the same on all of them; with the default, a random key per process,
//! it groups within one process only and cannot be inverted by anybody, us included.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::names;

/// Block size of SHA-256, in bytes (RFC 2104 calls it B).
const BLOCK: usize = 64;
/// Bytes of the MAC that are kept: 64 bits, so that two of 10 million tenants share a label with odds of 1 in 370,000.
const LABEL_BYTES: usize = 8;

/// Labels tenants by HMAC-SHA256 (RFC 2104), truncated to 16 hex digits, or in clear where that was asked for.
#[derive(Clone)]
pub struct TenantLabel(Mode);

#[derive(Clone)]
enum Mode {
    Keyed(Arc<Key>),
    Clear,
}

/// The two hash states after their key block, so that a label costs no key work.
struct Key {
    inner: Sha256,
    outer: Sha256,
}

impl TenantLabel {
    /// Labels by a keyed hash. Replicas with the same `key` give the same labels. Any length is allowed; use 32 bytes.
    pub fn keyed(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        if key.len() > BLOCK {
            block[..32].copy_from_slice(&Sha256::digest(key));
        } else {
            block[..key.len()].copy_from_slice(key);
        }
        let state = |pad: u8| Sha256::new().chain_update(block.map(|byte| byte ^ pad));
        Self(Mode::Keyed(Arc::new(Key { inner: state(0x36), outer: state(0x5c) })))
    }

    /// Labels by a keyed hash whose key is random and known to this process only.
    pub fn random() -> Self {
        Self::keyed(&rand::random::<[u8; 32]>())
    }

    /// Shows tenants as they are. Only for an operator who switched it on by name.
    pub fn clear() -> Self {
        Self(Mode::Clear)
    }

    /// Name of the attribute that carries the label.
    pub fn attribute(&self) -> &'static str {
        match self.0 {
            Mode::Keyed(_) => names::TENANT_HASH,
            Mode::Clear => names::TENANT,
        }
    }

    /// The label of `tenant`.
    pub fn of(&self, tenant: &str) -> String {
        match &self.0 {
            Mode::Clear => tenant.to_owned(),
            Mode::Keyed(key) => {
                let digest = key.inner.clone().chain_update(tenant.as_bytes()).finalize();
                let mac = key.outer.clone().chain_update(digest).finalize();
                let mut label = String::with_capacity(2 * LABEL_BYTES);
                for byte in &mac[..LABEL_BYTES] {
                    for nibble in [byte >> 4, byte & 15] {
                        label.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
                    }
                }
                label
            }
        }
    }

    /// Puts the label on `span`; costs nothing where the span is not recorded.
    pub fn record(&self, span: &tracing::Span, tenant: &str) {
        if !span.is_disabled() {
            span.set_attribute(self.attribute(), self.of(tenant));
        }
    }
}

impl fmt::Debug for TenantLabel {
    /// Says the mode only: the hash states are as good as the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantLabel({})", self.attribute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_hmac_sha256_by_the_vectors_of_rfc_4231() {
        let cases: [(&[u8], &str, &str); 3] = [
            (&[0x0b; 20], "Hi There", "b0344c61d8db3853"),
            (b"Jefe", "what do ya want for nothing?", "5bdcc146bf60754e"),
            (
                &[0xaa; 131],
                "Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f",
            ),
        ];
        for (key, message, label) in cases {
            assert_eq!(TenantLabel::keyed(key).of(message), label);
        }
    }

    #[test]
    fn the_key_decides_and_is_not_shown() {
        let (one, other) = (TenantLabel::random(), TenantLabel::random());
        assert_eq!(one.of("customer-1"), one.clone().of("customer-1"));
        assert_ne!(one.of("customer-1"), other.of("customer-1"));
        assert_ne!(one.of("customer-1"), one.of("customer-2"));
        assert_eq!(format!("{one:?}"), "TenantLabel(cell.tenant.hash)");
    }

    #[test]
    fn clear_shows_the_tenant_under_another_name() {
        let clear = TenantLabel::clear();
        assert_eq!(
            (clear.attribute(), clear.of("customer-1").as_str()),
            ("cell.tenant", "customer-1")
        );
    }
}
