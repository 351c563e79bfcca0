//! Memory that the pool gives back is the system's again. A process of its own, whose size nothing else changes.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use temper_tensor::buf::{self, Buf};

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    pages.split(' ').nth(1).expect("resident").parse::<usize>().expect("a number") * 4096
}

/// One test, since both look at the process.
#[test]
fn blocks_between_others_in_use_are_returned() {
    // As large as a matrix, and as small as a page of keys.
    for (floats, count) in [(1 << 20, 16), (12 << 10, 1400)] {
        returns(floats, count);
    }
}

fn returns(floats: usize, count: usize) {
    // A large block that comes and goes raises the size from which glibc maps blocks by themselves, unless that is fixed.
    drop(Buf::zeros(6 << 20));
    buf::trim();
    let mut kept = Vec::new();
    let blocks: Vec<Buf> = (0..count)
        .map(|_| {
            let block = Buf::zeros(floats);
            kept.push(vec![1_u8; 8 << 10]);
            block
        })
        .collect();
    let before = resident();
    drop(blocks);
    buf::trim();
    let returned = before.saturating_sub(resident());
    assert!(returned > count * floats * 4 / 16 * 15, "{returned} bytes of {floats} floats, {} blocks kept", kept.len());
}
