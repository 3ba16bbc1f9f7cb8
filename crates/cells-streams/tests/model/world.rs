//! A stream that misbehaves as real ones do: shards split, merge and roll over; old records and shards go away; iterators expire;
//! listings come in odd orders and with holes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use cells_streams::{
    ChangeKind, Item, ReadFrom, Record, RecordPage, SequenceNumber, Shard, ShardId, ShardIterator,
    ShardPage, StreamsError,
};
use tokio::time::{Duration, Instant};

/// Iterators are good for that long.
pub const ITERATOR: Duration = Duration::from_secs(20);
/// Records and closed shards stay for that long.
pub const RETENTION: Duration = Duration::from_secs(100);
/// For how long a shard that nothing was read of is trusted.
pub const TRUSTED: Duration = Duration::from_secs(80);
/// How many items there are, spread over the hashes 0..256.
pub const ITEMS: u64 = 16;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[derive(Clone)]
pub struct Written {
    pub sequence: u64,
    pub item: u64,
    pub version: u64,
    pub created_secs: i64,
    at: Instant,
}

pub struct ModelShard {
    pub parents: Vec<ShardId>,
    hashes: (u64, u64),
    pub start: u64,
    pub end: Option<u64>,
    ended: Option<Instant>,
    pub records: Vec<Written>,
    /// The highest number that was trimmed.
    pub trimmed: u64,
    /// The whole shard went away.
    pub gone: bool,
}

struct Cursor {
    shard: ShardId,
    after: u64,
    issued: Instant,
}

pub struct World {
    pub rng: Rng,
    pub shards: BTreeMap<ShardId, ModelShard>,
    versions: BTreeMap<u64, u64>,
    next: u64,
    cursors: HashMap<String, Cursor>,
    salt: u64,
    began: Instant,
    pub base_secs: i64,
    pub holes: bool,
    pub trims: bool,
}

impl World {
    pub fn new(seed: u64, base_secs: i64) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            shards: BTreeMap::new(),
            versions: BTreeMap::new(),
            next: 100,
            cursors: HashMap::new(),
            salt: mix(seed),
            began: Instant::now(),
            base_secs,
            holes: true,
            trims: true,
        };
        for part in 0..2 {
            world.open((part * 128, part * 128 + 128), Vec::new());
        }
        world
    }

    fn sequence(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn open(&mut self, hashes: (u64, u64), parents: Vec<ShardId>) {
        let start = self.sequence();
        // Ids say nothing of lineage: children may sort before their parents.
        let id = ShardId::new(format!("shardId-{:08x}-{start}", mix(start ^ self.salt) as u32));
        let shard = ModelShard {
            parents,
            hashes,
            start,
            end: None,
            ended: None,
            records: Vec::new(),
            trimmed: 0,
            gone: false,
        };
        self.shards.insert(id, shard);
    }

    pub fn write(&mut self) {
        let item = self.rng.below(ITEMS);
        let version = self.versions.entry(item).and_modify(|version| *version += 1).or_insert(1);
        let version = *version;
        let sequence = self.sequence();
        let hash = item * 256 / ITEMS;
        let now = Instant::now();
        let created_secs = self.base_secs + (now - self.began).as_secs() as i64;
        let shard = self
            .shards
            .values_mut()
            .find(|shard| shard.end.is_none() && shard.hashes.0 <= hash && hash < shard.hashes.1);
        let written = Written { sequence, item, version, created_secs, at: now };
        shard.expect("every hash has an open shard").records.push(written);
    }

    fn close(&mut self, id: &ShardId) -> (u64, u64) {
        let end = self.sequence();
        let shard = self.shards.get_mut(id).expect("it exists");
        (shard.end, shard.ended) = (Some(end), Some(Instant::now()));
        shard.hashes
    }

    /// Splits, merges or replaces a shard.
    pub fn reshard(&mut self) {
        let open: Vec<(ShardId, (u64, u64))> = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.end.is_none())
            .map(|(id, shard)| (id.clone(), shard.hashes))
            .collect();
        let (id, hashes) = open[self.rng.below(open.len() as u64) as usize].clone();
        let neighbour = open.iter().find(|(_, other)| other.0 == hashes.1);
        match (self.rng.below(3), neighbour) {
            (0, _) if hashes.1 - hashes.0 > 32 && open.len() < 6 => {
                self.close(&id);
                let middle = (hashes.0 + hashes.1) / 2;
                self.open((hashes.0, middle), vec![id.clone()]);
                self.open((middle, hashes.1), vec![id]);
            }
            (1, Some((other, range))) => {
                self.close(&id);
                self.close(other);
                self.open((hashes.0, range.1), vec![id, other.clone()]);
            }
            _ => {
                self.close(&id);
                self.open(hashes, vec![id]);
            }
        }
    }

    /// Lets go what is too old.
    pub fn trim(&mut self) {
        if !self.trims {
            return;
        }
        let now = Instant::now();
        for shard in self.shards.values_mut() {
            let old = shard.records.iter().filter(|written| now - written.at > RETENTION);
            shard.trimmed = old.map(|written| written.sequence).max().unwrap_or(shard.trimmed);
            shard.gone |= shard.ended.is_some_and(|ended| now - ended > RETENTION);
        }
    }

    pub fn describe(&mut self, after: Option<&ShardId>) -> ShardPage {
        let turn = self.began.elapsed().as_secs() / 7;
        let order = |id: &ShardId| mix(id.as_str().bytes().fold(7, |h, b| mix(h ^ u64::from(b))));
        let hidden = |id: &ShardId| self.holes && mix(order(id) ^ turn).is_multiple_of(12);
        let mut ids: Vec<(u64, &ShardId)> = self
            .shards
            .iter()
            .filter(|(id, shard)| !shard.gone && !hidden(id))
            .map(|(id, _)| (order(id), id))
            .filter(|(at, _)| after.is_none_or(|after| *at > order(after)))
            .collect();
        ids.sort();
        let size = 1 + (mix(self.salt ^ turn) % 4) as usize;
        let more = ids.len() > size;
        ids.truncate(size);
        let number = |n: u64| SequenceNumber::new(n.to_string()).unwrap();
        let shards: Vec<Shard> = ids
            .iter()
            .map(|(_, id)| {
                let shard = &self.shards[*id];
                Shard {
                    id: (*id).clone(),
                    parents: shard.parents.clone(),
                    start: Some(number(shard.start)),
                    end: shard.end.map(number),
                }
            })
            .collect();
        let next = shards.last().filter(|_| more).map(|shard| shard.id.clone());
        ShardPage { shards, next }
    }

    fn cursor(&mut self, shard: ShardId, after: u64) -> ShardIterator {
        let name = format!("cursor-{}", self.rng.next());
        self.cursors.insert(name.clone(), Cursor { shard, after, issued: Instant::now() });
        ShardIterator::new(name)
    }

    pub fn iterator(
        &mut self,
        id: &ShardId,
        from: &ReadFrom,
    ) -> Result<ShardIterator, StreamsError> {
        let shard = self.shards.get(id).filter(|shard| !shard.gone);
        let shard = shard.ok_or(StreamsError::NotFound)?;
        let of = |number: &SequenceNumber| number.as_str().parse::<u64>().unwrap();
        let after = match from {
            ReadFrom::TrimHorizon => shard.trimmed,
            ReadFrom::After(at) if of(at) <= shard.trimmed => {
                return Err(StreamsError::Trimmed);
            }
            ReadFrom::After(at) => of(at),
        };
        Ok(self.cursor(id.clone(), after))
    }

    /// Which shard an iterator reads.
    pub fn shard_of(&self, iterator: &ShardIterator) -> Option<ShardId> {
        self.cursors.get(iterator.as_str()).map(|cursor| cursor.shard.clone())
    }

    pub fn records(&mut self, iterator: &ShardIterator) -> Result<RecordPage, StreamsError> {
        let cursor = self.cursors.get(iterator.as_str()).expect("an iterator that was issued");
        if cursor.issued.elapsed() > ITERATOR {
            return Err(StreamsError::ExpiredIterator);
        }
        let (id, after) = (cursor.shard.clone(), cursor.after);
        let most = self.rng.below(6) as usize;
        let shard = &self.shards[&id];
        if shard.gone {
            return Err(StreamsError::NotFound);
        }
        let first = shard.records.first().is_some_and(|first| first.sequence <= shard.trimmed);
        if first && after < shard.trimmed {
            return Err(StreamsError::Trimmed);
        }
        let rest: Vec<&Written> =
            shard.records.iter().filter(|written| written.sequence > after).collect();
        let taken: Vec<Record> = rest.iter().take(most).map(|written| record(written)).collect();
        let over = shard.end.is_some() && taken.len() == rest.len();
        let after = rest.iter().take(most).next_back().map_or(after, |written| written.sequence);
        let next = (!over).then(|| self.cursor(id, after));
        Ok(RecordPage { records: taken, next })
    }

    /// All that a shard comes from, itself not included.
    pub fn ancestors(&self, id: &ShardId) -> BTreeSet<ShardId> {
        let mut found = BTreeSet::new();
        let mut open = vec![id.clone()];
        while let Some(id) = open.pop() {
            for parent in &self.shards[&id].parents {
                if found.insert(parent.clone()) {
                    open.push(parent.clone());
                }
            }
        }
        found
    }
}

fn record(written: &Written) -> Record {
    let item = AttributeValue::S(written.item.to_string());
    Record {
        id: String::new(),
        kind: ChangeKind::Modify,
        sequence: SequenceNumber::new(written.sequence.to_string()).unwrap(),
        created_secs: Some(written.created_secs),
        keys: Item::from([("PK".into(), item)]),
        old: None,
        new: None,
        expired: false,
    }
}
