//! Arguments to commands, the log, and the only exit of the process.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    let arguments = cli::Arguments::read();
    if let Err(error) = log(arguments.is_node()) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(arguments.run())),
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a node logs by default. What libraries say of peers who misbehave is for those who look for it: everybody could
/// fill the log with that.
const NODE_LEVELS: &str = "info,libp2p=error,multistream_select=error,quinn=error,yamux=error";

/// Logs to standard error: what TENON_LOG says (`debug`, or `info,tenon::sync=debug`), as text or, with
/// TENON_LOG_FORMAT=json, as JSON. A node logs `info` by default, a command only warnings.
fn log(is_node: bool) -> Result<(), String> {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let levels = variable("TENON_LOG", if is_node { NODE_LEVELS } else { "warn" });
    let targets: Targets = levels.parse().map_err(|error| {
        format!("TENON_LOG: {error}; expected a level (error, warn, info, debug, trace) or a list like `info,tenon::sync=debug`")
    })?;
    let layer =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match variable("TENON_LOG_FORMAT", "text").as_str() {
        "text" => layer.boxed(),
        "json" => layer.json().boxed(),
        other => return Err(format!("TENON_LOG_FORMAT: expected `text` or `json`, got `{other}`")),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
    Ok(())
}
