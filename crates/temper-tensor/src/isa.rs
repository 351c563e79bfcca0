//! Which vector instructions the kernels use: found out once at run time, and forced down by `TEMPER_ISA`.

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

    /// The name that `TEMPER_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
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
pub fn requested() -> Result<Isa> {
    match std::env::var_os("TEMPER_ISA") {
        None => Ok(detected()),
        Some(value) => parse(&value.to_string_lossy(), detected()),
    }
}

fn parse(value: &str, best: Isa) -> Result<Isa> {
    let found = Isa::ALL.into_iter().find(|isa| isa.name() == value);
    match found {
        Some(isa) if isa <= best => Ok(isa),
        _ => {
            let names: Vec<_> = Isa::ALL.into_iter().filter(|i| *i <= best).map(Isa::name).collect();
            Err(Error::Isa { value: value.into(), expected: names.join(", ") })
        }
    }
}

/// The level in use, found once; where [`requested`] fails, the highest level of this processor.
#[inline]
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| requested().unwrap_or_else(|_| detected()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_levels_up_to_the_processors_are_accepted() {
        assert_eq!(parse("portable", Isa::Portable), Ok(Isa::Portable));
        assert_eq!(parse("avx2", Isa::Avx512), Ok(Isa::Avx2));
        assert_eq!(parse("avx512", Isa::Avx512), Ok(Isa::Avx512));
    }

    #[test]
    fn others_are_refused_with_what_would_work() {
        for (value, best) in [("sse9", Isa::Avx512), ("avx512", Isa::Avx2), ("", Isa::Portable)] {
            let message = parse(value, best).expect_err("refused").to_string();
            assert!(message.contains(value) && message.contains("portable"), "{message}");
        }
    }
}
