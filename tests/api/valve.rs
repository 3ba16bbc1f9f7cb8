//! A way to the engine that can be shut: what flows waits, and goes on when it is opened.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    shut: Mutex<bool>,
    turned: Condvar,
}

impl State {
    fn wait_until_open(&self) {
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            shut = self.turned.wait(shut).unwrap();
        }
    }
}

pub struct Valve {
    state: Arc<State>,
    port: u16,
}

impl Valve {
    /// An open valve in front of `http://host:port`. Its threads end with the connections that they serve.
    pub fn before(endpoint: &str) -> Self {
        let target = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&target)) else {
                    continue;
                };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in ends.map(|(a, b)| (a.try_clone(), b.try_clone())) {
                    let state = Arc::clone(&shared);
                    std::thread::spawn(move || flow(from.unwrap(), to.unwrap(), &state));
                }
            }
        });
        Self { state, port }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn shut(&self) {
        *self.state.shut.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.state.shut.lock().unwrap() = false;
        self.state.turned.notify_all();
    }
}

impl Drop for Valve {
    fn drop(&mut self) {
        self.open();
    }
}

fn flow(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer)
        && read > 0
    {
        state.wait_until_open();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
