//! Memory that the pool gives back is the system's again. A process of its own, whose size nothing else changes.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use temper_tensor::buf::{self, Buf};

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    pages.split(' ').nth(1).expect("resident").parse::<usize>().expect("a number") * 4096
}

#[test]
fn blocks_between_others_in_use_are_returned() {
    const FLOATS: usize = 1 << 20;
    // A large block that comes and goes raises the size from which glibc maps blocks by themselves, unless that is fixed.
    drop(Buf::zeros(6 * FLOATS));
    buf::trim();
    let mut kept = Vec::new();
    let blocks: Vec<Buf> = (0..16)
        .map(|_| {
            let block = Buf::zeros(FLOATS);
            kept.push(vec![1_u8; 200 << 10]);
            block
        })
        .collect();
    let before = resident();
    drop(blocks);
    buf::trim();
    let returned = before.saturating_sub(resident());
    assert!(returned > 15 * FLOATS * 4, "{returned} bytes were returned, {} blocks kept", kept.len());
}
