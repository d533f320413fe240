//! How good a model's translations are.

use super::{EvaluateArguments, Figures, pairs};
use crate::model::Loaded;
use crate::output::Progress;
use crate::translate::TOGETHER;
use anyhow::Context;
use engine::data::{LabelledSet, Tokenizer};
use engine::model::translate::{Method, Translator, loss};
use engine::score::translation::{self, bleu, chrf};
use engine::score::{language, prediction};
use serde_json::json;
use std::sync::Arc;

/// Sentences that are decoded together.
const SENTENCES: usize = 32;

pub fn judge(
    arguments: &EvaluateArguments,
    loaded: &mut Loaded,
    tokenizer: &Tokenizer,
    set: &LabelledSet,
) -> anyhow::Result<Figures> {
    let Loaded { model, parameters, device, .. } = loaded;
    let both: Vec<[Vec<u32>; 2]> = (0..set.len())
        .map(|example| {
            let second = set.second(example);
            [0..second, second..set.length(example)].map(|range| {
                let mut ids = vec![0i32; range.len()];
                set.tokens(example).range(range).copy_to(&mut ids);
                ids.into_iter().map(|id| id as u32).collect()
            })
        })
        .collect();
    let (sum, count) = loss(device, model, parameters, &both)?;
    let method = match arguments.beam {
        1 => Method::Greedy,
        width => Method::Beam { width, length_penalty: arguments.length_penalty },
    };
    let mut translator = Translator::new(Arc::clone(device), model, SENTENCES.min(set.len()), method)?;
    let sources: Vec<Vec<u32>> = both.into_iter().map(|[source, _]| source).collect();
    let (mut texts, mut complete) = (Vec::with_capacity(sources.len()), 0);
    let mut progress = Progress::new("texts", sources.len());
    let most = arguments.batch.max_tokens.unwrap_or(model.config().block);
    for chunk in sources.chunks(TOGETHER) {
        for found in translator.translate(parameters, chunk, most)? {
            texts.push(tokenizer.decode(&found.tokens).trim().to_owned());
            complete += usize::from(found.is_complete);
        }
        progress.show(texts.len());
    }
    let sides: Result<Vec<_>, _> = (0..set.len()).map(|example| set.sides(set.row(example))).collect();
    let sides = sides.context("the texts of the data")?;
    let references: Vec<[&str; 1]> = sides.iter().map(|sides| [sides.target.as_str()]).collect();
    let words = translation::Tokenizer::of_texts(references.iter().flatten().copied());
    let (bleu, chrf) = (bleu(&texts, &references, words)?, chrf(&texts, &references)?);
    let line = |(sides, text): (&engine::data::labelled::Sides, &String)| {
        prediction::translation(&sides.source, &sides.target, text)
    };
    let predictions = sides.iter().zip(&texts).map(line).collect();
    let object = json!({
        "examples": set.len(),
        "loss": sum / count as f64,
        "perplexity": language::perplexity(sum, count),
        "bleu": bleu.score,
        "bleu_signature": bleu.signature,
        "chrf": chrf.score,
        "chrf_signature": chrf.signature,
        "complete": complete,
    });
    Ok(Figures { table: pairs(&object), object, predictions })
}
