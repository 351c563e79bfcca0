//! Round trips of safetensors files, and hostile ones.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use temper_format::{
    ArrayData, ArrayInfo, ArrayRef, ArraySource, DType, Error, SafetensorsDir, SafetensorsFile, SafetensorsWriter,
    write_safetensors,
};

/// A file of this header and so many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Opening a file of these bytes fails, and the message names the file and says each of `expect`.
fn check(bytes: &[u8], expect: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.safetensors");
    fs::write(&path, bytes).unwrap();
    let text = SafetensorsFile::open(&path).unwrap_err().to_string();
    for part in ["hostile.safetensors"].iter().chain(expect) {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(text.len() < 1000, "too long: {text}");
}

#[test]
fn hostile_lengths() {
    check(b"", &["0 bytes", "at least 8"]);
    check(b"1234567", &["7 bytes"]);
    check(&u64::MAX.to_le_bytes(), &["header length", "18446744073709551615", "at most 0"]);
    check(&raw("{}", 0)[..9], &["header length", "at most 1"]);
    check(&raw("{}", 3), &["the data is 3 bytes", "expected 0"]);
    let mut huge = raw("{}", 0);
    huge[..8].copy_from_slice(&200_000_000u64.to_le_bytes());
    check(&huge, &["200000000"]);
}

#[test]
fn hostile_json() {
    check(&raw("", 0), &["the header is not valid"]);
    check(&raw("[]", 0), &["not valid"]);
    check(&raw("{\"a\":", 0), &["not valid"]);
    check(&raw("{} x", 0), &["not valid"]);
    check(&raw(&"[".repeat(100_000), 0), &["not valid"]);
    check(&raw(&format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), 0), &["not valid"]);
    let mut not_utf8 = raw("{\"aa\":1}", 0);
    not_utf8[10] = 0xff;
    check(&not_utf8, &["not valid"]);
    check(&raw(r#"{"__metadata__":{"a":1}}"#, 0), &["__metadata__"]);
    check(&raw(r#"{"a":{"dtype":"F33","shape":[],"data_offsets":[0,4]}}"#, 4), &["`a`", "F33"]);
    check(&raw(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4), &["`a`", "-1"]);
    check(&raw(r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4), &["`a`", "1.5"]);
    check(&raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 4), &["`a`"]);
    check(&raw(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4), &["`a`", "data_offsets"]);
    let long = format!(r#"{{"{}":1}}"#, "\\u0007".repeat(5000));
    check(&raw(&long, 0), &["\\u{7}", "..."]);
}

#[test]
fn hostile_places() {
    let one = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
    };
    check(&raw(&one("[1]", 0, 4), 0), &["`a`", "0..4", "truncated"]);
    check(&raw(&one("[1]", 4, 8), 8), &["`a`", "4..8", "starts at 0"]);
    check(&raw(&one("[1]", 4, 0), 4), &["`a`", "4..0"]);
    check(&raw(&one("[2]", 0, 4), 4), &["`a`", "4 bytes for F32 [2]", "expected 8 bytes"]);
    check(&raw(&one("[9223372036854775807,4]", 0, 4), 4), &["`a`", "fits in memory"]);
    check(&raw(&one("[4611686018427387904]", 0, 0), 0), &["`a`", "fits in memory"]);
    check(&raw(&one("[0,18446744073709551615,2]", 0, 0), 4), &["the data is 4 bytes"]);
    check(&raw(&one("[1]", 0, u64::MAX), 4), &["truncated"]);
    let two = |a: [u64; 2], b: [u64; 2]| {
        let entry =
            |name, [s, e]: [u64; 2]| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{s},{e}]}}"#);
        format!("{{{},{}}}", entry("a", a), entry("b", b))
    };
    check(&raw(&two([0, 8], [4, 12]), 12), &["`b`", "4..12", "starts at 8"]);
    check(&raw(&two([0, 8], [0, 8]), 8), &["`b`", "starts at 8"]);
    check(&raw(&two([0, 8], [12, 20]), 20), &["`b`", "starts at 8"]);
    check(&raw(&two([0, 8], [8, 16]).replace("\"b\"", "\"a\""), 16), &["`a` appears twice"]);
    check(&raw(&two([0, 8], [0, 8]).replace("\"b\"", "\"a\""), 8), &["`a` appears twice"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write_two(&path);
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(SafetensorsFile::open(&path).is_err(), "{len}");
    }
}

#[test]
fn what_is_not_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = SafetensorsFile::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::BadPath { found: "a directory", .. }), "{error}");
    let error = SafetensorsFile::open(dir.path().join("no")).unwrap_err();
    assert!(matches!(error, Error::Io { action: "open", .. }), "{error}");
    assert!(SafetensorsFile::open("/dev/zero").is_err());
}

fn write_two(path: &Path) {
    let arrays = [
        ArrayRef { name: "half", dtype: DType::BF16, shape: &[1, 3], data: ArrayData::F32(&[1.0, -2.0, 0.5]) },
        ArrayRef { name: "full", dtype: DType::F32, shape: &[2], data: ArrayData::F32(&[0.1, 0.2]) },
    ];
    write_safetensors(path, &arrays, &BTreeMap::new()).unwrap();
}

fn index(dir: &Path, json: &str) {
    fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
}

#[test]
fn a_directory_of_one_file_or_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    write_two(&dir.path().join("s1.safetensors"));
    let other = [ArrayRef { name: "c", dtype: DType::F16, shape: &[1], data: ArrayData::F32(&[3.0]) }];
    write_safetensors(dir.path().join("s2.safetensors"), &other, &BTreeMap::new()).unwrap();
    index(
        dir.path(),
        r#"{"metadata":{"total_size":16},"weight_map":{"c":"s2.safetensors","half":"s1.safetensors","full":"s1.safetensors"}}"#,
    );
    let shards = SafetensorsDir::open(dir.path()).unwrap();
    assert_eq!(shards.names(), ["c", "full", "half"]);
    assert_eq!(shards.read_f32("half").unwrap(), [1.0, -2.0, 0.5]);
    assert_eq!(shards.read_f32("c").unwrap(), [3.0]);
    assert_eq!(shards.info("c").unwrap(), ArrayInfo { dtype: DType::F16, shape: vec![1] });
    assert_eq!(shards.info("d"), None);
    assert!(matches!(shards.read_f32("d"), Err(Error::NoSuchArray { count: 3, .. })));
    // A single file wins over an index, as in transformers.
    write_two(&dir.path().join("model.safetensors"));
    let single = SafetensorsDir::open(dir.path()).unwrap();
    assert_eq!(single.names(), ["full", "half"]);
    assert_eq!(single.metadata().get("format").map(String::as_str), Some("pt"));
}

#[test]
fn hostile_directories() {
    let open = |dir: &Path| SafetensorsDir::open(dir).unwrap_err().to_string();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(open(dir).contains("neither `model.safetensors` nor"));
    fs::write(dir.join("pytorch_model.bin"), "").unwrap();
    assert!(open(dir).contains("safe_serialization"));
    assert!(matches!(SafetensorsDir::open(dir.join("no")), Err(Error::Io { .. })));
    assert!(open(&dir.join("pytorch_model.bin")).contains("is a file"));
    write_two(&dir.join("s.safetensors"));
    for (json, expect) in [
        ("", "not valid"),
        ("{}", "weight_map"),
        (r#"{"weight_map":["s.safetensors"]}"#, "not valid"),
        (r#"{"weight_map":{"full":"s.safetensors","full":"s.safetensors"}}"#, "`full` appears twice"),
        (r#"{"weight_map":{"gone":"s.safetensors"}}"#, "the shard of `gone`"),
        (r#"{"weight_map":{"a":"../s.safetensors"}}"#, "../s.safetensors"),
        (r#"{"weight_map":{"a":"../../etc/passwd"}}"#, "same directory"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "same directory"),
        (r#"{"weight_map":{"a":"./s.safetensors"}}"#, "same directory"),
        (r#"{"weight_map":{"a":"s.safetensors/"}}"#, "same directory"),
        (r#"{"weight_map":{"a":""}}"#, "same directory"),
        (r#"{"weight_map":{"a":".."}}"#, "same directory"),
    ] {
        index(dir, json);
        let text = open(dir);
        assert!(text.contains(expect) && text.contains("index.json"), "{json}: {text}");
    }
    index(dir, r#"{"weight_map":{"a":"missing.safetensors"}}"#);
    assert!(open(dir).contains("missing.safetensors"));
}

#[test]
fn what_cannot_be_written_is_refused_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    fs::write(&path, "old").unwrap();
    let array = |name, dtype, shape, data| ArrayRef { name, dtype, shape, data };
    let good = array("a", DType::F32, &[1], ArrayData::F32(&[1.0]));
    for (arrays, expect) in [
        (vec![array("a", DType::F32, &[2], ArrayData::F32(&[1.0]))], "1 values"),
        (vec![array("a", DType::F32, &[1], ArrayData::Bytes(&[0; 5]))], "5 bytes"),
        (vec![array("a", DType::Q8_0, &[32], ArrayData::F32(&[0.0; 32]))], "type Q8_0"),
        (vec![array("a", DType::I64, &[1], ArrayData::F32(&[0.0]))], "f32 values as I64"),
        (vec![array("a", DType::U8, &[usize::MAX, 2], ArrayData::Bytes(&[]))], "addressed"),
        (vec![good, good], "already taken"),
        (vec![array("__metadata__", DType::F32, &[1], ArrayData::F32(&[1.0]))], "already taken"),
    ] {
        let text = write_safetensors(&path, &arrays, &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains(expect) && text.contains("a.safetensors"), "{expect}: {text}");
    }
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn a_streamed_file_needs_every_array_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let info = ArrayInfo { dtype: DType::F32, shape: vec![1] };
    let infos = [("b".to_string(), info.clone()), ("a".to_string(), info)];
    let create = || SafetensorsWriter::create(&path, infos.clone(), &BTreeMap::new()).unwrap();
    let mut writer = create();
    writer.push("b", ArrayData::F32(&[2.0])).unwrap();
    assert!(writer.push("b", ArrayData::F32(&[2.0])).unwrap_err().to_string().contains("second time"));
    assert!(writer.push("c", ArrayData::F32(&[2.0])).unwrap_err().to_string().contains("announced"));
    assert!(writer.finish().unwrap_err().to_string().contains("`a`"));
    assert!(!path.exists());
    let mut writer = create();
    writer.push("b", ArrayData::F32(&[2.0])).unwrap();
    writer.push("a", ArrayData::Bytes(&1.0f32.to_le_bytes())).unwrap();
    writer.finish().unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!((file.read_f32("a").unwrap(), file.read_f32("b").unwrap()), (vec![1.0], vec![2.0]));
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F16, DType::BF16, DType::I64, DType::U8, DType::Bool, DType::F64])
}

/// Names, types, shapes and bytes of a few arrays.
fn arrays() -> impl Strategy<Value = BTreeMap<String, (DType, Vec<usize>, Vec<u8>)>> {
    let array = (dtype(), prop::collection::vec(0..5usize, 0..4)).prop_flat_map(|(dtype, shape)| {
        let len = dtype.byte_len(&shape).unwrap();
        (Just(dtype), Just(shape), prop::collection::vec(any::<u8>(), len))
    });
    prop::collection::btree_map("\\PC{0,12}", array, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_round_trip_and_order_does_not_matter(arrays in arrays(), metadata in prop::collection::btree_map(".{0,5}", ".{0,9}", 0..4)) {
        let dir = tempfile::tempdir().unwrap();
        let (path, again) = (dir.path().join("a"), dir.path().join("b"));
        let mut refs: Vec<_> = arrays
            .iter()
            .map(|(name, (dtype, shape, bytes))| ArrayRef { name, dtype: *dtype, shape, data: ArrayData::Bytes(bytes) })
            .collect();
        write_safetensors(&path, &refs, &metadata).unwrap();
        refs.reverse();
        write_safetensors(&again, &refs, &metadata).unwrap();
        prop_assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());

        let file = SafetensorsFile::open(&path).unwrap();
        prop_assert_eq!(file.names(), arrays.keys().cloned().collect::<Vec<_>>());
        for (name, (dtype, shape, bytes)) in &arrays {
            prop_assert_eq!(file.info(name).unwrap(), ArrayInfo { dtype: *dtype, shape: shape.clone() });
            prop_assert_eq!(&file.read_bytes(name).unwrap(), bytes);
        }
        for (key, value) in &metadata {
            prop_assert_eq!(file.metadata().get(key), Some(value));
        }
        // The format's own crate agrees, alignment included.
        let bytes = fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(reference.len(), arrays.len());
        prop_assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn f32_survives_and_narrow_types_are_stable(values in prop::collection::vec(any::<f32>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let write = |values: &[f32]| {
            let shape = [values.len()];
            let array = |name, dtype| ArrayRef { name, dtype, shape: &shape, data: ArrayData::F32(values) };
            let all = [array("f32", DType::F32), array("f16", DType::F16), array("bf16", DType::BF16)];
            write_safetensors(&path, &all, &BTreeMap::new()).unwrap();
            let file = SafetensorsFile::open(&path).unwrap();
            ["f32", "f16", "bf16"].map(|name| file.read_f32(name).unwrap())
        };
        let [full, half, brain] = write(&values);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&full), bits(&values));
        // What has been rounded once is not changed by a second pass.
        prop_assert_eq!(bits(&write(&half)[1]), bits(&half));
        prop_assert_eq!(bits(&write(&brain)[2]), bits(&brain));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0..300u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut file = len.to_le_bytes().to_vec();
        file.extend(bytes);
        fs::write(&path, file).unwrap();
        let _ = SafetensorsFile::open(&path);
    }
}

/// More elements than are converted at a time.
#[test]
fn large_arrays_cross_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let values: Vec<f32> = (0..200_000).map(|i| (i as f32).sin()).collect();
    let array = ArrayRef { name: "a", dtype: DType::F32, shape: &[400, 500], data: ArrayData::F32(&values) };
    write_safetensors(&path, &[array], &BTreeMap::new()).unwrap();
    assert_eq!(SafetensorsFile::open(&path).unwrap().read_f32("a").unwrap(), values);
}
