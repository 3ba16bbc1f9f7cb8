//! A `celld` process for a test: started on a free port, ended with the test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tonic::transport::Channel;

/// How long a process may take to listen.
const STARTING: Duration = Duration::from_secs(60);

/// A running `celld`. Killed on drop.
pub struct Celld {
    child: Child,
    /// `127.0.0.1:port`.
    pub address: String,
    /// What it printed until it listened.
    pub greeting: String,
}

/// `celld` with arguments, and nothing of this machine's own settings.
pub fn command(arguments: &[&str]) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_celld")), arguments)
}

/// Another build of it.
pub fn program(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CELLD_") {
            command.env_remove(name);
        }
    }
    command
}

impl Celld {
    /// `celld serve` on the tables with this prefix, made where they are missing.
    pub fn serve(endpoint: &str, prefix: &str, more: &[&str]) -> Self {
        let tables = ["--dynamodb-endpoint", endpoint, "--table-prefix", prefix];
        let created = command(&["tables", "create"]).args(tables).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0"]);
        serve.args(tables).args(more);
        Self::start(serve)
    }

    /// `celld dev` with its data in a directory.
    pub fn dev(data_dir: &std::path::Path, more: &[&str]) -> Self {
        let mut dev = command(&["dev", "--listen", "127.0.0.1:0"]);
        dev.args(["--dev-dynamodb-listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(more);
        Self::start(dev)
    }

    /// Starts a command and waits until it says where it listens.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        // Goes on reading to the end, so that the process never waits for a full pipe.
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + STARTING;
        let mut greeting = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(line) => {
                    greeting.push_str(&line);
                    greeting.push('\n');
                    if let Some(address) =
                        line.split_once("serves gRPC on ").map(|(_, address)| address)
                    {
                        let address = address.trim().to_owned();
                        return Self { child, address, greeting };
                    }
                }
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("celld did not listen; it printed: {greeting}");
                }
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its exit status when it has ended.
    pub fn terminate(mut self) -> std::process::ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap()
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.unwrap().connect().await.unwrap()
    }

    pub async fn directory(&self) -> CellDirectoryClient<Channel> {
        CellDirectoryClient::new(self.channel().await)
    }

    pub async fn admin(&self) -> CellAdminClient<Channel> {
        CellAdminClient::new(self.channel().await)
    }

    /// Waits until it says that it can answer: it listens a little before that.
    pub async fn ready(&self) {
        ready(&self.address).await;
    }

    /// Registers cells in `eu-west-1`.
    pub async fn create_cells(&self, ids: &[&str]) {
        self.ready().await;
        let mut admin = self.admin().await;
        for id in ids {
            let request = v1::CreateCellRequest { cell: Some(cell(id)), ..Default::default() };
            admin.create_cell(request).await.unwrap();
        }
    }
}

impl Celld {
    /// Gives cells these tables, and waits until they have them.
    pub async fn provision(&self, tables: Vec<v1::TableSpec>, cells: &[&str]) {
        let mut admin = self.admin().await;
        let table_set_id = "default".to_owned();
        let set = v1::TableSet { table_set_id, tables, ..Default::default() };
        let request = v1::PutTableSetRequest { table_set: Some(set), validate_only: false };
        admin.put_table_set(request).await.unwrap();
        for cell in cells {
            let cell_id = (*cell).to_owned();
            let request = v1::ProvisionCellRequest { cell_id, ..Default::default() };
            let begun = admin.provision_cell(request).await.unwrap().into_inner();
            let operation_id = begun.operation.unwrap().operation_id;
            let deadline = Instant::now() + STARTING;
            loop {
                let request = v1::GetOperationRequest { operation_id: operation_id.clone() };
                let answer = admin.get_operation(request).await.unwrap().into_inner();
                let operation = answer.operation.unwrap();
                if operation.state() == v1::OperationState::Succeeded {
                    break;
                }
                assert!(Instant::now() < deadline, "{operation:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Drop for Celld {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the server at an address says that it can answer.
pub async fn ready(address: &str) {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let mut health = HealthClient::new(endpoint.unwrap().connect().await.unwrap());
    let deadline = Instant::now() + STARTING;
    loop {
        let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        if answer.status() == tonic_health::ServingStatus::Serving.into() {
            return;
        }
        assert!(Instant::now() < deadline, "celld listens, but does not get ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A table of a tenant's, with `PK` and perhaps a sort key, both strings.
pub fn table(name: &str, sort_key: Option<&str>) -> v1::TableSpec {
    let key = |name: &str| v1::KeyAttribute { name: name.to_owned(), r#type: 0 };
    v1::TableSpec {
        name: name.to_owned(),
        partition_key: Some(key("PK")),
        sort_key: sort_key.map(key),
        tenant_key_templates: vec!["CUSTOMER#{partition_key}".to_owned()],
        ..Default::default()
    }
}

/// A cell to register.
pub fn cell(id: &str) -> v1::Cell {
    v1::Cell {
        cell_id: id.to_owned(),
        region: "eu-west-1".to_owned(),
        endpoint: format!("https://{id}.example.com"),
        ..Default::default()
    }
}

/// A prefix for tables that no other test uses.
pub fn unique(name: &str) -> String {
    format!("{name}-{:016x}-", rand::random::<u64>())
}
