//! etcd, a single member with its defaults, and as much of its API as is needed (`etcdserverpb/rpc.proto`, the same since 3.0).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cell_directory::proto::v1;
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use tempfile::TempDir;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::program::{self, Program};
use crate::{lean, load};

/// The most that etcd takes in a transaction by default, and the transactions under way while it is filled.
const PUTS_A_TRANSACTION: u64 = 128;
const TRANSACTIONS: usize = 16;

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// From this member's own state, without a round of the quorum.
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

/// A running etcd. The fields end in this order: the server before its data.
pub struct Etcd {
    program: Option<Program>,
    path: PathBuf,
    arguments: Vec<String>,
    _data: TempDir,
    pub address: SocketAddr,
    pub version: String,
}

impl Etcd {
    pub fn start(program: &Path) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (address, peers) = (program::free_address(), program::free_address());
        let arguments = vec![
            format!("--data-dir={}", data.path().display()),
            format!("--listen-client-urls=http://{address}"),
            format!("--advertise-client-urls=http://{address}"),
            format!("--listen-peer-urls=http://{peers}"),
            format!("--initial-advertise-peer-urls=http://{peers}"),
            format!("--initial-cluster=default=http://{peers}"),
        ];
        let version = program::version(program);
        let path = program.to_owned();
        let program = Some(Program::start(program, &arguments, address));
        Self { program, path, arguments, _data: data, address, version }
    }

    /// Ends it and starts it again on the same data.
    ///
    /// After many puts etcd 3.4 copies its buffer of writes, as large as it ever was, for each read: some 0.35 ms. Whoever only reads shall
    /// not pay for that.
    pub fn restart(&mut self) {
        drop(self.program.take());
        self.program = Some(Program::start(&self.path, &self.arguments, self.address));
    }
}

pub async fn connect(address: SocketAddr, count: usize) -> Vec<Grpc<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        clients.push(Grpc::new(endpoint.tcp_nodelay(true).connect().await.unwrap()));
    }
    clients
}

async fn call<Q, A>(client: &mut Grpc<Channel>, path: &'static str, request: Q) -> A
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(path);
    client.unary(Request::new(request), path, ProstCodec::default()).await.unwrap().into_inner()
}

pub async fn fill(address: SocketAddr, keys: u64, value: &v1::Placement) {
    let client = connect(address, 1).await.remove(0);
    let transactions = (0..keys.div_ceil(PUTS_A_TRANSACTION)).map(|at| {
        let first = at * PUTS_A_TRANSACTION;
        let puts = (first..keys.min(first + PUTS_A_TRANSACTION)).map(|number| {
            let key = load::key(number);
            let put = PutRequest { value: super::value(value, key.clone()), key: key.into() };
            RequestOp { put: Some(put) }
        });
        let request = TxnRequest { success: puts.collect() };
        let mut client = client.clone();
        async move {
            let answer: TxnResponse = call(&mut client, "/etcdserverpb.KV/Txn", request).await;
            assert!(answer.succeeded);
        }
    });
    futures::stream::iter(transactions)
        .buffer_unordered(TRANSACTIONS)
        .for_each(|()| std::future::ready(()))
        .await;
}

/// A client that reads the keys of these numbers.
pub fn ranging(address: SocketAddr, mut numbers: impl FnMut() -> u64 + 'static) -> lean::Client {
    lean::Client::connect(address, "/etcdserverpb.KV/Range", move |message| {
        let request = RangeRequest { key: load::key(numbers()).into(), serializable: true };
        request.encode(message).unwrap();
    })
}
