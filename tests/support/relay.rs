//! A TCP relay that a test can cut, and ports that do not answer: a network that fails on demand.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A relay on a loopback port. Cut when dropped.
pub struct Relay {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let serving = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, target));
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

async fn relay(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        // However it ends, both ends are closed.
        let _ = copy_bidirectional(&mut client, &mut server).await;
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
