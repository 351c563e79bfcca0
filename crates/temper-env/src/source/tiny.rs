//! The tiny world as a task source.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Items;
use crate::{Error, Family, Split, TinyWorld};

/// Procedural tasks of the tiny world. Families and levels take turns, so every prefix is balanced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TinyWorldSource {
    /// `"all"`, or a list of families.
    pub families: Families,
    /// Levels from 1 (easy) to 5. With `split = "ood"`, tasks are of the two levels above the highest one named.
    pub levels: Vec<u8>,
    /// `train`, `test` (held-out problems of the same levels) or `ood` (held-out problems of the levels above).
    pub split: Split,
    /// Demonstrations show worked steps before the answer. Prompts are the same either way.
    #[serde(default)]
    pub cot: bool,
    /// How many tasks there are; without it the source never ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Which problems are drawn; without it this follows the run's seed. Set it to measure several runs on the same tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl TinyWorldSource {
    pub(super) fn open(&self, seed: u64) -> Result<Items, Error> {
        if self.n == Some(0) {
            return Err(Error::Setting { option: "n".into(), why: "expected at least 1, found 0".into() });
        }
        let seed = self.seed.unwrap_or(seed);
        let world = TinyWorld::new(self.families.list(), &self.levels, self.split, seed, self.cot)?;
        Ok(Items::World { world, n: self.n })
    }
}

/// Which families: in a recipe `"all"`, one name, or a list of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Families {
    /// Every family.
    All,
    /// These.
    Some(Vec<Family>),
}

impl Families {
    /// The families meant.
    pub fn list(&self) -> &[Family] {
        match self {
            Self::All => &Family::ALL,
            Self::Some(families) => families,
        }
    }
}

impl Serialize for Families {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => "all".serialize(serializer),
            Self::Some(families) => families.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Families {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FamiliesVisitor)
    }
}

struct FamiliesVisitor;

impl<'de> Visitor<'de> for FamiliesVisitor {
    type Value = Families;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("\"all\" or a list of families")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Families, E> {
        if name == "all" {
            return Ok(Families::All);
        }
        name.parse().map(|family| Families::Some(vec![family])).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Families, A::Error> {
        let mut families = Vec::new();
        while let Some(name) = names.next_element::<String>()? {
            families.push(name.parse().map_err(de::Error::custom)?);
        }
        Ok(Families::Some(families))
    }
}

impl JsonSchema for Families {
    fn schema_name() -> Cow<'static, str> {
        "Families".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let family = generator.subschema_for::<Family>();
        json_schema!({
            "description": "`all`, one family, or a list of families.",
            "anyOf": [{ "const": "all" }, family, { "type": "array", "items": family, "minItems": 1, "uniqueItems": true }]
        })
    }
}
