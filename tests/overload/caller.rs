//! A bare HTTP/2 client that behaves as gRPC's standard asks of every client: it uses a connection once the server's settings are there,
//! begins no call on one that was told to go away, and begins a call anew that no server has looked at: one that never left, or one that crossed
//! the last GOAWAY and is beyond the stream which that names (gRPC's "transparent retries"; h2 sends the answer to a ping before what
//! it has queued, so this happens). It repeats nothing else: any other call that is not answered is lost.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderMap;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Why there is no answer.
#[derive(Debug)]
pub enum Lost {
    /// No server has looked at the call.
    NotSent,
    Failed(String),
}

fn failed(error: impl std::fmt::Display) -> Lost {
    Lost::Failed(error.to_string())
}

/// One connection.
pub struct Connection {
    pub client: SendRequest<Bytes>,
    address: SocketAddr,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self, String> {
        let address: SocketAddr = address.parse().unwrap();
        let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let (client, mut connection) =
            h2::client::handshake(socket).await.map_err(|error| error.to_string())?;
        let mut pings = connection.ping_pong().unwrap();
        let driver = tokio::spawn(connection);
        // Answered after the server's settings.
        pings.ping(h2::Ping::opaque()).await.map_err(|error| error.to_string())?;
        Ok(Self { client, address, driver })
    }

    /// Makes a call and reads its status, from trailers or from headers.
    pub async fn call(
        &self,
        method: &str,
        message: &impl Message,
        headers: HeaderMap,
    ) -> Result<Status, Lost> {
        let mut client = self.client.clone().ready().await.map_err(|_| Lost::NotSent)?;
        let mut request = http::Request::post(format!("http://{}/cells.v1.{method}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        request.headers_mut().extend(headers);
        let (answer, mut stream) =
            client.send_request(request, false).map_err(|_| Lost::NotSent)?;
        let message = message.encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        // The server may have refused it by its headers alone.
        let _ = stream.send_data(Bytes::from(frame), true);
        let answer = answer.await.map_err(|error| {
            // h2 says so of streams beyond the last one of a GOAWAY, and of no others.
            let unseen = error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR);
            if unseen { Lost::NotSent } else { failed(error) }
        })?;
        if answer.status() != 200 {
            return Ok(Status::unknown(format!("http {}", answer.status().as_u16())));
        }
        let (parts, mut body) = answer.into_parts();
        while let Some(data) = body.data().await {
            let data = data.map_err(failed)?;
            body.flow_control().release_capacity(data.len()).map_err(failed)?;
        }
        let trailers = match parts.headers.contains_key("grpc-status") {
            true => parts.headers,
            false => body.trailers().await.map_err(failed)?.unwrap_or_default(),
        };
        Status::from_header_map(&trailers).ok_or_else(|| failed("no status"))
    }

    pub async fn resolve(&self, key: &str) -> Result<(), Lost> {
        let request = crate::resolve(key);
        let status = self.call("CellDirectory/Resolve", &request, HeaderMap::new()).await?;
        match status.code() {
            Code::Ok => Ok(()),
            _ => Err(failed(status)),
        }
    }

    /// Waits for the connection's end, and says whether it was an orderly one.
    pub async fn ended(mut self) -> Result<(), h2::Error> {
        (&mut self.driver).await.unwrap()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A client of several replicas, of which it uses the first that takes it.
pub struct Caller {
    replicas: Vec<String>,
    connection: Option<Connection>,
    pub connected: usize,
}

impl Caller {
    pub fn of(replicas: &[&str]) -> Self {
        let replicas = replicas.iter().map(|&replica| replica.to_owned()).collect();
        Self { replicas, connection: None, connected: 0 }
    }

    /// Leaves the connection, so that the next call makes a new one.
    pub fn leave(&mut self) {
        self.connection = None;
    }

    pub async fn resolve(&mut self, key: &str) -> Result<(), String> {
        loop {
            let connection = match &self.connection {
                Some(connection) => connection,
                None => {
                    let mut found = None;
                    for replica in &self.replicas {
                        if let Ok(connection) = Connection::open(replica).await {
                            found = Some(connection);
                            break;
                        }
                    }
                    self.connected += 1;
                    self.connection.insert(found.ok_or("no replica takes connections")?)
                }
            };
            match connection.resolve(key).await {
                Ok(()) => return Ok(()),
                Err(Lost::NotSent) => self.connection = None,
                Err(Lost::Failed(why)) => return Err(why),
            }
        }
    }
}
