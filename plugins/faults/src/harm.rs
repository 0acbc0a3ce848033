//! What a guest can do to its instance. Shared by the three fault plugins, which cannot link one another: each exports
//! its own world.

use std::hint::black_box;

use tenon_sdk::log;

/// Lines that [`flood_log`] writes.
pub const LINES: u32 = 20_000;

/// Never returns, and uses all the time there is.
pub fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// Takes memory, and uses it, until there is no more.
pub fn hoard() -> ! {
    const PIECE_BYTES: usize = 1 << 20;
    let mut pieces = Vec::new();
    loop {
        pieces.push(black_box(vec![1_u8; PIECE_BYTES]));
    }
}

/// Calls itself until the stack ends.
pub fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    // Never false; but the compiler must not know.
    if black_box(true) { recurse(frame[0] + 1) + frame[1] } else { 0 }
}

/// Writes far more lines than anybody reads.
pub fn flood_log() {
    for line in 0..LINES {
        log::info!("line {line} of {LINES}");
    }
}
