//! What an operator can ask of a migration under way, and when there is time for it.

use cells_migration::{Leg, Phase};

use super::{Migration, MigrationError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// To end where the tenant is.
    Cancel,
    /// To go back, out of the soak.
    Reverse,
    /// To end the soak now.
    Complete,
    /// To let nobody work on it until it is resumed.
    Pause,
    Resume,
    /// To go on after workers gave up.
    Retry,
}

impl Instruction {
    pub const ALL: [Self; 6] =
        [Self::Cancel, Self::Reverse, Self::Complete, Self::Pause, Self::Resume, Self::Retry];

    /// As in "cannot be cancelled".
    pub fn done(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Reverse => "reversed",
            Self::Complete => "completed",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Retry => "retried",
        }
    }

    /// Whether there is time for it. What was done already may be asked again. A worker may be faster than whoever asked: who changes
    /// the record has to ask again, on the record that it changes.
    ///
    /// # Errors
    /// [`MigrationError::NotNow`].
    pub fn allowed(self, migration: &Migration) -> Result<(), MigrationError> {
        use Phase::*;
        let (leg, phase) = (migration.record.leg, migration.record.phase);
        let in_time = match (self, leg, phase) {
            (
                Self::Cancel,
                Leg::Forward,
                Planned | Logging | Copying | CatchingUp | Verifying | Fenced | Aborting | Aborted,
            ) => true,
            (Self::Cancel, _, _) => false,
            // Everything on the way back was reversed.
            (Self::Reverse, Leg::Back, _) | (Self::Reverse, Leg::Forward, Soaking) => true,
            (Self::Reverse, Leg::Forward, _) => false,
            (Self::Complete, Leg::Forward, Soaking | Cleaning | Done) => true,
            (Self::Complete, _, _) => false,
            (Self::Pause | Self::Resume, _, _) => !phase.ended(),
            (Self::Retry, _, _) => migration.parked.is_some() && !phase.ended(),
        };
        match in_time {
            true => Ok(()),
            false => Err(MigrationError::NotNow {
                instruction: self,
                migration: migration.id(),
                leg,
                phase,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::fake;

    fn phases() -> impl Iterator<Item = Phase> {
        (0..12).map(fake::numbered_phase)
    }

    fn allowed(instruction: Instruction, leg: Leg) -> Vec<&'static str> {
        let in_time = phases().filter(|phase| {
            let mut migration = fake::migration(1);
            (migration.record.leg, migration.record.phase) = (leg, *phase);
            instruction.allowed(&migration).is_ok()
        });
        in_time.map(Phase::name).collect()
    }

    #[test]
    fn there_is_time_to_cancel_before_the_commit_and_to_reverse_or_complete_in_the_soak() {
        assert_eq!(
            allowed(Instruction::Cancel, Leg::Forward),
            [
                "PLANNED",
                "LOGGING",
                "COPYING",
                "CATCHING_UP",
                "VERIFYING",
                "FENCED",
                "ABORTING",
                "ABORTED"
            ]
        );
        assert!(allowed(Instruction::Cancel, Leg::Back).is_empty());
        assert_eq!(allowed(Instruction::Reverse, Leg::Forward), ["SOAKING"]);
        assert_eq!(allowed(Instruction::Reverse, Leg::Back).len(), phases().count());
        assert_eq!(allowed(Instruction::Complete, Leg::Forward), ["SOAKING", "CLEANING", "DONE"]);
        assert!(allowed(Instruction::Complete, Leg::Back).is_empty());
    }

    #[test]
    fn what_has_ended_is_neither_paused_nor_resumed_and_what_goes_on_is_not_retried() {
        for instruction in [Instruction::Pause, Instruction::Resume] {
            let open = allowed(instruction, Leg::Forward);
            assert!(!open.contains(&"DONE") && !open.contains(&"ABORTED"), "{open:?}");
            assert_eq!(open.len(), phases().count() - 2);
        }
        assert!(allowed(Instruction::Retry, Leg::Forward).is_empty());
        let mut parked = fake::migration(1);
        parked.parked = Some("the target's key is disabled".to_owned());
        assert_eq!(Instruction::Retry.allowed(&parked), Ok(()));
    }
}
