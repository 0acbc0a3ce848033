//! `tenon sync watch`: any number of nodes at once; live on a terminal, as lines elsewhere.

mod live;
mod looks;
mod view;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::sync::mpsc;

use super::Outcome;
use super::http::{ClientError, Node};
use super::output::Output;
use looks::{Look, Watched};

pub use looks::snapshot;

/// Time between two looks at a node.
const EVERY: Duration = Duration::from_secs(1);

/// Shows how nodes stand until told to stop; the outcome is how they stood last. Errors: none can be reached.
pub async fn watch(nodes: &[Node], output: &Output) -> Result<Outcome> {
    let mut watched: Vec<Watched> = nodes.iter().map(|node| Watched::new(node.url())).collect();
    let (sender, mut looks) = mpsc::channel(64);
    for (index, node) in nodes.iter().cloned().enumerate() {
        tokio::spawn(looks::look_again_and_again(index, node, sender.clone()));
    }
    drop(sender);
    let is_live = std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !output.is_json();
    if is_live {
        live::show(&mut watched, &mut looks).await?;
    } else {
        lines(&mut watched, &mut looks, output).await;
    }
    outcome(watched)
}

/// How nodes stood at the last look.
fn outcome(watched: Vec<Watched>) -> Result<Outcome> {
    let is_live = |watched: &Watched| matches!(&watched.latest, Some(Ok(look)) if look.is_live());
    if watched.iter().all(is_live) {
        return Ok(Outcome::Done);
    }
    if watched.iter().any(|watched| matches!(watched.latest, Some(Ok(_)))) {
        return Ok(Outcome::Behind);
    }
    // Told to stop before the first answer came: nothing is known, so nothing is well.
    let unreachable = watched.into_iter().find_map(|watched| watched.latest.and_then(Result::err));
    unreachable.map_or(Ok(Outcome::Behind), |error| Err(error.into()))
}

/// A line whenever what it says changes, or an object for every look; until told to stop, until nobody reads, or until
/// no node can be reached any more.
async fn lines(
    watched: &mut [Watched],
    looks: &mut mpsc::Receiver<(usize, Result<Look, ClientError>)>,
    output: &Output,
) {
    let mut stop = std::pin::pin!(super::told_to_stop());
    let width = watched.iter().map(|watched| watched.name.chars().count()).max().unwrap_or(0);
    let mut last = vec![String::new(); watched.len()];
    loop {
        let (index, look) = tokio::select! {
            () = &mut stop => return,
            look = looks.recv() => look.expect("nodes are looked at for as long as this task runs"),
        };
        watched[index].take(look);
        let is_one = watched.len() == 1;
        let seen = &watched[index];
        let line = match (&seen.latest, output.is_json(), is_one) {
            (Some(Ok(look)), true, true) => look.status.to_string(),
            (Some(Ok(look)), true, false) => {
                json!({ "node": seen.url, "status": look.status, "alerts": look.alerts }).to_string()
            }
            (Some(Err(error)), true, _) => json!({ "node": seen.url, "error": error.to_string() }).to_string(),
            (_, false, true) => seen.line(),
            (_, false, false) => format!("{:width$}  {}", seen.name, seen.line()),
            (None, ..) => continue,
        };
        let is_reached = watched.iter().any(|watched| !matches!(watched.latest, Some(Err(_))));
        // The error says it, on the other output.
        let is_told = is_one && !is_reached;
        if !is_told && (output.is_json() || line != last[index]) {
            if !output.reaches(&line) {
                return;
            }
            last[index] = line;
        }
        if !is_reached {
            return;
        }
    }
}
