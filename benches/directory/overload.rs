//! Ten times too many calls: what is still answered, how fast, and how soon it is over.
//!
//! First a closed loop finds the peak and its p99. Then an open loop offers ten times that for a while, whatever becomes of it: each client
//! has the calls under way that HTTP/2 lets it have and drops what is due beyond that, as a bounded client does. Then the closed loop
//! again, until it is as before.
//!
//! The load is made of prepared frames, because a client that encodes each call takes as much processor as the server: it could not offer
//! ten times as much. Latencies count from the moment a call was due. Answers are told from refusals by their frames: a
//! refusal is headers alone.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::store::memory::MemoryStore;
use cell_directory::telemetry::Telemetry;
use prost::Message;

use crate::{Options, load, resolve, service};

/// Calls under way, all connections together, while the peak is looked for: 8 x 32.
const CLOSED_CALLS: usize = 256;
const TIMES: f64 = 10.0;
/// How long the closed loop looks for the peak.
const CALM: Duration = Duration::from_secs(5);
/// How long the return to normal may take, and the pieces in which it is looked at.
const RETURN: Duration = Duration::from_secs(20);
const PIECE: Duration = Duration::from_millis(500);
/// Between two rounds over the connections.
const PAUSE: Duration = Duration::from_micros(100);

pub fn run(options: &Options) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let servers = tokio::runtime::Builder::new_multi_thread()
        // The rest is for the load.
        .worker_threads(cores.saturating_sub(1).max(1))
        .on_thread_start(Cpu::note)
        .enable_all()
        .build()
        .unwrap();
    let placements = options.placements.min(100_000);
    let config = service::config(placements);
    let most = config.max_concurrent_streams as usize;
    let service = servers.block_on(service::start(
        service::store(MemoryStore::default()),
        &config,
        &Telemetry::noop(),
    ));
    servers.block_on(resolve::fill(&service.directory, placements));
    let mut clients: Vec<_> =
        (0..options.connections).map(|at| Client::connect(service.address, at as u64)).collect();

    let _warm = measure(&mut clients, Pace::Closed, Duration::from_secs(1));
    let calm = measure(&mut clients, Pace::Closed, CALM);
    print("closed loop", &calm);
    let rate = calm.per_second * TIMES;
    let over = measure(&mut clients, Pace::Open { rate, most }, options.duration);
    print("open loop, 10 x", &over);
    let ended = Instant::now();
    let back = loop {
        let piece = measure(&mut clients, Pace::Closed, PIECE);
        let normal =
            piece.per_second >= 0.9 * calm.per_second && piece.p99 <= calm.p99.mul_f64(1.5);
        if normal {
            break Some(ended.elapsed());
        }
        if ended.elapsed() >= RETURN {
            break None;
        }
    };
    let offered = over.offered as f64 / options.duration.as_secs_f64() / calm.per_second;
    println!("offered / peak            {offered:>8.2}");
    println!(
        "goodput / peak            {:>8.2}   (at least 0.90)",
        over.per_second / calm.per_second
    );
    // Tells, on a machine that does something else besides, what that did to the figure above.
    println!(
        "the same, for each second of a processor that the server had {:>8.2}",
        (over.per_second / over.cpu.ran) / (calm.per_second / calm.cpu.ran)
    );
    let p99 = over.p99.as_secs_f64() / calm.p99.as_secs_f64();
    println!("p99 admitted / normal     {p99:>8.2}   (at most 3.00)");
    match back {
        Some(back) => {
            println!("back to normal after      {:>7.1}s   (at most 10 s)", back.as_secs_f64())
        }
        None => {
            println!("not back to normal after  {:>7.1}s   (at most 10 s)", RETURN.as_secs_f64())
        }
    }
}

fn print(name: &str, figures: &Figures) {
    println!(
        "{name:<20} {:>9.0} answered/s  p50 {:>8.2?}  p99 {:>8.2?}  sent {} refused {} not sent {} reset {}  \
         server ran {:.0} % and waited {:.0} %",
        figures.per_second,
        figures.p50,
        figures.p99,
        figures.sent,
        figures.refused,
        figures.offered - figures.sent,
        figures.reset,
        figures.cpu.ran * 100.0,
        figures.cpu.waited * 100.0,
    );
}

#[derive(Clone, Copy)]
enum Pace {
    Closed,
    Open {
        /// Calls a second, all connections together.
        rate: f64,
        /// Calls under way on a connection, which the server sets.
        most: usize,
    },
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    offered: u64,
    sent: u64,
    refused: u64,
    reset: u64,
    cpu: Cpu,
}

/// What the server's threads had of a processor, as parts of a processor: a machine that does something else besides is seen here.
#[derive(Clone, Copy, Default)]
struct Cpu {
    ran: f64,
    /// For a processor, ready to run.
    waited: f64,
}

static SERVERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Cpu {
    /// Notes a thread of the server; where the system does not tell, nothing is known.
    fn note() {
        if let Ok(thread) = std::fs::read_link("/proc/thread-self") {
            SERVERS.lock().unwrap().push(Path::new("/proc").join(thread).join("schedstat"));
        }
    }

    /// Seconds since the threads began.
    fn so_far() -> Self {
        let mut sum = Self::default();
        for file in &*SERVERS.lock().unwrap() {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let mut times =
                text.split_whitespace().map(|nanos| nanos.parse::<f64>().unwrap_or(0.0) / 1e9);
            sum.ran += times.next().unwrap_or(0.0);
            sum.waited += times.next().unwrap_or(0.0);
        }
        sum
    }

    fn since(self, before: Self, elapsed: Duration) -> Self {
        let part = |now: f64, before: f64| (now - before) / elapsed.as_secs_f64();
        Self { ran: part(self.ran, before.ran), waited: part(self.waited, before.waited) }
    }
}

fn measure(clients: &mut [Client], pace: Pace, duration: Duration) -> Figures {
    let began = Instant::now();
    let cpu = Cpu::so_far();
    for client in &mut *clients {
        client.latencies.clear();
        (client.sent, client.refused, client.reset) = (0, 0, 0);
    }
    let mut offered = vec![0u64; clients.len()];
    let (connections, closed) = (clients.len() as f64, CLOSED_CALLS.div_ceil(clients.len()));
    loop {
        let elapsed = began.elapsed();
        if elapsed >= duration {
            break;
        }
        for (client, offered) in clients.iter_mut().zip(&mut offered) {
            client.receive();
            match pace {
                Pace::Closed => {
                    while client.under_way < closed && client.begin() {
                        *offered += 1;
                    }
                }
                Pace::Open { rate, most } => {
                    let due = (elapsed.as_secs_f64() * rate / connections) as u64;
                    while *offered < due {
                        *offered += 1;
                        if client.under_way >= most || !client.begin() {
                            // The rest of this round finds no room either.
                            *offered = due;
                        }
                    }
                }
            }
            client.send();
        }
        std::thread::sleep(PAUSE);
    }
    let mut latencies: Vec<Duration> =
        clients.iter().flat_map(|client| client.latencies.iter().copied()).collect();
    latencies.sort();
    let at = |share: f64| {
        let last = latencies.len().saturating_sub(1);
        latencies.get((last as f64 * share) as usize).copied().unwrap_or(Duration::MAX)
    };
    let sum = |of: fn(&Client) -> u64| clients.iter().map(of).sum();
    Figures {
        per_second: latencies.len() as f64 / began.elapsed().as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        offered: offered.iter().sum(),
        sent: sum(|client| client.sent),
        refused: sum(|client| client.refused),
        reset: sum(|client| client.reset),
        cpu: Cpu::so_far().since(cpu, began.elapsed()),
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// What HTTP/2 begins with.
const WINDOW: u32 = 65_535;
const HEAD: usize = 9;

/// One connection, by hand (RFC 9113).
struct Client {
    socket: TcpStream,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    /// A call's header block and message, the same each time.
    block: Vec<u8>,
    message: Vec<u8>,
    next_stream: u32,
    under_way: usize,
    /// By stream, from `first_stream` on: when the call was begun, and whether its answer's headers were there.
    calls: VecDeque<Option<(Instant, bool)>>,
    first_stream: u32,
    /// Bytes that may be sent, and bytes received that were not granted again.
    window: i64,
    received: u32,
    latencies: Vec<Duration>,
    sent: u64,
    refused: u64,
    reset: u64,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A call's headers in HPACK (RFC 7541), without any state.
fn block() -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [
        // POST, http
        vec![0x83, 0x86],
        // The names are :path, :authority, content-type of the static table.
        [&[0x04][..], &text("/cells.v1.CellDirectory/Resolve")].concat(),
        [&[0x01][..], &text("localhost")].concat(),
        [&[0x0f, 0x10][..], &text("application/grpc")].concat(),
        [&[0x00][..], &text("te"), &text("trailers")].concat(),
    ]
    .concat()
}

impl Client {
    fn connect(address: SocketAddr, number: u64) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let request = v1::ResolveRequest { partition_key: load::key(number), ..Default::default() };
        let encoded = request.encode_to_vec();
        let message = [&[0][..], &(encoded.len() as u32).to_be_bytes(), &encoded].concat();
        // Answers are never held up: SETTINGS_INITIAL_WINDOW_SIZE and the connection's window as large as can be.
        let settings = [&4u16.to_be_bytes()[..], &LARGEST_WINDOW.to_be_bytes()].concat();
        let greeting = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &settings),
            frame(WINDOW_UPDATE, 0, 0, &(LARGEST_WINDOW - WINDOW).to_be_bytes()),
        ];
        Self {
            socket,
            inbox: Vec::new(),
            outbox: greeting.concat().into(),
            block: block(),
            message,
            next_stream: 1,
            under_way: 0,
            calls: VecDeque::new(),
            first_stream: 1,
            window: WINDOW.into(),
            received: 0,
            latencies: Vec::new(),
            sent: 0,
            refused: 0,
            reset: 0,
        }
    }

    /// Begins a call, if there is room for it on its way.
    fn begin(&mut self) -> bool {
        if self.window < self.message.len() as i64 || self.outbox.len() > 1 << 20 {
            return false;
        }
        self.window -= self.message.len() as i64;
        let stream = self.next_stream;
        self.next_stream += 2;
        self.outbox.extend(frame(HEADERS, END_HEADERS, stream, &self.block));
        self.outbox.extend(frame(DATA, END_STREAM, stream, &self.message));
        self.calls.push_back(Some((Instant::now(), false)));
        self.under_way += 1;
        self.sent += 1;
        true
    }

    fn send(&mut self) {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match self.socket.write(front) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the server ended a connection: {error}"),
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65_536];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server ended a connection"),
                Ok(read) => self.inbox.extend(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the server ended a connection: {error}"),
            }
        }
        let inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        while let Some(head) = inbox.get(at..at + HEAD) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = inbox.get(at + HEAD..at + HEAD + length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            self.take(head[3], head[4], stream, payload);
            at += HEAD + length;
        }
        self.inbox = inbox[at..].to_vec();
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        match kind {
            SETTINGS if flags & ACK == 0 => self.outbox.extend(frame(SETTINGS, ACK, 0, &[])),
            PING if flags & ACK == 0 => self.outbox.extend(frame(PING, ACK, 0, payload)),
            WINDOW_UPDATE if stream == 0 => {
                self.window += i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
            }
            DATA => {
                self.received += payload.len() as u32;
                if self.received > 1 << 20 {
                    let granted = self.received.to_be_bytes();
                    self.outbox.extend(frame(WINDOW_UPDATE, 0, 0, &granted));
                    self.received = 0;
                }
            }
            HEADERS => self.headers(stream, flags & END_STREAM != 0),
            // After a refusal: the rest of the call is not wanted.
            RST_STREAM if self.end(stream).is_some() => self.reset += 1,
            GOAWAY => panic!("the server says to go away: {payload:?}"),
            _ => {}
        }
    }

    fn headers(&mut self, stream: u32, last: bool) {
        if !last {
            if let Some(Some(call)) = self.calls.get_mut(place(stream, self.first_stream)) {
                call.1 = true;
            }
            return;
        }
        match self.end(stream) {
            Some((began, true)) => self.latencies.push(began.elapsed()),
            Some((_, false)) => self.refused += 1,
            None => {}
        }
    }

    fn end(&mut self, stream: u32) -> Option<(Instant, bool)> {
        let call = self.calls.get_mut(place(stream, self.first_stream))?.take()?;
        self.under_way -= 1;
        while let Some(None) = self.calls.front() {
            self.calls.pop_front();
            self.first_stream += 2;
        }
        Some(call)
    }
}

fn place(stream: u32, first: u32) -> usize {
    (stream.wrapping_sub(first) / 2) as usize
}
