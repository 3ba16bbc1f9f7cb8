//! Amazon's DynamoDB Local as a child process, for tests.
//!
//! The child dies with its owner, however that ends: a shell between the two holds one end of a pipe, and stops the engine when the
//! other end closes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where the engine keeps its tables.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not every test file uses both")]
pub enum Storage<'a> {
    Memory,
    Disk(&'a Path),
}

pub struct DynamoDbLocal(Engine);

/// A server behind a [`SHELL`], on a port of its own.
pub struct Engine {
    shell: Child,
    port: u16,
}

/// Longest wait for a server to answer: a JVM, or a Python that imports much, on a busy machine.
const START: Duration = Duration::from_secs(90);

/// Starts a server with the rest of its arguments, and stops it when standard input ends.
pub const SHELL: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- >/dev/null 2>&1 &
engine=$!
(cat <&3 >/dev/null; kill -9 $engine) 2>/dev/null &
watch=$!
exec 3<&- </dev/null
wait $engine
kill $watch 2>/dev/null
"#;

impl DynamoDbLocal {
    /// One engine in memory for all tests of this process; each takes tables of its own.
    #[allow(dead_code, reason = "not every test file shares one")]
    pub fn shared() -> &'static DynamoDbLocal {
        static SHARED: OnceLock<DynamoDbLocal> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Storage::Memory))
    }

    pub fn start(storage: Storage<'_>) -> Self {
        let lib = libraries();
        let engine = Engine::start("DynamoDB Local", |port| command(&lib, storage, port));
        Self(engine)
    }

    pub fn endpoint(&self) -> String {
        self.0.endpoint()
    }
}

impl Engine {
    /// Starts what listens on the port that the command is made for.
    pub fn start(name: &str, command: impl Fn(u16) -> Command) -> Self {
        // Somebody else may take the port between here and there; then the engine ends at once.
        for _ in 0..3 {
            let port = free_port();
            // The shell would tell that the engine was killed.
            let shell = command(port).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
            let mut started = Self { shell: shell.expect("a shell"), port };
            if started.wait_until_it_answers(name) {
                return started;
            }
        }
        panic!(
            "{name} did not start: is what scripts/install-test-tools asks for there (Java 17, Python 3)?"
        );
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn wait_until_it_answers(&mut self, name: &str) -> bool {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if answers(self.port) {
                return true;
            }
            if matches!(self.shell.try_wait(), Ok(Some(_))) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} did not answer within {START:?}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn libraries() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = match std::env::var_os("CELLD_TEST_TOOLS") {
        Some(tools) => here.join(tools),
        None => here.join("target/tools"),
    };
    let lib = tools.join("dynamodb-local/lib");
    assert!(lib.is_dir(), "{} does not exist: run scripts/install-test-tools", lib.display());
    lib
}

fn command(lib: &Path, storage: Storage<'_>, port: u16) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", SHELL, "sh", "java", "-Xmx512m", "-XX:+UseSerialGC"]);
    command.arg(format!("-Djava.library.path={}", lib.display()));
    command.arg(format!("-Dsqlite4java.library.path={}", lib.display()));
    // The engine leaves a copy of its native library behind at each start, and a note to itself where it is started: here, where they
    // go with the tools.
    let scratch = lib.with_file_name("tmp");
    std::fs::create_dir_all(&scratch).expect("a directory for temporary files");
    command.arg(format!("-Djava.io.tmpdir={}", scratch.display())).current_dir(&scratch);
    command.arg("-cp").arg(lib.join("*"));
    command.arg("com.amazonaws.services.dynamodbv2.local.main.ServerRunner");
    match storage {
        Storage::Memory => command.arg("-inMemory"),
        Storage::Disk(path) => command.arg("-dbPath").arg(path),
    };
    command.args(["-sharedDb", "-disableTelemetry", "-port"]);
    command.arg(port.to_string());
    command
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<[u8; 5]> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut start = [0; 5];
        stream.read_exact(&mut start)?;
        Ok(start)
    };
    ask().is_ok_and(|start| start == *b"HTTP/")
}
