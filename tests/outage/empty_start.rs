//! A replica that starts with nothing in memory, and everybody asks at once: it reads the table about once, not once for each who asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use crate::alone;
use crate::world::{MODES, SOON, World, cell, key};

const TENANTS: usize = 10_000;

/// Items read, as a multiple of the tenants.
const READS: f64 = 1.5;

/// The sweep for what has expired goes through the table at a constant rate, whatever was started when: it reads its first page only.
/// And nothing is refused or given up because the machine is busy: that is another test's.
const FLAGS: &[&str] = &["--sweep-interval=1h", "--max-queue-delay=1m", "--read-timeout=1s"];

/// Calls under way at any time: as many callers as take one tenant after the other.
const CALLERS: usize = 512;

/// Connections that the callers share.
const CONNECTIONS: usize = 16;

/// Asks for a tenant over and over until the answer is its cell, as late as it is told to. How many calls that took.
async fn insist(directory: &mut CellDirectoryClient<Channel>, tenant: usize) -> usize {
    let deadline = Instant::now() + SOON;
    let mut calls = 0;
    loop {
        calls += 1;
        let request = v1::ResolveRequest { partition_key: key(tenant), ..Default::default() };
        let status = match directory.resolve(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let placement = answer.placement.unwrap();
                assert_eq!((&*placement.cell_id, placement.epoch), (cell(tenant), 1));
                assert!(answer.decision.unwrap().authoritative);
                return calls;
            }
            Err(status) => status,
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(Instant::now() < deadline, "{}: {status:?}", key(tenant));
        let pause = status.get_details_retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(pause.expect("when to ask again")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_start_under_load_reads_the_table_about_once() {
    let _alone = alone().await;
    let world = World::with("empty", TENANTS).await;
    for mode in MODES {
        let replica = world.replica(mode, FLAGS);
        let began = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let directory = replica.celld().directory().await;
            for _ in 0..CALLERS / CONNECTIONS {
                let (mut directory, next) = (directory.clone(), Arc::clone(&next));
                callers.spawn(async move {
                    let mut calls = 0;
                    loop {
                        let tenant = next.fetch_add(1, Ordering::Relaxed);
                        if tenant >= TENANTS {
                            return calls;
                        }
                        calls += insist(&mut directory, tenant).await;
                    }
                });
            }
        }
        let calls: usize = callers.join_all().await.into_iter().sum();
        let items = replica.proxy.items_read(&world.mappings());
        let share = items as f64 / TENANTS as f64;
        let took = began.elapsed();
        println!(
            "{mode}: {items} items read for {TENANTS} tenants, {share:.2} times; {calls} calls, {took:.1?}"
        );
        assert!(items >= TENANTS, "{mode}: items are not counted");
        assert!(share <= READS, "{mode}: {share:.2} times");
    }
}
