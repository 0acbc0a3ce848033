//! `tenon plugin simulate`: strategies in virtual time, side by side.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use tenon::bindings::Lab;
use tenon::simulate::{Native, Outcome, Planner, Scenario, Simulation, Size, picture, report};

use super::output::Output;
use super::plugin::shipped_folder;

/// What the built-in strategy is called here.
const BUILTIN: &str = "builtin";

/// What to simulate.
#[derive(Args)]
pub struct Simulate {
    /// Components of strategies, names of shipped ones, or `builtin`
    #[arg(required_unless_present = "keys", value_name = "STRATEGY")]
    strategies: Vec<String>,
    /// What there is and what befalls it: a TOML file [default: eight good peers]
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Peers in all [default: as the scenario says]
    #[arg(long)]
    peers: Option<u64>,
    /// The highest block at the beginning [default: as the scenario says]
    #[arg(long)]
    blocks: Option<u64>,
    /// What chance comes from: the same seed, the same result
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The configuration of a strategy: JSON, or a file of it. For a strategy that is named several times: once for all
    /// of them, or once for each, in order
    #[arg(long = "config", value_name = "STRATEGY=JSON", value_parser = config)]
    configs: Vec<(String, Value)>,
    /// Draws what happened to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Lists the keys of a scenario
    #[arg(long)]
    keys: bool,
}

fn config(text: &str) -> Result<(String, Value), String> {
    let (name, json) = text.split_once('=').ok_or("expected STRATEGY=JSON")?;
    let read;
    let json = if json.trim_start().starts_with('{') {
        json
    } else {
        read = fs::read_to_string(json).map_err(|error| format!("reading {json}: {error}"))?;
        &read
    };
    Ok((name.to_owned(), serde_json::from_str(json).map_err(|error| error.to_string())?))
}

impl Simulate {
    pub fn run(self, output: &Output) -> Result<super::Outcome> {
        if self.keys {
            let keys: Vec<Value> = Scenario::keys().into_iter().map(|key| json!(key)).collect();
            output.list(&keys, &KEYS);
            return Ok(super::Outcome::Done);
        }
        if let Some(path) = &self.svg {
            can_be_written(path)?;
        }
        let (scenario, file) = self.scenario()?;
        let planners = self.planners()?;
        let size = Size { peers: self.peers, blocks: self.blocks };
        let simulations = planners.into_iter().map(|planner| Simulation::new(&scenario, size, self.seed, planner));
        let simulations: Vec<_> = simulations.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
        let outcomes = run_all(simulations);
        if output.is_json() {
            let about = json!({ "scenario": file, "seed": self.seed, "outcomes": outcomes });
            output.json(&about);
        } else {
            let description = &scenario.about.description;
            output.line(if description.is_empty() { &file } else { description });
            output.rows(report::table(&outcomes));
            for outcome in &outcomes {
                say_what_went_wrong(outcome, output);
            }
        }
        if let Some(path) = &self.svg {
            let title = format!("{file}, seed {}", self.seed);
            let svg = picture::draw(&outcomes, &title);
            fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
        }
        let all_well = outcomes.iter().all(|outcome| outcome.as_expected);
        Ok(if all_well { super::Outcome::Done } else { super::Outcome::DoesNotHold })
    }

    /// The scenario, and what it is called.
    fn scenario(&self) -> Result<(Scenario, String)> {
        let Some(path) = &self.scenario else { return Ok((Scenario::parse("", "")?, "eight good peers".into())) };
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((Scenario::parse(&text, &path.display().to_string())?, name))
    }

    /// The configuration of the strategy at this place: the one for its name, or of several the one that is at the same
    /// place among them as the strategy is among those of its name. Errors: there are several, and not one for each.
    fn settings(&self, at: usize) -> Result<Option<&Value>> {
        let strategy = &self.strategies[at];
        let own: Vec<&Value> =
            self.configs.iter().filter(|(name, _)| name == strategy).map(|(_, settings)| settings).collect();
        let all = self.strategies.iter().filter(|name| *name == strategy).count();
        let before = self.strategies[..at].iter().filter(|name| *name == strategy).count();
        match own.len() {
            0 | 1 => Ok(own.first().copied()),
            given if given == all => Ok(Some(own[before])),
            given => {
                bail!("{given} configurations for {strategy}, which is named {all} times: expected one, or one each")
            }
        }
    }

    fn planners(&self) -> Result<Vec<Box<dyn Planner>>> {
        let unknown = |name: &String| !self.strategies.contains(name);
        if let Some((name, _)) = self.configs.iter().find(|(name, _)| unknown(name)) {
            bail!("a configuration for {name}, which is none of {}", self.strategies.join(", "));
        }
        let lab = Lab::new()?;
        let mut planners: Vec<Box<dyn Planner>> = Vec::new();
        for (at, strategy) in self.strategies.iter().enumerate() {
            let settings = self.settings(at)?;
            if strategy == BUILTIN {
                if settings.is_some() {
                    bail!("the built-in strategy has no configuration");
                }
                planners.push(Box::new(Native::builtin()));
                continue;
            }
            let path = component(strategy)?;
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let planner = lab.planner(&bytes, settings.unwrap_or(&json!({}))).with_context(|| strategy.clone())?;
            let is_taken = |name: &str| planners.iter().any(|other| other.name() == name);
            let name = match planner.name() {
                plain if !is_taken(plain) => plain.to_owned(),
                plain => {
                    let of_bytes = format!("{plain} {}", &planner.digest()[..8]);
                    let numbered = (2..).map(|number| format!("{plain} #{number}"));
                    let is_same = self.strategies[..at].contains(strategy);
                    let mut names = (!is_same).then_some(of_bytes).into_iter().chain(numbered);
                    names.find(|name| !is_taken(name)).expect("some number is free")
                }
            };
            planners.push(Box::new(planner.named(name)));
        }
        Ok(planners)
    }
}

/// Errors: where a file could not be written in the end. Said before the work is done.
fn can_be_written(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() || path.is_dir() {
        let what = if path.is_dir() { "it is a folder".to_owned() } else { format!("no folder {}", folder.display()) };
        bail!("writing {}: {what}", path.display());
    }
    Ok(())
}

/// What of a key is shown.
const KEYS: [(&str, &str); 4] =
    [("key", "/name"), ("default", "/default"), ("takes", "/expected"), ("meaning", "/meaning")];

/// The file of a component: the one named, else the shipped one of this name.
fn component(strategy: &str) -> Result<PathBuf> {
    let file = Path::new(strategy);
    if file.exists() || strategy.contains(['/', '.']) {
        return Ok(file.to_owned());
    }
    let shipped = shipped_folder()?.map(|folder| folder.join(format!("{strategy}.wasm")));
    match shipped.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{strategy} is neither a file nor a shipped plugin, and not `{BUILTIN}`"),
    }
}

/// Each on a thread of its own: they have nothing in common.
fn run_all(simulations: Vec<Simulation>) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            simulations.into_iter().map(|mut simulation| scope.spawn(move || quietly(|| simulation.run()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a simulation does not panic")).collect()
    })
}

/// Without a log: the engine would say in it what never happened.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), run)
}

fn say_what_went_wrong(outcome: &Outcome, output: &Output) {
    let name = &outcome.strategy;
    if let Some(problem) = outcome.problem.as_ref().filter(|_| !outcome.as_expected) {
        output.line(format!("{name}: {problem}"));
    }
    if let Some(failure) = &outcome.failure {
        output.line(format!("{name}: {} calls failed, the last one: {failure}", outcome.failed_calls));
    }
    for (kind, count, why) in &outcome.refusals {
        output.line(format!("{name}: {count} times {kind} was refused, first: {why}"));
    }
}
