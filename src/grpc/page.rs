//! Pagination: sizes, and tokens that are bound to their query.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::status::{Fault, Reason};
use crate::store::Cursor;

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// Longest token taken, in bytes: room for the largest partition key several times over, in base64.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How many entries a page holds at most.
pub fn size(asked: i32) -> Result<usize, Fault> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) if size <= MAX_SIZE => Ok(size),
        _ => Err(Fault::field(
            Reason::InvalidPageSize,
            "page_size",
            format!("is {asked}; 1 to {MAX_SIZE} are allowed, 0 means {DEFAULT_SIZE}"),
        )),
    }
}

/// A listing's query: the method and what it filters by. A token of one query is no good for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    pub method: &'static str,
    pub filter: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Token {
    /// A digest of query and cursor, against tokens of other queries and damaged ones.
    digest: u64,
    cursor: String,
}

impl Query<'_> {
    fn digest(&self, cursor: &str) -> u64 {
        let text = format!("{}\u{0}{}\u{0}{cursor}", self.method, self.filter);
        xxh3_64(text.as_bytes())
    }

    /// The token by which the listing goes on; empty after the last page.
    pub fn token(&self, next: Option<Cursor>) -> String {
        let Some(Cursor(cursor)) = next else {
            return String::new();
        };
        let token = Token { digest: self.digest(&cursor), cursor };
        // Writing two plain fields as JSON cannot fail.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// Where a token says to go on; `None` for the empty token.
    pub fn cursor(&self, token: &str) -> Result<Option<Cursor>, Fault> {
        if token.is_empty() {
            return Ok(None);
        }
        let decoded = (token.len() <= MAX_TOKEN_BYTES)
            .then(|| URL_SAFE_NO_PAD.decode(token).ok())
            .flatten()
            .and_then(|json| serde_json::from_slice::<Token>(&json).ok())
            .filter(|token| token.digest == self.digest(&token.cursor));
        match decoded {
            Some(token) => Ok(Some(Cursor(token.cursor))),
            None => Err(Fault::not_a_page_token()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_query_only() {
        let query = Query { method: "ListPlacements", filter: "cell-a" };
        let token = query.token(Some(Cursor("k".into())));
        assert_eq!(query.cursor(&token).unwrap(), Some(Cursor("k".into())));
        for other in [
            Query { method: "ListPlacements", filter: "cell-b" },
            Query { method: "GetPlacementHistory", filter: "cell-a" },
        ] {
            assert!(other.cursor(&token).is_err());
        }
        for damaged in [&token[1..], &token[..token.len() - 1], "!", "e30"] {
            assert!(query.cursor(damaged).is_err(), "{damaged}");
        }
        assert_eq!(query.token(None), "");
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0).unwrap(), 100);
        assert_eq!(size(1000).unwrap(), 1000);
        for bad in [-1, 1001, i32::MIN, i32::MAX] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
