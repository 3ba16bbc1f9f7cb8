//! How large an item is.

use aws_sdk_dynamodb::types::AttributeValue;

use super::Item;

/// An item's size by DynamoDB's rules, to within a byte a number:
/// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html>.
pub fn item_bytes(item: &Item) -> u64 {
    item.iter().map(|(name, value)| name.len() as u64 + bytes(value)).sum()
}

fn bytes(value: &AttributeValue) -> u64 {
    /// Of a list or a map, whatever it holds, and of each element.
    const NESTED: u64 = 3;
    let text = |text: &String| text.len() as u64;
    let number = |number: &String| {
        let digits = number.bytes().filter(u8::is_ascii_digit).count() as u64;
        digits.div_ceil(2) + 1 + u64::from(number.starts_with('-'))
    };
    match value {
        AttributeValue::S(value) => text(value),
        AttributeValue::N(value) => number(value),
        AttributeValue::B(value) => value.as_ref().len() as u64,
        AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
        AttributeValue::Ss(values) => values.iter().map(text).sum(),
        AttributeValue::Ns(values) => values.iter().map(number).sum(),
        AttributeValue::Bs(values) => values.iter().map(|value| value.as_ref().len() as u64).sum(),
        AttributeValue::L(values) => {
            NESTED + values.iter().map(|value| bytes(value) + 1).sum::<u64>()
        }
        AttributeValue::M(values) => NESTED + values.len() as u64 + item_bytes(values),
        // No other types are known.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dynamodbs() {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let number = |text: &str| AttributeValue::N(text.to_owned());
        for (value, expected) in [
            (text("é"), 2),
            (number("1234567890"), 6),
            (number("-1.5"), 3),
            (AttributeValue::Null(true), 1),
            (AttributeValue::Ss(vec!["ab".into(), "c".into()]), 3),
            (AttributeValue::L(vec![text("ab"), AttributeValue::Bool(true)]), 3 + 3 + 2),
            (AttributeValue::M(Item::from([("n".to_owned(), text("ab"))])), 3 + 1 + 1 + 2),
        ] {
            assert_eq!(bytes(&value), expected, "{value:?}");
        }
        assert_eq!(item_bytes(&Item::from([("PK".to_owned(), text("abc"))])), 5);
    }
}
