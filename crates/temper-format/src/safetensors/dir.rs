//! A Hugging Face model directory: one safetensors file, or several and an index.

use super::MOST_HEADER;
use super::header::Distinct;
use super::read::SafetensorsFile;
use crate::error::{Error, shown};
use crate::source::{ArrayInfo, ArraySource, SourceFile};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a Hugging Face model directory: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names. With an index, exactly the arrays that it lists are visible.
#[derive(Debug)]
pub struct SafetensorsDir {
    path: PathBuf,
    shards: Vec<SafetensorsFile>,
    /// The shard of each array.
    arrays: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Distinct<String>,
}

impl SafetensorsDir {
    /// Opens the directory and checks every header, and that each array is where the index says.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            std::fs::metadata(dir).map_err(Error::io("open", dir))?;
            return Err(Error::bad_path(dir, "a file", "a directory with `model.safetensors`"));
        }
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            Self::open_single(dir, &single)
        } else if index.exists() {
            Self::open_sharded(dir, &index)
        } else {
            Err(Error::NoWeights { path: dir.to_path_buf(), hint: hint(dir) })
        }
    }

    /// The free-form strings of the first shard's header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.shards.first().map_or(&NONE, SafetensorsFile::metadata)
    }

    fn open_single(dir: &Path, path: &Path) -> Result<Self, Error> {
        let file = SafetensorsFile::open(path)?;
        let arrays = file.names().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { path: dir.to_path_buf(), shards: vec![file], arrays })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self, Error> {
        let Distinct(map) = read_index(index)?.weight_map;
        let names: BTreeSet<&String> = map.iter().map(|(_, shard)| shard).collect();
        let mut shards = Vec::new();
        let mut numbers = BTreeMap::new();
        for name in names {
            check_shard_name(index, name)?;
            numbers.insert(name.clone(), shards.len());
            shards.push(SafetensorsFile::open(dir.join(name))?);
        }
        let mut arrays = BTreeMap::new();
        for (name, shard) in map {
            let number = numbers[&shard];
            if shards[number].info(&name).is_none() {
                let what = format!("the shard of `{}`", shown(&name));
                let found = format!("`{}`, which does not hold it", shown(&shard));
                return Err(Error::malformed(index, what, found, "the shard that holds it"));
            }
            arrays.insert(name, number);
        }
        Ok(Self { path: dir.to_path_buf(), shards, arrays })
    }

    fn shard(&self, name: &str) -> Result<&SafetensorsFile, Error> {
        self.arrays.get(name).map(|&number| &self.shards[number]).ok_or_else(|| Error::NoSuchArray {
            path: self.path.clone(),
            name: shown(name),
            count: self.arrays.len(),
        })
    }
}

impl ArraySource for SafetensorsDir {
    fn names(&self) -> Vec<String> {
        self.arrays.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<ArrayInfo> {
        self.shard(name).ok()?.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.shard(name)?.read_f32(name)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn read_index(path: &Path) -> Result<Index, Error> {
    let source = SourceFile::open(path)?;
    if source.len > MOST_HEADER {
        let found = format!("{} bytes", source.len);
        return Err(Error::malformed(path, "the index", found, format!("at most {MOST_HEADER} bytes")));
    }
    let bytes = source.read_bytes("the index", 0, source.len as usize)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::malformed(
            path,
            "the index",
            format!("not valid ({error})"),
            "JSON with a `weight_map` of array to shard",
        )
    })
}

/// A shard is a file beside the index; anything else could lead out of the directory.
fn check_shard_name(index: &Path, name: &str) -> Result<(), Error> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    if plain {
        return Ok(());
    }
    let found = format!("`{}`", shown(name));
    Err(Error::malformed(index, "a shard's name", found, "the name of a file in the same directory"))
}

fn hint(dir: &Path) -> String {
    let old = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    match old.iter().find(|name| dir.join(name).exists()) {
        Some(name) => format!("; it holds `{name}`: convert it with `save_pretrained(safe_serialization=True)`"),
        None => String::new(),
    }
}
