//! Somebody else's server as a child process on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::dynamodb_local::SHELL;

/// Longest wait until a server listens.
const START: Duration = Duration::from_secs(30);

/// A program on the path.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The first word of a program's answer to `--version` that looks like a version.
pub fn version(program: &Path) -> String {
    let answer = Command::new(program).arg("--version").output();
    let answer = answer.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let answer = answer.unwrap_or_default();
    let digit = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    let words = answer.split_whitespace().map(|word| word.trim_start_matches("v="));
    words.into_iter().find(digit).unwrap_or("of unknown version").to_owned()
}

/// A server that ends with its owner, however that ends: a shell between the two holds one end of a pipe.
pub struct Program {
    shell: Child,
}

impl Program {
    /// Starts a server and waits until it listens.
    pub fn start(program: &Path, arguments: &[String], listens: SocketAddr) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", SHELL, "sh"]).arg(program).args(arguments);
        let shell = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell");
        let mut started = Self { shell };
        let deadline = Instant::now() + START;
        while TcpStream::connect(listens).is_err() {
            assert!(Instant::now() < deadline, "{} does not listen", program.display());
            if let Ok(Some(status)) = started.shell.try_wait() {
                panic!("{} has ended: {status}", program.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        started
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// An address that nobody has at the moment.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}
