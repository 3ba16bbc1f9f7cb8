//! By what DynamoDB knows one transaction from another: its token, and in the log the record's name.
//!
//! A token is bound to one form of a transaction for ten minutes: with another form DynamoDB refuses it. So as long as an attempt is
//! open its token is kept, whatever form comes next: if the open one was or is still seen, the next one is refused, and if the next
//! one was done, the open one is refused when it comes late. Where nothing is open each form has a token of its own.
//!
//! The token of a call's id is kept in any case, for other calls with this id. Only a form that DynamoDB refuses because of one that it
//! cancelled in this very call gets another, and the same one in each such call.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use sha2::{Digest, Sha256};

use super::write::{Action, Write};
use crate::Item;

#[derive(Debug)]
pub struct Identity {
    token: u128,
    /// Of the log record.
    operation: u128,
    given: bool,
    /// DynamoDB cancelled a form under this token, in this call.
    cancelled: bool,
}

impl Identity {
    pub fn new(id: Option<&str>, tenant: &str, writes: &[Write]) -> Self {
        let drawn = rand::random();
        let mut identity = Self { token: drawn, operation: drawn, given: false, cancelled: false };
        if let Some(id) = id {
            let mut hash = Hash::new("token");
            hash.text(tenant);
            hash.text(id);
            identity.token = hash.end();
            let mut hash = Hash::new("operation");
            hash.text(tenant);
            hash.text(id);
            writes.iter().for_each(|write| hash.write(write));
            identity.operation = hash.end();
            identity.given = true;
        }
        identity
    }

    /// 32 characters; DynamoDB takes 36.
    pub fn token(&self) -> String {
        format!("{:032x}", self.token)
    }

    pub fn operation(&self) -> u128 {
        self.operation
    }

    /// One of so many.
    pub fn shard(&self, shards: u8) -> u8 {
        let shard = self.operation % u128::from(shards.max(1));
        u8::try_from(shard).unwrap_or(0)
    }

    pub fn cancelled(&mut self) {
        self.cancelled = true;
    }

    /// Another form is about to be sent.
    pub fn reform(&mut self, open: bool) {
        if !self.given && !open {
            self.renew();
        }
    }

    /// The token is another form's. Whether there is a next one under which to try.
    pub fn refused(&mut self, open: bool, repeatable: bool) -> bool {
        let ours = self.cancelled && !open;
        let next = ours || (open && repeatable && !self.given);
        if next && self.given {
            self.cancelled = false;
            let mut hash = Hash::new("next token");
            hash.text(&self.token());
            self.token = hash.end();
        } else if next {
            self.renew();
        }
        next
    }

    fn renew(&mut self) {
        self.token = rand::random();
        self.operation = self.token;
        self.cancelled = false;
    }
}

/// The same for the same writes: maps and sets in order, every part with its length.
struct Hash(Sha256);

impl Hash {
    fn new(purpose: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.text(purpose);
        hash
    }

    fn end(self) -> u128 {
        let digest = self.0.finalize();
        digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes.len().to_be_bytes());
        self.0.update(bytes);
    }

    fn write(&mut self, write: &Write) {
        self.text(&write.table);
        let (kind, item, update) = match &write.action {
            Action::Put(item) => ("put", item, ""),
            Action::Update(key, update) => ("update", key, update.as_str()),
            Action::Delete(key) => ("delete", key, ""),
            Action::Check(key) => ("check", key, ""),
        };
        self.text(kind);
        self.text(update);
        self.item(item);
        self.text(&write.condition.text);
        let names: BTreeMap<_, _> = write.condition.names.iter().collect();
        self.bytes(&names.len().to_be_bytes());
        for (name, stands_for) in names {
            self.text(name);
            self.text(stands_for);
        }
        self.item(&write.condition.values);
    }

    fn item(&mut self, item: &Item) {
        let attributes: BTreeMap<_, _> = item.iter().collect();
        self.bytes(&attributes.len().to_be_bytes());
        for (name, value) in attributes {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &AttributeValue) {
        match value {
            AttributeValue::S(text) => self.typed("S", [text.as_bytes()]),
            AttributeValue::N(number) => self.typed("N", [number.as_bytes()]),
            AttributeValue::B(bytes) => self.typed("B", [bytes.as_ref()]),
            AttributeValue::Bool(value) => self.typed("BOOL", [&[u8::from(*value)][..]]),
            AttributeValue::Null(_) => self.typed("NULL", []),
            AttributeValue::Ss(all) => self.set("SS", all.iter().map(|text| text.as_bytes())),
            AttributeValue::Ns(all) => self.set("NS", all.iter().map(|text| text.as_bytes())),
            AttributeValue::Bs(all) => self.set("BS", all.iter().map(|bytes| bytes.as_ref())),
            AttributeValue::L(all) => {
                self.typed("L", [&all.len().to_be_bytes()[..]]);
                all.iter().for_each(|value| self.value(value));
            }
            AttributeValue::M(map) => {
                self.text("M");
                self.item(map);
            }
            // A type that the SDK does not know cannot be sent either.
            _ => self.text("?"),
        }
    }

    fn set<'a>(&mut self, of: &str, all: impl Iterator<Item = &'a [u8]>) {
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        self.bytes(&all.len().to_be_bytes());
        self.typed(of, all);
    }

    fn typed<'a>(&mut self, of: &str, parts: impl IntoIterator<Item = &'a [u8]>) {
        self.text(of);
        parts.into_iter().for_each(|part| self.bytes(part));
    }
}
