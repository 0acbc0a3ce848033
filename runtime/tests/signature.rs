//! Which components are taken by their signature, when a signature is looked at again, and what a restart with other keys
//! does to what worked before.

mod support;

use std::{fs, path::PathBuf, time::Duration};

use minisign::KeyPair;
use support::{Answer, Bed, Counter, Text, add, await_event, drain, names};
use tenon_runtime::{Change, Event, Host, HostConfig, PluginConfig, PluginFile, Slot, Stage, TrustedKey};

/// Somebody who signs.
struct Signer(KeyPair);

impl Signer {
    fn new() -> Signer {
        Signer(KeyPair::generate_unencrypted_keypair().expect("random numbers"))
    }

    fn key(&self) -> TrustedKey {
        self.0.pk.to_base64().parse().expect("a public key")
    }

    fn id(&self) -> String {
        self.key().id()
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        minisign::sign(None, &self.0.sk, bytes, None, None).expect("in memory").into_string().into_bytes()
    }
}

/// Only what one of `signers` signed.
fn require(signers: &[&Signer]) -> impl FnOnce(&mut HostConfig) {
    let trusted_keys = signers.iter().map(|signer| signer.key()).collect();
    move |config| (config.trusted_keys, config.require_signature) = (trusted_keys, true)
}

/// What one of `signers` signed, and what nobody signed.
fn accept(signers: &[&Signer]) -> impl FnOnce(&mut HostConfig) {
    let trusted_keys = signers.iter().map(|signer| signer.key()).collect();
    move |config| config.trusted_keys = trusted_keys
}

fn build(build: u32) -> Vec<u8> {
    Text::new("adder", build).counter()
}

/// Puts a component and its signature into the plugin directory, the signature first.
fn put_signed(bed: &Bed, bytes: &[u8], signature: &[u8]) {
    bed.put("adder.wasm.sig", signature);
    bed.put("adder.wasm", bytes);
}

fn signature_file(bed: &Bed) -> PathBuf {
    bed.plugins().join("adder.wasm.sig")
}

fn file(bed: &Bed) -> PluginFile {
    bed.host.plugins().remove(0)
}

/// Which build answers; 0 is the built-in.
fn answers(slot: &Slot<Counter>) -> u32 {
    match slot.decide(&1, &add(1, 0)) {
        Answer::Total { build, .. } => build,
        answer => panic!("{answer:?} does not say who gave it"),
    }
}

/// A counter slot in a host that has looked at its directory.
fn opened(bed: &Bed) -> Slot<Counter> {
    let slot = bed.counter(PluginConfig::plugin("adder"));
    bed.host.open();
    slot
}

/// Whether an event is a rejection for the signature, and its reason.
fn rejection(event: &Event) -> Option<&str> {
    match &event.change {
        Change::Rejected { stage: Stage::Signature, reason, .. } => Some(reason),
        _ => None,
    }
}

fn is_live(event: &Event) -> bool {
    matches!(event.change, Change::Live { .. })
}

#[test]
fn a_component_with_a_good_signature_goes_live_and_says_who_signed() {
    let (signer, other) = (Signer::new(), Signer::new());
    let bed = Bed::with(require(&[&other, &signer]));
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    let slot = opened(&bed);
    assert_eq!(answers(&slot), 1);
    assert_eq!((file(&bed).signed_by, file(&bed).rejection), (Some(signer.id()), None));
}

#[test]
fn whatever_is_wrong_with_a_signature_the_former_generation_serves_on() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let (bytes, good) = (build(2), signer.sign(&build(2)));
    let flipped = |bytes: &[u8], at: usize| {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        flipped
    };
    let second_line = good.iter().position(|byte| *byte == b'\n').expect("lines") + 1;
    type Case = (&'static str, Vec<u8>, Option<Vec<u8>>, &'static str);
    let cases: &[Case] = &[
        ("missing", bytes.clone(), None, "not signed"),
        ("a key that is not trusted", bytes.clone(), Some(stranger.sign(&bytes)), "which is not trusted"),
        (
            "a flipped bit of the component",
            flipped(&bytes, bytes.len() / 2),
            Some(good.clone()),
            "not one of these bytes",
        ),
        ("the signature of other bytes", bytes.clone(), Some(signer.sign(&build(1))), "not one of these bytes"),
        ("a flipped bit of the signature", bytes.clone(), Some(flipped(&good, second_line + 40)), "wanted"),
        ("a signature cut short", bytes.clone(), Some(good[..good.len() - 20].to_vec()), "no minisign signature"),
        ("no signature at all", bytes.clone(), Some(b"garbage".to_vec()), "expected 4 lines"),
        ("an empty signature", bytes.clone(), Some(Vec::new()), "expected 4 lines"),
        ("a large signature", bytes.clone(), Some([&good[..], &[b'\n'; 5_000]].concat()), "larger than 4096 bytes"),
    ];
    let bed = Bed::with(require(&[&signer]));
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    let slot = opened(&bed);
    assert_eq!(answers(&slot), 1);
    for (case, bytes, signature, expected) in cases {
        match signature {
            Some(signature) => put_signed(&bed, bytes, signature),
            None => {
                fs::remove_file(signature_file(&bed)).expect("away with it");
                bed.put("adder.wasm", bytes);
            }
        }
        bed.host.reload("counter").expect("what was good there is offered again");
        let PluginFile { rejection, signed_by, .. } = file(&bed);
        let rejection = rejection.unwrap_or_else(|| panic!("{case} was accepted"));
        assert_eq!((rejection.stage, signed_by), (Stage::Signature, None), "{case}: {rejection}");
        assert!(rejection.reason.contains(expected), "{case}: {rejection}");
        assert!(rejection.reason.contains(&format!("wanted key {}", signer.id())), "{case}: {rejection}");
        assert_eq!(answers(&slot), 1, "{case}");
    }
    assert!(file(&bed).digest.is_some());
    put_signed(&bed, &bytes, &good);
    bed.host.reload("counter").expect("right at last");
    assert_eq!(answers(&slot), 2);
}

#[test]
fn a_stranger_is_named() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let bed = Bed::with(require(&[&signer]));
    put_signed(&bed, &build(1), &stranger.sign(&build(1)));
    opened(&bed);
    let reason = file(&bed).rejection.expect("rejected").reason;
    assert_eq!(reason, format!("signed by key {}, which is not trusted; wanted key {}", stranger.id(), signer.id()));
}

#[test]
fn a_signature_that_arrives_later_makes_the_component_live_by_the_watch_alone() {
    let signer = Signer::new();
    let bed = Bed::with(|config| {
        require(&[&signer])(config);
        // Nothing but the watch can find it: no scan within the test, no quiet that ends.
        config.scan_interval = Duration::from_secs(86_400);
        config.quiet = Duration::from_secs(86_400);
    });
    let slot = opened(&bed);
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    bed.put("adder.wasm", &build(1));
    await_event(&mut events, |event| rejection(event).is_some_and(|reason| reason.contains(&signer.id())));
    assert_eq!(answers(&slot), 0);
    bed.put("adder.wasm.sig", &signer.sign(&build(1)));
    await_event(&mut events, is_live);
    assert_eq!(answers(&slot), 1);
}

#[test]
fn a_signature_written_in_place_is_taken_once_it_is_complete() {
    let signer = Signer::new();
    let bed = Bed::with(|config| {
        require(&[&signer])(config);
        config.scan_interval = Duration::from_millis(100);
    });
    let slot = opened(&bed);
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    bed.put("adder.wasm", &build(1));
    await_event(&mut events, |event| rejection(event).is_some());
    fs::write(signature_file(&bed), signer.sign(&build(1))).expect("writing");
    await_event(&mut events, is_live);
    assert_eq!(answers(&slot), 1);
}

#[test]
fn a_signature_replaced_or_removed_is_looked_at_anew() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let bed = Bed::with(|config| {
        require(&[&signer])(config);
        config.scan_interval = Duration::from_secs(86_400);
        config.quiet = Duration::from_secs(86_400);
    });
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    let slot = opened(&bed);
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    bed.put("adder.wasm.sig", &stranger.sign(&build(1)));
    let event = await_event(&mut events, |event| rejection(event).is_some());
    assert!(rejection(&event).is_some_and(|reason| reason.contains(&stranger.id())), "{event:?}");
    assert_eq!((event.slot.as_deref(), event.plugin.as_deref()), (Some("counter"), Some("adder")));
    fs::remove_file(signature_file(&bed)).expect("away with it");
    let event = await_event(&mut events, |event| rejection(event).is_some());
    assert!(rejection(&event).is_some_and(|reason| reason.starts_with("not signed")), "{event:?}");
    assert_eq!((answers(&slot), slot.generation()), (1, 1), "what was accepted serves on");
    bed.put("adder.wasm.sig", &signer.sign(&build(1)));
    while file(&bed).rejection.is_some() {
        std::thread::yield_now();
    }
    assert_eq!(file(&bed).signed_by, Some(signer.id()));
    assert_eq!((answers(&slot), slot.generation()), (1, 1), "the same bytes are the same generation");
}

#[test]
fn the_same_bytes_signed_by_another_trusted_key_stay_live() {
    let (former, latter) = (Signer::new(), Signer::new());
    let bed = Bed::with(require(&[&former, &latter]));
    put_signed(&bed, &build(1), &former.sign(&build(1)));
    let slot = opened(&bed);
    let mut events = bed.host.events();
    bed.put("adder.wasm.sig", &latter.sign(&build(1)));
    bed.host.reload("counter").expect("sound");
    assert_eq!(names(&drain(&mut events)), ["live"], "the reload's own, no rejection");
    assert_eq!((file(&bed).signed_by, answers(&slot)), (Some(latter.id()), 1));
    // The kept copy has the signature that holds now.
    let dirs = bed.shut_down();
    fs::remove_file(dirs.path().join("plugins/adder.wasm.sig")).expect("away with it");
    let bed = Bed::again(dirs, require(&[&latter]));
    assert_eq!(answers(&opened(&bed)), 1);
}

#[test]
fn where_signatures_are_not_required_a_missing_one_is_fine_and_a_wrong_one_is_not() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let bed = Bed::with(accept(&[&signer]));
    bed.put("adder.wasm", &build(1));
    let slot = opened(&bed);
    assert_eq!((answers(&slot), file(&bed).signed_by), (1, None));
    put_signed(&bed, &build(2), &stranger.sign(&build(2)));
    bed.host.reload("counter").expect("what was good there is offered again");
    assert_eq!(file(&bed).rejection.map(|rejection| rejection.stage), Some(Stage::Signature));
    assert_eq!(answers(&slot), 1);
    bed.put("adder.wasm.sig", &signer.sign(&build(2)));
    bed.host.reload("counter").expect("right at last");
    assert_eq!((answers(&slot), file(&bed).signed_by), (2, Some(signer.id())));
}

#[test]
fn without_keys_signatures_are_ignored() {
    let bed = Bed::new();
    put_signed(&bed, &build(1), b"garbage");
    let slot = opened(&bed);
    assert_eq!((answers(&slot), file(&bed).signed_by, file(&bed).rejection), (1, None, None));
}

#[test]
fn a_folder_in_the_place_of_a_signature_is_none() {
    let signer = Signer::new();
    let bed = Bed::with(require(&[&signer]));
    fs::create_dir(signature_file(&bed)).expect("a folder");
    bed.put("adder.wasm", &build(1));
    let slot = opened(&bed);
    assert_eq!(answers(&slot), 0);
    assert!(file(&bed).rejection.expect("rejected").reason.starts_with("not signed"));
}

#[test]
fn what_last_worked_serves_after_a_restart_only_while_its_signer_is_trusted() {
    let (signer, successor) = (Signer::new(), Signer::new());
    let bed = Bed::with(require(&[&signer]));
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    assert_eq!(answers(&opened(&bed)), 1);
    let dirs = bed.shut_down();
    fs::remove_file(dirs.path().join("plugins/adder.wasm.sig")).expect("away with it");
    fs::write(dirs.path().join("plugins/adder.wasm"), b"garbage").expect("writing");

    // The plugin directory has nothing sound: whatever serves is the host's own copy.
    let bed = Bed::again(dirs, require(&[&signer]));
    assert_eq!(answers(&opened(&bed)), 1, "the same keys");
    let bed = Bed::again(bed.shut_down(), require(&[&successor]));
    assert_eq!(answers(&opened(&bed)), 0, "another key");
    let bed = Bed::again(bed.shut_down(), accept(&[&successor]));
    assert_eq!(answers(&opened(&bed)), 0, "a wrong signature is wrong, required or not");
    let bed = Bed::again(bed.shut_down(), require(&[&successor, &signer]));
    assert_eq!(answers(&opened(&bed)), 1, "trusted again");
}

#[test]
fn what_was_taken_unsigned_does_not_serve_once_signatures_are_required() {
    let signer = Signer::new();
    let bed = Bed::new();
    // Signed, but nobody looked.
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    assert_eq!(answers(&opened(&bed)), 1);
    let dirs = bed.shut_down();
    fs::write(dirs.path().join("plugins/adder.wasm"), b"garbage").expect("writing");
    let bed = Bed::again(dirs, require(&[&signer]));
    assert_eq!(answers(&opened(&bed)), 0);
    let bed = Bed::again(bed.shut_down(), |_| {});
    assert_eq!(answers(&opened(&bed)), 1);
}

#[test]
fn what_last_served_a_slot_is_verified_again_too() {
    let (former, latter) = (Signer::new(), Signer::new());
    let bed = Bed::with(require(&[&former]));
    put_signed(&bed, &build(1), &former.sign(&build(1)));
    assert_eq!(answers(&opened(&bed)), 1);
    let dirs = bed.shut_down();
    // Sound but for its configuration: only the slot's own memory of what worked can help.
    let unwilling = Text { configure: 1, ..Text::new("adder", 2) }.counter();
    for (name, bytes) in [("adder.wasm", unwilling.clone()), ("adder.wasm.sig", latter.sign(&unwilling))] {
        support::put(&dirs.path().join("plugins"), name, &bytes);
    }
    let bed = Bed::again(dirs, require(&[&former, &latter]));
    assert_eq!(answers(&opened(&bed)), 1);
    let bed = Bed::again(bed.shut_down(), require(&[&latter]));
    assert_eq!(answers(&opened(&bed)), 0);
}

#[test]
fn a_changed_signature_of_a_kept_component_does_not_serve() {
    let signer = Signer::new();
    let bed = Bed::with(require(&[&signer]));
    put_signed(&bed, &build(1), &signer.sign(&build(1)));
    assert_eq!(answers(&opened(&bed)), 1);
    let digest = file(&bed).digest.expect("read");
    let dirs = bed.shut_down();
    fs::write(dirs.path().join("plugins/adder.wasm"), b"garbage").expect("writing");
    let kept = dirs.path().join(format!("state/components/{digest}.sig"));
    let mut signature = fs::read(&kept).expect("kept beside the component");
    let second_line = signature.iter().position(|byte| *byte == b'\n').expect("lines") + 1;
    signature[second_line + 40] ^= 1;
    fs::write(&kept, signature).expect("writing");
    let bed = Bed::again(dirs, require(&[&signer]));
    assert_eq!(answers(&opened(&bed)), 0);
}

#[test]
fn a_host_that_could_take_nothing_does_not_start() {
    let dirs = tempfile::tempdir().expect("a temporary directory");
    let mut config = HostConfig::new(dirs.path().join("plugins"), dirs.path().join("state"));
    config.require_signature = true;
    let error = Host::new(config).err().expect("no key is trusted");
    assert!(error.to_string().contains("without trusted_keys"), "{error}");
}
