//! moto's server as a child process, for what no DynamoDB engine has: backups, autoscaling, CloudWatch, costs.
//!
//! Its answers have AWS's shape; what it does not do at all, and when things take effect on AWS, it cannot show.

use std::path::Path;
use std::process::Command;

use crate::dynamodb_local::{Engine, SHELL};

pub struct Moto(Engine);

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
        Self(Engine::start("moto", |port| {
            let mut command = Command::new("sh");
            command.args(["-c", SHELL, "sh"]).arg(&program);
            command.args(["-H", "127.0.0.1", "-p"]).arg(port.to_string());
            command
        }))
    }

    pub fn endpoint(&self) -> String {
        self.0.endpoint()
    }
}
