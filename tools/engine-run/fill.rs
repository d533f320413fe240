//! `engine-run fill`: the likeliest tokens where a text has `[MASK]`.

use crate::model::ModelArguments;
use crate::output::Output as Lines;
use crate::texts::{BatchArguments, Framer, TextArguments, open, run_in_order};
use anyhow::{Context, bail};
use clap::Args;
use engine::data::Tokenizer;
use engine::model::config::Architecture;
use engine::model::encode::{Example, Output, softmax, top};
use serde_json::json;

#[derive(Args)]
pub struct FillArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// How many tokens to show for each mask.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = crate::at_least_one)]
    top_k: usize,
}

/// A token that may stand for a mask.
struct Guess {
    id: u32,
    token: String,
    probability: f64,
}

pub fn fill(arguments: &FillArguments) -> anyhow::Result<()> {
    let (tokenizer, folder) = open(&arguments.model)?;
    let texts = arguments.texts.read()?;
    let mut loaded = arguments.model.load(&folder)?;
    if loaded.model.config().architecture == Architecture::Decoder {
        bail!("{}: a decoder predicts what follows and sees nothing behind a mask; use generate", folder.display());
    }
    let framer = Framer::new(&tokenizer, &loaded, &arguments.batch)?;
    let Some(mask) = framer.mask() else {
        bail!("the tokenizer has no [MASK] or <mask> token; use a model that was trained to fill masks");
    };
    let mut examples = framer.encode_all(&texts)?;
    for (number, example) in examples.iter_mut().enumerate() {
        find_masks(example, mask, &tokenizer).with_context(|| format!("text {}", number + 1))?;
    }
    // Enough for the text with the most masks, and for a few of the others with it.
    let slots = examples.iter().map(|example| example.positions.len()).max().unwrap_or(0).max(16);
    // A model's table may have more rows than there are tokens, for the sake of round numbers: those have no text.
    let (vocabulary, usable) = (loaded.model.config().vocabulary, tokenizer.vocabulary());
    let mut lines = Lines::default();
    run_in_order(&mut loaded, &examples, Output::Tokens { slots }, arguments.batch.arrangement(), |number, logits| {
        let example = &examples[number];
        let guesses: Vec<Vec<Guess>> =
            logits.chunks_exact(vocabulary).map(|row| guess(&row[..usable], arguments.top_k, &tokenizer)).collect();
        let mut filled = example.ids.clone();
        for (&position, guesses) in example.positions.iter().zip(&guesses) {
            filled[position] = guesses[0].id;
        }
        filled.retain(|&id| !tokenizer.is_special(id));
        let filled = tokenizer.decode(&filled);
        let text = &texts[number].first;
        if arguments.batch.json {
            let masks = example.positions.iter().zip(&guesses).map(|(position, guesses)| {
                let list = guesses
                    .iter()
                    .map(|guess| json!({ "token": guess.token, "id": guess.id, "probability": guess.probability }));
                json!({ "position": position, "predictions": list.collect::<Vec<_>>() })
            });
            let masks: Vec<_> = masks.collect();
            return Ok(lines.print(&format!("{}\n", json!({ "text": text, "filled": filled, "masks": masks }))));
        }
        let mut shown = format!("{filled}\n");
        for guesses in &guesses {
            let list: Vec<String> =
                guesses.iter().map(|guess| format!("{} {:.4}", guess.token, guess.probability)).collect();
            shown.push_str(&format!("  {}\n", list.join("  ")));
        }
        Ok(lines.print(&shown))
    })?;
    lines.outcome()
}

fn find_masks(example: &mut Example, mask: u32, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let is_mask = |&position: &usize| example.ids[position] == mask;
    example.positions = (0..example.ids.len()).filter(is_mask).collect();
    if example.positions.is_empty() {
        let name = tokenizer.token_text(mask).unwrap_or_default();
        bail!(
            "there is no {name} to fill in its first {} tokens; write {name} where a word is missing",
            example.ids.len()
        );
    }
    Ok(())
}

fn guess(logits: &[f32], count: usize, tokenizer: &Tokenizer) -> Vec<Guess> {
    let probabilities = softmax(logits);
    let named = |id: usize| Guess {
        id: id as u32,
        token: tokenizer.token_text(id as u32).unwrap_or_default(),
        probability: probabilities[id],
    };
    top(&probabilities, count).into_iter().map(named).collect()
}
