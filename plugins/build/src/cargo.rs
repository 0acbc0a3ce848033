//! Runs cargo for the wasm target, apart from the cargo that may have started us.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::toolchain::{TARGET, Toolchain};

/// A core module that cargo has linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreModule {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Compiles and links the library at `dir`, or the package `package` of the workspace there, for the wasm target.
///
/// `arguments` go to cargo as they are; `sysroot` replaces rustc's own. cargo's messages go to stderr.
pub fn build(
    toolchain: &Toolchain,
    sysroot: Option<&Path>,
    dir: &Path,
    target_dir: &Path,
    package: Option<&str>,
    arguments: &[String],
) -> Result<CoreModule> {
    let flags = flags(sysroot);
    let mut command = command(toolchain, &flags);
    command
        .current_dir(dir)
        // Only a cdylib: of a crate that is an rlib as well, cargo makes both at once and optimises across crates
        // in neither, which makes a component three times as large.
        .args(["rustc", "--lib", "--crate-type", "cdylib", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target_dir)
        .args(arguments)
        .stdout(Stdio::piped());
    if let Some(package) = package {
        command.args(["--package", package]);
    }
    let output = command.output().with_context(|| format!("running {}", toolchain.cargo.display()))?;
    let what = package.map_or_else(|| dir.display().to_string(), |package| format!("the plugin {package}"));
    if !output.status.success() {
        bail!("cargo could not build {what}; its messages are above");
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    messages.lines().filter_map(core_module).next_back().with_context(|| format!("cargo linked no module for {what}"))
}

/// cargo as `toolchain` has it, compiling with `flags`, untouched by the environment of a build around it.
pub fn command(toolchain: &Toolchain, flags: &[String]) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    clean(&mut command, &toolchain.cargo);
    command.env("RUSTC", &toolchain.rustc).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if let Some(linker) = &toolchain.linker {
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Takes from `command` what a cargo, rustup or make around us left in the environment.
///
/// Flags meant for the host would reach guests, a clippy wrapper would check in place of compile, and the library path
/// of one toolchain breaks the compiler of another.
pub fn clean(command: &mut Command, program: &Path) {
    for (name, _) in env::vars_os() {
        if is_left_over(&name) {
            command.env_remove(&name);
        }
    }
    // A proxy by bare name still has to pick the toolchain that the user chose; a compiler by path is chosen already.
    if program.is_absolute() {
        command.env_remove("RUSTUP_TOOLCHAIN");
    }
    command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_FALLBACK_LIBRARY_PATH");
}

fn is_left_over(name: &OsString) -> bool {
    const EXACT: [&str; 12] = [
        "CARGO",
        "CARGO_TARGET_DIR",
        "CARGO_INCREMENTAL",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
        "MFLAGS",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ];
    const PREFIXES: [&str; 6] =
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_BIN_", "CARGO_TARGET_WASM32_"];
    let name = name.to_string_lossy();
    EXACT.contains(&name.as_ref()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What every guest is compiled with. The same for all: cargo shares libraries only between builds with equal flags.
fn flags(sysroot: Option<&Path>) -> Vec<String> {
    // Panic messages hold source paths: the same source has to give the same bytes wherever it is built. Crates of the
    // workspace at hand need nothing, since cargo names them relative to it.
    let mut flags = vec![format!("--remap-path-prefix={}=cargo", home().display())];
    if let Ok(root) = crate::workspace::root() {
        flags.push(format!("--remap-path-prefix={}=tenon", root.display()));
    }
    if let Some(sysroot) = sysroot {
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    flags
}

/// Where cargo keeps the sources of libraries.
pub fn home() -> PathBuf {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .unwrap_or_else(|| PathBuf::from(".cargo"))
}

/// Reads one of cargo's messages; none unless it tells of a linked module.
fn core_module(message: &str) -> Option<CoreModule> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let path =
        message["filenames"].as_array()?.iter().filter_map(Value::as_str).find(|name| name.ends_with(".wasm"))?;
    let (name, version) = package(message["package_id"].as_str()?)?;
    let name = name.map_or_else(|| message["target"]["name"].as_str().map(str::to_owned), |name| Some(name.to_owned()));
    Some(CoreModule { name: name?.replace('_', "-"), version: version.to_owned(), path: PathBuf::from(path) })
}

/// Name and version in a package id: `path+file:///…/token-bucket#0.1.0`, or `…#token-bucket@0.1.0` where the folder is
/// called otherwise.
fn package(id: &str) -> Option<(Option<&str>, &str)> {
    let (url, fragment) = id.rsplit_once('#')?;
    Some(match fragment.split_once('@') {
        Some((name, version)) => (Some(name), version),
        None => (url.rsplit('/').next(), fragment),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_id_gives_name_and_version() {
        assert_eq!(package("path+file:///a/token-bucket#0.1.0"), Some((Some("token-bucket"), "0.1.0")));
        assert_eq!(package("path+file:///a/b#token-bucket@0.2.0"), Some((Some("token-bucket"), "0.2.0")));
        assert_eq!(package("token-bucket"), None);
    }

    #[test]
    fn only_a_linked_module_is_one() {
        let message = |files: &str, reason: &str| {
            format!(
                r#"{{"reason":"{reason}","package_id":"path+file:///a/x-y#1.0.0","target":{{"name":"x_y"}},"filenames":[{files}]}}"#
            )
        };
        let module = core_module(&message(r#""/t/libx_y.rlib","/t/x_y.wasm""#, "compiler-artifact")).unwrap();
        assert_eq!(
            module,
            CoreModule { name: "x-y".into(), version: "1.0.0".into(), path: PathBuf::from("/t/x_y.wasm") }
        );
        assert_eq!(core_module(&message(r#""/t/libx_y.rlib""#, "compiler-artifact")), None);
        assert_eq!(core_module(&message(r#""/t/x_y.wasm""#, "build-finished")), None);
        assert_eq!(core_module("not JSON"), None);
    }

    #[test]
    fn flags_of_a_build_around_us_are_dropped_and_the_users_network_settings_are_not() {
        for name in ["RUSTFLAGS", "CARGO_PKG_NAME", "RUSTC_WORKSPACE_WRAPPER", "MAKEFLAGS"] {
            assert!(is_left_over(&OsString::from(name)), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_NET_OFFLINE", "PATH", "HTTPS_PROXY"] {
            assert!(!is_left_over(&OsString::from(name)), "{name}");
        }
    }
}
