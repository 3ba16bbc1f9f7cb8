//! Whether an item's expiry has passed. The storage deletes such items late, days perhaps, at each cell at another time; so they count
//! as absent.
//!
//! As DynamoDB's developer guide has it ("Using time to live"): the attribute is a number of seconds since 1970; any other type, and
//! no attribute, is no expiry; and what expired more than five years ago is taken for a mistake and never deleted. That is an item then,
//! here too: an attribute of 0 is common for "never".

use aws_sdk_dynamodb::types::AttributeValue;

use crate::{Item, number};

/// Five years of 365 days, in seconds.
const NEVER_DELETED: u64 = 5 * 365 * 24 * 60 * 60;

/// Whether the item of a table with this TTL attribute has expired. `now` in seconds since 1970; at that second it has.
pub fn expired(ttl_attribute: Option<&str>, item: &Item, now: u64) -> bool {
    let Some(AttributeValue::N(text)) = ttl_attribute.and_then(|name| item.get(name)) else {
        return false;
    };
    let moment = |seconds: u64| number::ordered(&seconds.to_string());
    let (at, now, oldest) =
        (number::ordered(text), moment(now), moment(now.saturating_sub(NEVER_DELETED)));
    at.is_some_and(|at| Some(&at) <= now.as_ref() && Some(&at) > oldest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_of_the_last_five_years_is_past() {
        let now = 1_800_000_000;
        let with = |value| Item::from([("TTL".to_owned(), value)]);
        let number = |text: &str| with(AttributeValue::N(text.to_owned()));
        for (text, expected) in [
            ("1800000000", true),
            ("1800000000.5", false),
            ("1800000001", false),
            ("1799999999.99", true),
            ("1.7E+9", true),
            ("1642320001", true),
            ("1642320000", false),
            ("0", false),
            ("-1", false),
            ("1800000000000", false),
            ("soon", false),
        ] {
            assert_eq!(expired(Some("TTL"), &number(text), now), expected, "{text}");
        }
        assert!(!expired(None, &number("1799999999"), now));
        assert!(!expired(Some("Other"), &number("1799999999"), now));
        assert!(!expired(Some("TTL"), &with(AttributeValue::S("1799999999".to_owned())), now));
    }
}
