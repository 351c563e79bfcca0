//! Which vector instructions the kernels use: found out once at run time, and forced down by `TEMPER_ISA`.
#![allow(unsafe_code)] // asks the processor and the kernel for tiles

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Instruction-set levels. Bits of results are reproducible within one level, and differ between levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the build target guarantees; multiplies and adds are rounded separately.
    Portable,
    /// AVX2 and FMA: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
}

impl Isa {
    /// All levels, lowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// How products of bf16 matrices are computed; with tiles, those of f32 matrices too. Each way has its own order of additions
/// (see [`crate::gemm`] and [`crate::gemm::bf16`]), so that results are reproducible within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dot {
    /// By the f32 multiply-adds of [`isa`], on values widened on the way: right everywhere; products are no faster than
    /// in f32 unless weights come from memory. The bits are
    /// those of `Avx512`, unless a product or sum falls below the normal range.
    Fma,
    /// By `vdpbf16ps`.
    Avx512,
    /// By the tiles of AMX-BF16.
    Amx,
}

impl Dot {
    /// The name: that of the instructions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fma => "fma",
            Self::Avx512 => "avx512bf16",
            Self::Amx => "amx",
        }
    }
}

/// The levels in `TEMPER_ISA`, lowest first: a name, the f32 kernels and the way of bf16 products.
const LEVELS: [(&str, Isa, Dot); 5] = [
    ("portable", Isa::Portable, Dot::Fma),
    ("avx2", Isa::Avx2, Dot::Fma),
    ("avx512", Isa::Avx512, Dot::Fma),
    ("avx512bf16", Isa::Avx512, Dot::Avx512),
    ("amx", Isa::Avx512, Dot::Amx),
];

/// The best way of bf16 products that this processor offers and the operating system allows.
pub fn detected_dot() -> Dot {
    static BEST: OnceLock<Dot> = OnceLock::new();
    *BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if detected() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16") {
            return if amx::allowed() { Dot::Amx } else { Dot::Avx512 };
        }
        Dot::Fma
    })
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    /// Leaf 7 of cpuid, register edx: AMX-BF16 and AMX-TILE (Intel SDM, volume 2A).
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    /// Tile configuration and tile data in XCR0.
    const STATE: u64 = 1 << 17 | 1 << 18;
    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, 18)` lets all threads of the process use tile data (Linux 5.16).
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: the function is compiled for the instruction.
        unsafe { _xgetbv(0) }
    }

    /// Whether the processor has bf16 tiles and the kernel lets this process use them.
    #[allow(unused_unsafe)] // cpuid became safe in a later release
    pub(super) fn allowed() -> bool {
        // SAFETY: every 64-bit processor has the instruction.
        let has = unsafe { __cpuid_count(7, 0).edx } & FEATURES == FEATURES;
        if !has || !is_x86_feature_detected!("xsave") {
            return false;
        }
        // SAFETY: the feature was detected.
        if unsafe { enabled_state() } & STATE != STATE {
            return false;
        }
        // SAFETY: the call changes nothing but the process's permission.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
mod amx {
    /// How to ask for tiles is known here for Linux alone.
    pub(super) fn allowed() -> bool {
        false
    }
}

/// The highest level that this processor offers.
pub fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (true, true) => Isa::Avx512,
            (true, false) => Isa::Avx2,
            _ => Isa::Portable,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Isa::Portable
}

/// The level that the kernels use: that of `TEMPER_ISA` if it is set, else the highest one.
///
/// Fails when `TEMPER_ISA` holds no known level or one that this processor lacks; programs call this once at start.
pub fn requested() -> Result<(Isa, Dot)> {
    let best = (detected(), detected_dot());
    match std::env::var_os("TEMPER_ISA") {
        None => Ok(best),
        Some(value) => parse(&value.to_string_lossy(), best),
    }
}

fn parse(value: &str, best: (Isa, Dot)) -> Result<(Isa, Dot)> {
    let offered = || LEVELS.iter().filter(|(_, isa, dot)| *isa <= best.0 && *dot <= best.1);
    if let Some((_, isa, dot)) = offered().find(|(name, ..)| *name == value) {
        return Ok((*isa, *dot));
    }
    let names: Vec<_> = offered().map(|(name, ..)| *name).collect();
    Err(Error::Isa { value: value.into(), expected: names.join(", ") })
}

/// What is in use, found once; where [`requested`] fails, the highest levels of this processor.
fn in_use() -> (Isa, Dot) {
    static LEVEL: OnceLock<(Isa, Dot)> = OnceLock::new();
    *LEVEL.get_or_init(|| requested().unwrap_or_else(|_| (detected(), detected_dot())))
}

/// The level of the f32 kernels in use.
#[inline]
pub fn isa() -> Isa {
    in_use().0
}

/// The way of bf16 products in use.
#[inline]
pub fn dot() -> Dot {
    in_use().1
}

/// Whether products of quantised blocks run on `vpdpbusd`, on processors that have it at the highest level of [`isa`]. Their bits are
/// the same without.
#[cfg(target_arch = "x86_64")]
pub(crate) fn vnni() -> bool {
    isa() == Isa::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// The name of what f32 products run on: tiles, or the multiply-adds of [`isa`]. Their bits differ.
pub fn f32_products() -> &'static str {
    if dot() == Dot::Amx { Dot::Amx.name() } else { isa().name() }
}

/// Compiles one `#[inline(always)]` body, generic over a constant `FMA: bool`, for every level and dispatches to it.
///
/// `multiversion! { /// docs  pub fn name(a: &[f32], b: &mut [f32]) -> f32 = body, name_at; }` makes `name`, which runs
/// at the level of [`isa`], and `name_at`, which takes the level as its first argument. A level above the
/// detected one must not be passed.
macro_rules! multiversion {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident, $at:ident;)+) => {$(
        $(#[$meta])*
        #[inline]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            $at($crate::isa::isa(), $($arg),*)
        }

        #[doc = concat!("[`", stringify!($name), "`] at a given level, which the processor must offer.")]
        #[inline]
        #[allow(unsafe_code)] // calls a function compiled for instructions that were detected
        pub(crate) fn $at(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match isa {
                    // SAFETY: levels come from `isa()` or from a test that asked `detected()`, so the processor has
                    // the instructions.
                    $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable => {}
                }
            }
            let _ = isa;
            $body::<false>($($arg),*)
        }
    )+};
}
pub(crate) use multiversion;

/// `a * b + c`, fused where the level has the instruction, else rounded twice.
#[inline(always)]
#[allow(clippy::inline_always)] // part of bodies that are compiled for every level
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
pub(crate) fn levels() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|i| *i <= detected()).collect()
}

/// Every pair of levels that bf16 products can run at here.
#[cfg(test)]
pub(crate) fn dot_levels() -> Vec<(Isa, Dot)> {
    let offered = LEVELS.iter().filter(|(_, isa, dot)| *isa <= detected() && *dot <= detected_dot());
    offered.map(|(_, isa, dot)| (*isa, *dot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_levels_up_to_the_processors_are_accepted() {
        assert_eq!(parse("portable", (Isa::Portable, Dot::Fma)), Ok((Isa::Portable, Dot::Fma)));
        assert_eq!(parse("avx2", (Isa::Avx512, Dot::Fma)), Ok((Isa::Avx2, Dot::Fma)));
        assert_eq!(parse("avx512", (Isa::Avx512, Dot::Amx)), Ok((Isa::Avx512, Dot::Fma)));
        assert_eq!(parse("avx512bf16", (Isa::Avx512, Dot::Amx)), Ok((Isa::Avx512, Dot::Avx512)));
        assert_eq!(parse("amx", (Isa::Avx512, Dot::Amx)), Ok((Isa::Avx512, Dot::Amx)));
    }

    #[test]
    fn others_are_refused_with_what_would_work() {
        let cases = [
            ("sse9", Isa::Avx512, Dot::Amx),
            ("avx512", Isa::Avx2, Dot::Fma),
            ("amx", Isa::Avx512, Dot::Avx512),
            ("", Isa::Portable, Dot::Fma),
        ];
        for (value, isa, dot) in cases {
            let message = parse(value, (isa, dot)).expect_err("refused").to_string();
            assert!(message.contains(value) && message.contains("portable"), "{message}");
        }
    }
}
