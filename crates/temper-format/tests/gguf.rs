//! Round trips of GGUF files, and hostile ones.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use temper_format::{ArrayData, ArrayInfo, ArrayRef, ArraySource, DType, Error, Gguf, GgufValue, write_gguf};

/// A header built field by field, right or wrong.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, arrays: u64, metadata: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(arrays).u64(metadata)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// Describes an array in ggml's order of axes.
    fn array(self, name: &str, axes: &[u64], kind: u32, offset: u64) -> Self {
        let with_axes = axes.iter().fold(self.text(name).u32(axes.len() as u32), |raw, &axis| raw.u64(axis));
        with_axes.u32(kind).u64(offset)
    }

    fn data(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }

    fn open(&self) -> Result<Gguf, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostile.gguf");
        fs::write(&path, &self.0).unwrap();
        Gguf::open(&path)
    }

    /// Opening fails, and the message names the file and says each of `expect`.
    fn check(self, expect: &[&str]) {
        let text = self.open().unwrap_err().to_string();
        for part in ["hostile.gguf"].iter().chain(expect) {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        assert!(text.len() < 1000, "too long: {text}");
    }
}

#[test]
fn hostile_beginnings() {
    Raw::default().check(&["the header", "at most 0"]);
    Raw(b"GGU".to_vec()).check(&["the header"]);
    Raw(b"PK\x03\x04........".to_vec()).check(&["PK\\x03\\x04", "expected `GGUF`"]);
    Raw::new(1, 0, 0).check(&["GGUF version 1"]);
    Raw::new(4, 0, 0).check(&["GGUF version 4"]);
    Raw::new(3u32.swap_bytes(), 0, 0).check(&["big-endian GGUF version 3"]);
    Raw::new(3, u64::MAX, 0).check(&["the number of arrays", "a count of 18446744073709551615"]);
    Raw::new(3, 1 << 60, 0).check(&["the number of arrays"]);
    Raw::new(3, 0, 1 << 40).check(&["the number of metadata entries"]);
    Raw::new(2, 0, 0).open().unwrap();
}

#[test]
fn hostile_metadata() {
    let one = || Raw::new(3, 0, 1);
    let keyed = || one().text("k");
    one().u64(u64::MAX).bytes(&[0; 64]).check(&["the key of metadata entry 0", "18446744073709551615 bytes long"]);
    one().u64(2).bytes(&[0xff, 0xfe]).bytes(&[0; 16]).check(&["not UTF-8"]);
    keyed().u32(13).u64(0).check(&["metadata `k`", "kind 13"]);
    keyed().u32(7).bytes(&[2]).bytes(&[0; 8]).check(&["metadata `k`", "Boolean of 2"]);
    keyed().u32(8).u64(1 << 50).check(&["metadata `k`", "bytes long"]);
    keyed().u32(8).text("ab\u{7f}").open().unwrap();
    keyed().u32(8).u64(1).bytes(&[0x80]).check(&["metadata `k`", "not UTF-8"]);
    keyed().u32(9).u32(0).u64(1 << 62).check(&["metadata `k`", "a count of"]);
    keyed().u32(9).u32(12).u64(1 << 62).check(&["metadata `k`", "a count of"]);
    keyed().u32(9).u32(99).u64(0).check(&["kind 99"]);
    keyed().u32(9).u32(4).u64(3).u32(1).u32(2).check(&["a count of 3", "at most 2"]);
    let twice = Raw::new(3, 0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(2);
    twice.check(&["metadata `k`", "given twice"]);
    keyed().u32(10).bytes(&[0; 4]).check(&["metadata `k`"]);
    Raw::new(3, 0, 1).text("split.count").u32(2).bytes(&[3, 0]).check(&["split over 3 files", "merge"]);
}

#[test]
fn hostile_nesting() {
    let nested = |levels: u32| {
        let start = Raw::new(3, 0, 1).text("k");
        let open = (0..levels - 1).fold(start.u32(9), |raw, _| raw.u32(9).u64(1));
        open.u32(4).u64(1).u32(7)
    };
    let value = nested(4).open().unwrap().metadata("k").unwrap().clone();
    let inner = |v: &GgufValue| v.as_array().unwrap()[0].clone();
    assert_eq!(inner(&inner(&inner(&inner(&value)))), GgufValue::U32(7));
    nested(5).check(&["metadata `k`", "too deep"]);
    nested(100_000).check(&["metadata `k`", "too deep"]);
}

/// One byte each in the file would be 24 each in memory.
#[test]
fn hostile_amplification() {
    let count = (1u64 << 24) + 1;
    let raw = Raw::new(3, 0, 1).text("k").u32(9).u32(0).u64(count).data(count as usize);
    raw.check(&["16777217 more values", "at most 16777216"]);
    let empty = Raw::new(3, 0, 1).text("k").u32(9).u32(9).u64(2_000_000).data(2_000_000 * 12);
    assert_eq!(empty.open().unwrap().metadata("k").unwrap().as_array().unwrap().len(), 2_000_000);
}

#[test]
fn hostile_alignment() {
    for bad in [0u32, 3, 48, 1 << 31] {
        Raw::new(3, 0, 1).text("general.alignment").u32(4).u32(bad).check(&["general.alignment", "power of two"]);
    }
    Raw::new(3, 0, 1).text("general.alignment").u32(8).text("32").check(&["general.alignment"]);
    let aligned = Raw::new(3, 1, 1).text("general.alignment").u32(4).u32(8);
    // The data starts at the next multiple of 8 after 32 + 21 + 4 + 4 + 33 bytes.
    let raw = aligned.array("a", &[1], 0, 0);
    let pad = raw.0.len().next_multiple_of(8) - raw.0.len();
    let gguf = raw.bytes(&vec![0; pad]).bytes(&2.5f32.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    fs::write(&path, &gguf.0).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().read_f32("a").unwrap(), [2.5]);
}

#[test]
fn hostile_arrays() {
    let one = |axes: &[u64], kind, offset| Raw::new(3, 1, 0).array("a", axes, kind, offset);
    one(&[8], 0, 0).data(32).open().unwrap();
    one(&[8], 0, 0).data(31).check(&["the place of `a`", "32 bytes at offset 0", "31 bytes of data"]);
    one(&[8], 0, 0).check(&["the place of `a`", "truncated"]);
    one(&[8], 0, 8).data(64).check(&["the place of `a`", "offset 8", "multiple of 32"]);
    one(&[8], 0, u64::MAX - 31).data(64).check(&["the place of `a`", "truncated"]);
    one(&[1 << 40, 1 << 40], 0, 0).data(64).check(&["`a`", "addressed"]);
    one(&[u64::MAX], 24, 0).data(64).check(&["`a`", "addressed"]);
    one(&[u64::MAX, 0], 0, 0).data(64).open().unwrap();
    one(&[33], 8, 0).data(64).check(&["`a`", "Q8_0 [33]", "multiple of 32"]);
    one(&[1, 32], 2, 0).data(64).check(&["`a`", "Q4_0 [32, 1]"]);
    one(&[1], 4, 0).data(64).check(&["`a`", "ggml type 4"]);
    one(&[1], u32::MAX, 0).data(64).check(&["`a`", "ggml type 4294967295"]);
    one(&[1; 5], 0, 0).data(64).check(&["`a`", "5 axes"]);
    Raw::new(3, 1, 0).text("a").u32(u32::MAX).bytes(&[0; 64]).check(&["`a`", "4294967295 axes"]);
    Raw::new(3, 1, 0).text("a").u32(4).bytes(&[1; 8]).check(&["`a`", "8 bytes long"]);
    Raw::new(3, 1, 0).u64(1 << 63).bytes(&[0; 64]).check(&["the name of array 0"]);
    let two = |b, offset| Raw::new(3, 2, 0).array("a", &[16], 0, 0).array(b, &[16], 0, offset).data(128);
    two("b", 64).open().unwrap();
    two("a", 64).check(&["`a`", "described twice"]);
    two("b", 32).check(&["the place of `b`", "from 64 on"]);
    two("b", 0).check(&["the place of `b`"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let metadata = BTreeMap::from([("k".to_string(), GgufValue::Array(vec![GgufValue::String("x".into())]))]);
    let array = ArrayRef { name: "a", dtype: DType::F32, shape: &[8], data: ArrayData::F32(&[1.0; 8]) };
    write_gguf(&path, &metadata, &[array]).unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(Gguf::open(&path).is_err(), "{len}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    fs::write(&path, "old").unwrap();
    let array = |name, dtype, shape, data| ArrayRef { name, dtype, shape, data };
    let good = array("a", DType::F32, &[1], ArrayData::F32(&[1.0]));
    for (arrays, expect) in [
        (vec![array("a", DType::F32, &[2], ArrayData::F32(&[1.0]))], "1 values"),
        (vec![array("a", DType::Q8_0, &[16], ArrayData::F32(&[1.0; 16]))], "whole blocks"),
        (vec![array("a", DType::Q4_0, &[32], ArrayData::F32(&[f32::NAN; 32]))], "finite"),
        (vec![array("a", DType::Bool, &[1], ArrayData::Bytes(&[1]))], "type BOOL"),
        (vec![array("a", DType::F32, &[1; 5], ArrayData::F32(&[1.0]))], "5 axes"),
        (vec![array("a", DType::I8, &[usize::MAX], ArrayData::Bytes(&[]))], "addressed"),
        (vec![good, good], "already taken"),
    ] {
        let text = write_gguf(&path, &BTreeMap::new(), &arrays).unwrap_err().to_string();
        assert!(text.contains(expect) && text.contains("a.gguf"), "{expect}: {text}");
    }
    let mixed = GgufValue::Array(vec![GgufValue::U8(1), GgufValue::Bool(true)]);
    let text = write_gguf(&path, &BTreeMap::from([("k".into(), mixed)]), &[]).unwrap_err().to_string();
    assert!(text.contains("mixed"), "{text}");
    let bad = BTreeMap::from([("general.alignment".to_string(), GgufValue::U32(3))]);
    assert!(write_gguf(&path, &bad, &[]).unwrap_err().to_string().contains("power of two"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

fn scalar() -> impl Strategy<Value = GgufValue> {
    prop_oneof![
        any::<u8>().prop_map(GgufValue::U8),
        any::<i8>().prop_map(GgufValue::I8),
        any::<u16>().prop_map(GgufValue::U16),
        any::<i16>().prop_map(GgufValue::I16),
        any::<u32>().prop_map(GgufValue::U32),
        any::<i32>().prop_map(GgufValue::I32),
        any::<u64>().prop_map(GgufValue::U64),
        any::<i64>().prop_map(GgufValue::I64),
        any::<f32>().prop_filter("comparable", |v| !v.is_nan()).prop_map(GgufValue::F32),
        any::<f64>().prop_filter("comparable", |v| !v.is_nan()).prop_map(GgufValue::F64),
        any::<bool>().prop_map(GgufValue::Bool),
        ".{0,12}".prop_map(GgufValue::String),
    ]
}

fn value() -> impl Strategy<Value = GgufValue> {
    let list = || (scalar(), 0..5usize).prop_map(|(v, n)| GgufValue::Array(vec![v; n]));
    prop_oneof![scalar(), list(), list().prop_map(|v| GgufValue::Array(vec![v; 2]))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn metadata_and_arrays_round_trip(
        metadata in prop::collection::btree_map("[a-z.]{1,9}", value(), 0..6),
        alignment in prop::option::of(prop::sample::select(vec![1u32, 8, 32, 64, 4096])),
        shapes in prop::collection::vec(prop::collection::vec(0..4usize, 0..4), 0..5),
        values in prop::collection::vec(-1e3f32..1e3, 64),
    ) {
        let mut metadata = metadata;
        if let Some(bytes) = alignment {
            metadata.insert("general.alignment".into(), GgufValue::U32(bytes));
        }
        let names: Vec<String> = (0..shapes.len()).map(|i| format!("blk.{i}.weight")).collect();
        let arrays: Vec<_> = names.iter().zip(&shapes).map(|(name, shape)| {
            let count: usize = shape.iter().product();
            ArrayRef { name, dtype: DType::F32, shape, data: ArrayData::F32(&values[..count]) }
        }).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        write_gguf(&path, &metadata, &arrays).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        prop_assert_eq!(gguf.all_metadata(), &metadata);
        for (name, shape) in names.iter().zip(&shapes) {
            prop_assert_eq!(gguf.info(name).unwrap(), ArrayInfo { dtype: DType::F32, shape: shape.clone() });
            let count: usize = shape.iter().product();
            prop_assert_eq!(&gguf.read_f32(name).unwrap(), &values[..count]);
        }
    }

    /// A block's error is at most half a step, apart from what the f16 scale loses.
    #[test]
    fn quantised_values_stay_near(values in prop::collection::vec(-100f32..100.0, 96)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        for (dtype, steps) in [(DType::Q8_0, 127.0), (DType::Q4_0, 8.0), (DType::Q4_1, 15.0)] {
            let array = ArrayRef { name: "a", dtype, shape: &[3, 32], data: ArrayData::F32(&values) };
            write_gguf(&path, &BTreeMap::new(), &[array]).unwrap();
            let back = Gguf::open(&path).unwrap().read_f32("a").unwrap();
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                let range = if dtype == DType::Q4_1 { 2.0 * most } else { most };
                // Q4_0's largest level is 7, not 8: the far end may be a whole step away.
                let allowed = range / steps * if dtype == DType::Q4_0 { 1.0 } else { 0.5 } + most * 2e-3;
                for (v, b) in block.iter().zip(back) {
                    prop_assert!((v - b).abs() <= allowed, "{} {} {}", dtype, v, b);
                }
            }
        }
    }

    #[test]
    fn flipped_bytes_never_panic(at in 0..400usize, byte in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let metadata = BTreeMap::from([
            ("k".to_string(), GgufValue::Array(vec![GgufValue::String("x".into()); 3])),
            ("l".to_string(), GgufValue::U32(3)),
        ]);
        let array = |name| ArrayRef { name, dtype: DType::Q4_1, shape: &[2, 32], data: ArrayData::F32(&[1.0; 64]) };
        write_gguf(&path, &metadata, &[array("a"), array("b")]).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        if let Ok(gguf) = Gguf::open(&path) {
            for name in gguf.names() {
                let _ = gguf.read_f32(&name);
            }
        }
    }
}
