//! Both sides of one partition, merged in the order of their sort keys. Pure: it is told pages, and says of which side it wants one.
//!
//! A key is judged when both sides have come past it. So at most one page of each side is held, and where one side ends sooner than
//! the other the rest of the longer page waits, or is read again by whoever goes on from [`Comparison::place`].

use std::cmp::Ordering;

use cells_guard::Touched;

use crate::canon::Hash;
use crate::digest::Tally;
use crate::findings::MismatchKind;
use crate::lane::{BadAnswer, Lane, View};
use crate::{Item, Page, Place, Side, key};

/// A key at which the sides differed when they were read. A write that was under way may be why; a key that is being written may be told
/// twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Suspect {
    pub at: Touched,
    pub kind: MismatchKind,
}

/// A page that is wanted: from the partition's beginning, or after a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub after: Option<Item>,
}

/// A comparison of one partition.
pub struct Comparison<'a> {
    /// Of either side: the keys' attributes are the same.
    shape: Option<View<'a>>,
    source: Lane<'a>,
    target: Lane<'a>,
    suspects: Vec<Suspect>,
}

impl<'a> Comparison<'a> {
    /// From these places on. A side that is `None` has no such partition, so nothing in it.
    pub fn new(
        source: Option<View<'a>>,
        target: Option<View<'a>>,
        (from_source, from_target): (Place, Place),
    ) -> Self {
        Self {
            shape: source.or(target),
            source: Lane::new(source, from_source),
            target: Lane::new(target, from_target),
            suspects: Vec::new(),
        }
    }

    /// The page of this side without which it cannot go on; `None`: it needs none now, or none any more.
    pub fn wants(&self, side: Side) -> Option<Wanted> {
        let lane = self.lane(side);
        lane.wants().then(|| Wanted { after: lane.after() })
    }

    /// Takes the page that it wants of this side, and judges all keys that both sides have come past.
    ///
    /// # Errors
    /// Where the page is not the one it wants, is not in order, or holds what cannot be compared; nothing has changed then.
    pub fn take(&mut self, side: Side, page: &Page) -> Result<(), BadAnswer> {
        match side {
            Side::Source => self.source.take(page)?,
            Side::Target => self.target.take(page)?,
        }
        self.merge();
        Ok(())
    }

    fn merge(&mut self) {
        while !self.source.wants() && !self.target.wants() {
            let order = match (self.source.front(), self.target.front()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(source), Some(target)) => source.cmp(target),
            };
            let source = if order.is_le() { self.source.pop() } else { None };
            let target = if order.is_ge() { self.target.pop() } else { None };
            let live = |seen: &Option<crate::lane::Seen>| seen.as_ref().and_then(|seen| seen.live);
            let Some(kind) = difference(live(&source), live(&target)) else { continue };
            if let (Some(shape), Some(seen)) = (&self.shape, source.or(target)) {
                let key = key::key(shape.table, shape.partition, seen.sort.value.as_ref());
                let at = Touched { table: shape.table.name.clone(), key };
                self.suspects.push(Suspect { at, kind });
            }
        }
    }

    /// Whether both sides were read to their ends.
    pub fn ended(&self) -> bool {
        *self.source.place() == Place::End && *self.target.place() == Place::End
    }

    /// Up to where a side was judged.
    pub fn place(&self, side: Side) -> &Place {
        self.lane(side).place()
    }

    /// What was judged of a side.
    pub fn tally(&self, side: Side) -> Tally {
        self.lane(side).tally()
    }

    /// Those found since the last call, in the order of their keys.
    pub fn suspects(&mut self) -> Vec<Suspect> {
        std::mem::take(&mut self.suspects)
    }

    fn lane(&self, side: Side) -> &Lane<'a> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// How the sides differ, by the hashes of what is there.
pub(crate) fn difference(source: Option<Hash>, target: Option<Hash>) -> Option<MismatchKind> {
    match (source, target) {
        (Some(_), None) => Some(MismatchKind::Missing),
        (None, Some(_)) => Some(MismatchKind::Extra),
        (Some(source), Some(target)) if source != target => Some(MismatchKind::Different),
        _ => None,
    }
}
