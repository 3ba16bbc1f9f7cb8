//! How much there is of everything.

use cells_migration::{Settings, Writers};

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
    /// Whether an operator pauses at some time, and resumes at another.
    pub pauses: bool,
    /// How often in a row it is fenced before the worker parks.
    pub max_fences: u32,
    pub strict: bool,
    /// Writers who do not know of the log: a fault of theirs that strict verification makes up for.
    pub unlogged: bool,
    /// Writers who come once writes are logged.
    pub late: bool,
    pub writers: Writers,
    /// What a writer writes, in order, that does not know of guards.
    pub plain: &'static [Op],
    /// How often all that is in a stream is trimmed.
    pub trims: u8,
}

impl Bounds {
    pub const NO_WRITER: Self = Self {
        ops: [&[], &[]],
        takeovers: 0,
        unknowns: 0,
        overdue: 0,
        wishes: false,
        again: false,
        pauses: false,
        max_fences: 2,
        strict: false,
        unlogged: false,
        late: false,
        writers: Writers::Cooperative,
        plain: &[],
        trims: 0,
    };
    pub const ONE_OP: Self = Self { ops: [&[(0, 1)], &[]], ..Self::NO_WRITER };
    pub const ONE_WRITER: Self = Self { ops: [&[(0, 1), (0, 0)], &[]], ..Self::NO_WRITER };
    pub const ONE_KEY: Self = Self { ops: [&[(0, 1)], &[(0, 2)]], ..Self::NO_WRITER };
    pub const STRICT: Self = Self { strict: true, unlogged: true, ..Self::ONE_OP };
    /// One writer that does not cooperate.
    pub const PLAIN: Self =
        Self { writers: Writers::Frozen, plain: &[(0, 3), (0, 0)], ..Self::NO_WRITER };
    pub const TWO_KEYS: Self = Self { ops: [&[(0, 1), (0, 0)], &[(1, 2)]], ..Self::NO_WRITER };

    pub fn settings(&self) -> Settings {
        Settings {
            leases_end: 1,
            pause_budget: 1,
            little: 1,
            soak: 1,
            soak_interval: 0,
            strict: self.strict,
            writers: self.writers,
            freeze_budget: 1,
            max_fences: self.max_fences,
        }
    }
}
