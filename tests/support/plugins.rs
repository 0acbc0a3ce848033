//! A plugin host with real components.

use std::path::Path;

use tenon_runtime::{Host, HostConfig};

/// A host whose plugin directory, below `dir`, holds the named components.
pub fn host(dir: &Path, plugins: &[&str]) -> Host {
    let folder = dir.join("plugins");
    std::fs::create_dir_all(&folder).unwrap();
    for name in plugins {
        std::fs::copy(tenon_build::path(name), folder.join(format!("{name}.wasm"))).unwrap();
    }
    Host::new(HostConfig::new(folder, dir.join("state"))).unwrap()
}
