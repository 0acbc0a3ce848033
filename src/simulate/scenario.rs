//! What is simulated: a chain, a node, its peers and what befalls them, as TOML. Every key has a default, so that a
//! scenario says what is special about it; an unknown key is an error that names it and the nearest one.

use serde::{Deserialize, Serialize};

use crate::config::{Content, Given, Key, Knob, Origin, Problem, Severity, section};
use crate::sync::{SyncConfig, SyncState};

/// A number that is drawn anew for each thing: one number, or `[lowest, highest]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Spanned", into = "Spanned")]
pub struct Span {
    /// The lowest.
    pub low: u64,
    /// The highest.
    pub high: u64,
}

impl Span {
    /// Always this number.
    pub const fn just(number: u64) -> Self {
        Self { low: number, high: number }
    }

    /// A span, lowest and highest included.
    pub const fn of(low: u64, high: u64) -> Self {
        Self { low, high }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Spanned {
    Just(u64),
    Of([u64; 2]),
}

impl From<Spanned> for Span {
    fn from(spanned: Spanned) -> Self {
        match spanned {
            Spanned::Just(number) => Self::just(number),
            Spanned::Of([low, high]) => Self { low, high },
        }
    }
}

impl From<Span> for Spanned {
    fn from(span: Span) -> Self {
        if span.low == span.high { Self::Just(span.low) } else { Self::Of([span.low, span.high]) }
    }
}

impl Knob for Span {
    fn expected() -> String {
        "a whole number, or [lowest, highest]".into()
    }

    fn check(&self) -> Result<(), String> {
        if self.low > self.high {
            return Err(format!("the lowest number, {}, is above the highest, {}", self.low, self.high));
        }
        Ok(())
    }
}

impl Knob for SyncState {
    fn expected() -> String {
        "\"live\", \"syncing\", \"behind\", \"ahead\", \"diverged\" or \"no-source\"".into()
    }
}

section! {
    /// `[scenario]`: what it is about, and how it should end.
    pub struct About {
        /// What it shows, in a line.
        description: String = String::new();
        /// How the node should stand in the end; the simulation ends when it does, and has all blocks that it can have.
        expect: SyncState = SyncState::Live;
        /// Milliseconds after which it ends in any case.
        end_ms: u64 = 3_600_000, 1..=86_400_000;
        /// Peers in all, where `--peers` does not say.
        peers: u64 = 8, 1..=1_024;
    }
}

section! {
    /// `[chain]`: the blocks there are.
    pub struct Chain {
        /// The highest block at the beginning, where `--blocks` does not say.
        blocks: u64 = 100_000, 0..=1_000_000_000;
        /// Encoded bytes of a block.
        block_bytes: u64 = 400, 1..=8_388_608;
        /// Transactions in a block.
        transactions: u64 = 1, 0..=10_000;
        /// Milliseconds until the next block is made; 0: no more are.
        block_ms: u64 = 0, 0..=3_600_000;
        /// Bytes of a snapshot, in chunks of 1 MiB.
        snapshot_bytes: u64 = 16_777_216, 1..=1_000_000_000_000;
    }
}

section! {
    /// `[node]`: the node that syncs.
    pub struct Node {
        /// The highest block that it has at the beginning.
        start_blocks: u64 = 0, 0..=1_000_000_000;
        /// The lowest height at which it has another, valid block than the chain; none: it is on the chain.
        branch_from: Option<u64> = None, 1..=1_000_000_000;
        /// Bytes a second that it receives.
        down: u64 = 100_000_000, 1_000..=100_000_000_000;
        /// Bytes a second that it sends.
        up: u64 = 100_000_000, 1_000..=100_000_000_000;
        /// Blocks a second that it verifies.
        verify_per_second: u64 = 60_000, 1..=10_000_000;
        /// Blocks a second that it imports, one import after the other.
        import_per_second: u64 = 30_000, 1..=10_000_000;
        /// Microseconds that a turn of its loop takes: what happens meanwhile waits for the next one.
        turn_us: u64 = 500, 0..=1_000_000;
        /// Microseconds until its strategy has answered.
        ask_us: u64 = 200, 0..=1_000_000;
    }
}

section! {
    /// `[[peers]]`: a group of peers of one kind. What is drawn is drawn for each peer, or each answer.
    pub struct Group {
        /// What it is called, in the report and in partitions.
        name: String = "peers".into();
        /// How many there are; none: a part of those that are left.
        count: Option<u64> = None, 0..=1_024;
        /// How large that part is, against the other groups without a count.
        share: u64 = 1, 1..=1_000_000;
        /// Milliseconds of way between it and the node, each way.
        distance_ms: Span = Span::of(5, 50);
        /// Milliseconds by which a piece of a message takes longer at most.
        jitter_ms: u64 = 0, 0..=60_000;
        /// Bytes a second that it sends.
        bandwidth: Span = Span::of(5_000_000, 20_000_000);
        /// Pieces of its messages, of up to 64 KiB, that have to be sent again.
        loss_percent: u64 = 0, 0..=90;
        /// Milliseconds until it begins to answer.
        think_ms: Span = Span::of(0, 2);

        /// How many blocks it lacks of those that there are.
        behind_blocks: u64 = 0, 0..=1_000_000_000;
        /// How many blocks it reports beyond those that it has.
        claims_blocks: u64 = 0, 0..=1_000_000_000;
        /// The lowest height at which it has another, valid block; none: it is on the chain.
        branch_from: Option<u64> = None, 1..=1_000_000_000;
        /// How many blocks its branch has more than the chain.
        ahead_blocks: u64 = 0, 0..=1_000_000_000;
        /// When its head stands still, in milliseconds.
        stuck_at_ms: Option<u64> = None;
        /// When it no longer answers anything, and breaks no connection either, in milliseconds.
        mute_at_ms: Option<u64> = None;

        /// How far below its first head the snapshot lies that it offers, in blocks; none: it offers none.
        snapshot_behind: Option<u64> = None, 0..=1_000_000_000;
        /// Chunks of it that are others than they should be.
        snapshot_lies_percent: u64 = 0, 0..=100;

        /// Requests that it takes and does not answer.
        silent_percent: u64 = 0, 0..=100;
        /// Answers that are an error.
        fails_percent: u64 = 0, 0..=100;
        /// Answers with a block whose signature is wrong.
        lies_percent: u64 = 0, 0..=100;
        /// Answers whose blocks have lost their transactions.
        bare_percent: u64 = 0, 0..=100;
        /// Answers without a block.
        empty_percent: u64 = 0, 0..=100;
        /// Answers with half of what was asked for.
        short_percent: u64 = 0, 0..=100;
        /// Answers that begin late.
        stall_percent: u64 = 0, 0..=100;
        /// By how many milliseconds.
        stall_ms: Span = Span::of(1_000, 15_000);

        /// Requests that it answers within `interval_ms`; others get 429. None: all.
        requests_max: Option<u64> = None, 1..=1_000_000;
        /// Blocks that it gives within `interval_ms`, likewise.
        blocks_max: Option<u64> = None, 1..=1_000_000_000;
        /// The time that the two are about, in milliseconds.
        interval_ms: u64 = 1_000, 1..=3_600_000;
        /// How long it asks to be left alone, in milliseconds.
        retry_after_ms: u64 = 1_000, 1..=3_600_000;
        /// Whether looks at its head count as requests.
        limits_heads: bool = false;

        /// Milliseconds that it stays; none: to the end.
        up_ms: Option<Span> = None;
        /// Milliseconds that it is away for then.
        down_ms: Span = Span::of(1_000, 30_000);
    }
}

section! {
    /// `[[partitions]]`: for a time, some peers cannot be reached.
    pub struct Partition {
        /// From when, in milliseconds.
        from_ms: u64 = 0;
        /// Until when.
        until_ms: u64 = 0;
        /// The groups that cannot be reached; none: all.
        groups: Vec<String> = Vec::new();
        /// How many of the peers of these groups.
        percent: u64 = 100, 1..=100;
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scenario {
    /// `[scenario]`
    pub about: About,
    /// `[chain]`
    pub chain: Chain,
    /// `[node]`
    pub node: Node,
    /// `[sync]`: the node's own knobs, as in `tenon.toml`.
    pub sync: SyncConfig,
    /// `[[peers]]`; without any, one group of good ones.
    pub groups: Vec<Group>,
    /// `[[partitions]]`
    pub partitions: Vec<Partition>,
}

/// What is wrong with a scenario: every problem, each on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(String);

impl Scenario {
    /// Reads a scenario. `file` is what problems are said to be in. Errors: all that is wrong, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self, ScenarioError> {
        let given = Given::parse(text).map_err(|(line, text)| {
            ScenarioError(format!("{file}:{line}: {}", text.lines().collect::<Vec<_>>().join(", ")))
        })?;
        let mut problems = Vec::new();
        let scenario = Self::read(&given, &mut problems);
        if problems.is_empty() {
            return Ok(scenario);
        }
        let line = |problem: &Problem| match &problem.origin {
            Origin::Line(line) => *line,
            _ => 1,
        };
        problems.sort_by_key(line);
        let shown = problems.iter().map(|problem| {
            let Problem { key, text, .. } = problem;
            format!("{file}:{}: {key}: {text}", line(problem))
        });
        Err(ScenarioError(shown.collect::<Vec<_>>().join("\n")))
    }

    /// Every key there is, for the documentation.
    pub fn keys() -> Vec<Key> {
        [
            About::keys("scenario"),
            Chain::keys("chain"),
            Node::keys("node"),
            Group::keys("peers"),
            Partition::keys("partitions"),
        ]
        .concat()
    }

    /// The peers of each group, in order, of `peers` in all. Groups with a count have that many; the others share the
    /// rest.
    ///
    /// Errors: the counts alone are more, or nobody is left to be a peer.
    pub fn population(&self, peers: u64) -> Result<Vec<u64>, String> {
        let counted: u64 = self.groups.iter().filter_map(|group| group.count).sum();
        let shares: u64 = self.groups.iter().filter(|group| group.count.is_none()).map(|group| group.share).sum();
        let Some(rest) = peers.checked_sub(counted) else {
            return Err(format!("the groups have {counted} peers, only {peers} are wanted"));
        };
        let (mut given, mut shared) = (0, 0);
        let mut population = Vec::new();
        for group in &self.groups {
            population.push(group.count.unwrap_or_else(|| {
                // Of what the shares up to here come to, what was not given out: the parts add up to the whole.
                shared += group.share;
                let upto = rest.saturating_mul(shared) / shares;
                upto - std::mem::replace(&mut given, upto)
            }));
        }
        if population.iter().sum::<u64>() == 0 {
            return Err("a scenario without peers".into());
        }
        Ok(population)
    }

    fn read(given: &Given, problems: &mut Vec<Problem>) -> Self {
        const SECTIONS: [&str; 6] = ["scenario", "chain", "node", "sync", "peers", "partitions"];
        section::unknown(given, "", &SECTIONS, &[], problems);
        let mut groups = Vec::new();
        for (index, item) in list(given, "peers", problems).into_iter().enumerate() {
            groups.push(Group::read(Some(item), &format!("peers[{index}]"), &[], problems));
        }
        if given.get("peers").is_none() {
            groups.push(Group::default());
        }
        let mut partitions = Vec::new();
        for (index, item) in list(given, "partitions", problems).into_iter().enumerate() {
            let section = format!("partitions[{index}]");
            let partition = Partition::read(Some(item), &section, &[], problems);
            let mut wrong = |key: &str, text: String| problems.push(problem(item, &format!("{section}.{key}"), text));
            if partition.from_ms >= partition.until_ms {
                wrong("until_ms", format!("ends at {}, before it begins at {}", partition.until_ms, partition.from_ms));
            }
            let stranger = |name: &&String| !groups.iter().any(|group| group.name == **name);
            if let Some(name) = partition.groups.iter().find(stranger) {
                let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
                wrong("groups", format!("no group `{name}`, there are {}", known.join(", ")));
            }
            partitions.push(partition);
        }
        let sync = SyncConfig::read(given.get("sync"), "sync", &[], problems);
        if let Some(sources) = given.get("sync").and_then(|sync| sync.get("sources")) {
            problems.push(problem(sources, "sync.sources", "the peers of a scenario stand in `[[peers]]`".into()));
        }
        Self {
            about: About::read(given.get("scenario"), "scenario", &[], problems),
            chain: Chain::read(given.get("chain"), "chain", &[], problems),
            node: Node::read(given.get("node"), "node", &[], problems),
            sync,
            groups,
            partitions,
        }
    }
}

fn problem(given: &Given, key: &str, text: String) -> Problem {
    Problem { severity: Severity::Error, origin: given.origin.clone(), key: key.to_owned(), text }
}

/// The items under `key`; none where there are none.
fn list<'a>(given: &'a Given, key: &str, problems: &mut Vec<Problem>) -> Vec<&'a Given> {
    match given.get(key) {
        None => Vec::new(),
        Some(Given { content: Content::Array(items), .. }) => items.iter().collect(),
        Some(other) => {
            problems.push(problem(other, key, format!("expected a list: write `[[{key}]]`, with two brackets")));
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_scenario_has_a_group_of_good_peers() {
        let scenario = Scenario::parse("", "x.toml").unwrap();
        assert_eq!(scenario.groups, [Group::default()]);
        assert_eq!(scenario.population(8), Ok(vec![8]));
    }

    #[test]
    fn what_is_given_is_read() {
        let text = r#"
            [scenario]
            description = "two kinds"
            expect = "diverged"
            [chain]
            blocks = 500
            [sync]
            poll_ms = 700
            [[peers]]
            name = "good"
            distance_ms = 30
            [[peers]]
            name = "branch"
            count = 1
            distance_ms = [1, 5]
            branch_from = 7
            up_ms = [100, 200]
            [[partitions]]
            from_ms = 5
            until_ms = 6
            groups = ["good"]
        "#;
        let scenario = Scenario::parse(text, "x.toml").unwrap();
        assert_eq!(
            (scenario.about.expect, scenario.chain.blocks, scenario.sync.poll_ms),
            (SyncState::Diverged, 500, 700)
        );
        let [good, branch] = scenario.groups.as_slice() else { panic!("two groups") };
        assert_eq!((good.distance_ms, branch.distance_ms), (Span::just(30), Span::of(1, 5)));
        assert_eq!((branch.branch_from, branch.up_ms), (Some(7), Some(Span::of(100, 200))));
        assert_eq!(scenario.partitions[0].percent, 100);
        assert_eq!(scenario.population(10), Ok(vec![9, 1]));
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        let cases = [
            ("[[peers]]\nlatancy_ms = 5", "x.toml:2: peers[0].latancy_ms: unknown key"),
            ("[[peers]]\ndistanse_ms = 5", "did you mean `peers[0].distance_ms`?"),
            ("[world]", "x.toml:1: world: unknown key"),
            (
                "[[peers]]\nlies_percent = 101",
                "x.toml:2: peers[0].lies_percent: expected a whole number, 0 to 100, got 101",
            ),
            ("[[peers]]\ndistance_ms = [9, 3]", "the lowest number, 9, is above the highest, 3"),
            ("[[peers]]\ndistance_ms = \"far\"", "expected a whole number, or [lowest, highest], got \"far\""),
            ("[peers]\nname = \"x\"", "two brackets"),
            ("[scenario]\nexpect = \"fine\"", "x.toml:2: scenario.expect: expected \"live\""),
            ("[sync]\nsources = [\"http://a\"]", "`[[peers]]`"),
            ("[sync]\npoll_ms = 1", "x.toml:2: sync.poll_ms"),
            ("[[partitions]]\nfrom_ms = 5\nuntil_ms = 5", "before it begins"),
            ("[[partitions]]\nuntil_ms = 5\ngroups = [\"y\"]", "no group `y`, there are peers"),
            ("[chain\n", "x.toml:1: "),
        ];
        for (text, expected) in cases {
            let error = Scenario::parse(text, "x.toml").unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let two = Scenario::parse("[node]\nspeed = 1\n[chain]\nlength = 2", "x.toml").unwrap_err().to_string();
        assert_eq!(two.lines().count(), 2, "{two}");
    }

    #[test]
    fn the_parts_of_a_population_add_up() {
        let group = |count, share| Group { count, share, ..Group::default() };
        let of = |groups: Vec<Group>, peers| Scenario { groups, ..Scenario::default() }.population(peers);
        assert_eq!(of(vec![group(None, 1), group(Some(3), 1), group(None, 2)], 10), Ok(vec![2, 3, 5]));
        assert_eq!(of(vec![group(None, 1); 3], 1_000).unwrap().iter().sum::<u64>(), 1_000);
        assert_eq!(of(vec![group(Some(3), 1)], 3), Ok(vec![3]));
        assert!(of(vec![group(Some(4), 1)], 3).unwrap_err().contains("4 peers"));
        assert!(of(vec![group(Some(0), 1)], 3).unwrap_err().contains("without peers"));
    }
}
