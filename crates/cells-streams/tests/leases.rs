//! What every implementation of leases has to do: in memory and on Amazon's DynamoDB Local.

#[path = "support/aws.rs"]
mod aws;
#[path = "../../../tests/support/dynamodb_local.rs"]
mod dynamodb_local;

use cells_streams::lease::{Claim, Claimed, Leases, NewLease, Stamp, Taken};
use cells_streams::{
    DynamoDbLeases, GroupName, MemoryLeases, OwnerId, Position, SequenceNumber, ShardId, StreamArn,
    schema,
};
use dynamodb_local::DynamoDbLocal;

fn number(text: &str) -> SequenceNumber {
    SequenceNumber::new(text).unwrap()
}

fn fresh(shard: &str) -> NewLease {
    NewLease {
        shard: ShardId::new(shard),
        parents: vec![ShardId::new("parent")],
        position: Position::Horizon,
        since_secs: Some(7),
    }
}

async fn stamp(leases: &dyn Leases, shard: &ShardId) -> Stamp {
    let all = leases.list().await.unwrap();
    all.into_iter().find(|lease| lease.shard == *shard).expect("it is recorded").stamp
}

async fn take(leases: &dyn Leases, shard: &ShardId, seen: Stamp, owner: &str) -> Option<Claim> {
    let owner = OwnerId::exactly(owner);
    match leases.take(shard, seen, &owner).await.unwrap() {
        Taken::Won(lease) => Some(Claim { shard: shard.clone(), owner, epoch: lease.stamp.epoch }),
        Taken::Lost => None,
    }
}

async fn suite(leases: &dyn Leases) {
    // The first start says how; later ones learn.
    assert_eq!(leases.begin(Some(7)).await.unwrap().since_secs, Some(7));
    let group = leases.begin(None).await.unwrap();
    assert_eq!((group.since_secs, group.initialised), (Some(7), false));
    leases.initialised().await.unwrap();
    assert!(leases.begin(None).await.unwrap().initialised);

    // A record is made once, and comes back whole.
    let new = fresh("shard-1");
    leases.create(&new).await.unwrap();
    let other = NewLease { position: Position::LostEnd, ..new.clone() };
    leases.create(&other).await.unwrap();
    let all = leases.list().await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (&all[0].shard, &all[0].parents, &all[0].position, all[0].since_secs),
        (&new.shard, &new.parents, &Position::Horizon, Some(7)),
    );
    assert_eq!(all[0].owner, None);

    // Of two that saw the same, one wins; it may ask again.
    let shard = ShardId::new("shard-1");
    let seen = stamp(leases, &shard).await;
    let first = take(leases, &shard, seen, "first").await.expect("nobody had it");
    assert_eq!(take(leases, &shard, seen, "second").await, None);
    assert_eq!(take(leases, &shard, seen, "first").await, Some(first.clone()));

    // A renewal outdates what was seen before it: no takeover of the living.
    let seen = stamp(leases, &shard).await;
    assert_eq!(leases.renew(&first).await.unwrap(), Claimed::Held);
    assert_eq!(take(leases, &shard, seen, "second").await, None);
    let seen = stamp(leases, &shard).await;
    let at = Position::After(number("0101"));
    assert_eq!(leases.checkpoint(&first, &at).await.unwrap(), Claimed::Held);
    assert_eq!(take(leases, &shard, seen, "second").await, None);

    // A former owner can do nothing any more, not even after it was owner once again.
    let seen = stamp(leases, &shard).await;
    let second = take(leases, &shard, seen, "second").await.expect("unchanged since");
    assert!(second.epoch > first.epoch);
    let end = Position::LostEnd;
    assert_eq!(leases.checkpoint(&first, &end).await.unwrap(), Claimed::Lost);
    assert_eq!(leases.renew(&first).await.unwrap(), Claimed::Lost);
    assert_eq!(leases.release(&first).await.unwrap(), Claimed::Lost);
    let seen = stamp(leases, &shard).await;
    let again = take(leases, &shard, seen, "first").await.expect("unchanged since");
    assert_eq!(leases.checkpoint(&first, &end).await.unwrap(), Claimed::Lost);
    let lease = leases.list().await.unwrap().remove(0);
    assert_eq!((lease.position, lease.owner), (at, Some(OwnerId::exactly("first"))));

    // Only what is finished is forgotten; every position comes back.
    leases.forget(&shard).await.unwrap();
    let fresh = Position::Fresh { as_of_secs: -9 };
    let end = Position::End { as_of_secs: 8 };
    for position in [Position::Orphan, Position::Lost, fresh, Position::LostEnd, end] {
        assert_eq!(leases.checkpoint(&again, &position).await.unwrap(), Claimed::Held);
        assert_eq!(leases.list().await.unwrap()[0].position, position);
    }
    assert_eq!(leases.release(&again).await.unwrap(), Claimed::Held);
    assert_eq!(leases.list().await.unwrap()[0].owner, None);
    assert_eq!(leases.renew(&again).await.unwrap(), Claimed::Lost);
    leases.forget(&shard).await.unwrap();
    assert_eq!(leases.list().await.unwrap(), []);
    leases.forget(&shard).await.unwrap();
    assert_eq!(leases.renew(&again).await.unwrap(), Claimed::Lost);
}

#[tokio::test]
async fn leases_in_memory() {
    suite(&MemoryLeases::new()).await;
}

#[tokio::test]
async fn leases_on_dynamodb_local() {
    let client = aws::dynamodb(&DynamoDbLocal::shared().endpoint());
    aws::control_table(&client, "LeasesControl").await;
    let arn = "arn:aws:dynamodb:us-east-1:1:table/Orders-cell-a/stream/now";
    let arn = StreamArn::new(arn).unwrap();
    let of = |group: &str| {
        DynamoDbLeases::new(client.clone(), "LeasesControl", GroupName::new(group).unwrap(), &arn)
    };
    suite(&of("one")).await;
    // Groups do not know of each other.
    of("two").create(&fresh("shard-1")).await.unwrap();
    assert_eq!(of("one").list().await.unwrap(), []);
    assert_eq!(of("two").list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn shards_of_a_later_stream_are_left_alone() {
    let client = aws::dynamodb(&DynamoDbLocal::shared().endpoint());
    aws::control_table(&client, "StreamsControl").await;
    let of = |label: &str| {
        let arn = format!("arn:aws:dynamodb:us-east-1:1:table/Orders-cell-a/stream/{label}");
        let (arn, group) = (StreamArn::new(arn).unwrap(), GroupName::new("one").unwrap());
        DynamoDbLeases::new(client.clone(), "StreamsControl", group, &arn)
    };
    let (old, new) = (of("2026-01-31T23:59:59.999"), of("2026-02-01T00:00:00.000"));
    old.create(&fresh("of-the-old")).await.unwrap();
    new.create(&fresh("of-the-new")).await.unwrap();
    // One of an earlier version, which does not say.
    new.create(&fresh("of-some")).await.unwrap();
    let unlabelled = client.update_item().table_name("StreamsControl");
    let unlabelled = unlabelled.key(schema::PK, schema::s("STREAM#one#Orders-cell-a"));
    let unlabelled = unlabelled.key(schema::SK, schema::s("SHARD#of-some"));
    let unlabelled = unlabelled.update_expression("REMOVE #stream");
    unlabelled.expression_attribute_names("#stream", schema::STREAM).send().await.unwrap();
    let shards = async |leases: &DynamoDbLeases| {
        let listed = leases.list().await.unwrap();
        listed.into_iter().map(|lease| lease.shard.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(shards(&old).await, ["of-some", "of-the-old"]);
    assert_eq!(shards(&new).await, ["of-some", "of-the-new", "of-the-old"]);
}
