//! How a modelled peer answers: what it has, what it says that it has, and what it does to a request.

use std::collections::VecDeque;

use super::chain::{Body, Branch, Chains, Run, START};
use super::random::Random;
use super::scenario::Group;
use crate::chain::{BlockError, Hash, Height, Time};
use crate::snapshot::source::Offer;
use crate::sync::HeightRange;
use crate::sync::pipeline::RangeFault;
use crate::sync::source::SourceError;

/// Blocks and bytes in one answer at most, as a node serves them.
const RANGE_BLOCKS_MAX: u64 = 1_000;
const RANGE_BYTES_MAX: u64 = 8 << 20;

/// Bytes of an answer that has no blocks.
const SMALL_BYTES: u64 = 200;

/// A peer.
pub struct Source {
    group: Group,
    branch: Branch,
    random: Random,
    /// Requests that were answered within the last interval: when, and with how many blocks.
    answered: VecDeque<(Time, u64)>,
}

/// What a peer does to a request.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    /// How long it takes until it begins, in microseconds.
    pub after_us: u64,
    /// How many bytes it sends.
    pub bytes: u64,
    /// What they are.
    pub content: Result<T, SourceError>,
}

/// A range as a peer sends it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What comes; none: no block at all.
    pub body: Option<Body>,
    /// The head that it reports along with it.
    pub head: Option<(Height, Hash)>,
}

impl Source {
    /// A peer of `group`, on `branch`.
    pub fn new(group: Group, branch: Branch, random: Random) -> Self {
        Self { group, branch, random, answered: VecDeque::new() }
    }

    /// The branch that it is on.
    pub fn branch(&self) -> Branch {
        self.branch
    }

    /// The highest block that it has.
    pub fn has(&self, chains: &Chains, now: Time) -> Height {
        let since = self.group.stuck_at_ms.map_or(now, |ms| now.min(START.plus_ms(ms)));
        let head = chains.head_at(since).saturating_sub(self.group.behind_blocks);
        if self.branch == 0 { head } else { head.saturating_add(self.group.ahead_blocks) }
    }

    /// Whether its blocks are the chain's, and it gives them when it is asked often enough: a peer that a node may rely
    /// on.
    pub fn is_honest(&self) -> bool {
        let Group { lies_percent, bare_percent, empty_percent, silent_percent, fails_percent, .. } = self.group;
        let never = [lies_percent, bare_percent, empty_percent, silent_percent, fails_percent].contains(&100);
        self.branch == 0 && self.group.mute_at_ms.is_none() && !never
    }

    /// A look at its head. None: no answer ever.
    pub fn asked_for_head(&mut self, chains: &Chains, now: Time) -> Option<Reply<(Height, Hash)>> {
        if self.is_mute(now) {
            return None;
        }
        let content = match self.group.limits_heads && !self.admits(0, now) {
            true => Err(self.limited()),
            false => Ok(self.reported(chains, now)),
        };
        Some(Reply { after_us: self.thinks_us(), bytes: SMALL_BYTES, content })
    }

    /// A request for blocks. None: no answer ever.
    pub fn asked_for_range(
        &mut self,
        chains: &Chains,
        block_bytes: u64,
        range: HeightRange,
        now: Time,
    ) -> Option<Reply<Sent>> {
        if self.is_mute(now) || self.random.percent(self.group.silent_percent) {
            return None;
        }
        let refused = |content| Some(Reply { after_us: 0, bytes: SMALL_BYTES, content: Err(content) });
        let most = RANGE_BLOCKS_MAX.min(RANGE_BYTES_MAX / block_bytes).max(1);
        let mut count = range.count().min(most).min((self.has(chains, now) + 1).saturating_sub(range.first));
        if !self.admits(count, now) {
            return refused(self.limited());
        }
        if self.random.percent(self.group.fails_percent) {
            return refused(SourceError::Status { status: 500, detail: "it failed".into() });
        }
        if self.random.percent(self.group.empty_percent) {
            count = 0;
        }
        if self.random.percent(self.group.short_percent) {
            count = count.div_ceil(2);
        }
        let head = Some(self.reported(chains, now));
        let after_us = self.thinks_us();
        if count == 0 {
            return Some(Reply { after_us, bytes: SMALL_BYTES, content: Ok(Sent { body: None, head }) });
        }
        let run = Run { first: range.first, count, branch: self.branch };
        let fault = self.fault(run, chains);
        let bytes = count.saturating_mul(block_bytes);
        Some(Reply { after_us, bytes, content: Ok(Sent { body: Some(Body { run, fault }), head }) })
    }

    /// What is wrong with the blocks that it sends.
    fn fault(&mut self, run: Run, chains: &Chains) -> Option<RangeFault> {
        if self.random.percent(self.group.lies_percent) {
            let height = run.first + self.random.below(run.count);
            return Some(RangeFault::Invalid { height, error: BlockError::Signature });
        }
        if chains.transactions() > 0 && self.random.percent(self.group.bare_percent) {
            let got = u32::try_from(chains.transactions()).unwrap_or(u32::MAX);
            return Some(RangeFault::Invalid { height: run.first, error: BlockError::TxCount { expected: 0, got } });
        }
        None
    }

    /// The snapshot that it serves, made before the simulation began.
    pub fn offers(&self, chains: &Chains) -> Option<Offer> {
        let height = self.has(chains, START).checked_sub(self.group.snapshot_behind?).filter(|height| *height > 0)?;
        let hash = chains.hash(self.branch, height);
        Some(Offer { id: Hash::of(&[b"snapshot", &hash.0]), height, hash })
    }

    /// A request for a chunk of `bytes`; whether it sends another one. None: no answer ever.
    pub fn asked_for_chunk(&mut self, bytes: u64, now: Time) -> Option<Reply<bool>> {
        if self.is_mute(now) || self.random.percent(self.group.silent_percent) {
            return None;
        }
        let refused = |content| Some(Reply { after_us: 0, bytes: SMALL_BYTES, content: Err(content) });
        if !self.admits(0, now) {
            return refused(self.limited());
        }
        if self.random.percent(self.group.fails_percent) {
            return refused(SourceError::Status { status: 500, detail: "it failed".into() });
        }
        let is_wrong = self.random.percent(self.group.snapshot_lies_percent);
        Some(Reply { after_us: self.thinks_us(), bytes, content: Ok(is_wrong) })
    }

    fn reported(&self, chains: &Chains, now: Time) -> (Height, Hash) {
        let height = self.has(chains, now).saturating_add(self.group.claims_blocks);
        (height, chains.hash(self.branch, height))
    }

    fn is_mute(&self, now: Time) -> bool {
        self.group.mute_at_ms.is_some_and(|ms| now >= START.plus_ms(ms))
    }

    fn thinks_us(&mut self) -> u64 {
        let mut ms = self.random.within(self.group.think_ms);
        if self.random.percent(self.group.stall_percent) {
            ms += self.random.within(self.group.stall_ms);
        }
        ms.saturating_mul(1_000)
    }

    fn limited(&self) -> SourceError {
        SourceError::Limited { retry_after_ms: self.group.retry_after_ms }
    }

    /// Whether its limits let one more request for so many blocks pass; it then counts.
    fn admits(&mut self, blocks: u64, now: Time) -> bool {
        let (requests_max, blocks_max) = (self.group.requests_max, self.group.blocks_max);
        if requests_max.is_none() && blocks_max.is_none() {
            return true;
        }
        let interval_ms = self.group.interval_ms;
        while self.answered.front().is_some_and(|(at, _)| at.plus_ms(interval_ms) <= now) {
            self.answered.pop_front();
        }
        let asked: u64 = self.answered.iter().map(|(_, blocks)| blocks).sum();
        let within = requests_max.is_none_or(|most| (self.answered.len() as u64) < most)
            // Or a request for more than the budget would never pass.
            && blocks_max.is_none_or(|most| asked == 0 || asked.saturating_add(blocks) <= most);
        if within {
            self.answered.push_back((now, blocks));
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(group: Group) -> (Source, Chains) {
        let mut chains = Chains::new(1_000, 100, 1);
        let branch = group.branch_from.map_or(0, |from| chains.branch(from));
        (Source::new(group, branch, Random::new(3)), chains)
    }

    fn range(first: Height, last: Height) -> HeightRange {
        HeightRange { first, last }
    }

    fn sent(source: &mut Source, chains: &Chains, asked: HeightRange, ms: u64) -> Result<Sent, SourceError> {
        source.asked_for_range(chains, 400, asked, START.plus_ms(ms)).expect("an answer").content
    }

    fn count(source: &mut Source, chains: &Chains, asked: HeightRange) -> u64 {
        sent(source, chains, asked, 0).unwrap().body.map_or(0, |body| body.run.count)
    }

    #[test]
    fn a_good_peer_gives_what_it_has() {
        let (mut source, chains) = source(Group { behind_blocks: 10, ..Group::default() });
        assert!(source.is_honest());
        assert_eq!(count(&mut source, &chains, range(1, 100)), 100);
        assert_eq!(count(&mut source, &chains, range(981, 1_000)), 10);
        assert_eq!(count(&mut source, &chains, range(991, 1_000)), 0);
        assert_eq!(count(&mut source, &chains, range(1, 990)), 990);
        let reply = source.asked_for_range(&chains, 400, range(1, 100), START).unwrap();
        assert_eq!((reply.bytes, reply.content.unwrap().head.unwrap().0), (40_000, 990));
        let large = source.asked_for_range(&chains, 1 << 20, range(1, 100), START).unwrap();
        assert_eq!(large.content.unwrap().body.unwrap().run.count, 8, "8 MiB");
        let head = source.asked_for_head(&chains, START.plus_ms(500)).unwrap();
        assert_eq!(head.content, Ok((995, chains.hash(0, 995))), "it follows the chain");
    }

    #[test]
    fn each_vice_shows() {
        let all = |group: Group| {
            let (mut source, chains) = source(group);
            sent(&mut source, &chains, range(1, 100), 0).map(|sent| sent.body)
        };
        let group = Group::default;
        assert!(all(Group { fails_percent: 100, ..group() }).is_err());
        assert!(all(Group { empty_percent: 100, ..group() }).unwrap().is_none());
        assert_eq!(all(Group { short_percent: 100, ..group() }).unwrap().unwrap().run.count, 50);
        let fault = |group| all(group).unwrap().unwrap().fault.unwrap().to_string();
        assert!(fault(Group { lies_percent: 100, ..group() }).contains("signature"));
        assert!(fault(Group { bare_percent: 100, ..group() }).contains("tx_count"));
        for group in [Group { silent_percent: 100, ..group() }, Group { mute_at_ms: Some(0), ..group() }] {
            let (mut source, chains) = source(group);
            assert!(source.asked_for_range(&chains, 400, range(1, 2), START).is_none());
            assert!(!source.is_honest());
        }
    }

    #[test]
    fn heads_are_what_the_peer_is_told_to_say() {
        let head = |group: Group, ms| {
            let (mut source, chains) = source(group);
            let reply = source.asked_for_head(&chains, START.plus_ms(ms)).unwrap();
            (reply.content.unwrap(), source.has(&chains, START.plus_ms(ms)), chains)
        };
        let group = Group::default;
        let ((height, _), has, _) = head(Group { claims_blocks: 50, ..group() }, 0);
        assert_eq!((height, has), (1_050, 1_000));
        let ((height, _), has, _) = head(Group { stuck_at_ms: Some(1_000), ..group() }, 60_000);
        assert_eq!((height, has), (1_010, 1_010));
        let ((height, hash), has, chains) = head(Group { branch_from: Some(900), ahead_blocks: 7, ..group() }, 0);
        assert_eq!((height, has), (1_007, 1_007));
        assert_ne!(hash, chains.hash(0, 1_007));
    }

    #[test]
    fn a_snapshot_is_of_a_block_below_the_first_head_and_the_same_for_all_who_have_that() {
        let offer = |group: Group| {
            let (source, chains) = source(group);
            source.offers(&chains).map(|offer| (offer.height, offer.id))
        };
        let group = |snapshot_behind| Group { snapshot_behind, ..Group::default() };
        assert_eq!((offer(group(None)), offer(group(Some(1_000)))), (None, None));
        let (height, id) = offer(group(Some(100))).unwrap();
        assert_eq!(height, 900);
        assert_eq!(offer(Group { behind_blocks: 40, ..group(Some(60)) }), Some((900, id)));
        assert_ne!(offer(Group { branch_from: Some(800), ..group(Some(100)) }).unwrap().1, id, "another chain's");
        let chunk = |group: Group| source(group).0.asked_for_chunk(5_000, START).unwrap();
        assert_eq!((chunk(group(None)).bytes, chunk(group(None)).content), (5_000, Ok(false)));
        assert_eq!(chunk(Group { snapshot_lies_percent: 100, ..group(None) }).content, Ok(true));
        assert!(chunk(Group { fails_percent: 100, ..group(None) }).content.is_err());
    }

    #[test]
    fn requests_beyond_a_limit_get_429_until_the_interval_is_over() {
        let group = Group { requests_max: Some(2), blocks_max: Some(150), retry_after_ms: 700, ..Group::default() };
        let (mut source, chains) = source(group);
        let mut asked = |last, ms| sent(&mut source, &chains, range(1, last), ms).err();
        let limited = Some(SourceError::Limited { retry_after_ms: 700 });
        assert_eq!((asked(100, 0), asked(51, 10)), (None, limited.clone()));
        assert_eq!((asked(50, 20), asked(1, 30)), (None, limited.clone()));
        assert_eq!((asked(1, 999), asked(400, 1_000)), (limited.clone(), limited));
        assert_eq!(asked(100, 1_000), None);
        assert_eq!(asked(400, 9_000), None, "one that is larger than the budget passes alone");
        assert!(source.asked_for_head(&chains, START.plus_ms(9_001)).unwrap().content.is_ok(), "heads do not count");
    }
}
