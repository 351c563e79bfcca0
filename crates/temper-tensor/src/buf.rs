//! Pooled host memory: 64-byte aligned f32 buffers that return to free lists, so that a training step allocates
//! next to nothing after the first one.
#![allow(unsafe_code)] // raw allocation; every block stays initialised for its whole life

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::head::CHUNK_FLOATS;

const ALIGN: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
const F32: usize = size_of::<f32>();
/// Floats of a huge page.
const HUGE: usize = HUGE_PAGE / F32;
/// How much more than the peak use is kept in all.
const SLACK: usize = 64 << 20;

/// Bytes from which a block is mapped by itself.
const MAPPED: usize = 1 << 20;
/// Bytes of smaller blocks that the allocator may hold after they were given back.
const MOST_HELD: usize = 16 << 20;

/// Floats of the smallest buffer, 4 KiB.
const PAGE: usize = 1 << 10;
/// Floats up to which a buffer is small.
const SMALL: usize = 1 << 15;

/// A buffer of f32 from the pool; gives its memory back when dropped.
pub struct Buf {
    block: Block,
    len: usize,
}

/// Memory of one size class. The first `init` floats are initialised; nothing beyond has been touched.
struct Block {
    ptr: NonNull<f32>,
    cap: usize,
    init: usize,
}

// SAFETY: a block is owned memory with one owner, like a `Vec<f32>`.
unsafe impl Send for Block {}
// SAFETY: shared access only reads, as for a `Vec<f32>`.
unsafe impl Sync for Block {}

/// What the pool holds and has done, in bytes and counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers handed out so far.
    pub requests: u64,
    /// Requests that needed new memory from the system.
    pub allocations: u64,
    /// Bytes in buffers that are in use.
    pub live_bytes: usize,
    /// Bytes in free lists.
    pub free_bytes: usize,
    /// Largest `live_bytes` since the start or [`reset_peak`].
    pub peak_live_bytes: usize,
    /// Largest sum of live and free bytes since the start or [`reset_peak`].
    pub peak_bytes: usize,
    /// Bytes that were ever written in what is held; the rest is address space.
    pub touched_bytes: usize,
    /// Largest `touched_bytes` since the start or [`reset_peak`].
    pub peak_touched_bytes: usize,
}

#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, Vec<Block>>,
    stats: PoolStats,
    /// Bytes of small blocks that the allocator got back and may still hold.
    held: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), stats: PoolStats::ZERO, held: 0 });

/// Rows of the largest micro-batch to come.
static EXPECTED_ROWS: AtomicUsize = AtomicUsize::new(0);

/// Makes tensors of up to `rows` rows interchangeable: each is laid out in a block with room for `rows`, so that micro-batches
/// of different sizes find the blocks of the ones before. Room that no row has used yet costs address space only. 0 ends it.
pub fn expect_rows(rows: usize) {
    EXPECTED_ROWS.store(rows, Ordering::Relaxed);
}

/// Rows that a tensor of `rows` gets room for. Much smaller ones, such as a token of each sequence in decoding, stay as they are.
pub(crate) fn room(rows: usize) -> usize {
    let expected = EXPECTED_ROWS.load(Ordering::Relaxed);
    if (expected / 16..=expected).contains(&rows) { expected } else { rows }
}

/// The same for rows of `width` values that a product lays out anew. Wide ones are a chunk of logits, of which no micro-batch exists.
pub(crate) fn room_of(rows: usize, width: usize) -> usize {
    room(rows).min(rows.max(CHUNK_FLOATS / width.max(1)))
}

impl PoolStats {
    const ZERO: Self = Self {
        requests: 0,
        allocations: 0,
        live_bytes: 0,
        free_bytes: 0,
        peak_live_bytes: 0,
        peak_bytes: 0,
        touched_bytes: 0,
        peak_touched_bytes: 0,
    };
}

/// What the pool holds and has done.
pub fn stats() -> PoolStats {
    pool().stats
}

/// Starts the peaks afresh from what is held now.
pub fn reset_peak() {
    let stats = &mut pool().stats;
    stats.peak_live_bytes = stats.live_bytes;
    stats.peak_bytes = stats.live_bytes + stats.free_bytes;
    stats.peak_touched_bytes = stats.touched_bytes;
}

/// Gives all free memory back to the system, and forgets how much was in use at most.
pub fn trim() {
    pool().shrink(0);
    reset_peak();
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buf {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self::zeros_in(len, len)
    }

    /// `len` zeros with room for `room` floats.
    pub(crate) fn zeros_in(len: usize, room: usize) -> Self {
        let mut block = take(len, room);
        let dirty = block.init.min(len);
        // SAFETY: the first `init` floats are ours and initialised; `grow` initialises the rest up to `len`.
        unsafe { block.ptr.as_ptr().write_bytes(0, dirty) };
        block.grow(len);
        Self { block, len }
    }

    /// `len` values that are whatever an earlier user left; for outputs that are overwritten whole.
    pub fn dirty(len: usize) -> Self {
        Self::dirty_in(len, len)
    }

    /// The same with room for `room` floats.
    pub(crate) fn dirty_in(len: usize, room: usize) -> Self {
        let mut block = take(len, room);
        block.grow(len);
        Self { block, len }
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buf = Self::dirty(values.len());
        buf.copy_from_slice(values);
        buf
    }

    /// The same memory as 32-bit words, such as pairs of bf16.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: both types have four bytes, one alignment, and take every pattern of bits.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len) }
    }

    /// [`Buf::words`], to be written.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as for `words`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len) }
    }
}

impl Block {
    /// Initialises up to `len` floats with zeros where nothing was written yet.
    fn grow(&mut self, len: usize) {
        debug_assert!(len <= self.cap);
        if len > self.init {
            self.advise_huge_pages(len);
            // SAFETY: `init <= len <= cap`, so the range lies in our allocation.
            unsafe { self.ptr.as_ptr().add(self.init).write_bytes(0, len - self.init) };
            self.init = len;
        }
    }

    fn allocate(cap: usize) -> Self {
        map_large_blocks();
        let layout = layout(cap);
        // SAFETY: the layout has a non-zero size.
        let raw = unsafe { alloc(layout) };
        #[allow(clippy::cast_ptr_alignment)] // the layout asks for 64 bytes or more
        let Some(ptr) = NonNull::new(raw.cast::<f32>()) else { handle_alloc_error(layout) };
        let block = Self { ptr, cap, init: 0 };
        if cap >= HUGE {
            block.advise(0..cap, Pages::Small);
        }
        block
    }

    /// Asks for huge pages where half of a page or more is about to be written. Others would hold memory for room that nothing uses.
    fn advise_huge_pages(&self, len: usize) {
        let (from, to) = (self.init / HUGE, ((len + HUGE / 2) / HUGE).min(self.cap / HUGE));
        if to > from {
            self.advise(from * HUGE..to * HUGE, Pages::Huge);
        }
    }

    #[cfg(target_os = "linux")]
    fn advise(&self, floats: std::ops::Range<usize>, pages: Pages) {
        let advice = if pages == Pages::Huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range lies in our own allocation and begins at a huge page; the call only gives advice and its failure is harmless.
        unsafe { libc::madvise(self.ptr.as_ptr().add(floats.start).cast(), floats.len() * F32, advice) };
    }

    #[cfg(not(target_os = "linux"))]
    fn advise(&self, _floats: std::ops::Range<usize>, _pages: Pages) {}

    fn release(self) {
        // SAFETY: allocated by `allocate` with the same layout, and owned.
        unsafe { dealloc(self.ptr.as_ptr().cast(), layout(self.cap)) };
    }
}

/// What a block is asked to lie in. A system that is set to use huge pages everywhere does so unless asked not to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Small,
    Huge,
}

fn layout(cap: usize) -> Layout {
    let bytes = cap * F32;
    let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
    Layout::from_size_align(bytes, align).unwrap_or_else(|_| capacity_overflow(cap))
}

#[cold]
fn capacity_overflow(len: usize) -> ! {
    panic!("a buffer of {len} floats does not fit the address space")
}

/// Has blocks of [`MAPPED`] bytes or more mapped by themselves, so that those given back are the system's again. Left alone, glibc moves the
/// limit up to the largest block that was ever freed (32 MiB at most), and keeps what lies between others that are in use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn map_large_blocks() {
    static ONCE: Once = Once::new();
    // SAFETY: the call sets a limit of the allocator, and its failure is harmless.
    ONCE.call_once(|| unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED as libc::c_int);
    });
}

/// Has the allocator return the pages of smaller blocks that were freed. Left alone, it keeps those below any block in use: the pages of
/// a cache of keys and values, while a step trains.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn return_small_blocks() {
    // SAFETY: the call takes no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn map_large_blocks() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_small_blocks() {}

/// The capacity of the size class that holds `len` floats: powers of two for small ones, whose sizes change with every sequence,
/// then eight classes to each power of two. What is not used costs address space only.
fn class(len: usize) -> usize {
    if len > isize::MAX as usize / (2 * F32) {
        capacity_overflow(len);
    }
    if len <= SMALL {
        return len.next_power_of_two().max(PAGE);
    }
    let step = len.next_power_of_two() / 16;
    len.div_ceil(step) * step
}

/// A block with room for `room` floats or more, of which `len` are about to be written.
fn take(len: usize, room: usize) -> Block {
    let class = class(len.max(room));
    let mut pool = pool();
    pool.stats.requests += 1;
    let block = pool.reuse(class);
    let cap = block.as_ref().map_or(class, |b| b.cap);
    if block.is_none() {
        pool.make_room(class * F32);
        pool.stats.allocations += 1;
    }
    pool.stats.live_bytes += cap * F32;
    pool.stats.touched_bytes += len.saturating_sub(block.as_ref().map_or(0, |b| b.init)) * F32;
    pool.note_peak();
    drop(pool);
    block.unwrap_or_else(|| Block::allocate(class))
}

impl Pool {
    /// A free block of this class or of one at most a quarter larger.
    fn reuse(&mut self, class: usize) -> Option<Block> {
        let (&cap, list) = self.free.range_mut(class..=class + class / 4).find(|(_, list)| !list.is_empty())?;
        let block = list.pop();
        self.stats.free_bytes -= cap * F32;
        block
    }

    /// Gives free blocks back, so that the pool never holds much more than was ever in use at one time.
    fn make_room(&mut self, bytes: usize) {
        let peak = self.stats.peak_live_bytes.max(self.stats.live_bytes + bytes);
        let limit = peak + SLACK;
        self.shrink(limit.saturating_sub(self.stats.live_bytes + bytes));
    }

    fn shrink(&mut self, keep_bytes: usize) {
        while self.stats.free_bytes > keep_bytes {
            let Some(mut largest) = self.free.last_entry() else { break };
            match largest.get_mut().pop() {
                Some(block) => {
                    self.stats.free_bytes -= block.cap * F32;
                    self.stats.touched_bytes -= block.init * F32;
                    self.held += if block.cap * F32 < MAPPED { block.init * F32 } else { 0 };
                    block.release();
                }
                None => drop(largest.remove()),
            }
        }
        if self.held > MOST_HELD {
            self.held = 0;
            return_small_blocks();
        }
    }

    fn note_peak(&mut self) {
        let stats = &mut self.stats;
        stats.peak_live_bytes = stats.peak_live_bytes.max(stats.live_bytes);
        stats.peak_bytes = stats.peak_bytes.max(stats.live_bytes + stats.free_bytes);
        stats.peak_touched_bytes = stats.peak_touched_bytes.max(stats.touched_bytes);
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let block = Block { ptr: self.block.ptr, cap: self.block.cap, init: self.block.init };
        let mut pool = pool();
        pool.stats.live_bytes -= block.cap * F32;
        pool.stats.free_bytes += block.cap * F32;
        pool.free.entry(block.cap).or_default().push(block);
    }
}

impl Deref for Buf {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        // SAFETY: the first `len <= init` floats are initialised and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.block.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr.as_ptr(), self.len) }
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} f32)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed_even_after_reuse() {
        for len in [0, 1, 15, 16, 17, 1000, 700_001] {
            let mut buf = Buf::zeros(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
            buf.fill(7.0);
            drop(buf);
            assert!(Buf::zeros(len).iter().all(|x| *x == 0.0));
        }
    }

    #[test]
    fn classes_waste_at_most_an_eighth_of_what_is_large() {
        for len in (1..500_000).step_by(97) {
            let c = class(len);
            assert!(c >= len && c.is_multiple_of(16), "{len} -> {c}");
            assert!(if len > SMALL { c - len <= len / 8 } else { c < 2 * len.max(PAGE) }, "{len} -> {c}");
            assert_eq!(class(c), c);
        }
    }

    #[test]
    fn a_second_round_allocates_nothing() {
        // Sizes that no other test uses, because the pool is shared by all of them.
        let sizes = [3_000_017, 2_100_011, 2_600_003];
        let round = || drop(sizes.map(Buf::dirty));
        round();
        let pointers = sizes.map(|s| class(s) * F32);
        let before = stats();
        assert!(before.free_bytes >= pointers.iter().sum::<usize>());
        assert!(before.peak_bytes >= before.live_bytes);
        let kept: Vec<_> = sizes.map(Buf::dirty).into();
        assert!(kept.iter().all(|b| b.block.init >= b.len));
    }

    #[test]
    fn room_is_for_micro_batches_and_not_for_single_rows() {
        expect_rows(1000);
        assert_eq!([1, 61, 62, 999, 1000, 1001].map(room), [1, 61, 1000, 1000, 1000, 1001]);
        expect_rows(0);
        assert_eq!([0, 7].map(room), [0, 7]);
        let buf = Buf::zeros_in(100, 5000);
        assert!(buf.len() == 100 && buf.block.cap >= 5000 && buf.block.init == 100);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))] // pages of 4 KiB
    fn room_that_nothing_uses_takes_no_memory() {
        let mut buf = Buf::zeros_in(100, 11 << 20);
        let resident = |buf: &Buf| {
            let mut pages = vec![0; buf.block.cap * F32 / 4096];
            // SAFETY: the range is the block's, and there is a byte for each of its pages.
            let rc = unsafe { libc::mincore(buf.block.ptr.as_ptr().cast(), buf.block.cap * F32, pages.as_mut_ptr()) };
            assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
            pages.iter().filter(|page| **page & 1 == 1).count() * 4096
        };
        assert!(resident(&buf) <= 16 << 12, "{} bytes for 100 floats", resident(&buf));
        let len = 5 << 19; // five huge pages
        buf.block.grow(len + 7);
        assert!((len * F32..=len * F32 + (16 << 12)).contains(&resident(&buf)), "{} bytes", resident(&buf));
    }

    #[test]
    fn clones_are_copies() {
        let a = Buf::from_slice(&[1.0, 2.0, 3.0]);
        let mut b = a.clone();
        b[0] = 9.0;
        assert_eq!((&*a, &*b), (&[1.0, 2.0, 3.0][..], &[9.0, 2.0, 3.0][..]));
    }

    #[test]
    fn the_pool_works_from_many_threads() {
        std::thread::scope(|scope| {
            for t in 0..4_u16 {
                scope.spawn(move || {
                    for len in 1..300_usize {
                        let mut buf = Buf::dirty(len * 7);
                        buf.fill(f32::from(t));
                        assert!(buf.iter().all(|x| *x == f32::from(t)));
                    }
                });
            }
        });
    }
}
