//! `cargo run -p tenon-build`: builds every plugin of the repository and prints what came out.
//!
//! With a folder as argument it builds that crate instead, to `NAME.wasm` beside its manifest or to a second argument.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let started = Instant::now();
    let built = match arguments.as_slice() {
        [] => tenon_build::build_all()?,
        [dir] => vec![tenon_build::build_dir(dir, dir)?],
        [dir, out] => vec![tenon_build::build_dir(dir, out)?],
        _ => bail!("usage: tenon-build [DIR [OUT]]"),
    };
    for component in &built {
        println!("{:>9} bytes  {}", size(component)?, shown(component));
    }
    println!("{} components in {:.1} s", built.len(), started.elapsed().as_secs_f64());
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(metadata.len())
}

/// The path as a reader would type it: relative where that is shorter.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
