//! Redis with nothing saved to disk, and its protocol as far as SET and GET go (RESP).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cpu_time::ProcessTime;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::program::{self, Program};
use crate::load::{self, Figures, Numbers, Shape};

/// Commands that are sent before their answers are read, while it is filled.
const FILL: u64 = 1000;

/// A running Redis. The fields end in this order: the server before its data.
pub struct Redis {
    _program: Program,
    _data: TempDir,
    pub address: SocketAddr,
    pub version: String,
}

impl Redis {
    pub fn start(program: &Path) -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = program::free_address();
        let (port, folder) = (address.port().to_string(), data.path().display().to_string());
        let arguments = ["--bind", "127.0.0.1", "--port", &port, "--dir", &folder];
        let arguments = arguments.into_iter().chain(["--save", "", "--appendonly", "no"]);
        let arguments: Vec<String> = arguments.map(str::to_owned).collect();
        let version = program::version(program);
        let program = Program::start(program, &arguments, address);
        Self { _program: program, _data: data, address, version }
    }
}

/// A connection on which answers come in the order of the commands.
struct Pipeline {
    stream: TcpStream,
    commands: Vec<u8>,
    answers: Vec<u8>,
    /// Bytes of the answers that were looked at.
    taken: usize,
}

impl Pipeline {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, commands: Vec::new(), answers: Vec::new(), taken: 0 }
    }

    /// Adds a command to what is sent next.
    fn command(&mut self, words: &[&[u8]]) {
        self.commands.extend(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.commands.extend(format!("${}\r\n", word.len()).as_bytes());
            self.commands.extend(*word);
            self.commands.extend(b"\r\n");
        }
    }

    async fn send(&mut self) {
        self.stream.write_all(&self.commands).await.unwrap();
        self.commands.clear();
    }

    /// Waits for more answers.
    async fn receive(&mut self) {
        self.answers.drain(..self.taken);
        self.taken = 0;
        assert!(self.stream.read_buf(&mut self.answers).await.unwrap() > 0, "Redis has gone");
    }

    /// Takes the next answer, if all of it is here: whether it is a value, or `OK`.
    fn answer(&mut self) -> Option<()> {
        let rest = &self.answers[self.taken..];
        let line = rest.iter().position(|byte| *byte == b'\n')? + 1;
        let text = std::str::from_utf8(&rest[..line]).unwrap().trim_end();
        let length = match text.strip_prefix('$') {
            Some(length) => {
                line + length.parse::<usize>().expect("the key is there") + "\r\n".len()
            }
            None => {
                assert_eq!(text, "+OK");
                line
            }
        };
        (rest.len() >= length).then(|| self.taken += length)
    }
}

pub async fn fill(address: SocketAddr, keys: u64, value: &v1::Placement) {
    let mut pipeline = Pipeline::connect(address).await;
    for first in (0..keys).step_by(FILL as usize) {
        let numbers = first..keys.min(first + FILL);
        for number in numbers.clone() {
            let key = load::key(number);
            let value = super::value(value, key.clone());
            pipeline.command(&[b"SET", key.as_bytes(), &value]);
        }
        pipeline.send().await;
        for _ in numbers {
            while pipeline.answer().is_none() {
                pipeline.receive().await;
            }
        }
    }
}

/// A closed loop like the other one: each connection has so many commands under way.
pub async fn measure(address: SocketAddr, keys: u64, shape: Shape, duration: Duration) -> Figures {
    let (began, cpu) = (Instant::now(), ProcessTime::now());
    let until = began + duration;
    let mut loops = Vec::new();
    for at in 0..shape.connections {
        loops.push(tokio::spawn(async move {
            let mut pipeline = Pipeline::connect(address).await;
            let mut numbers = Numbers(at as u64 ^ began.elapsed().as_nanos() as u64);
            let (mut sent, mut latencies) = (VecDeque::new(), Vec::new());
            loop {
                let now = Instant::now();
                while now < until && sent.len() < shape.streams {
                    let key = load::key(numbers.next() % keys);
                    pipeline.command(&[b"GET", key.as_bytes()]);
                    sent.push_back(now);
                }
                if sent.is_empty() {
                    return latencies;
                }
                pipeline.send().await;
                pipeline.receive().await;
                while let Some(()) = pipeline.answer() {
                    latencies.extend(sent.pop_front().map(|sent| sent.elapsed()));
                }
            }
        }));
    }
    let mut latencies = Vec::new();
    for each in loops {
        latencies.extend(each.await.unwrap());
    }
    Figures::of(latencies, began.elapsed(), cpu.elapsed())
}
