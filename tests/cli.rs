//! The command as people use it: what it prints, how it ends, and what is left after it was killed.

#[path = "support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "support/embedded.rs"]
mod embedded;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use celld::{Celld, command, unique};
use dynamodb_local::DynamoDbLocal;
use embedded::Embedded;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long a command that should end by itself may take.
const ENDING: Duration = Duration::from_secs(60);

/// Runs a command that is to end by itself.
fn ends(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let deadline = Instant::now() + ENDING;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("did not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn celld(arguments: &[&str]) -> Output {
    ends(command(arguments))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A command that failed with this exit code, and said all of this.
#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert!(!said.contains("panicked") && stdout(output).is_empty(), "{said}");
}

fn resolve(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { partition_key: key.into(), ..Default::default() }
}

async fn get(directory: &mut CellDirectoryClient<Channel>, key: &str) -> v1::Placement {
    let request = v1::GetPlacementRequest { partition_key: key.into() };
    directory.get_placement(request).await.unwrap().into_inner().placement.unwrap()
}

/// Both engines: what is asked of the tables is asked of each.
fn engines() -> (Embedded, Vec<String>) {
    let embedded = Embedded::temporary();
    let endpoints = vec![embedded.endpoint().to_owned(), DynamoDbLocal::shared().endpoint()];
    (embedded, endpoints)
}

#[test]
fn flags_go_before_variables_before_the_file_before_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("celld.toml");
    let content = "table_prefix = \"file-\"\nregion = \"eu-west-1\"\nlookup_budget = \"700ms\"\ntenant_hash_key = \"0123456789abcdef\"\n";
    std::fs::write(&file, content).unwrap();
    let mut show = command(&["config", "show", "--table-prefix=flag-", "--config"]);
    show.arg(&file).env("CELLD_TABLE_PREFIX", "variable-").env("CELLD_REGION", "us-east-1");
    let output = ends(show);
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    let of_file = format!("lookup_budget = \"700ms\"  # file {}", file.display());
    for line in [
        "table_prefix = \"flag-\"  # flag --table-prefix",
        "region = \"us-east-1\"  # environment CELLD_REGION",
        &of_file,
        "read_timeout = \"300ms\"  # default",
        "# dynamodb_endpoint is not set  # default",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("0123456789abcdef"), "a secret is not shown");

    // What is shown can be used as a file, and comes to the same.
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &shown).unwrap();
    let reshown = celld(&["config", "show", "--config", again.to_str().unwrap()]);
    let values = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&stdout(&reshown)), values(&shown));
}

#[test]
fn what_the_configuration_does_not_know_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("celld.toml");
    std::fs::write(&file, "lookup_buget = \"1s\"\nlookup_budget = \"1 parsec\"\n").unwrap();
    let path = file.to_str().unwrap();
    let show = ["config", "show"];
    let with = |more: &[&str]| celld(&[&show[..], more].concat());
    let of_file = with(&["--config", path]);
    fails(&of_file, 2, &["lookup_buget", "lookup_budget", "1 parsec", path]);
    let mut of_variable = command(&show);
    of_variable.env("CELLD_LISTN", "x");
    fails(&ends(of_variable), 2, &["CELLD_LISTN", "CELLD_LISTEN"]);
    let mut bad_variable = command(&show);
    bad_variable.env("CELLD_LISTEN", "nowhere");
    fails(&ends(bad_variable), 2, &["CELLD_LISTEN", "nowhere", "IP:PORT"]);
    fails(&with(&["--lookup-buget=1s"]), 2, &["--lookup-buget", "--lookup-budget"]);
    fails(&with(&["--lookup-budget=1h"]), 2, &["--lookup-budget", "1h", "10ms to 1m"]);
    fails(&with(&["--config", "/no/such/file"]), 2, &["/no/such/file"]);
    fails(&celld(&["config", "shew"]), 2, &["shew"]);
    let help = celld(&["--help"]);
    assert!(help.status.success() && stdout(&help).contains("celld"), "{help:?}");
}

#[test]
fn tables_are_made_once_and_deleted_on_confirmation() {
    let (_embedded, endpoints) = engines();
    for endpoint in endpoints {
        let prefix = unique("cli");
        let tables = |verb: &[&str]| {
            let place = ["--dynamodb-endpoint", &endpoint, "--table-prefix", &prefix];
            celld(&[&["tables"], verb, &place].concat())
        };
        let succeeds = |verb: &[&str]| {
            let output = tables(verb);
            assert!(output.status.success(), "{}", stderr(&output));
            stdout(&output)
        };
        let (mappings, control) = (format!("{prefix}CellMappings"), format!("{prefix}CellControl"));
        let described = succeeds(&["describe"]);
        assert!(described.contains(&format!("{mappings}: does not exist")), "{described}");

        let created = succeeds(&["create"]);
        for part in [
            format!("{mappings}: ACTIVE, key PartitionKey (S)"),
            format!("{control}: ACTIVE, key PK (S), SK (S)"),
            "index CellIdIndex ACTIVE".to_owned(),
            "by TTL".to_owned(),
        ] {
            assert!(created.contains(&part), "{part} is not in {created}");
        }
        assert_eq!(created.matches("\n  created").count(), 2, "{created}");
        let again = succeeds(&["create"]);
        assert!(!again.contains("\n  "), "nothing was left to do: {again}");
        assert_eq!(succeeds(&["describe"]), again);

        let wrong = [
            &["delete"][..],
            &["delete", "--confirm-prefix="],
            &["delete", "--confirm-prefix=cli-"],
        ];
        for verb in wrong {
            fails(&tables(verb), 1, &["--confirm-prefix", &prefix]);
            assert_eq!(succeeds(&["describe"]), again, "nothing was deleted");
        }
        let deleted = succeeds(&["delete", "--confirm-prefix", &prefix]);
        assert_eq!(deleted.matches("does not exist").count(), 2, "{deleted}");
        assert_eq!(deleted.matches("\n  deleted").count(), 2, "{deleted}");
        let again = succeeds(&["delete", "--confirm-prefix", &prefix]);
        assert!(!again.contains("\n  "), "{again}");
        assert!(succeeds(&["describe"]).contains("does not exist"));
    }
}

#[test]
fn serving_without_tables_says_how_to_make_them() {
    let (_embedded, endpoints) = engines();
    for endpoint in endpoints {
        let prefix = unique("cli");
        let place = ["--dynamodb-endpoint", &endpoint, "--table-prefix", &prefix];
        let output = celld(&[&["serve", "--listen=127.0.0.1:0"][..], &place].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("`celld tables create`"), "{said}");
        assert!(said.contains(&format!("{prefix}CellMappings")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_it_takes_tls_or_an_explicit_word() {
    let embedded = Embedded::temporary();
    for open in ["0.0.0.0:0", "[::]:0"] {
        let output =
            celld(&["serve", "--listen", open, "--dynamodb-endpoint", embedded.endpoint()]);
        fails(&output, 2, &["listen", "--tls-cert", "--insecure"]);
        fails(&celld(&["dev", "--listen", open]), 2, &["listen", "--insecure"]);
    }
    let refused = celld(&["dev", "--dev-dynamodb-listen", "0.0.0.0:0", "--insecure"]);
    fails(&refused, 2, &["--dev-dynamodb-listen", "loopback"]);

    let more = ["--listen=0.0.0.0:0", "--insecure", "--log-filter=error"];
    let prefix = unique("cli");
    let tables = ["--dynamodb-endpoint", embedded.endpoint(), "--table-prefix", &prefix];
    assert!(celld(&[&["tables", "create"][..], &tables].concat()).status.success());
    let server = Celld::start(command(&[&["serve"][..], &more, &tables].concat()));
    let port = server.address.strip_prefix("0.0.0.0:").expect("the address asked for");
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let mut directory = CellDirectoryClient::new(endpoint.connect().await.unwrap());
    let request = v1::GetPlacementRequest { partition_key: "tenant".into() };
    let answer = directory.get_placement(request).await.unwrap_err();
    assert_eq!(answer.code(), tonic::Code::NotFound, "{answer:?}");
}

/// A certificate for `localhost`, and the files that hold it and its key.
fn certificate(folder: &Path) -> (String, PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (made.cert.pem(), cert, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_where_a_certificate_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let (pem, cert, key) = certificate(folder.path());
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let tls = ["--tls-cert", cert, "--tls-key", key, "--log-filter=error"];
    let server = Celld::dev(&folder.path().join("data"), &tls);
    let port = server.address.rsplit(':').next().unwrap();

    let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    let connect = async |name: &str, tls: ClientTlsConfig| {
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
        endpoint.tls_config(tls.domain_name(name)).unwrap().connect().await
    };
    let channel = connect("localhost", trusting.clone()).await.unwrap();
    let mut directory = CellDirectoryClient::new(channel);
    let answer = directory.resolve(resolve("tenant")).await.unwrap().into_inner();
    assert_eq!(answer.placement.unwrap().epoch, 1);

    assert!(connect("elsewhere", trusting).await.is_err(), "the certificate is for localhost");
    assert!(connect("localhost", ClientTlsConfig::new()).await.is_err(), "nobody vouches for it");
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let mut plain = CellDirectoryClient::new(plain.connect_lazy());
    let refused = plain.resolve(resolve("plain")).await.unwrap_err();
    assert!(refused.details().is_empty(), "the connection failed, not the call: {refused:?}");
    assert!(server.greeting.contains(&server.address));

    // Half of it, or what is no certificate, is refused.
    fails(&celld(&["serve", "--tls-cert", cert]), 2, &["tls_cert", "--tls-key"]);
    fails(&celld(&["serve", "--tls-key", key]), 2, &["tls_key", "--tls-cert"]);
    let prefix = unique("cli");
    let embedded = Embedded::temporary();
    let tables = ["--dynamodb-endpoint", embedded.endpoint(), "--table-prefix", &prefix];
    assert!(celld(&[&["tables", "create"][..], &tables].concat()).status.success());
    let serve = |cert: &str| {
        let tls = [
            "serve",
            "--listen=127.0.0.1:0",
            "--log-filter=off",
            "--tls-key",
            key,
            "--tls-cert",
            cert,
        ];
        celld(&[&tls[..], &tables].concat())
    };
    let missing = serve("/no/such/cert.pem");
    fails(&missing, 1, &["/no/such/cert.pem"]);
    let ill = folder.path().join("ill.pem");
    std::fs::write(&ill, "no certificate\n").unwrap();
    let ill = serve(ill.to_str().unwrap());
    fails(&ill, 1, &["--tls-cert", "--tls-key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_keeps_its_data_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("made/if/missing");
    let first = Celld::dev(&data, &[]);
    let mut admin = first.admin().await;
    let cells = admin.list_cells(v1::ListCellsRequest::default()).await.unwrap().into_inner().cells;
    let regions: std::collections::BTreeSet<_> = cells.iter().map(|cell| &cell.region).collect();
    assert_eq!((cells.len(), regions.len()), (3, 3), "three demo cells in different regions");
    let mut directory = first.directory().await;
    let placed =
        directory.resolve(resolve("tenant")).await.unwrap().into_inner().placement.unwrap();
    // An operator's change to a demo cell is not undone by the next start.
    let cordoned = v1::Cell {
        cell_id: cells[0].cell_id.clone(),
        state: v1::CellState::Cordoned.into(),
        ..Default::default()
    };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["state".into()] });
    let update = v1::UpdateCellRequest { cell: Some(cordoned), update_mask, ..Default::default() };
    admin.update_cell(update).await.unwrap();
    drop((admin, directory));
    assert!(first.terminate().success());

    let second = Celld::dev(&data, &[]);
    let mut directory = second.directory().await;
    assert_eq!(get(&mut directory, "tenant").await, placed);
    let mut admin = second.admin().await;
    let request = v1::GetCellRequest { cell_id: cells[0].cell_id.clone() };
    let cell = admin.get_cell(request).await.unwrap().into_inner().cell.unwrap();
    assert_eq!(cell.state(), v1::CellState::Cordoned);
}

/// Callers assign and pin as fast as they can, and the process is killed among them: what was acknowledged is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_being_killed() {
    const ROUNDS: usize = 5;
    const CALLERS: usize = 8;
    const ENOUGH: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let acknowledged = Arc::new(Mutex::new(Vec::<v1::Placement>::new()));
    for round in 0..ROUNDS {
        let server = Celld::dev(folder.path(), &["--log-filter=error"]);
        let channel = server.channel().await;
        let count = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let mut directory = CellDirectoryClient::new(channel.clone());
                let (acknowledged, count) = (Arc::clone(&acknowledged), Arc::clone(&count));
                tokio::spawn(async move {
                    for n in 0.. {
                        let key = format!("tenant-{round}-{caller}-{n}");
                        let answer = if n % 2 == 0 {
                            let answer = directory.resolve(resolve(&key)).await;
                            answer.map(|answer| answer.into_inner().placement)
                        } else {
                            let cell_id = "cell-b".to_owned();
                            let partition_key = key;
                            let pin = v1::PinPlacementRequest {
                                partition_key,
                                cell_id,
                                ..Default::default()
                            };
                            let answer = directory.pin_placement(pin).await;
                            answer.map(|answer| answer.into_inner().placement)
                        };
                        match answer {
                            // A guess, in the moment of dying, acknowledges nothing.
                            Ok(Some(placement)) if placement.epoch == 0 => return,
                            Ok(placement) => acknowledged.lock().unwrap().extend(placement),
                            Err(_) => return,
                        }
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let deadline = Instant::now() + ENDING;
        while count.load(Ordering::Relaxed) < ENOUGH {
            assert!(Instant::now() < deadline, "changes are too slow");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        for caller in callers {
            caller.await.unwrap();
        }
    }
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    assert!(acknowledged.len() >= ROUNDS * ENOUGH);
    let server = Celld::dev(folder.path(), &["--log-filter=error"]);
    let mut directory = server.directory().await;
    for placement in acknowledged {
        assert_eq!(get(&mut directory, &placement.partition_key).await, placement);
    }
    // And the store is whole: it goes on, and its counts are those of its placements.
    assert_eq!(
        directory.resolve(resolve("next")).await.unwrap().into_inner().placement.unwrap().epoch,
        1
    );
    let mut admin = server.admin().await;
    let cells = admin.list_cells(v1::ListCellsRequest::default()).await.unwrap().into_inner().cells;
    for cell in cells {
        let (mut listed, mut page_token) = (0, String::new());
        loop {
            let request = v1::ListPlacementsRequest {
                cell_id: cell.cell_id.clone(),
                page_token,
                page_size: 1000,
            };
            let page = directory.list_placements(request).await.unwrap().into_inner();
            listed += page.placements.len();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(u64::try_from(listed).unwrap(), cell.placement_count, "{}", cell.cell_id);
    }
}

#[test]
fn a_second_dev_says_what_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (data, other) = (folder.path().join("data"), folder.path().join("other"));
    let first = Celld::dev(&data, &[]);
    let second = |data: &Path, listen: &str, engine: &str| {
        let mut dev = command(&[
            "dev",
            "--log-filter=off",
            "--listen",
            listen,
            "--dev-dynamodb-listen",
            engine,
        ]);
        dev.arg("--data-dir").arg(data);
        ends(dev)
    };
    let free = "127.0.0.1:0";
    fails(&second(&data, free, free), 1, &[data.to_str().unwrap(), "another celld", "--data-dir"]);
    fails(&second(&other, &first.address, free), 1, &[&first.address, "--listen"]);
    let holder = std::net::TcpListener::bind(free).unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    fails(&second(&other, free, &taken), 1, &[&taken, "--dev-dynamodb-listen"]);
    drop(holder);
    // Whoever was refused has done no harm, and what is freed can be taken.
    assert!(first.terminate().success());
    let third = Celld::dev(&data, &[]);
    assert!(third.terminate().success());
}

#[test]
fn the_printed_commands_work() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = std::env::var_os("CELLD_TEST_TOOLS").unwrap_or_else(|| "target/tools".into());
    let bin = here.join(tools).join("bin");
    assert!(bin.join("grpcurl").is_file(), "run scripts/install-test-tools");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut dev = command(&["dev", "--listen=127.0.0.1:0", "--dev-dynamodb-listen=127.0.0.1:0"]);
    dev.args(["--log-filter=error", "--data-dir"]).arg(folder.path().join("data"));
    let mut child = dev.stdout(std::fs::File::create(&out).unwrap()).spawn().unwrap();
    let deadline = Instant::now() + ENDING;
    let printed = loop {
        let printed = std::fs::read_to_string(&out).unwrap();
        if printed.contains("ListCells") || Instant::now() >= deadline {
            break printed;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let commands = printed.lines().map(str::trim).filter(|line| line.starts_with("grpcurl "));
    let outputs: Vec<_> = commands
        .map(|line| {
            ends({
                let mut shell = Command::new("sh");
                shell.args(["-c", line]).env("PATH", &path);
                shell
            })
        })
        .collect();
    let engine =
        printed.split("embedded DynamoDB on ").nth(1).and_then(|rest| rest.split(',').next());
    let tables =
        engine.map(|endpoint| celld(&["tables", "describe", "--dynamodb-endpoint", endpoint]));
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(outputs.len(), 3, "{printed}");
    for output in &outputs {
        assert!(output.status.success(), "{printed}\n{}", stderr(output));
    }
    let answers: Vec<serde_json::Value> =
        outputs.iter().map(|output| serde_json::from_str(&stdout(output)).unwrap()).collect();
    assert_eq!(answers[0]["placement"]["partitionKey"], "customer-12345");
    assert_eq!(answers[0]["decision"]["source"], "DECISION_SOURCE_ASSIGNED");
    assert_eq!(answers[0]["decision"]["steps"].as_array().unwrap().len(), 2);
    let results = answers[1]["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["placement"]["cellId"], answers[0]["placement"]["cellId"]);
    assert_eq!(answers[2]["cells"].as_array().unwrap().len(), 3);
    let tables = stdout(&tables.expect("the embedded endpoint is printed"));
    assert!(tables.contains("CellMappings: ACTIVE"), "{tables}");
}
