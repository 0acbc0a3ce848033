//! The picture: a row for each node, and below it what there is to say of the one that is selected. Pure: it draws what
//! was seen, wherever it is told to.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, TableState, Wrap};
use serde_json::Value;

use super::looks::{Look, Watched, cause, title};

/// What is shown.
pub struct Screen<'a> {
    /// The nodes.
    pub watched: &'a [Watched],
    /// The one whose details are shown.
    pub selected: usize,
}

/// Columns of the rate's picture beside the table, where there is room for it.
const SPARK_WIDTH: u16 = 32;
/// Columns of the window from which on there is.
const WIDE: u16 = 110;
/// Rows that the details have at least: a third of the window within these bounds.
const DETAILS_HEIGHT: (u16, u16) = (4, 9);

/// Draws it all.
pub fn draw(frame: &mut Frame<'_>, screen: &Screen<'_>) {
    let nodes = u16::try_from(screen.watched.len()).unwrap_or(u16::MAX);
    let height = frame.area().height;
    let room = height.saturating_sub(1 + (height / 3).clamp(DETAILS_HEIGHT.0, DETAILS_HEIGHT.1)).max(2);
    let [head, table, details] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(nodes.saturating_add(1).min(room)),
        Constraint::Min(0),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(screen.watched)), head);
    let (table, sparks) = if table.width >= WIDE {
        let [table, sparks] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(SPARK_WIDTH)]).spacing(1).areas(table);
        (table, Some(sparks))
    } else {
        (table, None)
    };
    let first = rows(frame, screen, table);
    if let Some(sparks) = sparks {
        rates(frame, screen, first, sparks);
    }
    if let Some(selected) = screen.watched.get(screen.selected) {
        detail(frame, selected, details);
    }
}

fn headline(watched: &[Watched]) -> Line<'static> {
    let looks = || watched.iter().filter_map(|watched| watched.latest.as_ref()?.as_ref().ok());
    let live = looks().filter(|look| look.is_live()).count();
    let firing: usize = looks().map(|look| look.alerts_in("firing").count()).sum();
    let color = if live == watched.len() && firing == 0 { Color::Green } else { Color::Red };
    Line::from(vec![
        Span::styled(format!("{live} of {} live, {firing} alerts", watched.len()), Style::new().fg(color)),
        Span::raw("    q quits, up and down choose"),
    ])
}

/// The columns behind the name: title, width, and whether they are there in a narrow window, too.
const COLUMNS: [(&str, u16, bool); 9] = [
    ("state", 11, true),
    ("height", 10, true),
    ("head", 9, false),
    ("behind", 8, true),
    ("", 6, false),
    ("blocks/s", 8, true),
    ("left", 7, false),
    ("peers", 5, true),
    ("alerts", 6, true),
];

/// The table; answers the first node that it shows, since it scrolls.
fn rows(frame: &mut Frame<'_>, screen: &Screen<'_>, area: Rect) -> usize {
    let name = screen.watched.iter().map(|watched| watched.name.chars().count()).max().unwrap_or(0);
    let name = u16::try_from(name).unwrap_or(u16::MAX).clamp(12, 28);
    let is_narrow = area.width < COLUMNS.iter().fold(name, |sum, (_, width, _)| sum + 1 + width);
    let is_shown = |(_, _, always): &(&str, u16, bool)| *always || !is_narrow;
    let shown = || COLUMNS.iter().filter(|column| is_shown(column));
    let rivals = rivals(screen.watched);
    let rows = screen.watched.iter().enumerate().map(|(index, watched)| {
        let cells = cells(watched, rivals.contains(&index)).into_iter().zip(COLUMNS);
        let cells = cells.filter(|(_, column)| is_shown(column)).map(|(cell, _)| cell);
        Row::new(std::iter::once(Cell::new(watched.name.clone())).chain(cells))
    });
    let titles = std::iter::once("node").chain(shown().map(|(title, ..)| *title));
    let widths = std::iter::once(name).chain(shown().map(|(_, width, _)| *width)).map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(screen.selected);
    frame.render_stateful_widget(table, area, &mut state);
    state.offset()
}

/// Nodes whose head another one contradicts: the same height, another block.
fn rivals(watched: &[Watched]) -> Vec<usize> {
    let mut heads: BTreeMap<u64, Vec<(usize, &str)>> = BTreeMap::new();
    for (index, watched) in watched.iter().enumerate() {
        if let Some(Ok(look)) = &watched.latest
            && let Some(hash) = look.text("head_hash")
        {
            heads.entry(look.heights().0).or_default().push((index, hash));
        }
    }
    let differ = |nodes: &&Vec<(usize, &str)>| nodes.iter().any(|(_, hash)| *hash != nodes[0].1);
    heads.values().filter(differ).flatten().map(|(index, _)| *index).collect()
}

/// What stands in each of [`COLUMNS`]; less for a node that says nothing.
fn cells(watched: &Watched, has_rival: bool) -> Vec<Cell<'static>> {
    let red = |text: String| Cell::new(text).style(Style::new().fg(Color::Red));
    let look = match &watched.latest {
        None => return vec![Cell::new("-")],
        Some(Err(_)) => return vec![red("unreachable".to_owned())],
        Some(Ok(look)) => look,
    };
    let (head, best) = look.heights();
    let hash = look.text("head_hash").unwrap_or_default().trim_start_matches("0x");
    let hash: String = hash.chars().take(8).collect();
    let firing = look.alerts_in("firing").count();
    vec![
        Cell::new(look.state().to_owned()).style(Style::new().fg(color(look))),
        Cell::new(head.to_string()),
        if has_rival { red(format!("{hash}!")) } else { hash.into() },
        Cell::new((best - head).to_string()),
        Cell::new(if best > head { duration(look.number("lag_seconds")) } else { String::new() }),
        Cell::new(look.rate().to_string()),
        Cell::new(left(best - head, look.rate())),
        Cell::new(peers(look)),
        if firing > 0 { red(firing.to_string()) } else { Cell::new(firing.to_string()) },
    ]
}

fn color(look: &Look) -> Color {
    match look.state() {
        "live" | "authority" => Color::Green,
        "syncing" | "starting" => Color::Yellow,
        _ => Color::Red,
    }
}

fn peers(look: &Look) -> String {
    let peers = look.peers();
    let up = peers.iter().filter(|peer| text(peer, "standing") == "up").count();
    if peers.is_empty() { "-".to_owned() } else { format!("{up}/{}", peers.len()) }
}

/// How long the missing blocks will take.
fn left(missing: u64, rate: u64) -> String {
    match (missing, rate) {
        (0, _) => String::new(),
        (_, 0) => "-".to_owned(),
        (missing, rate) => duration(missing.div_ceil(rate)),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} m", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The rate of each node that the table shows, beside its row.
fn rates(frame: &mut Frame<'_>, screen: &Screen<'_>, first: usize, area: Rect) {
    for (watched, line) in screen.watched.iter().skip(first).zip(1..area.height) {
        let place = Rect { y: area.y + line, height: 1, ..area };
        // The newest on the right.
        let some = watched.rates.len().saturating_sub(place.width.into());
        let rates: Vec<u64> = watched.rates.iter().skip(some).copied().collect();
        frame.render_widget(Sparkline::default().data(rates).style(Style::new().fg(Color::Cyan)), place);
    }
}

/// What there is to say of one node: why it is not live, its alerts, its sources.
fn detail(frame: &mut Frame<'_>, watched: &Watched, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(watched.url.clone());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let look = match &watched.latest {
        None => return,
        Some(Err(error)) => return frame.render_widget(Paragraph::new(cause(error)).wrap(Wrap { trim: true }), inner),
        Some(Ok(look)) => look,
    };
    let told = told(look);
    let lines = u16::try_from(told.len()).unwrap_or(u16::MAX).min(inner.height / 2);
    let [above, below] = Layout::vertical([Constraint::Length(lines), Constraint::Min(0)]).areas(inner);
    frame.render_widget(Paragraph::new(told), above);
    if look.peers().is_empty() {
        return;
    }
    let rows = look.peers().iter().map(|peer| {
        let number = |name: &str| peer.get(name).and_then(Value::as_i64).map_or("-".to_owned(), |n| n.to_string());
        let standing = text(peer, "standing");
        let color = if standing == "up" { Color::Green } else { Color::Red };
        let latency = peer.get("latency_us").and_then(Value::as_u64).unwrap_or(0);
        Row::new([
            Cell::new(text(peer, "url").to_owned()),
            Cell::new(standing.to_owned()).style(Style::new().fg(color)),
            Cell::new(number("head_height")),
            Cell::new(number("score")),
            Cell::new(format!("{:.1} ms", latency as f64 / 1_000.0)),
            Cell::new(number("blocks")),
            Cell::new(text(peer, "reason").to_owned()),
        ])
    });
    let name = look.peers().iter().map(|peer| text(peer, "url").chars().count()).max().unwrap_or(0);
    let name = u16::try_from(name).unwrap_or(u16::MAX).clamp(6, 36);
    let widths = [name, 8, 10, 5, 9, 10].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    let titles = ["source", "standing", "head", "score", "latency", "blocks", "reason"];
    let table = Table::new(rows, widths).header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)));
    frame.render_widget(table, below);
}

fn told(look: &Look) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (state, color) in [("firing", Color::Red), ("pending", Color::Yellow)] {
        for alert in look.alerts_in(state) {
            let line = format!("{state} {}: {}", title(alert), text(alert, "text"));
            lines.push(Line::styled(line, Style::new().fg(color)));
        }
    }
    if let Some(fork) = look.status.get("diverged").filter(|fork| fork.is_object()) {
        let height = fork.get("height").and_then(Value::as_u64).unwrap_or(0);
        let line = format!(
            "diverged at block {height}: {} here, {} at {}",
            text(fork, "ours"),
            text(fork, "theirs"),
            text(fork, "peer")
        );
        lines.push(Line::styled(line, Style::new().fg(Color::Red)));
    }
    lines.extend(look.snapshot().map(Line::raw));
    for (name, what) in [("problem", "problem"), ("report", "strategy")] {
        lines.extend(look.text(name).map(|text| Line::raw(format!("{what}: {text}"))));
    }
    lines
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::cli::http::ClientError;

    fn live(height: u64, hash: &str) -> Look {
        let status = json!({
            "state": "live", "head_height": height, "best_height": height, "head_hash": hash, "lag_seconds": 0,
            "blocks_per_second": 0.4,
            "peers": [{ "url": "http://10.0.0.1:8006", "standing": "up", "head_height": height, "score": 100,
                        "latency_us": 1_500, "in_flight": 0, "blocks": 12, "reason": null }],
        });
        Look { status, alerts: json!({ "firing": 0, "pending": 0, "alerts": [] }) }
    }

    fn behind() -> Look {
        let status = json!({
            "state": "behind", "head_height": 70, "best_height": 1_070, "head_hash": "0xbbbbbbbbbbbb", "lag_seconds": 300,
            "blocks_per_second": 25.0, "peers": [
                { "url": "http://10.0.0.1:8006", "standing": "up", "head_height": 1_070, "score": 40, "latency_us": 900 },
                { "url": "http://10.0.0.2:8006", "standing": "down", "score": -5, "reason": "connection refused" },
            ],
            "problem": "no source has block 71 in a valid form", "diverged": null, "report": "waits",
            "snapshot": { "height": 1_000, "stage": "downloading", "chunks": 3, "of": 12 },
        });
        let alerts = json!({ "firing": 1, "pending": 1, "alerts": [
            { "name": "stuck", "subject": "", "state": "firing", "text": "no block for 300 s" },
            { "name": "queue", "subject": "mempool", "state": "pending", "text": "95 of 100" },
        ] });
        Look { status, alerts }
    }

    fn watched(url: &str, looks: Vec<Result<Look, ClientError>>) -> Watched {
        let mut watched = Watched::new(url);
        looks.into_iter().for_each(|look| watched.take(look));
        watched
    }

    fn unreachable() -> ClientError {
        ClientError::Unreachable {
            url: "http://c:1".into(),
            cause: "connection refused (os error 111)".into(),
            named_by: "",
        }
    }

    /// The lines of a picture of this size, without spaces at their ends.
    fn drawn(watched: &[Watched], selected: usize, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &Screen { watched, selected })).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn three() -> [Watched; 3] {
        [
            watched("http://a:8006", vec![Ok(live(1_070, "0xaaaaaaaaaaaa"))]),
            watched("http://b:8006", vec![Ok(behind())]),
            watched("http://c:1", vec![Err(unreachable())]),
        ]
    }

    #[test]
    fn every_node_has_a_row_and_the_selected_one_its_details() {
        let lines = drawn(&three(), 1, 100, 16);
        assert!(lines[0].starts_with("1 of 3 live, 1 alerts    q quits"), "{lines:#?}");
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            cells(&lines[1]),
            ["node", "state", "height", "head", "behind", "blocks/s", "left", "peers", "alerts"]
        );
        assert_eq!(cells(&lines[2]), ["a:8006", "live", "1070", "aaaaaaaa", "0", "0", "1/1", "0"]);
        assert_eq!(
            cells(&lines[3]),
            ["b:8006", "behind", "70", "bbbbbbbb", "1000", "5", "m", "25", "40", "s", "1/2", "1"]
        );
        assert_eq!(cells(&lines[4]), ["c:1", "unreachable"]);
        let text = lines[5..].join("\n");
        for part in [
            "http://b:8006",
            "firing stuck: no block for 300 s",
            "pending queue (mempool): 95 of 100",
            "down",
            "connection refused",
            "snapshot of block 1000: downloading, 3 of 12 chunks",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let text = drawn(&three(), 2, 100, 16).join("\n");
        assert!(text.contains("connection refused (os error 111)"), "{text}");
    }

    #[test]
    fn the_rate_is_drawn_beside_the_row_where_there_is_room() {
        let mut node = watched("http://a:8006", vec![]);
        for rate in [0, 100, 800] {
            let mut look = behind();
            look.status["blocks_per_second"] = json!(rate);
            node.take(Ok(look));
        }
        let wide = drawn(&[node], 0, 120, 12);
        assert!(wide[2].contains(" ▁█"), "{wide:#?}");
        let narrow = drawn(&three(), 0, 80, 12);
        assert!(!narrow.join("").contains('█'), "{narrow:#?}");
        let cells: Vec<_> = narrow[3].split_whitespace().collect();
        assert_eq!(cells, ["b:8006", "behind", "70", "1000", "25", "1/2", "1"], "what matters most stays");
    }

    #[test]
    fn heads_that_contradict_each_other_are_marked() {
        let same = [watched("http://a:1", vec![Ok(live(7, "0xaa"))]), watched("http://b:1", vec![Ok(live(7, "0xaa"))])];
        assert_eq!(rivals(&same), [0_usize; 0]);
        let other = [
            watched("http://a:1", vec![Ok(live(7, "0xaa"))]),
            watched("http://b:1", vec![Ok(live(7, "0xbb"))]),
            watched("http://c:1", vec![Ok(live(8, "0xcc"))]),
        ];
        assert_eq!(rivals(&other), [0, 1]);
        let lines = drawn(&other, 0, 100, 12);
        assert!(lines[2].contains("aa!") && lines[3].contains("bb!") && !lines[4].contains('!'), "{lines:#?}");
    }

    #[test]
    fn more_nodes_than_rows_scroll_to_the_selected_one() {
        let many: Vec<_> =
            (0..50).map(|at| watched(&format!("http://node{at}:1"), vec![Ok(live(at, "0xaa"))])).collect();
        let text = drawn(&many, 49, 100, 20).join("\n");
        assert!(text.contains("node49:1") && !text.contains("node0:1"), "{text}");
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(1, 1), (2, 3), (10, 5), (40, 8), (300, 100)] {
            for selected in 0..3 {
                drawn(&three(), selected, width, height);
            }
        }
        drawn(&[], 0, 80, 24);
    }

    #[test]
    fn times_are_short() {
        let cases = [(0, "0 s"), (119, "119 s"), (120, "2 m"), (7_200, "2 h"), (172_800, "2 d")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!((left(0, 5), left(5, 0), left(1_000, 3)), (String::new(), "-".into(), "5 m".into()));
    }
}
