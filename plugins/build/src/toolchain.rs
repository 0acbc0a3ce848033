//! Finds a compiler that can build for `wasm32-unknown-unknown`, by asking the compilers that are installed.
//!
//! In order: a compiler that has the target's standard library (`rustup target add`, or a distribution's package); a
//! compiler that has the *source* of its own standard library, which is then compiled once (Debian's `rustc-web` with
//! `rust-web-src`); else an error that says what to install.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::cargo::clean;

/// What guests are compiled for: no WASI, so a component imports what its world names and nothing else.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Where the system's own compiler is, when the one on the PATH is a rustup proxy that hides it.
const SYSTEM_BIN: &str = "/usr/bin";

/// A compiler, with all it takes to build a guest.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// Its cargo.
    pub cargo: PathBuf,
    /// `rustc -vV`: what tells one compiler's output from another's.
    pub version: String,
    /// The linker to name to rustc; none where rustc finds its own.
    pub linker: Option<PathBuf>,
    /// Where the target's standard library comes from.
    pub std: Std,
}

/// Where the standard library of [`TARGET`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Std {
    /// It is installed with the compiler.
    Installed,
    /// Its source is, in this folder (`library` of a Rust source tree); it has to be compiled.
    Source(PathBuf),
}

impl Toolchain {
    /// The first compiler that will do.
    ///
    /// Errors: none will; the text names both cures.
    pub fn find() -> Result<Self> {
        let found: Vec<Probe> = candidates().into_iter().filter_map(Probe::of).collect();
        let installed = found.iter().find(|probe| probe.has_std());
        let (probe, std) = match installed {
            Some(probe) => (probe, Std::Installed),
            None => match found.iter().find_map(|probe| Some((probe, probe.std_source()?))) {
                Some((probe, source)) => (probe, Std::Source(source)),
                None => bail!(missing(&found)),
            },
        };
        Ok(Self {
            rustc: probe.rustc.clone(),
            cargo: probe.cargo.clone(),
            version: probe.version.clone(),
            linker: probe.linker()?,
            std,
        })
    }

    /// A short name for folders that must not be shared between compilers.
    pub fn key(&self) -> String {
        let release = self.version.lines().find_map(|line| line.strip_prefix("release: ")).unwrap_or("unknown");
        format!("{release}-{:08x}", crate::workspace::digest(self.version.as_bytes()) as u32)
    }
}

/// The pair that runs us, then the pair on the PATH, then the system's.
fn candidates() -> Vec<(PathBuf, PathBuf)> {
    let from_env = |name: &str, program: &str| env::var_os(name).map_or_else(|| PathBuf::from(program), PathBuf::from);
    let system = Path::new(SYSTEM_BIN);
    let mut candidates = vec![
        // Under `cargo run` and `cargo test`, CARGO names the very cargo that started us.
        (from_env("RUSTC", "rustc"), from_env("CARGO", "cargo")),
        (PathBuf::from("rustc"), PathBuf::from("cargo")),
        (system.join("rustc"), system.join("cargo")),
    ];
    candidates.dedup();
    candidates
}

/// What a compiler says of itself.
struct Probe {
    rustc: PathBuf,
    cargo: PathBuf,
    version: String,
    sysroot: PathBuf,
    target_libs: PathBuf,
}

impl Probe {
    fn of((rustc, cargo): (PathBuf, PathBuf)) -> Option<Self> {
        let version = ask(&rustc, &["-vV"])?;
        let sysroot = PathBuf::from(ask(&rustc, &["--print", "sysroot"])?);
        let target_libs = PathBuf::from(ask(&rustc, &["--print", "target-libdir", "--target", TARGET])?);
        ask(&cargo, &["--version"])?;
        Some(Self { rustc, cargo, version, sysroot, target_libs })
    }

    fn has_std(&self) -> bool {
        entries(&self.target_libs).any(|path| file_name(&path).starts_with("libstd-"))
    }

    fn std_source(&self) -> Option<PathBuf> {
        let library = self.sysroot.join("lib/rustlib/src/rust/library");
        library.join("std/Cargo.toml").exists().then_some(library)
    }

    /// rustc finds the `rust-lld` of its own sysroot; without one, any other toolchain's or the system's will do.
    ///
    /// It is named where it lies: a copy would not find the libraries beside it.
    fn linker(&self) -> Result<Option<PathBuf>> {
        if rust_lld(&self.sysroot).is_some() {
            return Ok(None);
        }
        let other = rustup_toolchains().iter().find_map(|sysroot| rust_lld(sysroot));
        match other.or_else(newest_wasm_ld) {
            Some(linker) => Ok(Some(linker)),
            None => bail!("no linker for {TARGET}: found neither rust-lld nor wasm-ld; try `apt-get install lld-19`"),
        }
    }
}

fn ask(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    clean(&mut command, program);
    let output = command.args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn rust_lld(sysroot: &Path) -> Option<PathBuf> {
    let program = format!("rust-lld{}", env::consts::EXE_SUFFIX);
    entries(&sysroot.join("lib/rustlib")).map(|host| host.join("bin").join(&program)).find(|path| path.exists())
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".rustup")));
    home.map(|home| entries(&home.join("toolchains")).collect()).unwrap_or_default()
}

/// The `wasm-ld` or `wasm-ld-NN` on the PATH with the highest NN.
fn newest_wasm_ld() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .flat_map(|dir| entries(&dir).collect::<Vec<_>>())
        .filter_map(|program| {
            let suffix = file_name(&program).strip_prefix("wasm-ld")?.to_owned();
            let release = suffix.strip_prefix('-').map_or(0, |number| number.parse::<u32>().unwrap_or(0));
            (suffix.is_empty() || release > 0).then_some((release, program))
        })
        .max()
        .map(|(_, program)| program)
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn missing(found: &[Probe]) -> String {
    let mut text = format!("no Rust compiler here can build for {TARGET}\n");
    for probe in found {
        let name = probe.version.lines().next().unwrap_or("rustc");
        text += &format!("  {}: {name}: neither its standard library nor the source of it\n", probe.rustc.display());
    }
    text + "do one of these, or `make setup`, which does it for you:\n  \
            rustup target add wasm32-unknown-unknown\n  \
            apt-get install rustc-web cargo-web rust-web-src lld-19"
}

/// The first lines of `rustc -vV` name the compiler; used in messages.
pub(crate) fn title(toolchain: &Toolchain) -> Result<String> {
    let line = toolchain.version.lines().next().context("rustc -vV printed nothing")?;
    Ok(format!("{line} at {}", toolchain.rustc.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_compiler_is_told_both_cures() {
        let stable = Probe {
            rustc: PathBuf::from("rustc"),
            cargo: PathBuf::from("cargo"),
            version: "rustc 1.95.0\nrelease: 1.95.0".to_owned(),
            sysroot: PathBuf::from("nowhere"),
            target_libs: PathBuf::from("nowhere"),
        };
        assert!(!stable.has_std() && stable.std_source().is_none());
        let text = missing(&[stable]);
        for part in
            ["rustc 1.95.0", "rustup target add wasm32-unknown-unknown", "apt-get install rustc-web", "make setup"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn compilers_of_one_release_do_not_share_a_folder() {
        let toolchain = |version: &str| Toolchain {
            rustc: PathBuf::from("rustc"),
            cargo: PathBuf::from("cargo"),
            version: version.to_owned(),
            linker: None,
            std: Std::Installed,
        };
        let one = toolchain("rustc 1.95.0 (a)\nrelease: 1.95.0").key();
        let other = toolchain("rustc 1.95.0 (b)\nrelease: 1.95.0").key();
        assert!(one.starts_with("1.95.0-") && one != other, "{one} {other}");
    }
}
