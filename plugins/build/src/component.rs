//! Core module in, component out.

use anyhow::{Context, Result};
use wasm_metadata::{AddMetadata, AddMetadataField};
use wit_component::ComponentEncoder;

use crate::contract;

/// Name of the custom section that [`restamp`] adds.
const STAMP: &str = "tenon:stamp";

/// Makes a component of a core module that was linked against `tenon-sdk` (or any `wit-bindgen`), validates it and
/// checks it against the world of its kind.
pub fn encode(core: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default()
        .module(core)
        .context("reading the core module")?
        .validate(true)
        .encode()
        .context("encoding the component")?;
    contract::check(&component)?;
    Ok(component)
}

/// The same component, with name and version where tools look for them.
pub(crate) fn label(component: &[u8], name: &str, version: &str) -> Result<Vec<u8>> {
    let mut metadata = AddMetadata::default();
    metadata.name = AddMetadataField::Set(name.to_owned());
    let mut labelled = metadata.to_wasm(component).context("naming the component")?;
    push_custom_section(&mut labelled, "version", version.as_bytes());
    Ok(labelled)
}

/// The same component as other bytes: equal behaviour, another digest. It makes the "new version" of tests and demos.
///
/// `note` goes into a custom section, where nothing looks; the same note gives the same bytes.
pub fn restamp(component: &[u8], note: &str) -> Vec<u8> {
    let mut stamped = component.to_vec();
    push_custom_section(&mut stamped, STAMP, note.as_bytes());
    stamped
}

/// Appends a custom section, which both core modules and components allow at their end.
fn push_custom_section(wasm: &mut Vec<u8>, name: &str, content: &[u8]) {
    const CUSTOM: u8 = 0;
    let mut section = Vec::new();
    push_leb128(&mut section, name.len());
    section.extend_from_slice(name.as_bytes());
    section.extend_from_slice(content);
    wasm.push(CUSTOM);
    push_leb128(wasm, section.len());
    wasm.extend(section);
}

fn push_leb128(bytes: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_restamped_component_is_other_bytes_and_still_valid() {
        let component = fixture::idle("rate-limit-policy").unwrap();
        let first = restamp(&component, "1");
        let second = restamp(&component, &"2".repeat(300));
        assert_ne!(first, component);
        assert_ne!(first, second);
        assert_eq!(first, restamp(&component, "1"));
        contract::check(&first).unwrap();
        contract::check(&second).unwrap();
    }

    #[test]
    fn a_module_without_a_world_is_refused() {
        let empty_module = b"\0asm\x01\0\0\0";
        assert!(encode(empty_module).is_err());
        assert!(encode(b"text").is_err());
    }

    #[test]
    fn a_label_leaves_the_component_valid() {
        let component = fixture::idle("sync-strategy").unwrap();
        let labelled = label(&component, "a-name", "1.2.3").unwrap();
        contract::check(&labelled).unwrap();
        assert!(labelled.windows(6).any(|window| window == b"a-name"));
    }
}
