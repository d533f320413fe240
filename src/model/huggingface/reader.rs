//! `config.json` while it is read: what is understood is taken out, what remains is kept for writing back.

use super::{CONFIG_FILE, Error};
use crate::model::weights::{self, one_line};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub(super) struct ConfigReader {
    pub(super) path: PathBuf,
    pub(super) object: Map<String, Value>,
}

pub(super) fn wrong(path: &Path, key: &str, found: &str, expected: &str) -> Error {
    Error::Config { path: path.to_owned(), key: key.into(), found: found.into(), expected: expected.into() }
}

/// The shortest decimal that is this f32, as an f64: `0.1`, not `0.10000000149`.
pub(super) fn as_typed(value: f32) -> f64 {
    value.to_string().parse().expect("a number's decimal form is a number")
}

impl ConfigReader {
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(CONFIG_FILE);
        let text = weights::read_limited(&path, 16 << 20)?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(object)) => Ok(Self { path, object }),
            Ok(_) => Err(wrong(&path, "the whole file", "no JSON object", "export it again")),
            Err(error) => {
                let found = format!("not JSON ({})", one_line(&error.to_string()));
                Err(wrong(&path, "the whole file", &found, "export it again"))
            }
        }
    }

    pub(super) fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        wrong(&self.path, key, &one_line(&found.to_string()), expected)
    }

    /// Refuses what no model here can be, and drops what says nothing.
    pub(super) fn common(&mut self) -> Result<(), Error> {
        self.demand("quantization_config", &[Value::Null], "quantized weights are not read: use the original ones")?;
        self.demand("pruned_heads", &[Value::Null, json!({})], "pruned heads are not supported")?;
        for key in ["dtype", "torch_dtype"] {
            self.object.remove(key);
        }
        Ok(())
    }

    /// Absent, or one of `allowed`.
    pub(super) fn demand(&mut self, key: &str, allowed: &[Value], expected: &str) -> Result<(), Error> {
        match self.object.remove(key) {
            Some(found) if !allowed.contains(&found) => Err(self.wrong(key, &found, expected)),
            _ => Ok(()),
        }
    }

    /// A size from 1 to `limit`, under the first of `keys` that is there; null counts as absent.
    pub(super) fn size(&mut self, keys: &[&str], default: usize, limit: u64) -> Result<usize, Error> {
        let mut size = None;
        for &key in keys {
            let Some(found) = self.object.remove(key).filter(|found| !found.is_null()) else { continue };
            match found.as_u64() {
                Some(number) if (1..=limit).contains(&number) => size = size.or(Some(number as usize)),
                _ => return Err(self.wrong(key, &found, &format!("it must be a whole number from 1 to {limit}"))),
            }
        }
        Ok(size.unwrap_or(default))
    }

    pub(super) fn number(&mut self, key: &str, default: f32, range: std::ops::Range<f64>) -> Result<f32, Error> {
        let Some(found) = self.object.remove(key) else { return Ok(default) };
        match found.as_f64() {
            Some(number) if range.contains(&number) => Ok(number as f32),
            _ => Err(self.wrong(key, &found, &format!("it must be at least {} and below {}", range.start, range.end))),
        }
    }

    pub(super) fn boolean(&mut self, key: &str, default: bool) -> Result<bool, Error> {
        match self.object.remove(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(found) => Err(self.wrong(key, &found, "it must be true or false")),
        }
    }

    pub(super) fn token(&mut self, key: &str, default: Option<u32>) -> Result<Option<u32>, Error> {
        match self.object.remove(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(found) => match found.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(self.wrong(key, &found, "it must be one token id or null")),
            },
        }
    }

    /// One of the names in `choices`.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, default: &str, choices: &[(&str, T)]) -> Result<T, Error> {
        let found = self.object.remove(key).unwrap_or_else(|| json!(default));
        let known = choices.iter().find(|(name, _)| found.as_str() == Some(name));
        known.map(|&(_, value)| value).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(key, &found, &format!("what is supported: {}", names.join(", ")))
        })
    }

    /// A value of ours, as it was written; `None` where it is absent.
    pub(super) fn ours<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let Some(found) = self.object.remove(key) else { return Ok(None) };
        let value = serde_json::from_value(found.clone());
        value.map(Some).map_err(|error| self.wrong(key, &found, &one_line(&error.to_string())))
    }

    /// The name of the class in `transformers` that the folder is for; empty where it does not say.
    pub(super) fn class(&mut self) -> String {
        let found = self.object.remove("architectures");
        found.and_then(|found| found.get(0).and_then(Value::as_str).map(str::to_owned)).unwrap_or_default()
    }
}
