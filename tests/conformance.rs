//! One contract, three stores: the suite of `support/conformance` against memory, the embedded engine and DynamoDB Local.

#[path = "support/conformance/mod.rs"]
mod conformance;
#[path = "support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "support/dynamodb_suite.rs"]
mod dynamodb_suite;
#[path = "support/embedded.rs"]
mod embedded;

/// One test for each case.
macro_rules! cases {
    ($engine:expr, $($suite:ident :: $case:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $case() {
            $suite::$case(&$engine).await;
        }
    )+};
}

/// The cases of the contract, listed once.
macro_rules! for_every_case {
    ($engine:expr) => {
        cases!(
            $engine,
            conformance::an_empty_store_has_nothing,
            conformance::a_placement_is_read_as_it_was_written,
            conformance::keys_are_compared_byte_for_byte,
            conformance::the_loser_of_an_assignment_gets_the_winners_placement,
            conformance::an_expectation_holds_for_its_own_state_only,
            conformance::an_adopted_placement_becomes_ours_at_its_first_change,
            conformance::a_commit_at_another_head_does_nothing,
            conformance::one_refused_write_undoes_all,
            conformance::a_request_id_is_taken_until_it_may_be_forgotten,
            conformance::cells_keep_their_counts_apart_from_their_settings,
            conformance::a_cell_is_read_as_it_was_written_and_goes_with_its_count,
            conformance::entries_are_read_in_order_and_without_gaps,
            conformance::an_entry_of_every_change_is_read_as_it_was_written,
            conformance::listings_hold_each_placement_once,
            conformance::a_foreign_cursor_is_rejected,
            conformance::history_is_newest_first_and_of_one_tenant,
            conformance::expired_placements_are_found_page_by_page,
            conformance::a_commit_that_is_repeated_is_done_once,
            conformance::of_racing_commits_one_wins,
            conformance::the_largest_commit_is_done,
            conformance::a_malformed_commit_is_rejected,
            conformance::entries_are_trimmed_and_never_the_head,
            conformance::a_journal_is_renamed_at_its_head_only,
            conformance::the_clusters_settings_are_read_as_they_were_written,
            conformance::a_scan_finds_every_placement_once,
            conformance::a_migration_is_read_as_it_was_begun_and_its_tenant_moves_once,
            conformance::a_phases_time_is_that_of_the_write_that_began_it,
            conformance::only_the_worker_that_holds_a_migration_tells_of_it,
            conformance::what_operators_ask_stands_beside_what_workers_write,
        );
    };
}

mod memory {
    use std::sync::Arc;

    use async_trait::async_trait;
    use cell_directory::domain::{
        CellId, Epoch, PartitionKey, Placement, PlacementEvent, Sequence, Timestamp, WriteMode,
    };
    use cell_directory::migration::MigrationRecords;
    use cell_directory::store::Store;
    use cell_directory::store::memory::MemoryStore;

    use super::conformance::{self, Engine, Fixture, Outsider};

    struct Memory;

    #[async_trait]
    impl Engine for Memory {
        async fn fresh(&self, head: Sequence) -> Fixture {
            let store = Arc::new(MemoryStore::starting_at(head));
            Fixture { store: Store::of(store.clone()), outsider: Box::new(Router(store)) }
        }

        async fn fresh_records(&self) -> Arc<dyn MigrationRecords> {
            Arc::new(MemoryStore::new())
        }
    }

    struct Router(Arc<MemoryStore>);

    #[async_trait]
    impl Outsider for Router {
        async fn adopt(&self, key: &PartitionKey, cell: &CellId, expires: Option<Timestamp>) {
            self.0.adopt(Placement {
                key: key.clone(),
                cell: cell.clone(),
                epoch: Epoch::FIRST,
                write_mode: WriteMode::Direct,
                began_by: PlacementEvent::Adopted,
                created: None,
                updated: None,
                expires,
                migration: None,
            });
        }
    }

    for_every_case!(Memory);
}

mod embedded_engine {
    use super::dynamodb_suite::{self, Tables};
    use super::embedded::Embedded;
    use super::{conformance, dynamodb_cases};

    for_every_case!(Tables::of(Embedded::temporary()));
    dynamodb_cases!(Tables::of(Embedded::temporary()));
}

mod amazons_dynamodb_local {
    use super::dynamodb_local::DynamoDbLocal;
    use super::dynamodb_suite::{self, Tables};
    use super::{conformance, dynamodb_cases};

    for_every_case!(Tables::of(DynamoDbLocal::shared()));
    dynamodb_cases!(Tables::of(DynamoDbLocal::shared()));
}
