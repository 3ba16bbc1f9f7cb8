//! A delivery in parts, where the whole of it is more than a receiver takes at once. Pure.
//!
//! Invariant: the parts are in order, without a hole or an overlap, and each is of one event at least. Which parts are made first depends
//! on the sizes alone, so that whoever offers the same delivery again makes the same.

use std::collections::VecDeque;
use std::ops::Range;

/// Parts of a delivery's events that are still to be sent.
#[derive(Debug)]
pub struct Parts(VecDeque<Range<usize>>);

impl Parts {
    /// Events of these sizes in parts of up to `most`. One that is larger is a part by itself.
    pub fn new(sizes: impl IntoIterator<Item = usize>, most: usize) -> Self {
        let (mut parts, mut part, mut full) = (VecDeque::new(), 0..0, 0_usize);
        for size in sizes {
            if !part.is_empty() && full.saturating_add(size) > most {
                parts.push_back(std::mem::replace(&mut part, 0..0));
                (part, full) = (last_end(&parts), 0);
            }
            part.end += 1;
            full = full.saturating_add(size);
        }
        if !part.is_empty() {
            parts.push_back(part);
        }
        Self(parts)
    }

    /// The next part, by the numbers of its events.
    pub fn take(&mut self) -> Option<Range<usize>> {
        self.0.pop_front()
    }

    /// Puts a part that was too large back as two. `false`: it is one event, and cannot be made smaller.
    pub fn halve(&mut self, part: &Range<usize>) -> bool {
        if part.len() < 2 {
            return false;
        }
        let middle = part.start + part.len() / 2;
        self.0.push_front(middle..part.end);
        self.0.push_front(part.start..middle);
        true
    }
}

/// Nothing yet, after the last part.
fn last_end(parts: &VecDeque<Range<usize>>) -> Range<usize> {
    let end = parts.back().map_or(0, |part| part.end);
    end..end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_whole_and_as_large_as_may_be(
            sizes in prop::collection::vec(0_usize..50, 0..40),
            most in 0_usize..100,
            refused in prop::collection::vec(any::<bool>(), 0..20),
        ) {
            let mut parts = Parts::new(sizes.iter().copied(), most);
            let mut ranges = Vec::new();
            let mut refused = refused.into_iter();
            while let Some(part) = parts.take() {
                if refused.next() == Some(true) && parts.halve(&part) {
                    continue;
                }
                let size: usize = sizes[part.clone()].iter().sum();
                prop_assert!(part.len() == 1 || size <= most);
                ranges.extend(part);
            }
            prop_assert_eq!(ranges, (0..sizes.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_fits_is_sent_together() {
        let mut parts = Parts::new([3, 3, 3, 9, 1], 6);
        let taken: Vec<_> = std::iter::from_fn(|| parts.take()).collect();
        assert_eq!(taken, [0..2, 2..3, 3..4, 4..5]);
    }
}
