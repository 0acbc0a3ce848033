//! The floor of serving: a bare axum server with one body, in a process of its own like the node, since a server in the
//! process of its client would share its threads and the processor's caches with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use axum::body::Bytes;

/// The word that makes the bench program such a server.
pub const WORD: &str = "--bare-server";

/// A server that answers everything with the same bytes; ends when dropped.
pub struct Bare {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Bare {
    /// Starts one for `body`.
    pub fn start(body: &[u8]) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(program)
            .arg(WORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        // Its end says where the body ends.
        let mut input = child.stdin.take().expect("piped");
        input.write_all(body).expect("the server reads its body");
        drop(input);
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        output.read_line(&mut line).expect("the server says its address");
        Self { address: line.trim().parse().expect("an address"), child }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("a child of ours");
    }
}

/// What the started process does: reads the body from its input, prints its address, and serves.
pub async fn serve() {
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).expect("a body");
    let body = Bytes::from(body);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("a bound socket"));
    let router = axum::Router::new().route("/", axum::routing::get(move || std::future::ready(body.clone())));
    axum::serve(listener, router).await.expect("serving");
}
