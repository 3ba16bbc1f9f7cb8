//! Where a comparison goes on, in this process or in another.
//!
//! ```text
//! 1 | mark of the plan, 8 bytes | part, 4 bytes | place at the source | place at the target
//! place: 0 start | 1 end | s, n or b, the length in 8 bytes, the sort key
//! ```
//! The sort keys in it may be personal data: it is kept where items may be, and never logged.

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

const VERSION: u8 = 1;

/// How far one side of a partition was read.
#[derive(Clone, PartialEq)]
pub enum Place {
    Start,
    /// After this sort key.
    After(AttributeValue),
    End,
}

/// Where a comparison goes on. Kept with the counts up to it, in one write: else pages count twice, or not at all.
#[derive(Clone, PartialEq)]
pub struct Cursor {
    pub(crate) mark: [u8; 8],
    /// A number of the table and the template together.
    pub(crate) part: u32,
    pub(crate) source: Place,
    pub(crate) target: Place,
}

/// A cursor that says nothing to whom it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCursor {
    #[error("it is no cursor of this version; begin the comparison anew")]
    Unreadable,
    #[error(
        "the tables, the tenant or the cells are not those of the cursor; begin the comparison anew"
    )]
    OtherPlan,
}

impl Cursor {
    /// As bytes: 15 of them and at most twice a sort key.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.mark);
        out.extend(self.part.to_be_bytes());
        self.source.encode(&mut out);
        self.target.encode(&mut out);
        out
    }

    /// # Errors
    /// Where [`Cursor::encode`] did not write it.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCursor> {
        let read = || -> Option<Self> {
            let (version, rest) = bytes.split_first()?;
            let (mark, rest) = rest.split_first_chunk::<8>()?;
            let (part, rest) = rest.split_first_chunk::<4>()?;
            let (source, rest) = Place::decode(rest)?;
            let (target, rest) = Place::decode(rest)?;
            let whole = *version == VERSION && rest.is_empty();
            let cursor = Self { mark: *mark, part: u32::from_be_bytes(*part), source, target };
            whole.then_some(cursor)
        };
        read().ok_or(BadCursor::Unreadable)
    }
}

impl Place {
    fn encode(&self, out: &mut Vec<u8>) {
        let (tag, key) = match self {
            Self::Start => return out.push(0),
            Self::End => return out.push(1),
            Self::After(AttributeValue::S(text)) => (b's', text.as_bytes()),
            Self::After(AttributeValue::N(text)) => (b'n', text.as_bytes()),
            Self::After(AttributeValue::B(bytes)) => (b'b', bytes.as_ref()),
            // Not a key in any table; what it would skip is read again.
            Self::After(_) => return out.push(0),
        };
        out.push(tag);
        out.extend((key.len() as u64).to_be_bytes());
        out.extend(key);
    }

    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (tag, rest) = bytes.split_first()?;
        match tag {
            0 => return Some((Self::Start, rest)),
            1 => return Some((Self::End, rest)),
            _ => {}
        }
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
        let (key, rest) = rest.split_at_checked(length)?;
        let text = || String::from_utf8(key.to_vec()).ok();
        let key = match tag {
            b's' => AttributeValue::S(text()?),
            b'n' => AttributeValue::N(text()?),
            b'b' => AttributeValue::B(Blob::new(key)),
            _ => return None,
        };
        Some((Self::After(key), rest))
    }
}

/// Without keys.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "Start",
            Self::After(_) => "After(..)",
            Self::End => "End",
        })
    }
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { part, source, target, .. } = self;
        write!(f, "Cursor {{ part: {part}, source: {source:?}, target: {target:?} }}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Start),
            Just(Place::End),
            ".{0,40}".prop_map(|text| Place::After(AttributeValue::S(text))),
            any::<i64>().prop_map(|n| Place::After(AttributeValue::N(n.to_string()))),
            vec(any::<u8>(), 0..40).prop_map(|b| Place::After(AttributeValue::B(Blob::new(b)))),
        ]
    }

    fn cursor() -> impl Strategy<Value = Cursor> {
        (any::<[u8; 8]>(), any::<u32>(), place(), place())
            .prop_map(|(mark, part, source, target)| Cursor { mark, part, source, target })
    }

    proptest! {
        #[test]
        fn it_survives_as_bytes(cursor in cursor()) {
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn a_part_or_more_of_it_is_refused(cursor in cursor(), cut in any::<prop::sample::Index>(), more in any::<u8>()) {
            let mut bytes = cursor.encode();
            let short = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(Cursor::decode(short), Err(BadCursor::Unreadable));
            bytes.push(more);
            prop_assert_eq!(Cursor::decode(&bytes), Err(BadCursor::Unreadable));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..60)) {
            if let Ok(cursor) = Cursor::decode(&bytes) {
                prop_assert_eq!(cursor.encode(), bytes);
            }
        }
    }

    #[test]
    fn its_form_stays_and_shows_no_key() {
        let cursor = Cursor {
            mark: *b"12345678",
            part: 258,
            source: Place::After(AttributeValue::S("secret".to_owned())),
            target: Place::End,
        };
        let mut expected = b"\x0112345678\0\0\x01\x02s\0\0\0\0\0\0\0\x06secret".to_vec();
        expected.push(1);
        assert_eq!(cursor.encode(), expected);
        assert!(!format!("{cursor:?}").contains("secret"));
        expected[0] = 2;
        assert_eq!(Cursor::decode(&expected), Err(BadCursor::Unreadable));
    }
}
