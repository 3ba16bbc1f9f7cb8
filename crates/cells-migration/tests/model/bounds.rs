//! How much there is of everything.

/// A write: a key, and its new value; 0: a delete.
pub type Op = (usize, u8);

pub const KEYS: usize = 2;

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What each writer writes, in order. Values are unique.
    pub ops: [&'static [Op]; 2],
    /// How often another worker takes over from one that may be alive.
    pub takeovers: u8,
    /// How often a worker gets no answer to a write, which is done, or lands later, or never.
    pub unknowns: u8,
    /// How often the fence lasts too long.
    pub overdue: u8,
    /// Whether an operator cancels, reverses or completes at some time.
    pub wishes: bool,
    /// Whether another migration follows one that was cancelled.
    pub again: bool,
}

impl Bounds {
    pub const NO_WRITER: Self = Self {
        ops: [&[], &[]],
        takeovers: 0,
        unknowns: 0,
        overdue: 0,
        wishes: false,
        again: false,
    };
    pub const ONE_OP: Self = Self { ops: [&[(0, 1)], &[]], ..Self::NO_WRITER };
    pub const ONE_WRITER: Self = Self { ops: [&[(0, 1), (0, 0)], &[]], ..Self::NO_WRITER };
    pub const ONE_KEY: Self = Self { ops: [&[(0, 1)], &[(0, 2)]], ..Self::NO_WRITER };
    pub const TWO_KEYS: Self = Self { ops: [&[(0, 1), (0, 0)], &[(1, 2)]], ..Self::NO_WRITER };
}
