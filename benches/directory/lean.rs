//! Clients that cost little: frames by hand, one thread for all connections.
//!
//! A client that builds each call out of its layers takes as much processor as the server: on one machine a closed loop of those measures
//! mostly itself, and an open one cannot offer more than the server takes. Answers are told from refusals by their frames: a refusal is
//! headers alone.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cpu_time::ProcessTime;
use prost::Message;

use crate::load;

/// A client that resolves the tenants of these numbers.
pub fn resolving(address: SocketAddr, mut numbers: impl FnMut() -> u64 + 'static) -> Client {
    Client::connect(address, "/cells.v1.CellDirectory/Resolve", move |message| {
        let partition_key = load::key(numbers());
        let request = v1::ResolveRequest { partition_key, ..Default::default() };
        request.encode(message).unwrap();
    })
}

/// Lets clients call for a while, each with so many calls under way.
pub fn closed(clients: &mut [Client], calls: usize, duration: Duration) -> load::Figures {
    clients.iter_mut().for_each(Client::forget);
    let (began, cpu) = (Instant::now(), ProcessTime::now());
    while began.elapsed() < duration {
        for client in &mut *clients {
            client.receive();
            while client.under_way < calls && client.begin() {}
            client.send();
        }
        std::thread::sleep(PAUSE);
    }
    let latencies = clients.iter().flat_map(|client| client.latencies.iter().copied()).collect();
    load::Figures::of(latencies, began.elapsed(), cpu.elapsed())
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
/// Of a message in gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;
const LARGEST_MESSAGE: i64 = 1024;

/// Between two rounds over the connections.
pub const PAUSE: Duration = Duration::from_micros(100);

/// Writes the next message after what is there.
type Messages = Box<dyn FnMut(&mut Vec<u8>)>;

/// One connection, by hand (RFC 9113).
pub struct Client {
    socket: TcpStream,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    /// A call's header block, the same each time, and what makes its message.
    block: Vec<u8>,
    messages: Messages,
    message: Vec<u8>,
    next_stream: u32,
    pub under_way: usize,
    /// By stream, from `first_stream` on: when the call was begun, and whether its answer's headers were there.
    calls: VecDeque<Option<(Instant, bool)>>,
    first_stream: u32,
    /// Bytes that may be sent, and bytes received that were not granted again.
    window: i64,
    received: u32,
    counts_from: Instant,
    pub latencies: Vec<Duration>,
    pub sent: u64,
    pub refused: u64,
    pub reset: u64,
    /// Of the answers, in bytes of their frames.
    pub answered: u64,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A call's headers in HPACK (RFC 7541), without any state.
fn block(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [
        // POST, http
        vec![0x83, 0x86],
        // The names are :path, :authority, content-type of the static table.
        [&[0x04][..], &text(path)].concat(),
        [&[0x01][..], &text("localhost")].concat(),
        [&[0x0f, 0x10][..], &text("application/grpc")].concat(),
        [&[0x00][..], &text("te"), &text("trailers")].concat(),
    ]
    .concat()
}

impl Client {
    /// `messages` writes the next message after what is there.
    pub fn connect(
        address: SocketAddr,
        path: &str,
        messages: impl FnMut(&mut Vec<u8>) + 'static,
    ) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
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
            block: block(path),
            messages: Box::new(messages),
            message: Vec::new(),
            next_stream: 1,
            under_way: 0,
            calls: VecDeque::new(),
            first_stream: 1,
            window: WINDOW.into(),
            received: 0,
            counts_from: Instant::now(),
            latencies: Vec::new(),
            sent: 0,
            refused: 0,
            reset: 0,
            answered: 0,
        }
    }

    /// Begins to count anew. Calls under way, which waited until the client went on, are not counted at all.
    pub fn forget(&mut self) {
        self.counts_from = Instant::now();
        self.latencies.clear();
        (self.sent, self.refused, self.reset, self.answered) = (0, 0, 0, 0);
    }

    /// Begins a call, if there is room for it on its way.
    pub fn begin(&mut self) -> bool {
        if self.window < LARGEST_MESSAGE || self.outbox.len() > 1 << 20 {
            return false;
        }
        self.message.clear();
        self.message.extend([0; PREFIX]);
        (self.messages)(&mut self.message);
        let length = (self.message.len() - PREFIX) as u32;
        self.message[1..PREFIX].copy_from_slice(&length.to_be_bytes());
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

    pub fn send(&mut self) {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match self.socket.write(front) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the server ended a connection: {error}"),
            }
        }
    }

    pub fn receive(&mut self) {
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
                self.answered += payload.len() as u64;
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
            Some((began, _)) if began < self.counts_from => {}
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
