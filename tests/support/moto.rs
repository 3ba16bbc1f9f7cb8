//! moto's server as a child process, for what no DynamoDB engine has: backups, autoscaling, CloudWatch, costs.
//!
//! Its answers have AWS's shape; what it does not do at all, and when things take effect on AWS, it cannot show.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::dynamodb_local::{SHELL, answers};

/// Longest wait for the server to answer: a Python that imports much, on a busy machine.
const START: Duration = Duration::from_secs(90);

pub struct Moto {
    shell: Child,
    port: u16,
}

impl Moto {
    /// A server of its own: it keeps everything in memory, by account and Region.
    pub fn start() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tools = std::env::var_os("CELLD_TEST_TOOLS").unwrap_or_else(|| "target/tools".into());
        let program = here.join(tools).join("python/bin/moto_server");
        assert!(
            program.is_file(),
            "{} does not exist: run scripts/install-test-tools",
            program.display()
        );
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = listener.local_addr().expect("its address").port();
            drop(listener);
            let mut command = Command::new("sh");
            command.args(["-c", SHELL, "sh"]).arg(&program);
            command.args(["-H", "127.0.0.1", "-p"]).arg(port.to_string());
            let shell = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
            let mut started = Self { shell: shell.expect("a shell"), port };
            if started.wait_until_it_answers() {
                return started;
            }
        }
        panic!("moto did not start");
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
        panic!("moto did not answer within {START:?}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
