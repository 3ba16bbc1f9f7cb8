//! Page tokens: genuine ones go on, all others are refused, and none of them breaks anything.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use xxhash_rust::xxh3::xxh3_64;

use crate::generate::arbitrary;
use crate::oracle::well_formed;
use crate::server::Server;
use crate::{cases, seed};

/// A listing that has pages: what a token is bound to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Listing {
    All,
    OfCell,
    History,
    OtherHistory,
    Cells,
    Migrations,
    Bulks,
}

const LISTINGS: [Listing; 7] = [
    Listing::All,
    Listing::OfCell,
    Listing::History,
    Listing::OtherHistory,
    Listing::Cells,
    Listing::Migrations,
    Listing::Bulks,
];

impl Listing {
    /// The method and filter that a token of it is bound to.
    fn query(self) -> (&'static str, &'static str) {
        match self {
            Listing::All => ("ListPlacements", ""),
            Listing::OfCell => ("ListPlacements", "cell-0"),
            Listing::History => ("GetPlacementHistory", "tenant-2"),
            Listing::OtherHistory => ("GetPlacementHistory", "tenant-5"),
            Listing::Cells => ("ListCells", ""),
            // Of all tenants and cells, ended ones included.
            Listing::Migrations => ("ListMigrations", "\0\0false"),
            Listing::Bulks => ("ListBulks", ""),
        }
    }

    /// Asks for a page of one; answers the next token.
    async fn page(self, channel: &Channel, token: String) -> Result<String, Status> {
        let (_, filter) = self.query();
        let filter = filter.to_owned();
        let mut directory = CellDirectoryClient::new(channel.clone());
        match self {
            Listing::All | Listing::OfCell => {
                let request =
                    v1::ListPlacementsRequest { cell_id: filter, page_size: 1, page_token: token };
                Ok(directory.list_placements(request).await?.into_inner().next_page_token)
            }
            Listing::History | Listing::OtherHistory => {
                let request = v1::GetPlacementHistoryRequest {
                    partition_key: filter,
                    page_size: 1,
                    page_token: token,
                };
                Ok(directory.get_placement_history(request).await?.into_inner().next_page_token)
            }
            Listing::Cells => {
                let request = v1::ListCellsRequest { page_size: 1, page_token: token };
                let mut admin = CellAdminClient::new(channel.clone());
                Ok(admin.list_cells(request).await?.into_inner().next_page_token)
            }
            Listing::Bulks => {
                let request = v1::ListBulksRequest { page_size: 1, page_token: token };
                let mut migrations = MigrationServiceClient::new(channel.clone());
                Ok(migrations.list_bulks(request).await?.into_inner().next_page_token)
            }
            Listing::Migrations => {
                let request = v1::ListMigrationsRequest {
                    page_size: 1,
                    page_token: token,
                    ..Default::default()
                };
                let mut migrations = MigrationServiceClient::new(channel.clone());
                Ok(migrations.list_migrations(request).await?.into_inner().next_page_token)
            }
        }
    }

    /// All tokens from the first page to the last.
    async fn tokens(self, channel: &Channel) -> Vec<String> {
        let mut tokens = Vec::new();
        let mut token = self.page(channel, String::new()).await.unwrap();
        while !token.is_empty() {
            assert!(!tokens.contains(&token), "{self:?} runs in circles");
            tokens.push(token.clone());
            token = self.page(channel, token).await.unwrap();
        }
        tokens
    }
}

async fn connect(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address())).unwrap();
    endpoint.connect().await.unwrap()
}

/// Asserts that a token was refused as such.
fn assert_refused(listing: Listing, token: &str, answer: &Result<String, Status>) {
    let Err(status) = answer else { panic!("{listing:?} took {token:?}") };
    well_formed(status)
        .unwrap_or_else(|problem| panic!("{listing:?} {token:?}: {problem}: {status}"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "INVALID_PAGE_TOKEN", "{listing:?} {token:?}");
    let bad = status.get_details_bad_request().unwrap();
    assert_eq!(bad.field_violations[0].field, "page_token", "{listing:?} {token:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_and_arbitrary_tokens_are_refused() {
    let server = Server::start().await;
    let channel = connect(&server).await;
    let mut genuine = Vec::new();
    for listing in LISTINGS {
        let tokens = listing.tokens(&channel).await;
        assert!(tokens.len() >= 2, "{listing:?} has {} pages", tokens.len() + 1);
        genuine.extend(tokens.into_iter().map(|token| (listing, token)));
    }
    let before = server.state().await;
    let seed = seed();
    println!("CELLD_FUZZ_SEED={seed}");
    let calls = futures::stream::iter(0..cases()).map(|number| {
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (origin, token) = &genuine[random.random_range(0..genuine.len())];
        let token = bend(token, &genuine, &mut random);
        // Mostly of its own listing, where it has the best chance.
        let listing = match random.random_bool(0.7) {
            true => *origin,
            false => LISTINGS[random.random_range(0..LISTINGS.len())],
        };
        let channel = &channel;
        async move {
            let answer = listing.page(channel, token.clone()).await;
            (listing, token, answer)
        }
    });
    let mut calls = calls.buffer_unordered(32);
    let mut refused = 0u64;
    while let Some((listing, token, answer)) = calls.next().await {
        if token.is_empty() || genuine.contains(&(listing, token.clone())) {
            assert!(answer.is_ok(), "{listing:?} {token:?}: {answer:?}");
        } else {
            assert_refused(listing, &token, &answer);
            refused += 1;
        }
    }
    assert!(refused > cases() / 2, "{refused}");
    drop(calls);
    assert_eq!(server.state().await, before);
    server.end().await;
}

/// A token that is like another, but for something.
fn bend(token: &str, genuine: &[(Listing, String)], random: &mut StdRng) -> String {
    let mut bytes = token.as_bytes().to_vec();
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..8) {
        0 => bytes[at] = random.random_range(b'!'..=b'~'),
        1 => bytes.truncate(at),
        2 => bytes.insert(at, b'A'),
        3 => bytes.extend(b"="),
        4 => {
            let (_, other) = &genuine[random.random_range(0..genuine.len())];
            bytes = other.clone().into_bytes();
        }
        5 => {
            let mut json = URL_SAFE_NO_PAD.decode(token).unwrap();
            let at = random.random_range(0..json.len());
            json[at] ^= 1 << random.random_range(0..8);
            bytes = URL_SAFE_NO_PAD.encode(json).into_bytes();
        }
        6 => bytes.swap(0, at),
        _ => bytes = arbitrary(token.as_bytes(), random),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A token with a digest as the server would make it, around any cursor.
fn forge(listing: Listing, cursor: &str) -> String {
    let (method, filter) = listing.query();
    let digest = xxh3_64(format!("{method}\0{filter}\0{cursor}").as_bytes());
    let token = serde_json::json!({ "digest": digest, "cursor": cursor });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// The digest is no secret, so a token may be well made and still point nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_tokens_are_refused_or_harmless() {
    let server = Server::start().await;
    let channel = connect(&server).await;
    // Without this, a change of the format would make this test one of arbitrary tokens.
    for listing in LISTINGS {
        let token = listing.tokens(&channel).await.remove(0);
        let json: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&token).unwrap()).unwrap();
        let forged = forge(listing, json["cursor"].as_str().unwrap());
        assert!(
            listing.page(&channel, forged).await.is_ok(),
            "{listing:?}: the format has changed"
        );
    }
    let before = server.state().await;
    let seed = seed();
    println!("CELLD_FUZZ_SEED={seed}");
    let calls = futures::stream::iter(0..cases() / 4).map(|number| {
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let listing = LISTINGS[random.random_range(0..LISTINGS.len())];
        let near: &[u8] = [b"tenant-3".as_slice(), b"cell-1", b"2", b"18446744073709551615", b"0"]
            [random.random_range(0..5)];
        let cursor = String::from_utf8_lossy(&arbitrary(near, &mut random)).into_owned();
        let channel = &channel;
        async move {
            let token = forge(listing, &cursor);
            let answer = listing.page(channel, token.clone()).await;
            (listing, cursor, token, answer)
        }
    });
    let mut calls = calls.buffer_unordered(32);
    let (mut taken, mut refused) = (0, 0);
    while let Some((listing, cursor, token, answer)) = calls.next().await {
        match answer {
            Ok(_) => taken += 1,
            Err(status) => {
                refused += 1;
                assert_eq!(
                    status.code(),
                    Code::InvalidArgument,
                    "{listing:?} {cursor:?}: {status}"
                );
                assert_refused(listing, &token, &Err(status));
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    drop(calls);
    assert_eq!(server.state().await, before);
    server.end().await;
}
