//! A load of requests: connections that stay open, each asking again as soon as it has its answer. HTTP by hand, so that
//! the client costs little of what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a load was answered.
pub struct Answered {
    /// Requests a second.
    pub rate: f64,
    /// Bytes of bodies a second.
    pub bytes: f64,
    /// Answers that were not 200.
    pub failed: u64,
    /// 99th percentile of the time from a request to its whole answer, in microseconds.
    pub p99_us: f64,
}

/// Asks `address` for `path` over `connections` connections for `time`.
pub async fn load(address: SocketAddr, path: &str, accept: &str, connections: usize, time: Duration) -> Answered {
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\naccept: {accept}\r\n\r\n");
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let request = request.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await;
            let (mut answers, mut bytes, mut failed) = (0_u64, 0_u64, 0_u64);
            let mut taken = times();
            while started.elapsed() < time {
                let asked = Instant::now();
                let (status, length) = connection.ask(request.as_bytes()).await;
                taken.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                answers += 1;
                bytes += length as u64;
                failed += u64::from(status != 200);
            }
            (answers, bytes, failed, taken)
        });
    }
    let (mut answers, mut bytes, mut failed) = (0, 0, 0);
    let mut all = times();
    while let Some(done) = tasks.join_next().await {
        let (some, more, bad, taken) = done.expect("a connection's task ends");
        (answers, bytes, failed) = (answers + some, bytes + more, failed + bad);
        all.add(taken).expect("histograms of one kind");
    }
    let seconds = started.elapsed().as_secs_f64();
    let p99_us = all.value_at_quantile(0.99) as f64 / 1e3;
    Answered { rate: answers as f64 / seconds, bytes: bytes as f64 / seconds, failed, p99_us }
}

/// An empty histogram of nanoseconds, up to a minute.
fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order")
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("an open socket");
        Self { stream, buffer: Vec::with_capacity(64 << 10) }
    }

    /// Status and length of the body.
    async fn ask(&mut self, request: &[u8]) -> (u16, usize) {
        self.stream.write_all(request).await.expect("the server is there");
        self.buffer.clear();
        let head = loop {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head]).expect("heads are ASCII");
        let status = text.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
        let length = text
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("content-length")))
            .and_then(|(_, length)| length.parse::<usize>().ok())
            .expect("a content-length");
        while self.buffer.len() < head + length {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
        }
        (status, length)
    }
}
