//! Pages: of placements, of a tenant's history, of cells; and tokens, each good for its own query only.

use std::collections::BTreeSet;

use cell_directory::proto::v1;

use crate::checks::invalid;
use crate::world::{Engine, Server, World, def, pin};

on_both_engines!(
    lists_each_placement_once,
    pages_through_a_history,
    a_token_is_good_for_its_own_query,
    page_sizes_are_bounded,
);

/// No listing here takes more pages.
const PAGES: usize = 100;

async fn list(
    server: &Server,
    cell: &str,
    page_size: i32,
    page_token: &str,
) -> Result<(Vec<v1::Placement>, String), tonic::Status> {
    let request = v1::ListPlacementsRequest {
        cell_id: cell.into(),
        page_size,
        page_token: page_token.into(),
    };
    let answer = server.directory.clone().list_placements(request).await?.into_inner();
    Ok((answer.placements, answer.next_page_token))
}

async fn list_all(server: &Server, cell: &str, page_size: i32) -> Vec<v1::Placement> {
    let (mut all, mut token) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let (page, next) = list(server, cell, page_size, &token).await.unwrap();
        assert!(page.len() <= usize::try_from(page_size).unwrap());
        all.extend(page);
        token = next;
        if token.is_empty() {
            return all;
        }
    }
    panic!("the listing does not end");
}

async fn history(
    server: &Server,
    page_size: i32,
    page_token: &str,
) -> Result<(Vec<v1::PlacementHistoryEntry>, String), tonic::Status> {
    let request = v1::GetPlacementHistoryRequest {
        partition_key: "tenant".into(),
        page_size,
        page_token: page_token.into(),
    };
    let answer = server.directory.clone().get_placement_history(request).await?.into_inner();
    Ok((answer.entries, answer.next_page_token))
}

async fn lists_each_placement_once(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    let mut in_a = BTreeSet::new();
    for n in 0..25 {
        let (key, cell) = (format!("tenant-{n}"), if n % 5 == 0 { "cell-b" } else { "cell-a" });
        server.pin(pin(&key, cell)).await.unwrap();
        if cell == "cell-a" {
            in_a.insert(key);
        }
    }
    // One that left, and one that moved, are not where they were.
    server.delete("tenant-1").await.unwrap();
    server.delete("tenant-2").await.unwrap();
    server.pin(pin("tenant-2", "cell-b")).await.unwrap();
    in_a.remove("tenant-1");
    in_a.remove("tenant-2");

    for page_size in [1, 7, 1000] {
        let all = list_all(&server, "", page_size).await;
        let keys: BTreeSet<_> = all.iter().map(|p| p.partition_key.clone()).collect();
        assert_eq!((all.len(), keys.len()), (24, 24), "pages of {page_size}");
        let listed = list_all(&server, "cell-a", page_size).await;
        let keys: Vec<_> = listed.iter().map(|p| p.partition_key.clone()).collect();
        assert_eq!(keys.len(), in_a.len(), "pages of {page_size}");
        assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), in_a, "pages of {page_size}");
        assert!(list_all(&server, "cell-c", page_size).await.is_empty());
        assert!(list_all(&server, "unknown", page_size).await.is_empty());
    }
    let listed = list_all(&server, "cell-b", 100).await;
    assert_eq!(listed.len(), 6);
    for placement in listed {
        assert_eq!(placement.region, "eu-west-1");
        assert_eq!(server.get(&placement.partition_key).await.unwrap(), placement);
    }
}

async fn pages_through_a_history(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    assert_eq!(history(&server, 1, "").await.unwrap(), (vec![], String::new()), "never had a cell");
    for _ in 0..3 {
        server.resolve("tenant").await;
        server.delete("tenant").await.unwrap();
    }
    for present in [false, true] {
        if present {
            server.resolve("tenant").await;
        }
        let whole = server.history("tenant").await;
        let epochs: Vec<_> = whole.iter().map(|entry| entry.epoch).collect();
        assert_eq!(epochs, if present { vec![4, 3, 2, 1] } else { vec![3, 2, 1] });
        for page_size in [1, 2, 3, 4] {
            let (mut paged, mut token) = (Vec::new(), String::new());
            for pages in 0.. {
                assert!(pages < PAGES, "the listing does not end");
                let (page, next) = history(&server, page_size, &token).await.unwrap();
                assert!(page.len() <= usize::try_from(page_size).unwrap());
                paged.extend(page);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(paged, whole, "pages of {page_size}");
        }
    }
}

async fn a_token_is_good_for_its_own_query(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    for n in 0..4 {
        server.pin(pin(&format!("tenant-{n}"), ["cell-a", "cell-b"][n % 2])).await.unwrap();
    }
    for _ in 0..2 {
        server.resolve("tenant").await;
        server.delete("tenant").await.unwrap();
    }
    let cells = async |token: &str| {
        let request = v1::ListCellsRequest { page_size: 1, page_token: token.into() };
        server.admin.clone().list_cells(request).await
    };
    let of_all = list(&server, "", 1, "").await.unwrap().1;
    let of_a = list(&server, "cell-a", 1, "").await.unwrap().1;
    let of_history = history(&server, 1, "").await.unwrap().1;
    let of_cells = cells("").await.unwrap().into_inner().next_page_token;
    let own = [&of_all, &of_a, &of_history, &of_cells];
    assert!(own.iter().all(|token| !token.is_empty()), "the premise: there are further pages");
    // Another page size is the same query.
    assert!(list(&server, "", 3, &of_all).await.is_ok());

    let (cut, longer) = (&of_all[..of_all.len() - 1], format!("{of_all}A"));
    let endless = "A".repeat(20_000);
    let damaged = [cut, &longer, "!", "e30", "bnVsbA", " ", &endless];
    for (place, tokens) in [
        ("all", [&of_a, &of_history, &of_cells]),
        ("a", [&of_all, &of_history, &of_cells]),
        ("history", [&of_all, &of_a, &of_cells]),
        ("cells", [&of_all, &of_a, &of_history]),
    ] {
        for token in tokens.into_iter().map(String::as_str).chain(damaged) {
            let wrong = match place {
                "all" => list(&server, "", 1, token).await.map(|_| ()),
                "a" => list(&server, "cell-a", 1, token).await.map(|_| ()),
                "history" => history(&server, 1, token).await.map(|_| ()),
                _ => cells(token).await.map(|_| ()),
            };
            invalid(wrong, "INVALID_PAGE_TOKEN", "page_token");
        }
    }
    invalid(list(&server, "cell-b", 1, &of_a).await, "INVALID_PAGE_TOKEN", "page_token");
    // A history that begins with a present placement has another kind of second page.
    server.resolve("tenant").await;
    let after_present = history(&server, 1, "").await.unwrap().1;
    for page_token in [of_history, after_present] {
        let partition_key = "tenant-1".into();
        let request = v1::GetPlacementHistoryRequest { partition_key, page_token, ..def() };
        let answer = server.directory.clone().get_placement_history(request).await;
        invalid(answer, "INVALID_PAGE_TOKEN", "page_token");
    }
}

async fn page_sizes_are_bounded(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    for size in [-1, 1001, i32::MIN, i32::MAX] {
        invalid(list(&server, "", size, "").await, "INVALID_PAGE_SIZE", "page_size");
        invalid(history(&server, size, "").await, "INVALID_PAGE_SIZE", "page_size");
        let request = v1::ListCellsRequest { page_size: size, ..def() };
        let answer = server.admin.clone().list_cells(request).await;
        invalid(answer, "INVALID_PAGE_SIZE", "page_size");
    }
}
