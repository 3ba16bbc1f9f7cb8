//! Faults put in on purpose. A checker that never rejects anything proves nothing, so `tests/linearizability` also runs on builds that
//! are wrong, and has to find it.
//!
//! The switch is thrown once, by `celld-mutant`, before anything else runs. That program and the means to throw the switch exist
//! only with the feature `mutants`, which a release build refuses (`lib.rs`); in every other build [`is`] is a constant.

/// A way of being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Placements are written whatever the table says of their key. The journal keeps its conditions: a commit that lost the race for the
    /// head is drafted again on what it had assumed, and only the mapping's own condition turns it down then. (To drop the head's
    /// condition alone makes no difference that anybody could tell: the entry's own stands for it.)
    UnconditionalWrite,
    /// Lower epochs replace higher ones in memory, and are answered, `min_epoch` or not.
    NoEpochCheck,
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switch::become_mutant;
#[cfg(feature = "mutants")]
pub(crate) use switch::is;

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::OnceLock;

    use super::Mutant;

    static CHOSEN: OnceLock<Mutant> = OnceLock::new();

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(&mutant)
    }

    /// Throws the switch, for this process and for good.
    ///
    /// # Errors
    /// A text that lists the mutants, where there is none of this name, or the switch is thrown already.
    pub fn become_mutant(name: &str) -> Result<(), String> {
        let mutant = match name {
            "unconditional_write" => Mutant::UnconditionalWrite,
            "no_epoch_check" => Mutant::NoEpochCheck,
            _ => {
                let known = "unconditional_write and no_epoch_check";
                return Err(format!("there is no mutant {name:?}; there are {known}"));
            }
        };
        CHOSEN.set(mutant).map_err(|_| "this process is a mutant already".to_owned())
    }
}
