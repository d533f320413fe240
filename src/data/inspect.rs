//! What is in a file or folder of tokens, for people to look at.

use super::dataset::{Dataset, Format};
use super::error::Result;
use super::manifest::TOKENIZER_FILE;
use super::tokenizer::Tokenizer;
use serde::Serialize;
use std::path::Path;

/// What a file or folder holds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file or folder.
    pub path: String,
    /// The tokenizer that was found beside the tokens, or given: its kind.
    pub tokenizer: Option<&'static str>,
    /// Number of ids of the tokenizer.
    pub vocabulary: Option<usize>,
    /// The splits.
    pub splits: Vec<SplitReport>,
}

/// One split.
#[derive(Debug, Serialize)]
pub struct SplitReport {
    /// `train` or `val`.
    pub name: &'static str,
    /// Number of tokens.
    pub tokens: usize,
    /// `u16` or `u32`.
    pub token_type: &'static str,
    /// The shards, in order.
    pub shards: Vec<ShardReport>,
    /// The largest token.
    pub largest_token: Option<u32>,
    /// Number of different tokens.
    pub distinct_tokens: usize,
    /// See [`Dataset::fingerprint`].
    pub fingerprint: String,
    /// The most frequent tokens.
    pub most_frequent: Vec<Frequency>,
    /// The first tokens as ids.
    pub sample_ids: Vec<i32>,
    /// The first tokens as text, where there is a tokenizer.
    pub sample: Option<String>,
}

/// One shard.
#[derive(Debug, Serialize)]
pub struct ShardReport {
    /// The file.
    pub file: String,
    /// Number of tokens.
    pub tokens: usize,
    /// `u16` or `u32`.
    pub token_type: &'static str,
}

/// How often a token occurs.
#[derive(Debug, Serialize)]
pub struct Frequency {
    /// The id.
    pub token: u32,
    /// How often.
    pub count: u64,
    /// Its text, where there is a tokenizer.
    pub text: Option<String>,
}

/// The tokenizer that lies in the folder `path`, or beside the file.
///
/// # Errors
/// There is one, but it cannot be used.
pub fn find_tokenizer(path: &Path) -> Result<Option<Tokenizer>> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let file = folder.join(TOKENIZER_FILE);
    if file.exists() { Tokenizer::load(file).map(Some) } else { Ok(None) }
}

/// Looks into a file or folder: `top` most frequent tokens and a sample of `sample` tokens of each split.
///
/// # Errors
/// It cannot be read or is damaged.
pub fn inspect(
    path: &Path,
    format: Format,
    tokenizer: Option<&Tokenizer>,
    top: usize,
    sample: usize,
) -> Result<Report> {
    let (train, val) = Dataset::open_splits(path, format)?;
    let split = |name, dataset: &Dataset| {
        let counts = dataset.counts();
        let mut frequent: Vec<(u32, u64)> = (0..).zip(counts.iter().copied()).filter(|&(_, count)| count > 0).collect();
        let distinct_tokens = frequent.len();
        frequent.sort_by_key(|&(token, count)| (std::cmp::Reverse(count), token));
        frequent.truncate(top);
        let text = |ids: &[u32]| tokenizer.map(|tokenizer| tokenizer.decode(ids));
        let mut sample_ids = vec![0; sample.min(dataset.len())];
        dataset.read(0, &mut sample_ids);
        SplitReport {
            name,
            tokens: dataset.len(),
            token_type: dataset.token_type().name(),
            shards: (dataset.shards().iter())
                .map(|shard| ShardReport {
                    file: shard.name(),
                    tokens: shard.tokens().len(),
                    token_type: shard.token_type().name(),
                })
                .collect(),
            largest_token: dataset.largest_token(),
            distinct_tokens,
            fingerprint: dataset.fingerprint(),
            most_frequent: (frequent.into_iter())
                .map(|(token, count)| Frequency { token, count, text: text(&[token]) })
                .collect(),
            sample: text(&sample_ids.iter().map(|&id| id as u32).collect::<Vec<_>>()),
            sample_ids,
        }
    };
    let mut splits = vec![split("train", &train)];
    splits.extend(val.map(|val| split("val", &val)));
    let vocabulary = tokenizer.map(Tokenizer::vocabulary);
    Ok(Report { path: path.display().to_string(), tokenizer: tokenizer.map(Tokenizer::name), vocabulary, splits })
}
