//! The protocol of a migration, explored exhaustively for small bounds: every interleaving of two writers, of a worker and one that
//! takes over from it, of lost replies, writes that land late, leases that run out, an operator who changes his mind or pauses, and a writer
//! that knows nothing of guards.
//!
//! What is explored is the production code: the machine decides, its transactions are evaluated check by check. The writers follow
//! DESIGN §5, and the driver does for each action what its documentation says, one call to the store at a time.

mod bounds;
mod mutant;
mod plain;
mod state;
mod worker;
mod writer;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use stateright::{Checker, Model, Path, Property};

use bounds::Bounds;
use cells_migration::Writers;
use mutant::Mutant;
use state::{State, Step};

/// There and back, and more than a right protocol can do.
const MAX_EPOCH: u64 = 4;

/// A system within bounds, with at most one fault put in on purpose.
#[derive(Clone)]
pub struct Moves {
    pub bounds: Bounds,
    pub mutant: Option<Mutant>,
}

impl Model for Moves {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.bounds)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        state.steps(self, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        next.take(self, step);
        Some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        // A mutant may commit for ever.
        state.placement.epoch <= MAX_EPOCH
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no acknowledged write is lost", |_, state: &State| {
                state.keeps_what_was_acknowledged()
            }),
            Property::always("one cell takes checked writes", |_, state: &State| {
                state.one_cell_is_open()
            }),
            Property::always("who rests lets writers write", |moves: &Self, state: &State| {
                state.nobody_waits_for_who_rests(moves)
            }),
            Property::sometimes("a migration is done", |_, state: &State| state.done()),
        ]
    }
}

impl Moves {
    fn right(bounds: Bounds) -> Self {
        Self { bounds, mutant: None }
    }

    /// Whether the checker finds that something that must always hold does not.
    fn fails(&self) -> Option<String> {
        let checker = self.clone().checker().threads(2).spawn_bfs().join();
        let found = checker.discoveries();
        let lost = found.iter().find(|(name, _)| **name != "a migration is done");
        lost.map(|(name, path)| {
            format!("{name}, {} states:\n{}", checker.unique_state_count(), told(path.clone()))
        })
    }

    /// States from which the migration can never end, though every worker goes on: found by going through the whole graph backwards.
    fn stuck(&self) -> (usize, Vec<State>) {
        let (mut numbers, hasher) = (HashMap::new(), RandomState::new());
        let mut states: Vec<State> = Vec::new();
        let mut before: Vec<Vec<usize>> = Vec::new();
        for state in self.init_states() {
            numbers.insert(hasher.hash_one(&state), 0);
            states.push(state);
            before.push(Vec::new());
        }
        let mut at = 0;
        while at < states.len() {
            let mut steps = Vec::new();
            self.actions(&states[at], &mut steps);
            for step in steps {
                let Some(next) = self.next_state(&states[at], step) else { continue };
                let number = *numbers.entry(hasher.hash_one(&next)).or_insert_with(|| {
                    states.push(next);
                    before.push(Vec::new());
                    states.len() - 1
                });
                before[number].push(at);
            }
            at += 1;
        }
        let mut ends = vec![false; states.len()];
        let mut open: Vec<_> = (0..states.len()).filter(|at| states[*at].at_rest()).collect();
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut ends[at], true) {
                open.extend(&before[at]);
            }
        }
        let count = states.len();
        let stuck = states.into_iter().zip(ends).filter(|(_, ends)| !ends).map(|(state, _)| state);
        (count, stuck.collect())
    }
}

fn told(path: Path<State, Step>) -> String {
    let last = path.last_state().clone();
    let steps: String = path.into_actions().iter().map(|step| format!(" {step:?}")).collect();
    format!("{steps}\n{last:?}")
}

fn holds(name: &str, bounds: Bounds) {
    let moves = Moves::right(bounds);
    let checker = moves.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states", checker.unique_state_count());
    for (property, path) in checker.discoveries() {
        assert_eq!(property, "a migration is done", "{}", told(path));
    }
    assert!(checker.discovery("a migration is done").is_some());
}

#[test]
fn two_writers_of_one_key_and_a_worker_that_is_taken_over_from() {
    holds("one key", Bounds { takeovers: 1, ..Bounds::ONE_KEY });
}

#[test]
fn two_keys_and_lost_replies() {
    holds("lost replies", Bounds { unknowns: 1, ..Bounds::TWO_KEYS });
}

#[test]
fn an_operator_who_cancels_or_reverses() {
    holds("wishes", Bounds { wishes: true, ..Bounds::ONE_WRITER });
    holds("wishes and a zombie", Bounds { wishes: true, takeovers: 1, ..Bounds::ONE_OP });
}

#[test]
fn a_second_migration_after_one_that_was_cancelled() {
    holds("again", Bounds { wishes: true, again: true, takeovers: 1, ..Bounds::ONE_OP });
}

#[test]
fn strict_verification_finds_what_was_never_logged() {
    for bounds in [
        Bounds { takeovers: 1, ..Bounds::STRICT },
        Bounds { overdue: 1, wishes: true, ..Bounds::STRICT },
        Bounds { unknowns: 1, ..Bounds::STRICT },
    ] {
        holds("strict", bounds);
    }
}

#[test]
fn an_operator_who_pauses_and_fences_that_last_too_long() {
    holds("pauses", Bounds { pauses: true, unknowns: 1, ..Bounds::ONE_OP });
    holds("pauses and a zombie", Bounds { pauses: true, takeovers: 1, ..Bounds::ONE_OP });
    holds("parks", Bounds { overdue: 2, pauses: true, ..Bounds::ONE_WRITER });
}

#[test]
fn a_fence_that_is_lifted_while_a_reply_is_lost() {
    let late = Bounds { late: true, ..Bounds::ONE_OP };
    holds("fenced twice", Bounds { takeovers: 1, unknowns: 1, overdue: 1, ..late });
}

#[test]
fn a_writer_that_knows_nothing_of_guards_is_frozen() {
    for bounds in [
        Bounds { takeovers: 1, ..Bounds::PLAIN },
        Bounds { unknowns: 1, ..Bounds::PLAIN },
        Bounds { trims: 1, overdue: 1, pauses: true, ..Bounds::PLAIN },
        Bounds { unknowns: 1, overdue: 1, pauses: true, ..Bounds::PLAIN },
        Bounds { wishes: true, pauses: true, ..Bounds::PLAIN },
        Bounds { plain: &[(0, 3), (1, 4)], takeovers: 1, overdue: 1, ..Bounds::PLAIN },
        Bounds { plain: &[(0, 3)], takeovers: 1, wishes: true, ..Bounds::PLAIN },
        Bounds { ops: Bounds::ONE_OP.ops, ..Bounds::PLAIN },
        Bounds { strict: true, takeovers: 1, ..Bounds::PLAIN },
    ] {
        holds("frozen", bounds);
    }
}

#[test]
fn best_effort_is_what_it_says() {
    let bounds = Bounds { writers: Writers::BestEffort, ..Bounds::PLAIN };
    let how = Moves::right(bounds).fails().expect("it would be lossless");
    assert!(how.starts_with("no acknowledged write is lost"), "{how}");
}

#[test]
fn every_run_can_end() {
    for bounds in [
        Bounds { wishes: true, unknowns: 1, ..Bounds::ONE_OP },
        Bounds { overdue: 1, takeovers: 1, ..Bounds::ONE_OP },
        Bounds { overdue: 2, pauses: true, wishes: true, ..Bounds::ONE_OP },
        Bounds { overdue: 1, strict: true, ..Bounds::ONE_OP },
        Bounds { overdue: 1, wishes: true, unknowns: 1, ..Bounds::PLAIN },
        Bounds { overdue: 2, trims: 1, pauses: true, ..Bounds::PLAIN },
    ] {
        let (count, stuck) = Moves::right(bounds).stuck();
        println!("every run can end: {count} states");
        assert!(stuck.is_empty(), "{} of {count}: {:#?}", stuck.len(), stuck[0]);
    }
}

#[test]
fn each_mutant_is_caught() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let moves = Moves { bounds: mutant.bounds(), mutant: Some(mutant) };
        match moves.fails() {
            Some(how) => println!("{mutant:?}: {how}"),
            None => survivors.push(mutant),
        }
    }
    assert_eq!(survivors, []);
}
