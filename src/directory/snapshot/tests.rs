use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::directory::fixtures::{cell, now};
use crate::domain::{JournalId, LeaseDuration};
use crate::store::Head;

fn header() -> Header {
    let cluster = Cluster {
        lease: LeaseDuration::from_millis(700).unwrap(),
        longest: LeaseDuration::from_millis(900).unwrap(),
        updated: Some(now()),
        revision: Sequence::new(3),
    };
    let cells = vec![cell("a", 1), Cell { placements: 7, ..cell("b", 2) }];
    let registry = Registry::load(
        Head { journal: JournalId::new(u64::MAX - 1), sequence: Sequence::new(9) },
        cells,
        cluster,
    );
    Header { tables: "eu-west-1/prefix-".into(), proven: now(), registry }
}

fn residence(cell: &str, epoch: u64) -> Residence {
    Residence {
        cell: CellName::of(&CellId::new(cell).unwrap()),
        epoch: Epoch::new(epoch).unwrap(),
        write_mode: WriteMode::Direct,
        began_by: PlacementEvent::Assigned,
        created: Some(now()),
        updated: Some(now()),
        expires: None,
    }
}

fn write(header: &Header, placements: &[(PartitionKey, Residence)], complete: bool) -> Vec<u8> {
    let mut writer = SnapshotWriter::begin(Vec::new(), header).unwrap();
    for (at, (key, residence)) in placements.iter().enumerate() {
        writer.put(key.as_str(), residence);
        if at % 3 == 0 {
            writer.flush().unwrap();
        }
    }
    let (bytes, count) = writer.finish(complete).unwrap();
    assert_eq!(count, placements.len() as u64);
    bytes
}

type Everything = (Header, Footer, Vec<(PartitionKey, Residence)>);

fn read(bytes: &[u8]) -> Result<Everything, SnapshotError> {
    let mut placements = Vec::new();
    let reader = SnapshotReader::open(Cursor::new(bytes))?;
    let (header, footer) =
        reader.placements(|key, residence| placements.push((key.clone(), residence)))?;
    Ok((header, footer, placements))
}

fn small() -> Vec<u8> {
    let key = |name: &str| PartitionKey::new(name).unwrap();
    let placements = [(key("k"), residence("a", 1)), (key("é"), residence("b", 300))];
    write(&header(), &placements, true)
}

/// Puts the right sum to whatever the content is.
fn summed(mut content: Vec<u8>) -> Vec<u8> {
    let sum = xxhash_rust::xxh3::xxh3_64(&content);
    content.extend(sum.to_le_bytes());
    content
}

fn content(file: &[u8]) -> Vec<u8> {
    file[..file.len() - SUM as usize].to_vec()
}

fn time() -> impl Strategy<Value = Option<Timestamp>> {
    let range = -62_135_596_800_000i64..=253_402_300_799_999;
    prop_oneof![Just(None), range.prop_map(Timestamp::from_millis)]
}

prop_compose! {
    fn any_residence()(
        cell in "[a-z]{1,2}", epoch in prop_oneof![1..10u64, 1..=u64::MAX], logged: bool,
        event in 0..6usize, created in time(), updated in time(), same: bool, expires in time(),
    ) -> Residence {
        Residence {
            write_mode: if logged { WriteMode::Logged } else { WriteMode::Direct },
            began_by: PlacementEvent::ALL[event],
            created,
            updated: if same { created } else { updated },
            expires,
            ..residence(&cell, epoch)
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        placements in prop::collection::vec(("[a-z/é]{1,80}", any_residence()), 0..60),
        complete: bool, proven in time(),
    ) {
        let header = Header { proven: proven.unwrap_or(now()), ..header() };
        let placements: Vec<_> =
            placements.into_iter().map(|(key, r)| (PartitionKey::new(key).unwrap(), r)).collect();
        let bytes = write(&header, &placements, complete);
        let footer = Footer { complete, placements: placements.len() as u64 };
        prop_assert_eq!(read(&bytes).unwrap(), (header, footer, placements));
    }

    /// Even with the right sum: what makes no sense is refused, or is at least read without a panic.
    #[test]
    fn no_content_makes_the_reader_panic(
        at in 0..2000usize, bytes in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let mut content = content(&small());
        let at = PREFIX + at % (content.len() - PREFIX);
        content.splice(at..at, bytes);
        let _ = read(&summed(content));
    }
}

#[test]
fn every_truncation_is_refused() {
    let file = small();
    assert!(read(&file).is_ok());
    for length in 0..file.len() {
        assert!(read(&file[..length]).is_err(), "the first {length} bytes");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let file = small();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn each_reason_is_told() {
    let file = small();
    let told = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    let mut older = content(&file);
    older[8] = 0;
    assert_eq!(told(&summed(older)), "it has version 0, and this celld reads version 1");
    assert_eq!(told(b"celldsnp"), "it is cut short");
    assert_eq!(told(&[b'x'; 100]), "it is no snapshot");
    assert_eq!(told(&[&file[..], b"x"].concat()), "its checksum does not match");
    let trailing = summed([&content(&file)[..], b"x"].concat());
    assert_eq!(told(&trailing), "it makes no sense: something comes after its end");
    // Without its end.
    let mut headless = content(&file);
    headless.truncate(headless.len() - 10);
    assert_eq!(told(&summed(headless)), "it is cut short");
    // A length of 4 GB, and nothing behind it.
    let mut greedy = content(&file);
    greedy[PREFIX..PREFIX + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(told(&summed(greedy)), "it makes no sense: its header is too long");
    // The number of placements.
    let mut short = content(&file);
    let last = short.len() - 8;
    short[last] = 1;
    assert_eq!(told(&summed(short)), "it makes no sense: its end does not match");
}

#[test]
fn a_placement_takes_few_bytes() {
    let key = |n: usize| PartitionKey::new(format!("customer-{n:07}")).unwrap();
    let many: Vec<_> = (0..1000).map(|n| (key(n), residence("a", 1))).collect();
    let each = (write(&header(), &many, true).len() - write(&header(), &[], true).len()) / 1000;
    assert!(each <= 16 + 10, "{each} bytes");
}
