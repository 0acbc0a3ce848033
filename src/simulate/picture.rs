//! Outcomes as a picture: how each strategy's head rose, and below that what it asked of whom. Plain SVG, the same
//! bytes for the same outcomes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::chain::START;
use super::report::{Outcome, Timeline};
use super::tally::End;
use crate::chain::Time;
use crate::sync::PeerId;

/// Sizes in pixels.
const WIDTH: usize = 960;
const LEFT: usize = 120;
const PLOT: usize = WIDTH - LEFT - 20;
const HEADS: usize = 220;
const LANE: usize = 9;
const TITLE: usize = 22;

/// Peers shown for each strategy: those with the most requests.
const LANES_MAX: usize = 16;

/// One for each strategy; then from the first on again.
const COLOURS: [&str; 6] = ["#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#4a4e69"];

/// Draws `outcomes`, whose scenario is called `title`.
pub fn draw(outcomes: &[Outcome], title: &str) -> String {
    let ends_at = outcomes.iter().map(|outcome| outcome.timeline.ends_at).max().unwrap_or(START);
    let scale = Scale { us: ends_at.0.saturating_sub(START.0).max(1) };
    let lanes: Vec<_> = outcomes.iter().map(|outcome| lanes(&outcome.timeline)).collect();
    let below: usize = lanes.iter().map(|lanes| TITLE + 12 + lanes.len() * LANE).sum();
    let height = TITLE + HEADS + 40 + below + TITLE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, 10, 15, "#000000", title);
    heads(&mut svg, outcomes, &scale);
    let mut top = TITLE + HEADS + 40;
    for (outcome, lanes) in outcomes.iter().zip(&lanes) {
        let label = format!("{}: requests to the {} peers asked most", outcome.strategy, lanes.len());
        text(&mut svg, 10, top + 14, "#000000", &label);
        top += TITLE;
        requests(&mut svg, &outcome.timeline, lanes, &scale, top);
        top += lanes.len() * LANE + 12;
    }
    legend(&mut svg, top + 4);
    svg.push_str("</svg>\n");
    svg
}

/// Where a moment is.
struct Scale {
    us: u64,
}

impl Scale {
    /// The column of a moment within the plot.
    fn column(&self, at: Time) -> usize {
        let part = u128::from(at.0.saturating_sub(START.0)) * PLOT as u128 / u128::from(self.us);
        usize::try_from(part).unwrap_or(PLOT).min(PLOT)
    }
}

fn text(svg: &mut String, x: usize, y: usize, colour: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{text}</text>");
}

fn line(svg: &mut String, from: (usize, usize), to: (usize, usize), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(svg, "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"{colour}\"/>");
}

/// How the heads rose, one line for each strategy.
fn heads(svg: &mut String, outcomes: &[Outcome], scale: &Scale) {
    let (top, bottom) = (TITLE, TITLE + HEADS);
    let most = outcomes.iter().map(|outcome| outcome.goal.max(outcome.head)).max().unwrap_or(0).max(1);
    for part in 0..=4 {
        let y = bottom - HEADS * part / 4;
        line(svg, (LEFT, y), (LEFT + PLOT, y), "#e0e0e0");
        text(svg, 10, y + 4, "#555555", &(most * part as u64 / 4).to_string());
        let at = Time(START.0 + scale.us * part as u64 / 4);
        let ms = at.ms_since(START);
        text(
            svg,
            LEFT + PLOT * part / 4 - 20,
            bottom + 14,
            "#555555",
            &format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        );
    }
    for (index, outcome) in outcomes.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        // One point a column: the last head there.
        let mut points = BTreeMap::new();
        for (at, head) in &outcome.timeline.heads {
            let up = u128::from(*head) * HEADS as u128 / u128::from(most);
            points.insert(scale.column(*at), bottom - usize::try_from(up).unwrap_or(HEADS).min(HEADS));
        }
        let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"");
        for (x, y) in points {
            let _ = write!(svg, "{},{y} ", LEFT + x);
        }
        svg.push_str("\"/>\n");
        let synced = outcome.synced_ms.map_or("never in sync".into(), |ms| format!("in sync after {} ms", ms));
        text(svg, LEFT + 8, top + 14 * (index + 1), colour, &format!("{}: {synced}", outcome.strategy));
    }
}

/// The peers that are shown, those with the most requests first.
fn lanes(timeline: &Timeline) -> Vec<PeerId> {
    let mut requests: BTreeMap<PeerId, usize> = BTreeMap::new();
    for bar in &timeline.bars {
        *requests.entry(bar.peer).or_default() += 1;
    }
    let mut lanes: Vec<_> = requests.into_iter().collect();
    lanes.sort_by_key(|&(peer, count)| (std::cmp::Reverse(count), peer));
    lanes.into_iter().take(LANES_MAX).map(|(peer, _)| peer).collect()
}

/// What was asked of each peer when, and how it ended: of several requests in one column the worst end.
fn requests(svg: &mut String, timeline: &Timeline, lanes: &[PeerId], scale: &Scale, top: usize) {
    let mut columns = vec![[None::<End>; PLOT + 1]; lanes.len()];
    for bar in &timeline.bars {
        if let Some(lane) = lanes.iter().position(|peer| *peer == bar.peer) {
            for column in &mut columns[lane][scale.column(bar.from)..=scale.column(bar.to)] {
                *column = (*column).max(Some(bar.end));
            }
        }
    }
    for (lane, (peer, columns)) in lanes.iter().zip(&columns).enumerate() {
        let y = top + lane * LANE;
        let name = timeline.names.get(peer).map_or("", String::as_str);
        text(svg, 10, y + LANE - 1, "#555555", name);
        let mut from = 0;
        for run in columns.chunk_by(|a, b| a == b) {
            if let Some(end) = run[0] {
                let (x, width, colour) = (LEFT + from, run.len(), colour_of(end));
                let height = LANE - 2;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>"
                );
            }
            from += run.len();
        }
    }
    let bottom = top + lanes.len() * LANE;
    for (moments, colour) in [(&timeline.rescues, "#d00000"), (&timeline.swaps, "#7b2cbf")] {
        let mut columns: Vec<_> = moments.iter().map(|at| LEFT + scale.column(*at)).collect();
        columns.dedup();
        for x in columns {
            line(svg, (x, bottom), (x, bottom + 5), colour);
        }
    }
}

fn colour_of(end: End) -> &'static str {
    match end {
        End::Came => "#8fbf9f",
        End::GivenUp => "#c9c9c9",
        End::Limited => "#f2b84b",
        End::Failed => "#d9534f",
    }
}

fn legend(svg: &mut String, top: usize) {
    let entries = [
        (colour_of(End::Came), "answered"),
        (colour_of(End::GivenUp), "given up"),
        (colour_of(End::Limited), "429"),
        (colour_of(End::Failed), "failed"),
        ("#d00000", "below: the watchdog asked"),
        ("#7b2cbf", "below: another strategy took over"),
    ];
    let mut x = 10;
    for (colour, label) in entries {
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{top}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        text(svg, x + 14, top + 9, "#000000", label);
        x += 30 + label.len() * 6;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::Bar;
    use super::*;

    fn timeline(bars: &[(PeerId, u64, u64, End)]) -> Timeline {
        let at = |ms| START.plus_ms(ms);
        let bar = |&(peer, from, to, end): &_| Bar { peer, blocks: 1, from: at(from), to: at(to), end };
        Timeline {
            ends_at: at(1_000),
            heads: vec![(START, 0), (at(500), 10), (at(1_000), 20)],
            bars: bars.iter().map(bar).collect(),
            rescues: vec![at(250)],
            swaps: vec![at(750)],
            names: (0..40).map(|peer| (peer, format!("peer <{peer}>"))).collect(),
        }
    }

    /// The coloured runs of the lane at `top`: where they begin, how long they are, their colour.
    fn runs(svg: &str) -> Vec<(usize, usize, &str)> {
        let number = |line: &str, name: &str| {
            let rest = line.split(&format!(" {name}=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let bars = svg.lines().filter(|line| line.starts_with("<rect") && line.contains(" height=\"7\""));
        bars.map(|line| (number(line, "x"), number(line, "width"), line.split("fill=\"").nth(1).unwrap())).collect()
    }

    #[test]
    fn requests_are_where_they_were_and_of_two_at_once_the_worse_shows() {
        let bars = [(3, 0, 1_000, End::Came), (3, 250, 500, End::Failed)];
        let mut svg = String::new();
        let scale = Scale { us: 1_000_000 };
        requests(&mut svg, &timeline(&bars), &[3], &scale, 100);
        let got: Vec<_> = runs(&svg).into_iter().map(|(x, width, colour)| (x - LEFT, width, &colour[..7])).collect();
        let (came, failed) = (colour_of(End::Came), colour_of(End::Failed));
        let quarter = PLOT / 4;
        assert_eq!(
            got,
            [(0, quarter, came), (quarter, quarter + 1, failed), (2 * quarter + 1, PLOT - 2 * quarter, came)]
        );
        assert!(svg.contains("peer &lt;3>") && !svg.contains("<3>"), "{svg}");
    }

    #[test]
    fn the_peers_with_the_most_requests_are_shown() {
        let often = (0..40).flat_map(|peer| (0..=peer % 20).map(move |_| (peer, 0, 1, End::Came)));
        let shown = lanes(&timeline(&often.collect::<Vec<_>>()));
        assert_eq!(shown.len(), LANES_MAX);
        assert_eq!(shown[..4], [19, 39, 18, 38]);
    }

    #[test]
    fn nothing_at_all_is_a_picture_too() {
        let svg = draw(&[], "a <title> & more");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("a &lt;title> &amp; more"), "{svg}");
    }
}
