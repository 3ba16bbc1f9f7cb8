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

pub struct DynamoDbLocal {
    shell: Child,
    port: u16,
}

/// Longest wait for the engine to answer: a JVM on a busy machine.
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
        // Somebody else may take the port between here and there; then the engine ends at once.
        for _ in 0..3 {
            let port = free_port();
            let shell = spawn(&lib, storage, port);
            let mut started = Self { shell, port };
            if started.wait_until_it_answers() {
                return started;
            }
        }
        panic!("DynamoDB Local did not start: is there a Java runtime of version 17 or later?");
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn wait_until_it_answers(&mut self) -> bool {
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
        panic!("DynamoDB Local did not answer within {START:?}");
    }
}

impl Drop for DynamoDbLocal {
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

fn spawn(lib: &Path, storage: Storage<'_>, port: u16) -> Child {
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
    // The shell would tell that the engine was killed.
    command.arg(port.to_string()).stdin(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("a shell")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

pub fn answers(port: u16) -> bool {
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
