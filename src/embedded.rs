//! The embedded DynamoDB of `celld dev`: dynoxide, on SQLite, behind a loopback endpoint.
//!
//! It speaks DynamoDB's protocol and is used through the same client as the real one: there is no second code path. It runs in a
//! runtime of its own, because its handlers wait for the disk on the thread that runs them.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dynoxide::Database;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// Threads of the engine's runtime. SQLite writes one at a time; the others read.
const THREADS: usize = 2;

/// How long the engine may take to close.
const CLOSING: Duration = Duration::from_secs(5);

/// Why the engine does not run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("cannot make the directory {path}: {source}; choose another --data-dir")]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot open the database {path}: {reason}; is another celld using it?")]
    Open { path: PathBuf, reason: String },
    #[error(
        "{path} is locked: another celld uses this data directory; stop it, or choose another --data-dir"
    )]
    Taken { path: PathBuf },
    #[error("cannot lock {path}: {source}; choose another --data-dir")]
    Lock { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address}: {source}; choose another --dev-dynamodb-listen address")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot start the engine's threads: {0}")]
    Threads(std::io::Error),
}

/// The running engine.
pub struct Embedded {
    address: SocketAddr,
    stop: CancellationToken,
    runtime: Option<Runtime>,
    /// Held while the engine runs; the system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Embedded {
    /// Opens, or makes, the database under `data_dir` and serves it on `address`.
    pub fn start(data_dir: &Path, address: SocketAddr) -> Result<Self, EmbeddedError> {
        std::fs::create_dir_all(data_dir)
            .map_err(|source| EmbeddedError::DataDir { path: data_dir.to_owned(), source })?;
        let lock = lock(data_dir.join("lock"))?;
        let path = data_dir.join("dynamodb.sqlite");
        let database = Database::new(&path.to_string_lossy())
            .map_err(|error| EmbeddedError::Open { path, reason: error.to_string() })?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("embedded-dynamodb")
            .enable_all()
            .build()
            .map_err(EmbeddedError::Threads)?;
        let failed = |source| EmbeddedError::Listen { address, source };
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        runtime.spawn(async move {
            if let Err(error) =
                dynoxide::server::serve_with_shutdown(listener, database, stopped).await
            {
                tracing::error!(error, "the embedded dynamodb stopped");
            }
        });
        Ok(Self { address, stop, runtime: Some(runtime), _lock: lock })
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// SQLite would let two engines share the file, but each keeps state of its own, such as tokens of transactions.
fn lock(path: PathBuf) -> Result<File, EmbeddedError> {
    let file = match File::options().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => file,
        Err(source) => return Err(EmbeddedError::Lock { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EmbeddedError::Taken { path }),
        Err(TryLockError::Error(source)) => Err(EmbeddedError::Lock { path, source }),
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            // What is acknowledged is on disk already; this only lets SQLite close its files.
            runtime.shutdown_timeout(CLOSING);
        }
    }
}
