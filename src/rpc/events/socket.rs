//! `/rpc/ws/blocks`, `/rpc/ws/transactions`: the same events as frames of JSON text, for clients that know nothing
//! else. From now on only: who has to go on where it left takes `/rpc/events`.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::time::{Instant, timeout};

use super::super::Rpc;
use super::super::error::{ApiError, Result};
use super::super::request::Params;
use super::{Line, Stream};
use crate::events::{Kind, Kinds};

/// How long a client may take to receive a frame.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent connection is tried.
const PING: Duration = Duration::from_secs(20);
/// Bytes of a frame from a client at most; nothing in it is read.
const INCOMING_MAX: usize = 4 << 10;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// One frame a block: its header.
pub(in crate::rpc) async fn blocks(State(rpc): State<Rpc>, params: Params, upgrade: Upgrade) -> Result<Response> {
    open(rpc, params, upgrade, Kind::Block).await
}

/// One frame for each transaction that waits, is in a block, or was dropped.
pub(in crate::rpc) async fn transactions(State(rpc): State<Rpc>, params: Params, upgrade: Upgrade) -> Result<Response> {
    open(rpc, params, upgrade, Kind::Transaction).await
}

async fn open(rpc: Rpc, params: Params, upgrade: Upgrade, kind: Kind) -> Result<Response> {
    params.only(&[], rpc.chain_id())?;
    let upgrade = upgrade
        .map_err(|error| ApiError::new(error.status(), "no-upgrade", format!("a WebSocket is opened here: {error}")))?;
    let stream = Stream::open(rpc, Kinds::of(&[kind]), None).await?;
    let upgrade = upgrade.max_message_size(INCOMING_MAX).max_frame_size(INCOMING_MAX);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, stream, kind)))
}

/// The text of a frame: an event of the kind asked for as it is, any other with its name in `type`.
fn frame(line: &Line, kind: Kind) -> String {
    let data = line.data();
    if line.name == kind.name() {
        return data.to_owned();
    }
    let rest = data.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    format!("{{\"type\":\"{}\"{comma}{rest}", line.name)
}

async fn serve(mut socket: WebSocket, mut stream: Stream, kind: Kind) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
    loop {
        let message = tokio::select! {
            line = stream.next() => match line {
                Some(line) => Message::Text(frame(&line, kind).into()),
                None => Message::Close(None),
            },
            // What a client says is not asked for; but its leaving, and its answers to pings, come this way.
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => Message::Ping(Default::default()),
        };
        let is_end = matches!(message, Message::Close(_));
        let sent = timeout(SEND_TIMEOUT, socket.send(message)).await;
        if is_end || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_what_it_is_unless_it_is_what_was_asked_for() {
        let line = |name, data: &str| Line { name, id: None, data: super::super::Data::Own(data.into()) };
        assert_eq!(frame(&line("block", "{\"height\":1}"), Kind::Block), "{\"height\":1}");
        assert_eq!(frame(&line("lost", "{\"events\":1}"), Kind::Block), "{\"type\":\"lost\",\"events\":1}");
        assert_eq!(frame(&line("reset", "{}"), Kind::Block), "{\"type\":\"reset\"}");
    }
}
