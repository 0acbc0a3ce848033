//! Requests and answers on a stream: each is read as far as it may be long, and no longer than its sender keeps it
//! coming.
//!
//! Blocks are read into the [`Reservation`] of whoever asked for them, so a range over libp2p is bounded like one over
//! HTTP: in bytes, in time without a byte, and in bytes a second.

use std::io;
use std::sync::Weak;
use std::time::{Duration, Instant};

use libp2p::StreamProtocol;
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::request_response::Codec;

use super::wire::{Answer, HELLO_BYTES_MAX, HeadRef, Hello, Malformed, REQUEST_BYTES_MAX, Request};
use crate::sync::budget::Reservation;
use crate::sync::source::{FRAME_BYTES_MAX, FrameScan, SourceError};

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 64 << 10;

/// Bytes of blocks that are taken in at a time: by so many, at most, more is taken than there is room for.
const READ_BYTES: usize = 16 << 10;

/// Bytes of blocks in one answer at most: those of the longest range, or of a single block that is larger.
const BLOCKS_BYTES_MAX: usize = FRAME_BYTES_MAX + 4;

/// How patient a node is with a stream.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long nothing may come, or go.
    pub timeout: Duration,
    /// Bytes a second that are needed once that long has passed.
    pub throughput_min: u64,
}

impl Pace {
    fn timed_out(&self) -> io::Error {
        io::Error::other(SourceError::Timeout { ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX) })
    }

    /// A step that must not take longer than it may.
    async fn step<T>(&self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::time::timeout(self.timeout, step).await.map_err(|_| self.timed_out())?
    }

    async fn write<T: AsyncWrite + Unpin>(&self, io: &mut T, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(WRITE_BYTES) {
            self.step(io.write_all(chunk)).await?;
        }
        Ok(())
    }

    /// All that comes. Errors: more than `bytes_max`.
    async fn read_all<T: AsyncRead + Unpin>(&self, io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte more shows that there is one.
        let mut io = io.take(bytes_max as u64 + 1);
        let mut chunk = [0; 1_024];
        loop {
            let count = self.step(io.read(&mut chunk)).await?;
            if count == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&chunk[..count]);
            if bytes.len() > bytes_max {
                return Err(malformed(format!("a message of more than {bytes_max} bytes")));
            }
        }
    }
}

fn malformed(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, SourceError::Malformed(what.into()))
}

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> Self {
        malformed(error.to_string())
    }
}

/// What a request goes with, here and there.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// Where the blocks go that answer it; none for other requests, and for those that came from outside.
    pub room: Option<Room>,
}

/// Where blocks go.
#[derive(Debug)]
pub struct Room {
    /// Grows as they come.
    pub reservation: Reservation,
    /// Gone when nobody waits for them any more.
    pub wanted: Weak<()>,
}

/// An answer with its blocks.
#[derive(Debug)]
pub struct Answered {
    /// How it begins.
    pub answer: Answer,
    /// The blocks.
    pub blocks: Option<Blocks>,
}

/// The blocks of an answer.
#[derive(Debug)]
pub struct Blocks {
    /// Whole frames.
    pub body: Vec<u8>,
    /// How many; on the side that answers, 0.
    pub count: u64,
    /// Holds as many bytes as the body has, on the side that asked.
    pub reservation: Option<Reservation>,
    /// From the request to the first byte of the answer.
    pub first_byte: Duration,
}

impl Answered {
    /// An answer without blocks.
    pub fn plain(answer: Answer) -> Self {
        Self { answer, blocks: None }
    }

    /// Blocks, as whole frames.
    pub fn blocks(head: HeadRef, body: Vec<u8>) -> Self {
        let length = u32::try_from(body.len()).expect("a range has some MiB at most");
        let blocks = Blocks { body, count: 0, reservation: None, first_byte: Duration::ZERO };
        Self { answer: Answer::Blocks { head, length }, blocks: Some(blocks) }
    }
}

/// What an outgoing request is remembered by until its answer comes. libp2p uses one codec for both.
struct Asked {
    at: Instant,
    blocks_max: u64,
    room: Option<Room>,
}

/// Heads, ranges, transactions.
pub struct SyncCodec {
    pace: Pace,
    asked: Option<Asked>,
}

impl SyncCodec {
    /// With the patience of `pace`.
    pub fn new(pace: Pace) -> Self {
        Self { pace, asked: None }
    }

    async fn read_blocks<T: AsyncRead + Unpin>(&mut self, io: &mut T, length: u32) -> io::Result<Blocks> {
        let pace = self.pace;
        let Some(Asked { at, blocks_max, room: Some(Room { mut reservation, wanted }) }) = self.asked.take() else {
            return Err(malformed("blocks that nobody asked for"));
        };
        let length = length as usize;
        if length > BLOCKS_BYTES_MAX {
            return Err(malformed(format!("an answer of {length} bytes, at most {BLOCKS_BYTES_MAX}")));
        }
        let first_byte = at.elapsed();
        let mut scan = FrameScan::new(blocks_max);
        let mut body = Vec::with_capacity(length.min(usize::try_from(reservation.bytes()).unwrap_or(usize::MAX)));
        let mut chunk = vec![0; READ_BYTES.min(length)];
        while body.len() < length {
            let most = chunk.len().min(length - body.len());
            let count = pace.step(io.read(&mut chunk[..most])).await?;
            if count == 0 {
                return Err(io::Error::other(SourceError::Truncated { got: body.len() }));
            }
            if wanted.strong_count() == 0 {
                return Err(io::Error::other("nobody waits for it any more"));
            }
            body.extend_from_slice(&chunk[..count]);
            scan.advance(&body).map_err(io::Error::other)?;
            if !reservation.grow(body.len() as u64) {
                // No room for more: what is whole is a shorter answer, the rest is asked for later.
                if scan.whole() > 0 {
                    body.truncate(scan.whole());
                    break;
                }
                if !reservation.may_exceed() {
                    return Err(io::Error::other(SourceError::NoRoom { got: body.len() }));
                }
                reservation.settle(body.len() as u64);
            }
            let elapsed = at.elapsed();
            let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
            let rate = (body.len() as u64).saturating_mul(1_000) / ms;
            if elapsed > pace.timeout && rate < pace.throughput_min {
                return Err(io::Error::other(SourceError::Slow { rate, min: pace.throughput_min }));
            }
        }
        if scan.whole() < body.len() {
            return Err(io::Error::other(SourceError::Truncated { got: body.len() }));
        }
        reservation.settle(body.len() as u64);
        Ok(Blocks { body, count: scan.count(), reservation: Some(reservation), first_byte })
    }
}

impl Clone for SyncCodec {
    /// A codec for another stream: what was asked on this one is none of its business.
    fn clone(&self) -> Self {
        Self::new(self.pace)
    }
}

impl Codec for SyncCodec {
    type Protocol = StreamProtocol;
    type Request = Call;
    type Response = Answered;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Call>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = self.pace.read_all(io, REQUEST_BYTES_MAX).await?;
        Ok(Call { request: Request::decode(&bytes)?, room: None })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answered>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut start = vec![0; 1];
        self.pace.step(io.read_exact(&mut start)).await?;
        let kind = start[0];
        start.resize(1 + Answer::fixed_bytes(kind)?, 0);
        self.pace.step(io.read_exact(&mut start[1..])).await?;
        if Answer::has_text(kind) {
            let (fixed, length) = (start.len(), usize::from(*start.last().expect("a kind at least")));
            start.resize(fixed + length, 0);
            self.pace.step(io.read_exact(&mut start[fixed..])).await?;
        }
        let answer = Answer::decode(&start)?;
        let blocks = match answer {
            Answer::Blocks { length, .. } => Some(self.read_blocks(io, length).await?),
            _ => None,
        };
        Ok(Answered { answer, blocks })
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, call: Call) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let blocks_max = match &call.request {
            Request::Range(range) => range.count(),
            _ => 0,
        };
        self.asked = Some(Asked { at: Instant::now(), blocks_max, room: call.room });
        self.pace.write(io, &call.request.encode()).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answered: Answered) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.pace.write(io, &answered.answer.encode()).await?;
        if let Some(blocks) = answered.blocks {
            self.pace.write(io, &blocks.body).await?;
        }
        Ok(())
    }
}

/// The first words.
#[derive(Clone)]
pub struct HelloCodec(pub Pace);

impl Codec for HelloCodec {
    type Protocol = StreamProtocol;
    type Request = Hello;
    type Response = Hello;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Hello>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Hello::decode(&self.0.read_all(io, HELLO_BYTES_MAX).await?)?)
    }

    async fn read_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> io::Result<Hello>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read_request(protocol, io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, hello: Hello) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.0.write(io, &hello.encode()).await
    }

    async fn write_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T, hello: Hello) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.write_request(protocol, io, hello).await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use libp2p::futures::io::Cursor;
    use proptest::prelude::*;

    use super::*;
    use crate::chain::Hash;
    use crate::sync::HeightRange;
    use crate::sync::budget::Budget;

    const NAME: StreamProtocol = StreamProtocol::new("/test");

    fn pace() -> Pace {
        Pace { timeout: Duration::from_secs(20), throughput_min: 1 }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn told(error: &io::Error) -> SourceError {
        error.get_ref().and_then(|inner| inner.downcast_ref::<SourceError>()).cloned().expect("one of ours")
    }

    fn body(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat()).collect()
    }

    /// What comes of `answer` for whoever asked for `blocks` blocks with room for `bytes`.
    fn ask(answer: Vec<u8>, blocks: u64, bytes: u64) -> io::Result<Answered> {
        ask_into(answer, blocks, Budget::new(bytes).reserve(bytes.min(16)).expect("room"))
    }

    fn ask_into(answer: Vec<u8>, blocks: u64, reservation: Reservation) -> io::Result<Answered> {
        run(async {
            let (mut codec, wanted) = (SyncCodec::new(pace()), Arc::new(()));
            let request = Request::Range(HeightRange { first: 1, last: blocks });
            let room = Some(Room { reservation, wanted: Arc::downgrade(&wanted) });
            codec.write_request(&NAME, &mut Cursor::new(Vec::new()), Call { request, room }).await?;
            codec.read_response(&NAME, &mut Cursor::new(answer)).await
        })
    }

    fn written(answered: Answered) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        run(SyncCodec::new(pace()).write_response(&NAME, &mut out, answered)).unwrap();
        out.into_inner()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn requests_and_answers_arrive_as_they_were_sent(
            request in super::super::wire::tests::request(), answer in super::super::wire::tests::answer(),
        ) {
            let mut stream = Cursor::new(Vec::new());
            let sent = Call { request: request.clone(), room: None };
            run(SyncCodec::new(pace()).write_request(&NAME, &mut stream, sent)).unwrap();
            let mut stream = Cursor::new(stream.into_inner());
            let read = run(SyncCodec::new(pace()).read_request(&NAME, &mut stream)).unwrap();
            prop_assert_eq!(read.request, request);
            if !matches!(answer, Answer::Blocks { .. }) {
                let read = ask(written(Answered::plain(answer.clone())), 1, 16).unwrap();
                prop_assert_eq!(read.answer, answer);
            }
        }

        #[test]
        fn blocks_arrive_whole_or_as_many_as_there_is_room_for(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..12), room in 16..600_u64,
        ) {
            let whole = body(&frames);
            let answered = ask(written(Answered::blocks((7, Hash::ZERO), whole.clone())), 12, room).unwrap();
            let blocks = answered.blocks.unwrap();
            let kept = usize::try_from(blocks.count).unwrap();
            prop_assert!(kept >= 1);
            prop_assert_eq!(&blocks.body, &body(&frames[..kept]));
            prop_assert_eq!(blocks.reservation.unwrap().bytes(), blocks.body.len() as u64);
            // All came in one piece here, so either everything fits or it is cut after what was whole by then.
            prop_assert!(kept == frames.len() || whole.len() as u64 > room);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..16_u8) {
            let mut answer = bytes.clone();
            answer.insert(0, kind);
            let _ = ask(answer, 3, 100);
            let _ = run(SyncCodec::new(pace()).read_request(&NAME, &mut Cursor::new(bytes.clone())));
            let _ = run(HelloCodec(pace()).read_request(&NAME, &mut Cursor::new(bytes)));
        }
    }

    #[test]
    fn a_first_block_without_room_is_read_only_where_it_has_to_come() {
        let sent = || written(Answered::blocks((7, Hash::ZERO), body(&[vec![1; 100_000], vec![2; 10]])));
        let budget = Budget::new(30_000);
        let error = ask_into(sent(), 2, budget.reserve(16).unwrap()).unwrap_err();
        assert!(matches!(told(&error), SourceError::NoRoom { got: 30_001..=46_384 }), "{error}");
        let blocks = ask_into(sent(), 2, budget.reserve_beyond(16)).unwrap().blocks.unwrap();
        assert_eq!(
            (blocks.count, budget.used()),
            (2, blocks.body.len() as u64),
            "the second came along with the first"
        );
        drop(blocks);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_answer_that_is_wrong_says_how() {
        let frames = [vec![1; 10], vec![2; 10], vec![3; 10]];
        let sent = written(Answered::blocks((7, Hash::ZERO), body(&frames)));
        let cut = sent[..sent.len() - 1].to_vec();
        assert_eq!(told(&ask(cut, 3, 100).unwrap_err()), SourceError::Truncated { got: 41 });
        assert!(told(&ask(sent, 2, 100).unwrap_err()).to_string().contains("more than the 2 blocks"));
        let long = Answer::Blocks { head: (7, Hash::ZERO), length: u32::try_from(BLOCKS_BYTES_MAX + 1).unwrap() };
        assert!(told(&ask(long.encode(), 3, 100).unwrap_err()).to_string().contains("at most"));
        let inside = [&Answer::Blocks { head: (7, Hash::ZERO), length: 9 }.encode()[..], &[0, 0, 0, 9, 1, 1, 1, 1, 1]];
        assert_eq!(told(&ask(inside.concat(), 3, 100).unwrap_err()), SourceError::Truncated { got: 9 });
        let mut stream = Cursor::new(written(Answered::blocks((7, Hash::ZERO), body(&frames))));
        let unasked = run(SyncCodec::new(pace()).read_response(&NAME, &mut stream));
        assert!(told(&unasked.unwrap_err()).to_string().contains("nobody asked"));
        let long = vec![0; REQUEST_BYTES_MAX + 1];
        let error = run(SyncCodec::new(pace()).read_request(&NAME, &mut Cursor::new(long))).unwrap_err();
        assert!(told(&error).to_string().contains("more than"));
    }

    /// Gives what there is a piece at a time, each after a pause, and then nothing for ever.
    struct Dripping {
        bytes: Vec<u8>,
        piece: usize,
        pause: Duration,
        waits: Option<Pin<Box<tokio::time::Sleep>>>,
    }

    impl AsyncRead for Dripping {
        fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
            let this = &mut *self;
            if !this.pause.is_zero() {
                let waits = this.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.pause)));
                std::task::ready!(waits.as_mut().poll(context));
                this.waits = None;
            }
            let count = this.piece.min(into.len()).min(this.bytes.len());
            if count == 0 {
                return Poll::Pending;
            }
            into[..count].copy_from_slice(&this.bytes[..count]);
            this.bytes.drain(..count);
            Poll::Ready(Ok(count))
        }
    }

    /// What becomes of the first 100,000 bytes of a block that is said to have 4 million.
    fn drip(piece: usize, pause: Duration, pace: Pace, wanted: bool) -> io::Error {
        let start = Answer::Blocks { head: (7, Hash::ZERO), length: 4_000_004 }.encode();
        let bytes = [start, 4_000_000_u32.to_be_bytes().to_vec(), vec![0; 100_000]].concat();
        let mut stream = Dripping { bytes, piece, pause, waits: None };
        run(async {
            let (mut codec, keep) = (SyncCodec::new(pace), Arc::new(()));
            let reservation = Budget::new(1 << 30).reserve(1 << 22).expect("room");
            let room = Some(Room { reservation, wanted: Arc::downgrade(&keep) });
            let request = Request::Range(HeightRange { first: 1, last: 9 });
            codec.write_request(&NAME, &mut Cursor::new(Vec::new()), Call { request, room }).await.unwrap();
            let _keep = wanted.then_some(keep);
            codec.read_response(&NAME, &mut stream).await.unwrap_err()
        })
    }

    #[test]
    fn who_falls_silent_or_is_too_slow_is_given_up() {
        let pace = Pace { timeout: Duration::from_millis(100), throughput_min: 1 };
        assert_eq!(told(&drip(100_000, Duration::ZERO, pace, true)), SourceError::Timeout { ms: 100 });
        let pace = Pace { timeout: Duration::from_millis(100), throughput_min: 1 << 30 };
        let slow = told(&drip(1_000, Duration::from_millis(10), pace, true));
        assert!(matches!(slow, SourceError::Slow { min: 1_073_741_824, .. }), "{slow}");
    }

    #[test]
    fn what_nobody_waits_for_is_not_read_to_its_end() {
        let error = drip(1_000, Duration::ZERO, pace(), false);
        assert!(error.to_string().contains("nobody waits"), "{error}");
    }
}
