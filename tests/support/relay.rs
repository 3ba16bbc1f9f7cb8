//! A TCP relay that a test can cut, or that answers late: a network that fails on demand.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A relay on a loopback port. Cut when dropped.
pub struct Relay {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Relay {
    /// Relays to `target`; what comes back is held up by `delay` each time.
    pub async fn to(target: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let serving = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, target, delay));
            }
        });
        Self { address, serving }
    }

    /// Breaks all connections and refuses new ones.
    pub async fn cut(mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn relay(client: TcpStream, target: SocketAddr, delay: Duration) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = copy(&mut from_client, &mut to_server);
    let down = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
            tokio::time::sleep(delay).await;
            to_client.write_all(&bytes[..read]).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}

/// A port that takes connections and never says a word.
pub struct Mute {
    pub address: SocketAddr,
    holding: JoinHandle<()>,
}

impl Mute {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let holding = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
            }
        });
        Self { address, holding }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.holding.abort();
    }
}

/// The endpoint of a port on which nobody listens.
pub fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("a bound socket has an address"))
}
