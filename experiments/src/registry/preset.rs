//! [`Settings`]: a method's settings as a file gives them, spelled out or by the name of a preset.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// A method with named settings.
pub(super) trait Presets: Sized + 'static {
    /// The method's TOML key.
    const KEY: &'static str;
    /// Its presets by name; none for a method of which no settings are usual.
    const PRESETS: &'static [(&'static str, Self)];
}

/// The settings that a name or a table stood for. They are written as a table: a record says what was done, not what it was called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings<T>(pub(super) T);

impl<T: Serialize> Serialize for Settings<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Presets + Clone + Deserialize<'de>> Deserialize<'de> for Settings<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable(PhantomData))
    }
}

struct NameOrTable<T>(PhantomData<T>);

impl<'de, T: Presets + Clone + Deserialize<'de>> Visitor<'de> for NameOrTable<T> {
    type Value = Settings<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a table of settings")?;
        if T::PRESETS.is_empty() { Ok(()) } else { write!(formatter, ", or the name of a preset: {}", names::<T>()) }
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some((_, settings)) = T::PRESETS.iter().find(|(known, _)| *known == name) {
            return Ok(Settings(settings.clone()));
        }
        let known = if T::PRESETS.is_empty() { "it has none".to_owned() } else { format!("known: {}", names::<T>()) };
        Err(E::custom(format!("method `{}` has no preset `{name}`; {known}; or give a table of settings", T::KEY)))
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(table)).map(Settings)
    }
}

fn names<T: Presets>() -> String {
    T::PRESETS.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl<T: Presets + JsonSchema> JsonSchema for Settings<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("{}Settings", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let settings = generator.subschema_for::<T>();
        if T::PRESETS.is_empty() {
            return settings;
        }
        let names: Vec<&str> = T::PRESETS.iter().map(|(name, _)| *name).collect();
        json_schema!({ "anyOf": [{ "type": "string", "enum": names }, settings] })
    }
}
