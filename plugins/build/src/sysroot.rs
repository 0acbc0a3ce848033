//! The standard library of the wasm target, compiled once from source into a sysroot of our own.
//!
//! Compiling it inside each guest's build (`-Z build-std`) would cost most of a minute a profile; this way guests are
//! built with stable features only, and the one unstable step is this one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::toolchain::{Std, TARGET, Toolchain, title};
use crate::workspace::digest;

/// The crate whose build brings the standard library about.
const MANIFEST: &str = r#"
[package]
name = "stage"
version = "0.0.0"
edition = "2021"

[workspace]

[profile.release]
panic = "abort"
opt-level = "s"
debug = false
"#;

/// Only what a guest without a system can use: no unwinding, no backtraces, and the smaller of two ways everywhere.
const BUILD_STD: [&str; 2] = ["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"];

/// The sysroot to name to rustc; none where its own has the target.
///
/// `home` is the folder that may hold it; the caller keeps other processes out of it.
pub fn prepare(toolchain: &Toolchain, home: &Path) -> Result<Option<PathBuf>> {
    let Std::Source(source) = &toolchain.std else {
        return Ok(None);
    };
    let flags = flags(source);
    let recipe = [MANIFEST, &BUILD_STD.concat(), &flags.concat()].concat();
    let sysroot = home.join(format!("sysroot-{:08x}", digest(recipe.as_bytes()) as u32));
    if !sysroot.is_dir() {
        eprintln!("compiling the standard library for {TARGET} with {}; once, about a minute", title(toolchain)?);
        let stage = home.join("stage");
        compile(toolchain, &flags, &stage).context("compiling the standard library for guests")?;
        let unfinished = home.join("sysroot-unfinished");
        remove(&unfinished)?;
        collect(&stage, &unfinished.join("lib/rustlib").join(TARGET).join("lib"))?;
        // The folder appears under its name when it is complete, so its being there is proof enough.
        fs::rename(&unfinished, &sysroot).with_context(|| format!("naming {}", sysroot.display()))?;
        remove(&stage)?;
    }
    Ok(Some(sysroot))
}

fn flags(source: &Path) -> Vec<String> {
    vec![
        // Without bitcode in std, a guest cannot be optimised across crates.
        "-Cembed-bitcode=yes".to_owned(),
        // As for guests: no path of this machine in what they ship.
        format!("--remap-path-prefix={}=rust/library", source.display()),
        format!("--remap-path-prefix={}=cargo", cargo::home().display()),
    ]
}

/// Compiles an empty crate and, with it, all of std.
fn compile(toolchain: &Toolchain, flags: &[String], stage: &Path) -> Result<()> {
    fs::create_dir_all(stage.join("src"))?;
    fs::write(stage.join("Cargo.toml"), MANIFEST)?;
    fs::write(stage.join("src/lib.rs"), "")?;
    let status = cargo::command(toolchain, flags)
        .current_dir(stage)
        // build-std is unstable; this is the only step that uses it.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["build", "--release", "--target", TARGET, "--target-dir", "target"])
        .args(BUILD_STD)
        .status()?;
    if !status.success() {
        bail!("cargo failed; its messages are above");
    }
    Ok(())
}

/// Copies the compiled libraries of `stage` to `libs`.
fn collect(stage: &Path, libs: &Path) -> Result<()> {
    fs::create_dir_all(libs)?;
    for entry in fs::read_dir(stage.join("target").join(TARGET).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if path.extension().is_some_and(|extension| extension == "rlib") && !is_stage(&name.to_string_lossy()) {
            fs::copy(&path, libs.join(name))?;
        }
    }
    Ok(())
}

fn is_stage(file: &str) -> bool {
    file.starts_with("libstage-")
}

/// Removes the folder `dir` with all that is in it, if there is one.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
