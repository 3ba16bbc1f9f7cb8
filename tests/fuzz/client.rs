//! A client that sends bytes as they are.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::schema::Method;

/// Longer than any answer takes, so that a call that hangs fails its case and not the whole run.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a stream is listened to after its first message.
const LISTENING: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Client(Channel);

/// The first message of the answer, or its status.
pub struct Answer(pub Result<Vec<u8>, Status>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(endpoint.connect().await.unwrap())
    }

    /// Calls a method with these messages; all but client streams get one.
    pub async fn call(&self, method: &Method, messages: Vec<Vec<u8>>) -> Answer {
        let path = format!("/{}", method.name).parse().unwrap();
        let mut client = tonic::client::Grpc::new(self.0.clone());
        let call = async {
            client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            let request = Request::new(futures::stream::iter(messages));
            let mut answer = client.streaming(request, path, Raw).await?.into_inner();
            match answer.message().await? {
                Some(message) => {
                    // What comes after the message counts, too; a stream that goes on is left.
                    let rest = tokio::time::timeout(LISTENING, answer.message());
                    if let Ok(rest) = rest.await {
                        rest?;
                    }
                    Ok(message)
                }
                None => Err(Status::unknown("the call ended without a message")),
            }
        };
        let late = |_| Err(Status::unknown(format!("no answer within {PATIENCE:?}")));
        Answer(tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(late))
    }
}

impl Answer {
    pub fn code(&self) -> Code {
        self.0.as_ref().map_or_else(|status| status.code(), |_| Code::Ok)
    }

    /// For counting.
    pub fn reason_or_ok(&self) -> String {
        match &self.0 {
            Ok(_) => "OK".to_owned(),
            Err(status) => {
                status.get_details_error_info().map_or("none".to_owned(), |info| info.reason)
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(message) => write!(f, "answered {} bytes", message.len()),
            Err(status) => write!(f, "answered {:?} {:?}", status.code(), status.message()),
        }
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
