//! The campaign: each method, case by case, against the oracle.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tonic::Code;

use crate::client::{Answer, Client};
use crate::generate::{Case, case};
use crate::schema::{self, Method};
use crate::server::Server;
use crate::{cases, oracle, seed};

/// Connections, each with a task of its own.
const CONNECTIONS: u64 = 4;
/// Calls under way on each.
const STREAMS: usize = 16;
/// Refused requests that are repeated.
const REPEATED: usize = 1000;
/// Failures that are printed.
const SHOWN: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_method_answers_arbitrary_text_as_documented_and_refusals_change_nothing() {
    let seed = seed();
    let methods = schema::methods();
    assert!(methods.len() >= 38, "{}", methods.len());
    for method in methods {
        let began = Instant::now();
        let server = Server::start().await;
        let tally = campaign(&server, &method, seed).await;
        let Tally { failures, refused, accepted, codes } = tally;
        assert!(
            failures.is_empty(),
            "{} of {} cases failed; again with CELLD_FUZZ_SEED={seed}:\n{}",
            failures.len(),
            cases(),
            failures[..failures.len().min(SHOWN)].join("\n")
        );
        // A generator that is only ever refused, or never, would show nothing.
        let total = u64::try_from(refused.len()).unwrap() + accepted;
        // Where there is nothing in a request, nothing in it can be wrong.
        let empty = method.request.fields().len() == 0;
        assert!(empty || refused.len() as u64 > cases() / 20, "{} refusals {codes:?}", method.name);
        assert!(accepted > cases() / 20, "{}: {accepted} accepted, {codes:?}", method.name);

        server.end().await;

        // What was refused, once more, with nothing else going on: on a new server, where nothing has been done before that a
        // refusal could do unseen.
        let mut refused = refused;
        refused.truncate(REPEATED);
        let server = Server::start().await;
        let before = server.state().await;
        let again = send_all(&server, &method, Arc::new(refused)).await;
        for (request, answer) in &again {
            let code = answer.code();
            assert_eq!(code, Code::InvalidArgument, "{}: {request:?}", method.name);
        }
        assert_eq!(server.state().await, before, "{}: a refusal changed something", method.name);
        server.end().await;
        println!("{}: {total} judged in {:.1?}: {codes:?}", method.name, began.elapsed());
    }
}

#[derive(Default)]
struct Tally {
    failures: Vec<String>,
    /// The requests that were INVALID_ARGUMENT by themselves, whatever came before.
    refused: Vec<Vec<Vec<u8>>>,
    accepted: u64,
    codes: std::collections::BTreeMap<String, u64>,
}

async fn campaign(server: &Server, method: &Method, seed: u64) -> Tally {
    let workers = (0..CONNECTIONS).map(|worker| {
        let (address, method) = (server.address(), method.clone());
        tokio::spawn(async move {
            let client = Client::connect(address).await;
            let numbers = (worker..cases()).step_by(CONNECTIONS as usize);
            let calls = futures::stream::iter(numbers).map(|number| {
                let (client, method) = (client.clone(), method.clone());
                async move {
                    let case = make(&method, seed, number);
                    let answer = client.call(&method, case.encoded.clone()).await;
                    let verdict = oracle::judge(&method, &case, &answer);
                    (number, case, answer, verdict)
                }
            });
            let mut tally = Tally::default();
            let mut calls = calls.buffer_unordered(STREAMS);
            while let Some((number, case, answer, verdict)) = calls.next().await {
                *tally.codes.entry(answer.reason_or_ok()).or_default() += 1;
                if let Err(problem) = verdict {
                    let name = &method.name;
                    tally
                        .failures
                        .push(format!("{name} #{number}: {problem}\n  {case}\n  {answer}"));
                }
                match (answer.code(), answer.reason_or_ok().as_str()) {
                    (_, "REQUEST_ID_REUSED") => {}
                    (Code::InvalidArgument, _) => tally.refused.push(case.encoded),
                    _ => tally.accepted += 1,
                }
            }
            tally
        })
    });
    let mut whole = Tally::default();
    for tally in futures::future::join_all(workers).await {
        let tally = tally.unwrap();
        whole.failures.extend(tally.failures);
        whole.refused.extend(tally.refused);
        whole.accepted += tally.accepted;
        for (code, count) in tally.codes {
            *whole.codes.entry(code).or_default() += count;
        }
    }
    whole
}

/// Case `number`: the same for the same seed and method.
fn make(method: &Method, seed: u64, number: u64) -> Case {
    let name = method.name.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    let mixed = seed ^ name.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    case(method, &mut StdRng::seed_from_u64(mixed))
}

type Sent = (Vec<Vec<u8>>, Answer);

async fn send_all(server: &Server, method: &Method, requests: Arc<Vec<Vec<Vec<u8>>>>) -> Vec<Sent> {
    let workers = (0..CONNECTIONS as usize).map(|worker| {
        let (address, method, requests) = (server.address(), method.clone(), Arc::clone(&requests));
        tokio::spawn(async move {
            let client = Client::connect(address).await;
            let mine = requests.iter().skip(worker).step_by(CONNECTIONS as usize).cloned();
            let calls = futures::stream::iter(mine).map(|request| {
                let (client, method) = (client.clone(), method.clone());
                async move {
                    let answer = client.call(&method, request.clone()).await;
                    (request, answer)
                }
            });
            calls.buffer_unordered(STREAMS).collect::<Vec<_>>().await
        })
    });
    let answers = futures::future::join_all(workers).await;
    answers.into_iter().flat_map(|answers| answers.unwrap()).collect()
}
