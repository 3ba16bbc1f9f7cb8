//! The records of a consumer group in the control table, which is keyed by `PK` and `SK`.
//!
//! | record | `PK` | `SK` | attributes |
//! | --- | --- | --- | --- |
//! | group | `STREAM#<group>#<table>` | `GROUP` | `SinceSecs` N or absent, `Initialised` BOOL |
//! | shard | `STREAM#<group>#<table>` | `SHARD#<shard id>` | `Position` S, `Sequence` S and `AsOfSecs` N where the position has one, `Parents` L of S, `SinceSecs` N or absent, `Owner` S or absent, `Epoch` N, `Counter` N, `Stream` S: the label of its stream, absent in records of earlier versions |
//!
//! Invariants: [`StreamKey`] is the only maker and reader of the keys; what an item of ours cannot be is `None`, not a guess.

use aws_sdk_dynamodb::types::AttributeValue;

use crate::event::Item;
use crate::lease::{Group, Lease, LeaseEpoch, Position, Stamp};
use crate::{GroupName, OwnerId, SequenceNumber, ShardId};

pub const PK: &str = "PK";
pub const SK: &str = "SK";
pub const POSITION: &str = "Position";
pub const SEQUENCE: &str = "Sequence";
pub const PARENTS: &str = "Parents";
pub const AS_OF_SECS: &str = "AsOfSecs";
pub const SINCE_SECS: &str = "SinceSecs";
pub const OWNER: &str = "Owner";
pub const EPOCH: &str = "Epoch";
pub const COUNTER: &str = "Counter";
pub const INITIALISED: &str = "Initialised";
pub const STREAM: &str = "Stream";

/// The positions of finished shards.
pub const SHARD_END: &str = "SHARD_END";
pub const LOST_END: &str = "LOST_END";

/// What all sort keys of shards begin with.
pub const SHARD_PREFIX: &str = "SHARD#";

/// A record's key. Neither a group's nor a table's name has a `#`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamKey {
    Group { group: GroupName, table: String },
    Shard { group: GroupName, table: String, shard: ShardId },
}

impl StreamKey {
    pub fn pk(&self) -> String {
        match self {
            Self::Group { group, table } | Self::Shard { group, table, .. } => {
                format!("STREAM#{group}#{table}")
            }
        }
    }

    pub fn sk(&self) -> String {
        match self {
            Self::Group { .. } => "GROUP".into(),
            Self::Shard { shard, .. } => format!("{SHARD_PREFIX}{shard}"),
        }
    }

    /// `None` for a key that no record of ours has.
    pub fn parse(pk: &str, sk: &str) -> Option<Self> {
        let (group, table) = pk.strip_prefix("STREAM#")?.split_once('#')?;
        let group = GroupName::new(group).ok()?;
        if table.is_empty() || table.contains('#') {
            return None;
        }
        let table = table.to_owned();
        match sk.strip_prefix(SHARD_PREFIX) {
            Some("") => None,
            Some(shard) => Some(Self::Shard { group, table, shard: ShardId::new(shard) }),
            None => (sk == "GROUP").then_some(Self::Group { group, table }),
        }
    }
}

/// The position's name, its sequence number and its time, if it has one.
pub fn position(
    position: &Position,
) -> (&'static str, Option<AttributeValue>, Option<AttributeValue>) {
    match position {
        Position::Orphan => ("ORPHAN", None, None),
        Position::Horizon => ("TRIM_HORIZON", None, None),
        Position::Fresh { as_of_secs } => ("FRESH", None, Some(n(as_of_secs))),
        Position::Lost => ("LOST", None, None),
        Position::After(at) => ("AFTER", Some(s(at.as_str())), None),
        Position::End { as_of_secs } => (SHARD_END, None, Some(n(as_of_secs))),
        Position::LostEnd => (LOST_END, None, None),
    }
}

fn parse_position(item: &Item) -> Option<Position> {
    let (at, as_of) = (optional(item, SEQUENCE, sequence)?, optional(item, AS_OF_SECS, number)?);
    Some(match (text(item.get(POSITION)?)?, at, as_of) {
        ("ORPHAN", None, None) => Position::Orphan,
        ("TRIM_HORIZON", None, None) => Position::Horizon,
        ("FRESH", None, Some(as_of_secs)) => Position::Fresh { as_of_secs },
        ("LOST", None, None) => Position::Lost,
        ("AFTER", Some(at), None) => Position::After(at),
        (SHARD_END, None, Some(as_of_secs)) => Position::End { as_of_secs },
        (LOST_END, None, None) => Position::LostEnd,
        _ => return None,
    })
}

/// A lease's item, under `key`.
pub fn lease_item(key: &StreamKey, lease: &Lease) -> Item {
    let (name, at, as_of) = position(&lease.position);
    let parents = lease.parents.iter().map(|id| s(id.as_str())).collect();
    let mut item = keys(key);
    item.insert(POSITION.into(), s(name));
    item.insert(PARENTS.into(), AttributeValue::L(parents));
    item.insert(EPOCH.into(), n(lease.stamp.epoch.get()));
    item.insert(COUNTER.into(), n(lease.stamp.counter));
    let optional = [
        (SEQUENCE, at),
        (AS_OF_SECS, as_of),
        (OWNER, lease.owner.as_ref().map(|owner| s(owner.as_str()))),
        (SINCE_SECS, lease.since_secs.map(n)),
    ];
    let known = optional.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
    item.extend(known);
    item
}

/// Whether a shard's record is of a stream that the table got after the one with this label. One that does not say is not.
pub fn is_of_later_stream(item: &Item, label: &str) -> bool {
    item.get(STREAM).and_then(text).is_some_and(|of| of > label)
}

/// `None` if the item is no lease of ours.
pub fn parse_lease(item: &Item) -> Option<Lease> {
    let StreamKey::Shard { shard, .. } =
        StreamKey::parse(text(item.get(PK)?)?, text(item.get(SK)?)?)?
    else {
        return None;
    };
    let parents = item.get(PARENTS)?.as_l().ok()?;
    let parents = parents.iter().map(|id| text(id).map(ShardId::new)).collect::<Option<_>>()?;
    Some(Lease {
        shard,
        parents,
        position: parse_position(item)?,
        since_secs: optional(item, SINCE_SECS, number)?,
        owner: optional(item, OWNER, |value| text(value).map(OwnerId::exactly))?,
        stamp: Stamp {
            epoch: LeaseEpoch::new(number(item.get(EPOCH)?)?),
            counter: number(item.get(COUNTER)?)?,
        },
    })
}

/// A group's item, under `key`.
pub fn group_item(key: &StreamKey, group: &Group) -> Item {
    let mut item = keys(key);
    item.insert(INITIALISED.into(), AttributeValue::Bool(group.initialised));
    if let Some(secs) = group.since_secs {
        item.insert(SINCE_SECS.into(), n(secs));
    }
    item
}

/// `None` if the item is no group of ours.
pub fn parse_group(item: &Item) -> Option<Group> {
    let since_secs = optional(item, SINCE_SECS, number)?;
    Some(Group { since_secs, initialised: *item.get(INITIALISED)?.as_bool().ok()? })
}

fn keys(key: &StreamKey) -> Item {
    Item::from([(PK.into(), s(key.pk())), (SK.into(), s(key.sk()))])
}

pub fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub fn n(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn text(value: &AttributeValue) -> Option<&str> {
    value.as_s().ok().map(String::as_str)
}

fn number<N: std::str::FromStr>(value: &AttributeValue) -> Option<N> {
    value.as_n().ok()?.parse().ok()
}

fn sequence(value: &AttributeValue) -> Option<SequenceNumber> {
    SequenceNumber::new(text(value)?).ok()
}

/// `Some(None)` if the attribute is not there, `None` if it is and cannot be read.
fn optional<T>(
    item: &Item,
    name: &str,
    read: impl Fn(&AttributeValue) -> Option<T>,
) -> Option<Option<T>> {
    match item.get(name) {
        None => Some(None),
        Some(value) => read(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn a_sequence() -> impl Strategy<Value = SequenceNumber> {
        "[0-9]{1,40}".prop_map(|text| SequenceNumber::new(text).unwrap())
    }

    fn a_position() -> impl Strategy<Value = Position> {
        prop_oneof![
            Just(Position::Orphan),
            Just(Position::Horizon),
            Just(Position::Lost),
            Just(Position::LostEnd),
            any::<i64>().prop_map(|as_of_secs| Position::Fresh { as_of_secs }),
            any::<i64>().prop_map(|as_of_secs| Position::End { as_of_secs }),
            a_sequence().prop_map(Position::After),
        ]
    }

    prop_compose! {
        fn a_lease()(
            shard in "shardId-[0-9]{1,20}-[0-9a-f#]{1,8}",
            parents in prop::collection::vec("[!-~]{1,65}".prop_map(ShardId::new), 0..3),
            position in a_position(),
            since_secs in option::of(any::<i64>()),
            owner in option::of("\\PC{1,40}".prop_map(OwnerId::exactly)),
            epoch in any::<u64>(),
            counter in any::<u64>(),
        ) -> Lease {
            let stamp = Stamp { epoch: LeaseEpoch::new(epoch), counter };
            Lease { shard: ShardId::new(shard), parents, position, since_secs, owner, stamp }
        }
    }

    proptest! {
        #[test]
        fn records_survive_their_items(
            lease in a_lease(),
            group in "[A-Za-z0-9_.-]{1,64}",
            table in "[A-Za-z0-9_.-]{3,40}",
            since_secs in option::of(any::<i64>()),
            initialised: bool,
        ) {
            let group = GroupName::new(group).unwrap();
            let shard = StreamKey::Shard { group: group.clone(), table: table.clone(), shard: lease.shard.clone() };
            prop_assert_eq!(StreamKey::parse(&shard.pk(), &shard.sk()), Some(shard.clone()));
            prop_assert_eq!(parse_lease(&lease_item(&shard, &lease)), Some(lease));
            let key = StreamKey::Group { group, table };
            let record = Group { since_secs, initialised };
            prop_assert_eq!(StreamKey::parse(&key.pk(), &key.sk()), Some(key.clone()));
            prop_assert_eq!(parse_group(&group_item(&key, &record)), Some(record));
        }
    }

    #[test]
    fn foreign_items_are_no_records() {
        for (pk, sk) in [
            ("STREAM#g", "GROUP"),
            ("STREAM#g#t", "HEAD"),
            ("STREAM#g#t", "SHARD#"),
            ("STREAM#g#t#u", "GROUP"),
            ("JOURNAL", "GROUP"),
        ] {
            assert_eq!(StreamKey::parse(pk, sk), None, "{pk} {sk}");
        }
    }
}
