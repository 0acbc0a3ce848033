//! A neighbour as a source of blocks: each question is put on the node's desk, from where the network takes it; the answer
//! comes when that brings it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tenon::chain::{Hash, Height};
use tenon::mempool::Pending;
use tenon::sync::HeightRange;
use tenon::sync::budget::Reservation;
use tenon::sync::source::{RangeAnswer, Source, SourceError, SourceHead, SourceInfo};
use tokio::sync::oneshot;

/// What is asked of a neighbour.
#[derive(Clone, Debug)]
pub enum Question {
    /// Who it is.
    Info,
    /// Its head.
    Head,
    /// Blocks.
    Range(HeightRange),
}

/// What it says.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Who it is.
    Info(SourceInfo),
    /// Its head.
    Head((Height, Hash)),
    /// Blocks as frames, how many, and the head that it had then.
    Range(Vec<u8>, u64, (Height, Hash)),
}

/// What comes back in the end.
pub type Reply = Result<Answer, SourceError>;

/// A question that has to go out.
pub struct Asked {
    /// To whom.
    pub to: usize,
    /// What.
    pub question: Question,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// Where a node's questions lie until the network takes them.
pub type Desk = Arc<Mutex<Vec<Asked>>>;

/// One neighbour.
pub struct Link {
    name: String,
    to: usize,
    desk: Desk,
}

impl Link {
    /// Node `to`, asked by whoever owns `desk`.
    pub fn new(to: usize, desk: &Desk) -> Self {
        Self { name: format!("node {to}"), to, desk: Arc::clone(desk) }
    }

    async fn ask(&self, question: Question) -> Reply {
        let (reply, replied) = oneshot::channel();
        self.desk.lock().expect("no step panics").push(Asked { to: self.to, question, reply });
        replied.await.expect("every question is answered, at the latest when its time is over")
    }
}

fn unexpected() -> SourceError {
    SourceError::Malformed("an answer of another kind than the question".into())
}

impl Source for Link {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> BoxFuture<'_, Result<SourceInfo, SourceError>> {
        async {
            match self.ask(Question::Info).await? {
                Answer::Info(info) => Ok(info),
                _ => Err(unexpected()),
            }
        }
        .boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<SourceHead, SourceError>> {
        async {
            match self.ask(Question::Head).await? {
                Answer::Head(head) => Ok(SourceHead { head: Some(head), snapshot: None }),
                _ => Err(unexpected()),
            }
        }
        .boxed()
    }

    fn range(&self, range: HeightRange, room: Reservation) -> BoxFuture<'_, Result<RangeAnswer, SourceError>> {
        async move {
            match self.ask(Question::Range(range)).await? {
                Answer::Range(body, blocks, head) => {
                    Ok(RangeAnswer { body, blocks, room, head: Some(head), first_byte: Duration::ZERO })
                }
                _ => Err(unexpected()),
            }
        }
        .boxed()
    }

    fn submit<'a>(&'a self, _: &'a str, _: &'a Pending) -> BoxFuture<'a, Result<(), SourceError>> {
        unreachable!("a node hands its transactions to its neighbours as messages")
    }
}
