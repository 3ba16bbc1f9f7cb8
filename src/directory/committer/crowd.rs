//! Whether the next entry waits for companions.
//!
//! Callers who were answered together ask again together, a little later than the first of them: an entry that left at once would carry
//! few, and the others would wait for it. So after an entry of many the next one waits for about as many, for a fraction of what a
//! commit takes; a lone command never waits. (PostgreSQL's `commit_delay` and `commit_siblings` do the same with a fixed time.)
//!
//! Waiting is worth it where callers come back sooner than a commit's fixed cost. Where they take longer it is better to commit for one
//! half while the other half comes back, so after waits in vain it is not tried again for more and more rounds.

use std::time::Duration;

/// From how many commands an entry is taken for one of a crowd, whose members come back together.
const CROWD: usize = 4;

/// The share of a crowd that is waited for, and of the last commit's duration for which it is.
const SHARE: f64 = 0.9;
const PATIENCE: u32 = 4;

/// Longest wait for a crowd.
const MAX_WAIT: Duration = Duration::from_millis(5);

/// Most rounds without a wait.
const MAX_PASS: u32 = 64;

#[derive(Debug, Default)]
pub struct Crowd {
    /// Commands of the last entry, once for the round after it.
    answered: usize,
    took: Duration,
    /// Rounds to pass without a wait, and how many were passed last time.
    pass: u32,
    passed: u32,
}

/// A wait for companions.
#[derive(Debug, PartialEq)]
pub struct Wait {
    /// How many commands are enough.
    pub enough: usize,
    pub longest: Duration,
}

impl Crowd {
    /// An entry of `commands` was committed, or refused, and took so long.
    pub fn committed(&mut self, commands: usize, took: Duration) {
        (self.answered, self.took) = (commands, took);
    }

    /// What to wait for with `waiting` commands at hand, and room for `limit`.
    pub fn wait(&mut self, waiting: usize, limit: usize) -> Option<Wait> {
        let answered = std::mem::take(&mut self.answered);
        if answered < CROWD {
            return None;
        }
        if self.pass > 0 {
            self.pass -= 1;
            return None;
        }
        // Those who were answered, and those who waited meanwhile.
        let crowd = (answered + waiting).min(limit);
        let enough = (crowd as f64 * SHARE) as usize;
        let longest = (self.took / PATIENCE).min(MAX_WAIT);
        (waiting < enough).then_some(Wait { enough, longest })
    }

    /// Whether enough came.
    pub fn waited(&mut self, enough: bool) {
        self.passed = if enough { 0 } else { (self.passed * 2).clamp(1, MAX_PASS) };
        self.pass = self.passed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(8);

    #[test]
    fn a_lone_command_does_not_wait() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.wait(1, 100), None);
        crowd.committed(CROWD - 1, TOOK);
        assert_eq!(crowd.wait(1, 100), None);
    }

    #[test]
    fn a_crowd_is_waited_for_once_it_was_answered() {
        let mut crowd = Crowd::default();
        crowd.committed(40, TOOK);
        let wait = Wait { enough: 45, longest: TOOK / PATIENCE };
        assert_eq!(crowd.wait(10, 100), Some(wait));
        assert_eq!(crowd.wait(10, 100), None, "nobody was answered since");
        crowd.committed(40, Duration::from_secs(1));
        let wait = crowd.wait(10, 30).unwrap();
        assert_eq!((wait.enough, wait.longest), (27, MAX_WAIT));
        crowd.committed(40, TOOK);
        assert_eq!(crowd.wait(30, 30), None, "enough are there");
    }

    #[test]
    fn waits_in_vain_become_rare_and_one_that_was_not_makes_them_common() {
        let mut crowd = Crowd::default();
        let mut rounds_to_wait = || {
            for round in 1.. {
                crowd.committed(40, TOOK);
                if crowd.wait(0, 100).is_some() {
                    let vain = round < 65;
                    crowd.waited(!vain);
                    return round;
                }
            }
            0
        };
        let rounds: Vec<i32> = std::iter::repeat_with(&mut rounds_to_wait).take(9).collect();
        assert_eq!(rounds, [1, 2, 3, 5, 9, 17, 33, 65, 1]);
    }
}
