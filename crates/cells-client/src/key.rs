//! A key as the bounded memory holds it: most keys are short and lie next to their value.
//!
//! A key behind a pointer is one more wait for memory in every lookup, which is as long as all the rest of it takes.

use std::hash::{Hash, Hasher};

use quick_cache::Equivalent;

/// Keys of up to so many bytes are held inline. A key then takes as much room as a `String` does without its text.
const INLINE: usize = 22;

/// The text of a tenant's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Inline { len: u8, bytes: [u8; INLINE] },
    Boxed(Box<str>),
}

impl Key {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len).min(INLINE)],
            Self::Boxed(key) => key.as_bytes(),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            // Every key came in as text.
            Self::Inline { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Boxed(key) => key,
        }
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        if key.len() > INLINE {
            return Self::Boxed(key.into());
        }
        let mut bytes = [0; INLINE];
        bytes[..key.len()].copy_from_slice(key.as_bytes());
        Self::Inline { len: key.len() as u8, bytes }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Wanted::hash_bytes(self.as_bytes(), state);
    }
}

/// A key that is looked for.
pub(crate) struct Wanted<'a>(pub &'a str);

impl Wanted<'_> {
    #[inline]
    fn hash_bytes<H: Hasher>(key: &[u8], state: &mut H) {
        // Nothing follows in the hash: the text needs no end mark.
        state.write(key);
    }
}

impl Hash for Wanted<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        Self::hash_bytes(self.0.as_bytes(), state);
    }
}

impl Equivalent<Key> for Wanted<'_> {
    #[inline]
    fn equivalent(&self, key: &Key) -> bool {
        self.0.as_bytes() == key.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use foldhash::fast::FixedState;

    use super::*;

    #[test]
    fn a_key_takes_no_more_room_than_it_should() {
        assert!(size_of::<Key>() <= size_of::<String>());
    }

    #[test]
    fn a_key_of_any_length_is_found_by_its_text() {
        let hasher = FixedState::default();
        let text = "é".repeat(40);
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let (wanted, key) = (&text[..end], Key::from(&text[..end]));
            assert_eq!(key.as_str(), wanted);
            assert!(Wanted(wanted).equivalent(&key));
            assert!(!Wanted("é!").equivalent(&key));
            assert!(!Wanted(&format!("{wanted}\0")).equivalent(&key), "a zero is a byte of a key");
            assert_eq!(hasher.hash_one(Wanted(wanted)), hasher.hash_one(&key));
        }
    }
}
