//! How a worker numbers what it asks of whoever stops writers.

use crate::action::Action;

/// The orders of one worker under one number: what [`Action::Freeze`] and [`Action::Thaw`] come to.
///
/// An order may be done long after it was given up, so each has a number. It is given again under the same one until it is answered, as
/// nobody knows whether it came; everything after that is another order, of a higher number, and makes those before it void.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Orders {
    given: u64,
    last: Option<Action>,
    answered: bool,
}

impl Orders {
    /// The number of an order that is given now, from 1.
    pub fn give(&mut self, order: &Action) -> u64 {
        if self.answered || self.last.as_ref() != Some(order) {
            self.given = self.given.saturating_add(1);
            (self.last, self.answered) = (Some(order.clone()), false);
        }
        self.given
    }

    /// The last one is said to be done.
    pub fn answered(&mut self) {
        self.answered = true;
    }

    /// Whether this one was given last, and is said to be done.
    pub fn stands(&self, order: &Action) -> bool {
        self.answered && self.last.as_ref() == Some(order)
    }

    /// The last one held, and does no more: it is to be given anew.
    pub fn broke(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::{Holder, Side};
    use crate::record::MigrationId;

    #[test]
    fn an_order_is_the_same_until_it_is_answered_and_no_two_have_one_number() {
        let holder = Holder { migration: MigrationId(1), worker: 3 };
        let thaw = |live| Action::Thaw { live, holder };
        let freeze = Action::Freeze { from: Side::Source, holder };
        let mut orders = Orders::default();
        assert_eq!([orders.give(&thaw(Side::Source)), orders.give(&thaw(Side::Source))], [1, 1]);
        orders.answered();
        assert!(!orders.stands(&freeze));
        assert_eq!([orders.give(&freeze), orders.give(&freeze)], [2, 2]);
        assert!(!orders.stands(&freeze));
        orders.answered();
        assert!(orders.stands(&freeze));
        orders.broke();
        assert!(!orders.stands(&freeze));
        assert_eq!(orders.give(&freeze), 3);
        // Instead of the freeze, which was not answered; and elsewhere.
        assert_eq!(orders.give(&thaw(Side::Source)), 4);
        orders.answered();
        assert_eq!([orders.give(&thaw(Side::Source)), orders.give(&thaw(Side::Target))], [5, 6]);
    }
}
