//! Crates of authors, outside this repository.
//!
//! Each is compiled in a folder of its own. Cargo names what it links, and what it knows of it, by the package alone: two
//! crates of one name in one folder would be taken for each other. What they have in common is compiled once all the same:
//! a new folder begins with the libraries as the repository's guests have them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::sysroot::{self, remove};
use crate::toolchain::{TARGET, Toolchain};
use crate::workspace::{Lock, Workspace, digest, finish};

/// The file in a crate's folder that names the crate.
const CRATE: &str = "crate";

/// Where cargo keeps what it compiles for the guest, and what it compiles to run itself: macros and build scripts.
const SIDES: [&str; 2] = [TARGET, ""];

/// What cargo keeps of a library: the library, what its build script said, and, last, what makes cargo believe in both.
const PARTS: [&str; 3] = ["deps", "build", ".fingerprint"];

/// Builds an author's own crate in `dir` to the file `out`, or to `out/NAME.wasm` where `out` is a folder.
///
/// The crate is a `cdylib` that uses `tenon-sdk`; its own workspace and lock file hold. Its name need not be unique, and
/// any number of processes may build at once.
pub fn build_dir(dir: &Path, out: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    ensure!(dir.join("Cargo.toml").is_file(), "no Cargo.toml in {}", dir.display());
    let toolchain = Toolchain::find()?;
    let room = Room::of(&toolchain, &dir)?;
    // Held to the end: what cargo has linked is read after cargo has let go of it.
    let _lock = Lock::take(&room.target_dir)?;
    let arguments: Vec<String> = std::iter::once("--profile=guest".to_owned()).chain(guest_profile()).collect();
    let module = cargo::build(&toolchain, room.sysroot.as_deref(), &dir, &room.target_dir, None, &arguments)?;
    let out = if out.is_dir() { out.join(format!("{}.wasm", module.name)) } else { out.to_owned() };
    finish(&module, &out)?;
    Ok(out)
}

/// Where one crate is compiled, and nothing else.
struct Room {
    sysroot: Option<PathBuf>,
    target_dir: PathBuf,
}

impl Room {
    fn of(toolchain: &Toolchain, dir: &Path) -> Result<Room> {
        let Ok(workspace) = Workspace::here() else {
            // This program has left its repository: there is nothing to share.
            let home = dir.join("target/wasm");
            let _lock = Lock::take(&home)?;
            let home = home.join(toolchain.key());
            return Ok(Room { sysroot: sysroot::prepare(toolchain, &home)?, target_dir: home.join("guests") });
        };
        let home = workspace.build_home();
        let _lock = Lock::take(&home)?;
        let home = home.join(toolchain.key());
        let sysroot = sysroot::prepare(toolchain, &home)?;
        let crates = home.join("crates");
        let target_dir = room_of(&crates, dir);
        if !target_dir.is_dir() {
            remove_abandoned(&crates)?;
            let libraries = workspace.libraries(toolchain, sysroot.as_deref(), &home)?;
            let unfinished = target_dir.with_extension("unfinished");
            remove(&unfinished)?;
            share(&libraries, &unfinished, &workspace.foreign_packages()?)?;
            fs::write(unfinished.join(CRATE), dir.as_os_str().as_encoded_bytes())?;
            // The folder appears under its name when it is complete, so its being there is proof enough.
            fs::rename(&unfinished, &target_dir).with_context(|| format!("naming {}", target_dir.display()))?;
        }
        Ok(Room { sysroot, target_dir })
    }
}

/// The folder in `crates` of the crate in `dir`.
fn room_of(crates: &Path, dir: &Path) -> PathBuf {
    crates.join(format!("{:016x}", digest(dir.as_os_str().as_encoded_bytes())))
}

/// Removes the folders in `crates` of crates that are no more, and those that were never finished.
fn remove_abandoned(crates: &Path) -> Result<()> {
    fs::create_dir_all(crates).with_context(|| format!("creating {}", crates.display()))?;
    for entry in fs::read_dir(crates)? {
        let room = entry?.path();
        // A name that is no text cannot be looked for; its room stays.
        let is_gone = |name: &[u8]| str::from_utf8(name).is_ok_and(|dir| !Path::new(dir).join("Cargo.toml").is_file());
        match fs::read(room.join(CRATE)) {
            Ok(name) if !is_gone(&name) => {}
            // Under the lock: whoever was about to finish it is not any more.
            _ => remove(&room)?,
        }
    }
    Ok(())
}

/// Gives the cargo folder `to` what the one at `from` holds of `packages`.
///
/// A package by path is none of them: cargo may name two by the same hash. Whatever else is missing here, or was left out
/// because a library is called otherwise than its package, cargo compiles.
fn share(from: &Path, to: &Path, packages: &BTreeSet<String>) -> Result<()> {
    let packages: BTreeSet<String> = packages.iter().map(|name| name.replace('-', "_")).collect();
    for side in SIDES {
        for part in PARTS {
            let place = Path::new(side).join("guest").join(part);
            fs::create_dir_all(to.join(&place))?;
            // Where a cargo lays its folder out otherwise, nothing is shared, and nothing else is lost.
            for entry in fs::read_dir(from.join(&place)).into_iter().flatten() {
                let name = entry?.file_name();
                if package_of(&name.to_string_lossy()).is_some_and(|name| packages.contains(&name)) {
                    copy(&from.join(&place).join(&name), &to.join(&place).join(&name))?;
                }
            }
        }
    }
    Ok(())
}

/// The package that the file or folder `name` is of, with `_` for `-`: `libserde_core-06adabfd8441a787.rlib`. None where
/// cargo has not put a hash into its name.
fn package_of(name: &str) -> Option<String> {
    const HASH_DIGITS: usize = 16;
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let (package, hash) = stem.rsplit_once('-')?;
    let is_hash = hash.len() == HASH_DIGITS && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    let is_library = name.contains('.') && !name.ends_with(".d");
    let package = if is_library { package.strip_prefix("lib").unwrap_or(package) } else { package };
    is_hash.then(|| package.replace('-', "_"))
}

/// Copies a file or a folder with the times of its files, by which cargo knows what is older than what. Libraries, which
/// are nearly all of it, become second names of the files that are there: rustc replaces a library, but never writes into
/// one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::metadata(from).with_context(|| format!("reading {}", from.display()))?;
    if metadata.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    let is_library = from.extension().is_some_and(|extension| extension == "rlib" || extension == "rmeta");
    if is_library && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let date = || File::options().write(true).open(to)?.set_modified(metadata.modified()?);
    fs::copy(from, to).and_then(|_| date()).with_context(|| format!("copying {}", from.display()))
}

/// The profile `guest` of the repository's manifest, for crates elsewhere. The same to the letter: cargo shares what it
/// has compiled only between equal profiles.
fn guest_profile() -> impl Iterator<Item = String> {
    const PROFILE: [&str; 11] = [
        r#"inherits="release""#,
        "opt-level=3",
        "lto=true",
        "codegen-units=1",
        r#"panic="abort""#,
        r#"strip="symbols""#,
        r#"package.serde_json.opt-level="z""#,
        r#"package.serde_core.opt-level="z""#,
        r#"package.zmij.opt-level="z""#,
        r#"package.itoa.opt-level="z""#,
        r#"package.memchr.opt-level="z""#,
    ];
    PROFILE.into_iter().map(|setting| format!("--config=profile.guest.{setting}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_elsewhere_get_the_profile_of_the_manifest() {
        let manifest = fs::read_to_string(crate::workspace::root().unwrap().join("Cargo.toml")).unwrap();
        let (_, guest) = manifest.split_once("[profile.guest]\n").unwrap();
        let said = guest.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with('['));
        let said: Vec<String> = said.map(|line| line.replace(' ', "")).collect();
        let own: Vec<String> = guest_profile()
            .map(|setting| setting.replace("--config=profile.guest.", "").replace("package.", ""))
            .collect();
        assert_eq!(own, said);
    }

    #[test]
    fn what_a_file_of_cargo_is_of_stands_before_its_hash() {
        let check = |name: &str, expected: Option<&str>| assert_eq!(package_of(name).as_deref(), expected, "{name}");
        check("libserde_core-06adabfd8441a787.rlib", Some("serde_core"));
        check("liblibc-06adabfd8441a787.rmeta", Some("libc"));
        check("libc-06adabfd8441a787.d", Some("libc"));
        check("libserde_derive-95fa039b70fd7364.so", Some("serde_derive"));
        check("wit-bindgen-0625a9919ca9dcf9", Some("wit_bindgen"));
        check("libc-0625a9919ca9dcf9", Some("libc"));
        check("token_bucket.wasm", None);
        check("libgreeter.rlib", None);
        check("greeter-2", None);
        check("CACHEDIR.TAG", None);
    }

    #[test]
    fn only_named_packages_are_shared_and_keep_their_times() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = |name: &str| {
            let path = from.join(TARGET).join("guest").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        };
        let shared = [
            "deps/libwit_bindgen-0625a9919ca9dcf9.rlib",
            ".fingerprint/wit-bindgen-0625a9919ca9dcf9/invoked.timestamp",
            "build/wit-bindgen-0625a9919ca9dcf9/out/a/b",
        ];
        let others = ["deps/libtenon_sdk-0625a9919ca9dcf9.rlib", "deps/wit_bindgen.wasm", "wit_bindgen.wasm"];
        shared.into_iter().chain(others).for_each(file);
        share(&from, &to, &BTreeSet::from(["wit-bindgen".to_owned()])).unwrap();
        let at = |root: &Path, name: &str| root.join(TARGET).join("guest").join(name);
        for name in shared {
            assert_eq!(fs::read_to_string(at(&to, name)).unwrap(), name);
            let changed = |root: &Path| fs::metadata(at(root, name)).unwrap().modified().unwrap();
            assert_eq!(changed(&to), changed(&from), "{name}");
        }
        for name in others {
            assert!(!at(&to, name).exists(), "{name}");
        }
    }

    #[test]
    fn a_room_goes_with_its_crate() {
        let dir = tempfile::tempdir().unwrap();
        let (crates, gone, kept) = (dir.path().join("crates"), dir.path().join("gone"), dir.path().join("kept"));
        for of in [&gone, &kept] {
            fs::create_dir_all(of).unwrap();
            fs::create_dir_all(room_of(&crates, of)).unwrap();
            fs::write(room_of(&crates, of).join(CRATE), of.as_os_str().as_encoded_bytes()).unwrap();
        }
        fs::write(kept.join("Cargo.toml"), "").unwrap();
        fs::create_dir_all(crates.join("0123456789abcdef.unfinished/deps")).unwrap();
        remove_abandoned(&crates).unwrap();
        assert!(!room_of(&crates, &gone).exists());
        assert!(room_of(&crates, &kept).exists());
        assert_eq!(fs::read_dir(&crates).unwrap().count(), 1);
    }
}
