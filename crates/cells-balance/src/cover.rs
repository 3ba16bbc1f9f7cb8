//! Which tenants cover a need of load with few bytes: the minimum knapsack problem, which is NP-hard.
//!
//! The greedy method GR of J. Csirik, J. B. G. Frenk, M. Labbé and S. Zhang, *Heuristics for the 0–1 min-knapsack problem*, Acta
//! Cybernetica 10, 1991: candidates in ascending order of bytes by load are taken as long as they do not cover the need; each that would is
//! tried as the last one and passed over; of all these covers the one of fewest bytes is taken. Where every candidate can be
//! taken whatever was taken before, that is at most twice the fewest bytes.

use std::cmp::Ordering;

use crate::books::{Books, Candidate};

/// Fewest bytes by load first; of equals the larger, so that fewer are moved.
pub(crate) fn by_density(a: &Candidate, b: &Candidate) -> Ordering {
    let cross = |bytes: u64, load: i64| u128::from(bytes) * u128::from(load.unsigned_abs());
    cross(a.bytes, b.load).cmp(&cross(b.bytes, a.load)).then(b.load.cmp(&a.load))
}

/// A candidate and where it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Booked {
    pub candidate: Candidate,
    pub taker: usize,
}

/// The cover of fewest bytes so far: the first that were taken, and one more.
struct Cover {
    taken: usize,
    last: Booked,
    bytes: u64,
}

/// Books candidates, which come [`by_density`], until their load is `need`; where that cannot be, all that `place` finds a taker for.
pub(crate) fn cover(
    books: &mut Books,
    need: i64,
    candidates: impl Iterator<Item = Candidate>,
    place: impl Fn(&Books, &Candidate) -> Option<usize>,
) -> Vec<Booked> {
    let mut taken: Vec<Booked> = Vec::new();
    let (mut load, mut bytes) = (0, 0u64);
    let mut best: Option<Cover> = None;
    for candidate in candidates {
        if best.as_ref().is_some_and(|best| best.bytes <= bytes) {
            break;
        }
        let Some(taker) = place(books, &candidate) else { continue };
        let booked = Booked { candidate, taker };
        if load + candidate.load >= need {
            let bytes = bytes.saturating_add(candidate.bytes);
            if best.as_ref().is_none_or(|best| bytes < best.bytes) {
                best = Some(Cover { taken: taken.len(), last: booked, bytes });
            }
        } else {
            books.book(&candidate, taker);
            taken.push(booked);
            load += candidate.load;
            bytes = bytes.saturating_add(candidate.bytes);
        }
    }
    if let Some(best) = best {
        for undone in taken.drain(best.taken..) {
            books.unbook(&undone.candidate, undone.taker);
        }
        books.book(&best.last.candidate, best.last.taker);
        taken.push(best.last);
        drop_needless(books, need, &mut taken);
    }
    taken
}

/// The last one may cover what earlier ones were taken for: most bytes first.
fn drop_needless(books: &mut Books, need: i64, taken: &mut Vec<Booked>) {
    let mut over = taken.iter().map(|booked| booked.candidate.load).sum::<i64>() - need;
    let mut order: Vec<usize> = (0..taken.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(taken[at].candidate.bytes));
    let mut stays = vec![true; taken.len()];
    for at in order {
        let Booked { candidate, taker } = taken[at];
        if candidate.load <= over {
            over -= candidate.load;
            books.unbook(&candidate, taker);
            stays[at] = false;
        }
    }
    let mut stays = stays.into_iter();
    taken.retain(|_| stays.next().unwrap_or(true));
}

/// Fewest bytes by which candidates, which come [`by_density`], can cover the need if they could be cut: no cover has fewer. All of
/// them where they do not suffice.
pub(crate) fn fractional(need: i64, candidates: impl Iterator<Item = Candidate>) -> u64 {
    let (mut left, mut bytes) = (need, 0u64);
    for candidate in candidates {
        if left <= 0 {
            break;
        }
        if candidate.load <= left {
            bytes = bytes.saturating_add(candidate.bytes);
        } else {
            let part = u128::from(candidate.bytes) * u128::from(left.unsigned_abs())
                / u128::from(candidate.load.unsigned_abs());
            bytes = bytes.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        }
        left -= candidate.load;
    }
    bytes
}
