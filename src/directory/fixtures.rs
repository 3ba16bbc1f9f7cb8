//! Values for this module's tests.

use crate::domain::{
    Cell, CellId, CellState, Change, Endpoint, Epoch, JournalEntry, Labels, Nonce, PartitionKey,
    Placement, PlacementEvent, Region, Sequence, Timestamp, Weight, WriteMode,
};

pub const NOW: i64 = 1_769_860_800_000;

pub fn now() -> Timestamp {
    Timestamp::from_millis(NOW).unwrap()
}

pub fn key(name: &str) -> PartitionKey {
    PartitionKey::new(name).unwrap()
}

/// An empty, active cell that was created by the entry at `revision`.
pub fn cell(id: &str, revision: u64) -> Cell {
    Cell {
        id: CellId::new(id).unwrap(),
        region: Region::new("eu-west-1").unwrap(),
        endpoint: Endpoint::new(format!("https://{id}.example.com")).unwrap(),
        labels: Labels::default(),
        weight: Weight::DEFAULT,
        capacity: None,
        state: CellState::Active,
        created: now(),
        updated: now(),
        revision: Sequence::new(revision),
        placements: 0,
        counted_at: Sequence::new(revision),
    }
}

pub fn placement(name: &str, cell: &str, epoch: u64) -> Placement {
    Placement {
        key: key(name),
        cell: CellId::new(cell).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        write_mode: WriteMode::Direct,
        began_by: PlacementEvent::Assigned,
        created: Some(now()),
        updated: Some(now()),
        expires: None,
    }
}

pub fn placed(name: &str, cell: &str, replaced: Option<&str>) -> Change {
    Change::Placed {
        placement: placement(name, cell, 1),
        replaced: replaced.map(|id| CellId::new(id).unwrap()),
    }
}

pub fn entry(sequence: u64, changes: Vec<Change>) -> JournalEntry {
    JournalEntry {
        sequence: Sequence::new(sequence),
        nonce: Nonce::new(u128::from(sequence)),
        written: now(),
        changes,
    }
}
