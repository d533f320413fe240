//! `engine-run classify`: the class of a text or an image, its labels, or the number that a regression gives it.

use crate::images;
use crate::model::{Loaded, ModelArguments};
use crate::output::Output as Lines;
use crate::texts::{BatchArguments, Framer, Text, TextArguments, run_in_order};
use clap::Args;
use engine::model::ModelConfig;
use engine::model::encode::{Example, Output, sigmoid, softmax, top};
use engine::score::prediction::LABEL_THRESHOLD;
use serde_json::{Map, Value, json};

#[derive(Args)]
pub struct ClassifyArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// How many classes to show, the likeliest first; all with --json, else 1.
    #[arg(long, value_name = "K", value_parser = crate::at_least_one)]
    top_k: Option<usize>,
    /// Any number of labels may apply, each with a probability of its own.
    #[arg(long)]
    multi_label: bool,
    /// Least probability of a label that applies, with --multi-label.
    #[arg(long, value_name = "P", default_value_t = LABEL_THRESHOLD)]
    threshold: f64,
}

/// What a model's logits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// One class applies.
    Classes,
    /// Any number of labels do.
    Labels,
    /// They are numbers.
    Numbers,
}

impl Meaning {
    /// As `config.json` has it under `problem_type`; one logit alone is a number.
    pub fn of(config: &ModelConfig) -> Self {
        match config.other.get("problem_type").and_then(Value::as_str) {
            Some("multi_label_classification") => Self::Labels,
            Some("regression") => Self::Numbers,
            Some(_) => Self::Classes,
            None if config.predictions.classes.as_ref().is_some_and(|classes| classes.len() == 1) => Self::Numbers,
            None => Self::Classes,
        }
    }

    /// The probability of each class, or the numbers as they are.
    pub fn figures(self, logits: &[f32]) -> Vec<f64> {
        match self {
            Self::Classes => softmax(logits),
            Self::Labels => logits.iter().map(|&logit| sigmoid(logit)).collect(),
            Self::Numbers => logits.iter().map(|&logit| f64::from(logit)).collect(),
        }
    }
}

pub fn classify(arguments: &ClassifyArguments) -> anyhow::Result<()> {
    let folder = arguments.model.folder()?;
    match images::input(&folder)? {
        Some(input) => {
            let images = images::read(&arguments.texts.files()?, &input)?;
            let mut loaded = arguments.model.load(&folder)?;
            let examples = images::examples(&images, loaded.model.config(), &input)?;
            print(arguments, &mut loaded, &examples, |number| Named {
                key: "image",
                name: images.name(number),
                pair: None,
            })
        }
        None => {
            let tokenizer = arguments.model.tokenizer(&folder)?;
            let texts = arguments.texts.read()?;
            let mut loaded = arguments.model.load(&folder)?;
            let examples = Framer::new(&tokenizer, &loaded, &arguments.batch)?.encode_all(&texts)?;
            print(arguments, &mut loaded, &examples, |number| {
                let Text { first, second } = &texts[number];
                Named { key: "text", name: first.clone(), pair: second.clone() }
            })
        }
    }
}

/// What is printed beside the classes of an example, and under which key.
struct Named {
    key: &'static str,
    name: String,
    pair: Option<String>,
}

/// Prints a line for each example.
fn print(
    arguments: &ClassifyArguments,
    loaded: &mut Loaded,
    examples: &[Example],
    name_of: impl Fn(usize) -> Named,
) -> anyhow::Result<()> {
    let meaning = if arguments.multi_label { Meaning::Labels } else { Meaning::of(loaded.model.config()) };
    let names = loaded.model.config().predictions.classes.clone().unwrap_or_default();
    let mut lines = Lines::default();
    run_in_order(loaded, examples, Output::Classes, arguments.batch.arrangement(), |number, logits| {
        let figures = meaning.figures(&logits);
        let most = arguments.top_k.unwrap_or(if arguments.batch.json { names.len() } else { 1 });
        let order = top(&figures, most);
        let Named { key, name, pair } = name_of(number);
        let line = if arguments.batch.json {
            let mut object = json!({ key: name });
            if let Some(pair) = pair {
                object["pair"] = json!(pair);
            }
            let by_name = || -> Map<String, Value> {
                order.iter().map(|&class| (names[class].clone(), json!(figures[class]))).collect()
            };
            match meaning {
                Meaning::Classes => {
                    object["label"] = json!(names[order[0]]);
                    object["probability"] = json!(figures[order[0]]);
                    object["probabilities"] = by_name().into();
                }
                Meaning::Labels => {
                    let applies = |&class: &usize| figures[class] >= arguments.threshold;
                    let labels = (0..names.len()).filter(applies).map(|class| names[class].clone());
                    object["labels"] = labels.collect::<Vec<_>>().into();
                    object["probabilities"] = by_name().into();
                }
                Meaning::Numbers if names.len() == 1 => object["value"] = json!(figures[0]),
                Meaning::Numbers => object["values"] = by_name().into(),
            }
            object.to_string()
        } else {
            let shown: Vec<String> = match meaning {
                Meaning::Classes => {
                    order.iter().map(|&class| format!("{}\t{:.4}", names[class], figures[class])).collect()
                }
                Meaning::Labels => {
                    let applies = |class: &&usize| figures[**class] >= arguments.threshold;
                    let all = top(&figures, arguments.top_k.unwrap_or(names.len()));
                    let labels: Vec<String> = all
                        .iter()
                        .filter(applies)
                        .map(|&class| format!("{} {:.4}", names[class], figures[class]))
                        .collect();
                    vec![labels.join(", ")]
                }
                Meaning::Numbers => figures.iter().map(|figure| format!("{figure:.6}")).collect(),
            };
            format!("{}\t{name}", shown.join("\t"))
        };
        Ok(lines.print(&format!("{line}\n")))
    })?;
    lines.outcome()
}
