//! The JSON header, with duplicate names refused (a map would keep the last one silently).

use crate::error::shown;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

/// The header as it stands in the file: arrays in the order written.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) arrays: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from array names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut seen, mut arrays) = (BTreeSet::new(), Vec::new());
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    let about = |e: A::Error| A::Error::custom(format!("`{}`: {e}", shown(&name)));
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` appears twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        metadata = map.next_value::<Option<BTreeMap<String, String>>>().map_err(about)?;
                    } else {
                        let info = map.next_value().map_err(about)?;
                        arrays.push((name, info));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or_default(), arrays })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A JSON object whose keys must be distinct, in the order written.
#[derive(Debug)]
pub(super) struct Distinct<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Distinct<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = Distinct<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct<V>, A::Error> {
                let (mut seen, mut pairs) = (BTreeSet::new(), Vec::new());
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` appears twice", shown(&name))));
                    }
                    pairs.push((name, value));
                }
                Ok(Distinct(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}
