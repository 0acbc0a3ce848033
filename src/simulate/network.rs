//! A network in virtual time: nodes with a line each, messages between them in pieces that share those lines, distance,
//! loss, and sides that cannot reach each other. It knows nothing of blocks or of what messages mean.
//!
//! Each piece of a message takes its turn on the sender's line up and on the receiver's line down, so messages that
//! share one share its rate. Between them lies the distance of both nodes. A piece that is lost is sent again. What is
//! sent to or from another side, or a node that is away, is dropped: whoever waits for it has to lose patience.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::random::Random;
use crate::chain::Time;

/// Bytes of a piece at most. Small against a range, so that lines are shared fairly; large against a packet, so that
/// there are not many.
const PIECE_BYTES: u64 = 64 << 10;

/// What a message takes beside what is in it.
const HEADER_BYTES: u64 = 200;

/// The least time after which a lost piece is sent again, in microseconds.
const RESEND_MIN_US: u64 = 200_000;

/// Times that a piece is sent at most: the last one arrives, since a connection that loses everything is cut, not slow.
const SENDS_MAX: u32 = 6;

/// A node of the network, by number.
pub type NodeId = usize;

/// A message, never twice the same number.
pub type MessageId = u64;

/// A node's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// How long a piece takes from the node to the middle of the network, in microseconds.
    pub distance_us: u64,
    /// By how much more it varies, in microseconds.
    pub jitter_us: u64,
    /// Bytes a second that it sends; at least 1.
    pub up: u64,
    /// Bytes a second that it receives; at least 1.
    pub down: u64,
    /// How many of its pieces are lost, in percent.
    pub loss_percent: u64,
}

/// A message that has arrived in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub id: MessageId,
    /// Who sent it.
    pub from: NodeId,
    /// Who has it now.
    pub to: NodeId,
    /// When its first piece was here.
    pub first_at: Time,
    /// When its last one was.
    pub at: Time,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of it that are here.
    pub bytes: u64,
    /// When the last of them came; when it was sent, where none have.
    pub at: Time,
}

struct Node {
    line: Line,
    side: u32,
    is_away: bool,
    up_free_at: Time,
    down_free_at: Time,
    random: Random,
}

struct Message {
    from: NodeId,
    to: NodeId,
    /// Bytes that have not left yet.
    left: u64,
    /// Bytes under way.
    under_way: u64,
    here: u64,
    first_at: Option<Time>,
    progress_at: Time,
    /// Pieces of one message do not overtake each other.
    arrives_at: Time,
}

/// What a message does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Its next piece wants the sender's line.
    Leave,
    /// A piece of so many bytes wants the receiver's line.
    Reach(u64),
    /// A piece of so many bytes is here.
    Here(u64),
}

/// See the module.
pub struct Network {
    nodes: Vec<Node>,
    messages: BTreeMap<MessageId, Message>,
    next_message: MessageId,
    /// By time, then in the order in which they were thought of: the same in every run.
    steps: BinaryHeap<Reverse<(Time, u64, MessageId, Step)>>,
    next_step: u64,
    random: Random,
}

impl Network {
    /// Nobody there yet.
    pub fn new(random: Random) -> Self {
        Self {
            nodes: Vec::new(),
            messages: BTreeMap::new(),
            next_message: 0,
            steps: BinaryHeap::new(),
            next_step: 0,
            random,
        }
    }

    /// Adds a node; the first one has number 0. All are on side 0 at first.
    pub fn add(&mut self, line: Line) -> NodeId {
        let random = self.random.fork();
        let (up_free_at, down_free_at) = (Time(0), Time(0));
        self.nodes.push(Node { line, side: 0, is_away: false, up_free_at, down_free_at, random });
        self.nodes.len() - 1
    }

    /// Puts a node on a side: those on different ones do not reach each other.
    pub fn set_side(&mut self, node: NodeId, side: u32) {
        self.nodes[node].side = side;
    }

    /// Takes a node off the network, or brings it back.
    pub fn set_away(&mut self, node: NodeId, is_away: bool) {
        self.nodes[node].is_away = is_away;
    }

    /// Whether a message could go from one to the other now.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        from.side == to.side && !from.is_away && !to.is_away
    }

    /// Sends `bytes`; they leave as soon as the line has room.
    pub fn send(&mut self, now: Time, from: NodeId, to: NodeId, bytes: u64) -> MessageId {
        let id = self.next_message;
        self.next_message += 1;
        let left = bytes.saturating_add(HEADER_BYTES);
        let message =
            Message { from, to, left, under_way: 0, here: 0, first_at: None, progress_at: now, arrives_at: now };
        self.messages.insert(id, message);
        self.push(now, id, Step::Leave);
        id
    }

    /// Ends a message: what has not left yet never will, and nothing of it arrives any more. Gives the bytes that were
    /// here.
    pub fn cancel(&mut self, id: MessageId) -> u64 {
        self.messages.remove(&id).map_or(0, |message| message.here)
    }

    /// How far a message has come; none where it is not under way.
    pub fn progress(&self, id: MessageId) -> Option<Progress> {
        self.messages.get(&id).map(|message| Progress { bytes: message.here, at: message.progress_at })
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<Time> {
        self.steps.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets time pass until `until`, or until the first message arrives before that.
    pub fn advance(&mut self, until: Time) -> Option<Arrived> {
        while self.next_at().is_some_and(|at| at <= until) {
            let Reverse((now, _, id, step)) = self.steps.pop().expect("just looked at");
            let arrived = match step {
                Step::Leave => self.leave(now, id),
                Step::Reach(bytes) => self.reach(now, id, bytes),
                Step::Here(bytes) => self.here(now, id, bytes),
            };
            if arrived.is_some() {
                return arrived;
            }
        }
        None
    }

    /// A piece takes its turn on the sender's line, and the next one queues behind the others there.
    fn leave(&mut self, now: Time, id: MessageId) -> Option<Arrived> {
        let message = self.messages.get_mut(&id)?;
        let bytes = message.left.min(PIECE_BYTES);
        message.left -= bytes;
        message.under_way += bytes;
        let (from, to) = (message.from, message.to);
        let sender = &mut self.nodes[from];
        let left_at = after(sender.up_free_at.max(now), bytes, sender.line.up);
        sender.up_free_at = left_at;
        let distance_us = self.distance_us(from, to);
        let message = self.messages.get_mut(&id).expect("looked up above");
        let arrives_at = Time(left_at.0 + distance_us).max(message.arrives_at);
        message.arrives_at = arrives_at;
        let is_last = message.left == 0;
        self.push(arrives_at, id, Step::Reach(bytes));
        if !is_last {
            self.push(left_at, id, Step::Leave);
        }
        None
    }

    /// How long one piece is on its way, with all that is lost.
    fn distance_us(&mut self, from: NodeId, to: NodeId) -> u64 {
        let (sender, receiver) = (self.nodes[from].line, self.nodes[to].line);
        let loss = sender.loss_percent.max(receiver.loss_percent);
        // The hub of a star has the lowest number: what befalls one of the others is its own affair.
        let random = &mut self.nodes[from.max(to)].random;
        let mut one_way = || {
            let jitter_us = random.below(sender.jitter_us + 1) + random.below(receiver.jitter_us + 1);
            let lost = random.percent(loss);
            (sender.distance_us + receiver.distance_us + jitter_us, lost)
        };
        let mut total_us = 0;
        for _ in 1..SENDS_MAX {
            match one_way() {
                (us, false) => return total_us + us,
                // Noticed after a round trip.
                (us, true) => total_us += (2 * us).max(RESEND_MIN_US),
            }
        }
        total_us + one_way().0
    }

    fn reach(&mut self, now: Time, id: MessageId, bytes: u64) -> Option<Arrived> {
        let message = self.messages.get(&id)?;
        if !self.reaches(message.from, message.to) {
            // Nobody is told. What is still to leave goes the same way.
            self.messages.remove(&id);
            return None;
        }
        let receiver = &mut self.nodes[message.to];
        let here_at = after(receiver.down_free_at.max(now), bytes, receiver.line.down);
        receiver.down_free_at = here_at;
        self.push(here_at, id, Step::Here(bytes));
        None
    }

    fn here(&mut self, now: Time, id: MessageId, bytes: u64) -> Option<Arrived> {
        let message = self.messages.get_mut(&id)?;
        message.under_way -= bytes;
        message.here += bytes;
        message.progress_at = now;
        let first_at = *message.first_at.get_or_insert(now);
        let (from, to) = (message.from, message.to);
        if message.left > 0 || message.under_way > 0 {
            return None;
        }
        self.messages.remove(&id);
        Some(Arrived { id, from, to, first_at, at: now })
    }

    fn push(&mut self, at: Time, id: MessageId, step: Step) {
        self.steps.push(Reverse((at, self.next_step, id, step)));
        self.next_step += 1;
    }
}

/// When `bytes` are through a line that is free at `from`.
fn after(from: Time, bytes: u64, rate: u64) -> Time {
    Time(from.0.saturating_add(bytes.saturating_mul(1_000_000).div_ceil(rate.max(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn line(distance_us: u64, rate: u64) -> Line {
        Line { distance_us, jitter_us: 0, up: rate, down: rate, loss_percent: 0 }
    }

    fn network(lines: &[Line]) -> Network {
        let mut network = Network::new(Random::new(1));
        for line in lines {
            network.add(*line);
        }
        network
    }

    fn all(network: &mut Network) -> Vec<Arrived> {
        std::iter::from_fn(|| network.advance(Time::MAX)).collect()
    }

    fn seconds(time: Time) -> f64 {
        time.0 as f64 / 1e6
    }

    #[test]
    fn a_message_takes_the_way_and_its_bytes() {
        let mut network = network(&[line(10_000, 100 * MB), line(20_000, MB)]);
        let id = network.send(Time(0), 1, 0, 2 * MB);
        let arrived = all(&mut network)[0];
        assert_eq!((arrived.id, arrived.from, arrived.to), (id, 1, 0));
        let took = seconds(arrived.at);
        assert!((2.03..2.04).contains(&took), "2 MB at 1 MB/s and 30 ms: {took}");
        let first = seconds(arrived.first_at);
        assert!((0.09..0.10).contains(&first), "a piece of 64 KiB and 30 ms: {first}");
        assert_eq!(network.progress(id), None);
    }

    #[test]
    fn messages_share_the_lines_that_they_have_in_common() {
        // Two from one sender have half its rate each; two from different ones share the receiver's line.
        let mut one_sender = network(&[line(0, 100 * MB), line(0, MB)]);
        one_sender.send(Time(0), 1, 0, MB);
        one_sender.send(Time(0), 1, 0, MB);
        let mut one_receiver = network(&[line(0, MB), line(0, 100 * MB), line(0, 100 * MB)]);
        one_receiver.send(Time(0), 1, 0, MB);
        one_receiver.send(Time(0), 2, 0, MB);
        for network in [&mut one_sender, &mut one_receiver] {
            let arrived = all(network);
            let (first, second) = (seconds(arrived[0].at), seconds(arrived[1].at));
            assert!((1.85..2.01).contains(&first) && (1.99..2.01).contains(&second), "{first} {second}");
        }
        let mut apart = network(&[line(0, 100 * MB), line(0, MB), line(0, MB)]);
        apart.send(Time(0), 1, 0, MB);
        apart.send(Time(0), 2, 0, MB);
        assert!(all(&mut apart).iter().all(|arrived| seconds(arrived.at) < 1.02));
    }

    #[test]
    fn a_short_message_does_not_wait_for_a_long_one() {
        let mut network = network(&[line(0, 100 * MB), line(0, MB)]);
        network.send(Time(0), 1, 0, 10 * MB);
        let short = network.send(Time(0), 1, 0, 100);
        let arrived = all(&mut network);
        assert_eq!(arrived[0].id, short);
        assert!(seconds(arrived[0].at) < 0.07, "{:?}", arrived[0]);
    }

    #[test]
    fn loss_and_jitter_delay_and_nothing_else() {
        let rough = Line { jitter_us: 30_000, loss_percent: 20, ..line(10_000, MB) };
        let arrivals = |line: Line| {
            let mut network = network(&[self::line(0, 100 * MB), line]);
            let sent: Vec<_> = (0..50).map(|_| network.send(Time(0), 1, 0, 10_000)).collect();
            let mut arrived: Vec<_> = all(&mut network).iter().map(|arrived| (arrived.id, arrived.at)).collect();
            arrived.sort_unstable();
            assert_eq!(arrived.iter().map(|(id, _)| *id).collect::<Vec<_>>(), sent);
            arrived
        };
        let late = |(rough, clean): ((_, Time), (_, Time))| rough.1.0.checked_sub(clean.1.0).unwrap();
        let late: Vec<u64> = arrivals(rough).into_iter().zip(arrivals(line(10_000, MB))).map(late).collect();
        let lost = late.iter().filter(|us| **us >= RESEND_MIN_US).count();
        assert!((3..20).contains(&lost) && late.iter().all(|us| *us < 3_000_000), "{late:?}");
        assert!(late.iter().filter(|us| (1_000..30_500).contains(*us)).count() > 20, "{late:?}");
    }

    #[test]
    fn what_befalls_one_node_changes_nothing_for_another() {
        let rough = Line { jitter_us: 30_000, loss_percent: 20, ..line(10_000, MB) };
        let arrivals = |others: usize| {
            let mut network = network(&[line(0, 100 * MB), rough, rough]);
            for at in 0..others as u64 {
                network.send(Time(at * 50_000), 2, 0, 1_000);
            }
            (0..20).for_each(|at| _ = network.send(Time(at * 50_000), 1, 0, 1_000));
            all(&mut network).into_iter().filter(|arrived| arrived.from == 1).map(|arrived| arrived.at).collect()
        };
        let alone: Vec<Time> = arrivals(0);
        // But for the few microseconds on the receiver's line.
        let apart = |(one, other): (&Time, &Time)| one.0.abs_diff(other.0);
        assert!(alone.iter().zip(&arrivals(20)).all(|pair| apart(pair) < 100));
        assert!(alone.windows(2).any(|pair| pair[1].0 - pair[0].0 != 50_000), "{alone:?}");
    }

    #[test]
    fn who_is_on_another_side_or_away_gets_nothing_and_is_not_told() {
        let mut network = network(&[line(0, MB), line(0, MB)]);
        network.set_side(1, 1);
        assert!(!network.reaches(0, 1));
        network.send(Time(0), 1, 0, 10);
        assert_eq!(all(&mut network), []);
        network.set_side(1, 0);
        let id = network.send(Time(1_000_000), 1, 0, MB);
        assert_eq!(network.advance(Time(1_300_000)), None);
        let before = network.progress(id).unwrap();
        assert!(before.bytes > 190_000 && before.at > Time(1_200_000), "{before:?}");
        network.set_away(1, true);
        assert_eq!(all(&mut network), []);
        assert_eq!(network.progress(id), None, "it broke off");
    }

    #[test]
    fn what_is_cancelled_takes_no_more_of_the_line() {
        let mut network = network(&[line(0, 100 * MB), line(0, MB)]);
        let long = network.send(Time(0), 1, 0, 100 * MB);
        assert_eq!(network.advance(Time(500_000)), None);
        assert!(network.cancel(long) > 300_000);
        network.send(Time(500_000), 1, 0, 100_000);
        let arrived = all(&mut network);
        assert!(arrived.len() == 1 && seconds(arrived[0].at) < 0.8, "{arrived:?}");
    }
}
