//! The weights of a model folder: one file, or several and a table of contents.

use super::{Error, INDEX_FILE, LONGEST_HEADER_BYTES, TensorView, WEIGHTS_FILE, WeightFile, one_line, read_limited};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

/// The weights of a model folder: `model.safetensors`, or the several files that `model.safetensors.index.json` lists.
#[derive(Debug)]
pub struct WeightFolder {
    folder: PathBuf,
    files: Vec<WeightFile>,
    file_of: BTreeMap<String, usize>,
}

impl WeightFolder {
    /// Opens and checks all weight files of `folder`.
    ///
    /// # Errors
    /// As [`WeightFile::open`]; [`Error::NoWeights`]; [`Error::File`] where the index does not match the files.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let single = folder.join(WEIGHTS_FILE);
        let index = folder.join(INDEX_FILE);
        if single.exists() {
            let file = WeightFile::open(&single)?;
            let file_of = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { folder: folder.to_owned(), files: vec![file], file_of });
        }
        if index.exists() {
            return Self::open_sharded(folder, &index);
        }
        let remedy = if !folder.is_dir() {
            "it is not a folder that can be read: check the path"
        } else if folder.join("pytorch_model.bin").exists() {
            "it has a pytorch_model.bin, which can run code: convert it with save_pretrained(safe_serialization=True)"
        } else {
            "point at a folder written by save_pretrained or by engine-train"
        };
        Err(Error::NoWeights { folder: folder.to_owned(), remedy })
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::File { path: index.to_owned(), what };
        let table: Index = serde_json::from_slice(&read_limited(index, LONGEST_HEADER_BYTES)?)
            .map_err(|error| wrong(one_line(&error.to_string())))?;
        let mut files = Vec::new();
        let mut position_of = HashMap::new();
        let mut file_of = BTreeMap::new();
        for (tensor, file_name) in table.weight_map.0 {
            let position = match position_of.get(&file_name) {
                Some(&position) => position,
                None => {
                    // A name and nothing else: an index must not lead out of its folder.
                    if file_name.contains(['/', '\\', '\0']) || file_name.starts_with('.') || file_name.is_empty() {
                        return Err(wrong(format!("{} is not a plain file name", one_line(&file_name))));
                    }
                    files.push(WeightFile::open(&folder.join(&file_name))?);
                    position_of.insert(file_name, files.len() - 1);
                    files.len() - 1
                }
            };
            files[position].get(&tensor)?;
            file_of.insert(tensor, position);
        }
        for (position, file) in files.iter().enumerate() {
            if let Some(name) = file.names().find(|&name| file_of.get(name) != Some(&position)) {
                let place = file.path().display();
                return Err(wrong(format!("does not list tensor {}, which {place} holds", one_line(name))));
            }
        }
        Ok(Self { folder: folder.to_owned(), files, file_of })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// The tensor called `name`, from whichever file holds it.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is none.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, Error> {
        match self.file_of.get(name) {
            Some(&position) => self.files[position].get(name),
            None => {
                let (path, count) = (self.folder.clone(), self.file_of.len());
                Err(Error::Missing { path, tensor: one_line(name), count })
            }
        }
    }
}

/// The table of contents of a folder whose weights are cut into several files.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// A JSON object of strings, as a list without repeated keys.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object from tensor to file name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    let shown = one_line(&name);
                    if seen.insert(name, file).is_some() {
                        return Err(A::Error::custom(format!("tensor {shown} is listed twice")));
                    }
                }
                Ok(Pairs(seen.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
