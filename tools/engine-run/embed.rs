//! `engine-run embed`: vectors of texts.

use crate::model::ModelArguments;
use crate::output::Output as Lines;
use crate::texts::{BatchArguments, Framer, TextArguments, open, run_in_order};
use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::model::config::Pooling;
use engine::model::encode::{Output, cosine, normalize};
use engine::profile::npy::{Dtype, write_into};
use engine::util::atomic_file::AtomicFile;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct EmbedArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// Which vector stands for a text: the mean of its tokens', the first token's, or that of the model's pooler.
    #[arg(long, value_name = "WHICH", default_value = "mean")]
    pooling: Which,
    /// Scale each vector to length 1.
    #[arg(long)]
    normalize: bool,
    /// Write the vectors into one array of f32, (texts, channels), as NumPy reads it.
    #[arg(long, value_name = "FILE.npy", conflicts_with = "similarity")]
    out: Option<PathBuf>,
    /// Print how similar each text is to each other instead: the cosine of the angle between their vectors.
    #[arg(long)]
    similarity: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Mean,
    First,
    Pooler,
}

pub fn embed(arguments: &EmbedArguments) -> anyhow::Result<()> {
    let (tokenizer, folder) = open(&arguments.model)?;
    let texts = arguments.texts.read()?;
    let mut loaded = arguments.model.load(&folder)?;
    let examples = Framer::new(&tokenizer, &loaded, &arguments.batch)?.encode_all(&texts)?;
    let output = match arguments.pooling {
        Which::Mean => Output::Vector(Pooling::Mean),
        Which::First => Output::Vector(Pooling::First),
        Which::Pooler => Output::Pooled,
    };
    let keeps = arguments.out.is_some() || arguments.similarity;
    let (mut vectors, mut lines) = (Vec::new(), Lines::default());
    run_in_order(&mut loaded, &examples, output, arguments.batch.arrangement(), |number, mut vector| {
        if arguments.normalize {
            normalize(&mut vector);
        }
        if keeps {
            vectors.push(vector);
            return Ok(ControlFlow::Continue(()));
        }
        let mut object = json!({ "text": texts[number].first, "tokens": examples[number].ids.len(), "vector": vector });
        if let Some(second) = &texts[number].second {
            object["pair"] = json!(second);
        }
        Ok(lines.print(&format!("{object}\n")))
    })?;
    if let Some(path) = &arguments.out {
        let channels = loaded.model.config().channels;
        write(path, &vectors, channels).with_context(|| format!("cannot write {}", path.display()))?;
        let summary = json!({ "file": path, "texts": vectors.len(), "channels": channels });
        let text = format!("{}: {} vectors of {channels} numbers", path.display(), vectors.len());
        let _ = lines.print(&format!("{}\n", if arguments.batch.json { summary.to_string() } else { text }));
    }
    if arguments.similarity {
        for (number, vector) in vectors.iter().enumerate() {
            let row: Vec<f64> = vectors.iter().map(|other| cosine(vector, other)).collect();
            let line = if arguments.batch.json {
                json!({ "text": texts[number].first, "similarity": row }).to_string()
            } else {
                let columns: Vec<String> = row.iter().map(|cosine| format!("{cosine:.4}")).collect();
                format!("{}\t{}", columns.join("\t"), texts[number].first)
            };
            if lines.print(&format!("{line}\n")).is_break() {
                break;
            }
        }
    }
    lines.outcome()
}

fn write(path: &Path, vectors: &[Vec<f32>], channels: usize) -> anyhow::Result<()> {
    let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let mut file = AtomicFile::create(path)?;
    write_into(&mut file, Dtype::F32, &[vectors.len(), channels], &bytes)?;
    file.seal()?;
    file.commit()?;
    Ok(())
}
