//! Which partitions of a table belong to a tenant: `CUSTOMER#{partition_key}`.
//!
//! Invariant (prefix safety): no two tenants share a partition. A template fills in the whole partition key and a partition is matched
//! as a whole, so within one template different tenants have different partitions. Two templates of a table might still meet: with
//! `{partition_key}` and `CUSTOMER#{partition_key}`, the tenant `CUSTOMER#a` of the one has the partition of the tenant `a` of the
//! other. They meet exactly if of their texts before the placeholder one begins with the other, and of those after it one ends with the
//! other; [`KeyTemplate::meets`] says so, and such a pair is refused.
//!
//! Our own items in a cell's table have partitions with a control character, which neither templates nor tenants have.

use serde::{Deserialize, Serialize};

use crate::domain::PartitionKey;

const PLACEHOLDER: &str = "{partition_key}";

/// Longest partition key value, in bytes, and longest tenant.
const MAX_BYTES: usize = 2048;
const MAX_TENANT: usize = 1024;

/// Exactly one `{partition_key}` and at most 1,024 bytes around it, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyTemplate {
    before: String,
    after: String,
}

impl KeyTemplate {
    /// # Errors
    /// What is wrong with the text.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let Some((before, after)) = text.split_once(PLACEHOLDER) else {
            return Err("has no {partition_key}; write such as CUSTOMER#{partition_key}");
        };
        if after.contains(PLACEHOLDER) {
            return Err("has {partition_key} more than once");
        }
        if text.chars().any(char::is_control) {
            return Err("has a control character");
        }
        if before.len() + after.len() > MAX_BYTES - MAX_TENANT {
            return Err("has more than 1,024 bytes around {partition_key}");
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// As it is written.
    pub fn text(&self) -> String {
        format!("{}{PLACEHOLDER}{}", self.before, self.after)
    }

    /// The tenant's partition.
    pub fn partition(&self, tenant: &PartitionKey) -> String {
        format!("{}{tenant}{}", self.before, self.after)
    }

    /// Whose partition this is; `None`: nobody's by this template.
    pub fn tenant(&self, partition: &str) -> Option<PartitionKey> {
        let rest = partition.strip_prefix(self.before.as_str())?;
        PartitionKey::new(rest.strip_suffix(self.after.as_str())?).ok()
    }

    /// Whether some tenant's partition by this template can be another tenant's by the other.
    pub fn meets(&self, other: &Self) -> bool {
        let before =
            self.before.starts_with(&other.before) || other.before.starts_with(&self.before);
        let after = self.after.ends_with(&other.after) || other.after.ends_with(&self.after);
        before && after
    }
}

impl TryFrom<String> for KeyTemplate {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        Self::new(&text)
    }
}

impl From<KeyTemplate> for String {
    fn from(template: KeyTemplate) -> String {
        template.text()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn template(text: &str) -> KeyTemplate {
        KeyTemplate::new(text).unwrap()
    }

    #[test]
    fn a_partition_is_its_tenants_and_nobody_elses() {
        let template = template("CUSTOMER#{partition_key}#v1");
        for tenant in ["a", "a#1", "ab", "CUSTOMER#a", "а", "a#v1"] {
            let tenant = PartitionKey::new(tenant).unwrap();
            let partition = template.partition(&tenant);
            assert_eq!(template.tenant(&partition), Some(tenant));
        }
        for foreign in ["CUSTOMER#a", "ORDER#a#v1", "CUSTOMER##v1", "\u{1}GUARD#a"] {
            assert_eq!(template.tenant(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_is_no_template_says_why() {
        for (text, why) in [
            ("CUSTOMER#", "no {partition_key}"),
            ("{partition_key}#{partition_key}", "more than once"),
            ("A\n{partition_key}", "control"),
            (&format!("{}{{partition_key}}", "x".repeat(1025)), "1,024 bytes"),
        ] {
            assert!(KeyTemplate::new(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn templates_that_meet_are_known() {
        for (a, b, meets) in [
            ("{partition_key}", "CUSTOMER#{partition_key}", true),
            ("CUSTOMER#{partition_key}", "CUSTOMER#{partition_key}#x", true),
            ("C#{partition_key}#x", "C#1#{partition_key}#x", true),
            ("CUSTOMER#{partition_key}", "ORDER#{partition_key}", false),
            ("{partition_key}#orders", "{partition_key}#carts", false),
        ] {
            assert_eq!(template(a).meets(&template(b)), meets, "{a} {b}");
            assert_eq!(template(b).meets(&template(a)), meets, "{b} {a}");
        }
    }

    proptest! {
        /// Templates that are said not to meet do not.
        #[test]
        fn no_two_tenants_share_a_partition(
            a in "[ab#]{0,3}", b in "[ab#]{0,3}", c in "[ab#]{0,3}", d in "[ab#]{0,3}",
            one in "[ab#]{1,6}", other in "[ab#]{1,6}",
        ) {
            let first = template(&format!("{a}{{partition_key}}{b}"));
            let second = template(&format!("{c}{{partition_key}}{d}"));
            let tenant = |text: &str| PartitionKey::new(text).unwrap();
            if first.partition(&tenant(&one)) == second.partition(&tenant(&other)) {
                prop_assert!(first.meets(&second));
            }
        }
    }
}
