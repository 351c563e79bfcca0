//! Files written by gguf-py and torch (`tests/golden/formats.py`), read and written again here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use temper_format::{
    ArrayData, ArrayRef, ArraySource, DType, Error, Gguf, GgufValue, SafetensorsFile, write_gguf, write_safetensors,
};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/format").join(name)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

const TYPES: [(&str, DType); 7] = [
    ("f32.weight", DType::F32),
    ("f16.weight", DType::F16),
    ("bf16.weight", DType::BF16),
    ("q8_0.weight", DType::Q8_0),
    ("q4_0.weight", DType::Q4_0),
    ("q4_1.weight", DType::Q4_1),
    ("scalars", DType::F32),
];

#[test]
fn gguf_values_are_those_of_gguf_py() {
    let (gguf, expected) =
        (Gguf::open(golden("types.gguf")).unwrap(), SafetensorsFile::open(golden("types.safetensors")).unwrap());
    assert_eq!(gguf.version(), 3);
    for (name, dtype) in TYPES {
        let info = gguf.info(name).unwrap();
        assert_eq!(info.dtype, dtype);
        assert_eq!(info.shape, expected.info(name).unwrap().shape, "{name}");
        assert_eq!(bits(&gguf.read_f32(name).unwrap()), bits(&expected.read_f32(name).unwrap()), "{name}");
    }
}

/// Bytes that are read and written again are the same array, foreign types included.
#[test]
fn gguf_bytes_are_those_of_the_file() {
    let gguf = Gguf::open(golden("types.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.gguf");
    for name in ["q8_0.weight", "q4_0.weight", "q4_1.weight", "bf16.weight"] {
        let (info, bytes) = (gguf.info(name).unwrap(), gguf.read_bytes(name).unwrap());
        assert_eq!(Some(bytes.len()), info.dtype.byte_len(&info.shape), "{name}");
        let array = ArrayRef { name, dtype: info.dtype, shape: &info.shape, data: ArrayData::Bytes(&bytes) };
        write_gguf(&path, &BTreeMap::new(), &[array]).unwrap();
        let again = Gguf::open(&path).unwrap();
        assert_eq!(again.read_bytes(name).unwrap(), bytes, "{name}");
        assert_eq!(bits(&again.read_f32(name).unwrap()), bits(&gguf.read_f32(name).unwrap()), "{name}");
    }
    assert_eq!(gguf.read_bytes("q6_k.weight").unwrap().len(), 2 * 210);
    let text = gguf.read_bytes("nowhere").unwrap_err().to_string();
    assert!(text.contains("`nowhere`") && text.contains("8 arrays"), "{text}");
}

#[test]
fn gguf_types_without_a_conversion_are_named() {
    let gguf = Gguf::open(golden("types.gguf")).unwrap();
    assert_eq!(gguf.info("q6_k.weight").unwrap().shape, [2, 256]);
    let error = gguf.read_f32("q6_k.weight").unwrap_err();
    assert!(matches!(&error, Error::Unsupported { .. }));
    let text = error.to_string();
    assert!(text.contains("q6_k.weight") && text.contains("Q6_K") && text.contains("types.gguf"), "{text}");
    let text = gguf.read_f32("nowhere").unwrap_err().to_string();
    assert!(text.contains("`nowhere`") && text.contains("8 arrays"), "{text}");
}

#[test]
fn gguf_metadata_of_every_kind() {
    let gguf = Gguf::open(golden("types.gguf")).unwrap();
    let get = |key: &str| gguf.metadata(key).unwrap().clone();
    assert_eq!(get("general.architecture"), GgufValue::String("llama".into()));
    assert_eq!(get("test.u8"), GgufValue::U8(200));
    assert_eq!(get("test.i8"), GgufValue::I8(-100));
    assert_eq!(get("test.u16"), GgufValue::U16(60000));
    assert_eq!(get("test.i16"), GgufValue::I16(-30000));
    assert_eq!(get("test.u32"), GgufValue::U32(4_000_000_000));
    assert_eq!(get("test.i32"), GgufValue::I32(-2_000_000_000));
    assert_eq!(get("test.u64"), GgufValue::U64((1 << 63) + 1));
    assert_eq!(get("test.i64"), GgufValue::I64(-(1 << 62)));
    assert_eq!(get("test.f32"), GgufValue::F32(0.1));
    assert_eq!(get("test.f64"), GgufValue::F64(0.1));
    assert_eq!(get("test.bool"), GgufValue::Bool(true));
    assert_eq!(get("test.string"), GgufValue::String("grüße ✓\n".into()));
    let strings: Vec<_> = get("test.strings").as_array().unwrap().iter().map(|v| v.as_str().unwrap().len()).collect();
    assert_eq!(strings, [1, 0, 3]);
    let ints: Vec<_> = get("test.ints").as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    assert_eq!(ints, [1, -2, 3]);
    let floats: Vec<_> = get("test.floats").as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(floats, [0.5, -0.25]);
    assert_eq!(gguf.metadata("nowhere"), None);
}

/// Our quantisers produce gguf-py's blocks, hence the same values, and our writer a file that we read back.
#[test]
fn quantisers_agree_with_gguf_py() {
    let expected = SafetensorsFile::open(golden("types.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.gguf");
    let sources: Vec<_> = TYPES[3..6]
        .iter()
        .map(|&(name, dtype)| (name, dtype, expected.read_f32(&format!("{name}.source")).unwrap()))
        .collect();
    let arrays: Vec<_> = sources
        .iter()
        .map(|(name, dtype, values)| ArrayRef { name, dtype: *dtype, shape: &[5, 96], data: ArrayData::F32(values) })
        .collect();
    let metadata = Gguf::open(golden("types.gguf")).unwrap().all_metadata().clone();
    write_gguf(&path, &metadata, &arrays).unwrap();
    let own = Gguf::open(&path).unwrap();
    assert_eq!(own.all_metadata(), &metadata);
    for (name, ..) in sources {
        assert_eq!(bits(&own.read_f32(name).unwrap()), bits(&expected.read_f32(name).unwrap()), "{name}");
    }
}

#[test]
fn torch_files_read_as_torch_reads_them() {
    let file = SafetensorsFile::open(golden("torch.safetensors")).unwrap();
    let expected = SafetensorsFile::open(golden("torch_f32.safetensors")).unwrap();
    assert_eq!(file.names(), ["bf16", "bool", "empty", "f16", "f32", "i64", "scalar"]);
    assert_eq!(file.metadata().get("note").map(String::as_str), Some("grüße"));
    for name in ["bf16", "f16", "f32", "scalar", "empty"] {
        assert_eq!(file.info(name).unwrap().shape, expected.info(name).unwrap().shape);
        assert_eq!(bits(&file.read_f32(name).unwrap()), bits(&expected.read_f32(name).unwrap()), "{name}");
    }
    assert_eq!(file.info("scalar").unwrap().shape, [0usize; 0]);
    assert_eq!(file.read_bytes("bool").unwrap(), [1, 0, 1]);
    let text = file.read_f32("i64").unwrap_err().to_string();
    assert!(text.contains("`i64`") && text.contains("is I64"), "{text}");
}

#[test]
fn rounding_is_torchs() {
    let golden = SafetensorsFile::open(golden("torch_f32.safetensors")).unwrap();
    let wide = golden.read_f32("wide").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rounded.safetensors");
    let shape = [wide.len()];
    let narrow = |name, dtype| ArrayRef { name, dtype, shape: &shape, data: ArrayData::F32(&wide) };
    let arrays = [narrow("wide.bf16", DType::BF16), narrow("wide.f16", DType::F16)];
    write_safetensors(&path, &arrays, &BTreeMap::new()).unwrap();
    let rounded = SafetensorsFile::open(&path).unwrap();
    for name in ["wide.bf16", "wide.f16"] {
        assert_eq!(rounded.read_bytes(name).unwrap(), golden.read_bytes(name).unwrap(), "{name}");
    }
}
