//! What a store evaluates is what the protocol means.

use aws_sdk_dynamodb::types::{ConditionCheck, Put, TransactWriteItem};
use cells_guard::{Condition, StoredGuard, guard};
use cells_migration::{Guard, GuardCheck, GuardState, Holder, MigrationId, WriteMode};

use crate::world::{create, engine, guard_table};

const STATES: [GuardState; 4] =
    [GuardState::Open, GuardState::Incoming, GuardState::Fenced, GuardState::Moved];
const MODES: [WriteMode; 2] = [WriteMode::Direct, WriteMode::Logged];

fn holders() -> Vec<Holder> {
    let of = |migration, worker| Holder { migration: MigrationId(migration), worker };
    vec![of(1, 1), of(1, 2), of(2, 1)]
}

/// Every guard that there may be, and no guard.
fn guards() -> Vec<Option<StoredGuard>> {
    let mut all = vec![None];
    let holders: Vec<_> = std::iter::once(None).chain(holders().into_iter().map(Some)).collect();
    for state in STATES {
        for (epoch, mode) in [1, 2].into_iter().flat_map(|epoch| MODES.map(|mode| (epoch, mode))) {
            for holder in &holders {
                for cell in ["cell-a", "cell-b"] {
                    let guard = Guard { state, epoch, mode, holder: *holder };
                    let cell = cell.to_owned();
                    all.push(Some(StoredGuard { guard, cell, shards: 1, next: None }));
                }
            }
        }
    }
    all
}

fn checks() -> Vec<GuardCheck> {
    let mut all = vec![GuardCheck::Vacant];
    for epoch in [1, 2] {
        all.push(GuardCheck::Idle { epoch });
        all.push(GuardCheck::Of { migration: MigrationId(epoch.into()) });
        for mode in MODES {
            for migration in [None, Some(MigrationId(1)), Some(MigrationId(2))] {
                all.push(GuardCheck::Open { epoch, mode, migration });
            }
        }
    }
    for state in STATES {
        all.extend(holders().into_iter().map(|holder| GuardCheck::Held { state, holder }));
    }
    all
}

/// All checks of all guards: the engine passes exactly those that hold. Another cell's guard counts as none.
#[tokio::test]
async fn conditions_mean_what_checks_say() {
    let (_engine, client) = engine();
    create(&client, "Orders-cell-a", true).await;
    let table = guard_table("cell-a");
    let guards = guards();
    assert_eq!(guards.len(), 129);
    let tenant = |at: usize| format!("tenant-{at}");
    for (at, stored) in guards.iter().enumerate() {
        let Some(stored) = stored else { continue };
        let item = guard::item(&table, &tenant(at), 0, stored);
        client.put_item().table_name("Orders-cell-a").set_item(Some(item)).send().await.unwrap();
    }
    for check in checks() {
        let Condition { expression, values } = Condition::of(&check, "cell-a");
        // So that none passes as a whole, and all are answered one by one.
        let never = Put::builder().table_name("Orders-cell-a").condition_expression("PK = SK");
        let never = never.set_item(Some(guard::key(&table, "nobody", 0))).build().unwrap();
        for (first, chunk) in guards.chunks(90).enumerate().map(|(n, chunk)| (n * 90, chunk)) {
            let parts = (0..chunk.len()).map(|at| {
                let part = ConditionCheck::builder()
                    .table_name("Orders-cell-a")
                    .set_key(Some(guard::key(&table, &tenant(first + at), 0)))
                    .condition_expression(&expression)
                    .set_expression_attribute_values(Some(values.iter().cloned().collect()));
                let part = part.build().unwrap();
                TransactWriteItem::builder().condition_check(part).build()
            });
            let never = TransactWriteItem::builder().put(never.clone()).build();
            let parts = parts.chain([never]).collect();
            let error = client.transact_write_items().set_transact_items(Some(parts)).send().await;
            let error = error.unwrap_err().into_service_error();
            let aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError::TransactionCanceledException(cancelled) = error else { panic!("{check:?}: {error:?}") };
            let reasons = cancelled.cancellation_reasons();
            assert_eq!(reasons.len(), chunk.len() + 1);
            for (stored, reason) in chunk.iter().zip(reasons) {
                let ours = stored.as_ref().filter(|stored| stored.cell == "cell-a");
                let holds = check.holds(ours.map(|stored| &stored.guard));
                let passed = reason.code() == Some("None");
                assert_eq!(passed, holds, "{check:?} of {stored:?}: {reason:?}");
            }
        }
    }
}
