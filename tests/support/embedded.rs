//! The embedded engine on a loopback port, for tests: on disk, in a runtime of its own, so that it outlives a test's.

use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

pub struct Embedded {
    endpoint: String,
    #[allow(dead_code, reason = "not every test program lets items expire")]
    database: dynoxide::Database,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Removed with the engine, where it is its own.
    _folder: Option<tempfile::TempDir>,
}

impl Embedded {
    /// An engine in a folder of its own.
    pub fn temporary() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut engine = Self::at(folder.path());
        engine._folder = Some(folder);
        engine
    }

    /// An engine whose tables are in `folder`.
    pub fn at(folder: &Path) -> Self {
        let file = folder.join("dynamodb.sqlite");
        let (stop, stopped) = oneshot::channel();
        let (ready, port) = mpsc::channel();
        let database = dynoxide::Database::new(&file.to_string_lossy()).expect("a database");
        let served = database.clone();
        let thread = std::thread::spawn(move || run(served, ready, stopped));
        let port = port.recv().expect("the embedded engine to start");
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            database,
            stop: Some(stop),
            thread: Some(thread),
            _folder: None,
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Deletes what has expired, as the storage does by itself some day. Answers how many items that were.
    #[allow(dead_code, reason = "not every test program lets items expire")]
    pub fn sweep(&self) -> usize {
        self.database.sweep_ttl().expect("a sweep")
    }
}

fn run(database: dynoxide::Database, ready: mpsc::Sender<u16>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let server = async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            dynoxide::server::serve_with_shutdown(listener, database, shutdown).await
        };
        ready.send(port).expect("somebody to wait for the engine");
        server.await.expect("the embedded engine to serve");
    });
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
