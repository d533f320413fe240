//! Inference of a trunk and its heads over many texts: hidden states, sentence vectors, classes, masked tokens, answers.
//!
//! Texts come as token ids, of any lengths and in any order. They are laid out in batches of a few shapes (`arrange`),
//! padded or packed, and each shape is a program of its own; the programs take turns over one arena. Attention is kept
//! inside each text by the documents of a row, in both arrangements, so a text's result is its own whatever lies beside
//! it.

mod arrange;
mod figures;
mod spans;

pub use arrange::{Arrangement, Example};
pub use figures::{cosine, normalize, sigmoid, softmax, top};
pub use spans::{Candidate, SpanOptions, best_spans};

use super::Transformer;
use super::config::Pooling;
use super::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{self, Mode, Parameters, Programs, RunOptions, Tape, Value};
use arrange::{Batch, Pick, Shape};
use std::sync::Arc;

/// What is wanted of each text of `T` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The last block's result, `(T, C)`.
    Hidden,
    /// One vector, `(C)`: that of a pooling, without a layer behind it.
    Vector(Pooling),
    /// One vector, `(C)`: as the classes get it, through the pooler.
    Pooled,
    /// Logits of the classes.
    Classes,
    /// Logits of tokens, `(positions, V)`, at the positions that [`Example::positions`] names; at most `slots` of them
    /// in a text, or in a batch.
    Tokens { slots: usize },
    /// Logits of each token to be the first and the last of an answer, `(T, 2)`.
    Spans,
}

/// Why texts cannot be encoded, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("text {text} has no tokens; give it some, or leave it out")]
    Empty { text: usize },
    #[error("text {text} has {tokens} tokens, but the model takes at most {block}; cut it, or use --max-tokens")]
    TooLong { text: usize, tokens: usize, block: usize },
    #[error(
        "text {text}: token {token} is beyond the model's vocabulary of {vocabulary}; use the tokenizer that the model \
         was trained with"
    )]
    OutOfVocabulary { text: usize, token: u32, vocabulary: usize },
    #[error("text {text}: {found} positions to predict, but at most {most} were asked for")]
    Positions { text: usize, found: usize, most: usize },
    #[error(
        "text {text}: the model's output is not finite; its weights are damaged or its training diverged: use another \
         checkpoint"
    )]
    NotFinite { text: usize },
    #[error(
        "example {text} has {found} numbers of patches, but the model takes {expected} (none, where it reads texts); use \
         a model for such input"
    )]
    Patches { text: usize, found: usize, expected: usize },
    #[error("this model has no {what}; use one that was trained for it")]
    NoHead { what: &'static str },
    #[error(transparent)]
    Tape(#[from] tape::Error),
}

/// Runs a model over texts.
pub struct Encoder {
    programs: Programs,
    recorded: Vec<Recorded>,
    output: Output,
    pick: Pick,
    arrangement: Arrangement,
    /// Bounds of what a text may be.
    vocabulary: usize,
    longest: usize,
    /// Numbers of a patch; 0 of a model of texts.
    numbers: usize,
    /// Values for each token, position or text.
    width: usize,
    batch: Batch,
}

/// The values of a shape's program.
struct Recorded {
    shape: Shape,
    ids: Value,
    positions: Value,
    types: Option<Value>,
    documents: Value,
    patches: Option<Value>,
    ranges: Option<Value>,
    result: Value,
}

impl Encoder {
    /// Programs for texts of up to `longest` tokens, which is cut to what the model takes.
    ///
    /// # Errors
    /// The model lacks the head; not enough memory.
    pub fn new(
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
        output: Output,
        arrangement: Arrangement,
        longest: usize,
    ) -> Result<Self, Error> {
        let config = model.config();
        let heads = &config.predictions;
        let classes = heads.classes.as_ref().map_or(0, Vec::len);
        let missing = match output {
            Output::Pooled if !heads.pooler => Some("pooler (use the mean or the first token's vector)"),
            Output::Classes if classes == 0 => Some("classes"),
            Output::Tokens { .. } if heads.language.is_none() => Some("head that predicts tokens"),
            Output::Spans if !heads.spans => Some("head that finds answers"),
            _ => None,
        };
        if let Some(what) = missing {
            return Err(Error::NoHead { what });
        }
        let longest = longest.clamp(1, config.block);
        let mut recorded = Vec::new();
        let mut tapes = Vec::new();
        for shape in arrangement.shapes(longest, config.block) {
            let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
            recorded.push(record(&mut tape, model, output, shape)?);
            tapes.push(tape);
        }
        let width = match output {
            Output::Hidden | Output::Vector(_) | Output::Pooled => config.channels,
            Output::Classes => classes,
            Output::Tokens { .. } => config.vocabulary,
            Output::Spans => 2,
        };
        Ok(Self {
            programs: Programs::new(tapes)?,
            recorded,
            output,
            pick: match output {
                Output::Tokens { .. } => Pick::Positions,
                Output::Vector(pooling) => Pick::Pooled(pooling),
                _ => Pick::Pooled(config.pooling),
            },
            arrangement,
            vocabulary: config.vocabulary,
            longest,
            numbers: config.image.map_or(0, |image| image.numbers()),
            width,
            batch: Batch::default(),
        })
    }

    /// Values of a result's row: `C`, the number of classes, `V`, or 2.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Encodes texts: hands `each` the number of a text and its values, one text after the other but not in order.
    ///
    /// # Errors
    /// A text that the model cannot take; all are looked at before the first is encoded. A result that is not finite.
    pub fn run(
        &mut self,
        parameters: &mut Parameters,
        examples: &[Example],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        self.check(examples)?;
        let slots = match self.output {
            Output::Tokens { slots } => Some(slots),
            _ => None,
        };
        let shapes: Vec<Shape> = self.recorded.iter().map(|recorded| recorded.shape).collect();
        for planned in arrange::plan(&self.arrangement, &shapes, examples, slots) {
            let recorded = &self.recorded[planned.shape];
            self.batch.fill(recorded.shape, &planned.placed, examples);
            let program = self.programs.select(planned.shape)?;
            program.write_ids(recorded.ids, &self.batch.ids)?;
            program.write_ids(recorded.positions, &self.batch.positions)?;
            if let Some(types) = recorded.types {
                program.write_ids(types, &self.batch.types)?;
            }
            program.write_ids(recorded.documents, &self.batch.documents)?;
            if let Some(patches) = recorded.patches {
                self.batch.fill_patches(recorded.shape, examples, self.numbers);
                program.write(patches, &self.batch.patches)?;
            }
            if let Some(ranges) = recorded.ranges {
                let count = program_ranges(recorded.shape, self.output);
                program.write_ids(ranges, &self.batch.ranges(self.pick, recorded.shape, examples, count))?;
            }
            program.run(parameters, &RunOptions::default())?;
            let values = program.read(recorded.result)?;
            let mut next_row = 0;
            for placed in &planned.placed {
                let example = &examples[placed.example];
                let rows = match self.output {
                    Output::Hidden | Output::Spans => {
                        let first = placed.row * recorded.shape.time + placed.start;
                        first..first + example.ids.len()
                    }
                    Output::Vector(_) | Output::Pooled | Output::Classes => next_row..next_row + 1,
                    Output::Tokens { .. } => next_row..next_row + example.positions.len(),
                };
                next_row = rows.end;
                let found = &values[rows.start * self.width..rows.end * self.width];
                if !found.iter().all(|value| value.is_finite()) {
                    return Err(Error::NotFinite { text: placed.example });
                }
                each(placed.example, found);
            }
        }
        Ok(())
    }

    /// Encodes texts and returns the values of each.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn all(&mut self, parameters: &mut Parameters, examples: &[Example]) -> Result<Vec<Vec<f32>>, Error> {
        let mut results = vec![Vec::new(); examples.len()];
        self.run(parameters, examples, |text, values| results[text] = values.to_vec())?;
        Ok(results)
    }

    fn check(&self, examples: &[Example]) -> Result<(), Error> {
        for (text, example) in examples.iter().enumerate() {
            if example.ids.is_empty() {
                return Err(Error::Empty { text });
            }
            if example.ids.len() > self.longest {
                return Err(Error::TooLong { text, tokens: example.ids.len(), block: self.longest });
            }
            if let Some(&token) = example.ids.iter().find(|&&token| token as usize >= self.vocabulary) {
                return Err(Error::OutOfVocabulary { text, token, vocabulary: self.vocabulary });
            }
            let (found, expected) = (example.patches.len(), example.ids.len() * self.numbers);
            if found != expected {
                return Err(Error::Patches { text, found, expected });
            }
            if let Output::Tokens { slots } = self.output {
                let found = example.positions.len();
                if found > slots {
                    return Err(Error::Positions { text, found, most: slots });
                }
                assert!(example.positions.is_sorted(), "positions are in order");
                assert!(example.positions.last().is_none_or(|&last| last < example.ids.len()), "inside the text");
            }
        }
        Ok(())
    }
}

/// How many ranges of rows a program picks.
fn program_ranges(shape: Shape, output: Output) -> usize {
    match output {
        Output::Tokens { slots } => slots,
        _ => shape.examples,
    }
}

fn record(tape: &mut Tape<'_>, model: &Transformer, output: Output, shape: Shape) -> Result<Recorded, Error> {
    let size = [shape.rows, shape.time];
    let ids = tape.input_ids("ids", &size);
    let positions = tape.input_ids("positions", &size);
    let documents = tape.input_ids("documents", &[shape.rows, shape.time, 2]);
    let types = (model.config().token_types > 0).then(|| tape.input_ids("types", &size));
    let patches = model.config().image.map(|image| tape.input("patches", &[shape.rows, shape.time, image.numbers()]));
    let inputs = Inputs { ids, position_ids: Some(positions), type_ids: types, documents: Some(documents), patches };
    let trunk = model.record_trunk(tape, &inputs, false)?;
    let mut ranges = None;
    let mut pick = |tape: &mut Tape<'_>| {
        let value = tape.input_ids("ranges", &[program_ranges(shape, output), 2]);
        *ranges.insert(value)
    };
    let result = match output {
        Output::Hidden => trunk,
        Output::Vector(_) => {
            let ranges = pick(tape);
            tape.mean_rows(trunk, ranges)?
        }
        Output::Pooled => {
            let ranges = pick(tape);
            model.record_pooled(tape, trunk, ranges)?
        }
        Output::Classes => {
            let ranges = pick(tape);
            let pooled = model.record_pooled(tape, trunk, ranges)?;
            model.record_class_logits(tape, pooled)?
        }
        Output::Tokens { .. } => {
            let ranges = pick(tape);
            let rows = tape.mean_rows(trunk, ranges)?;
            model.record_token_logits(tape, rows)?
        }
        Output::Spans => model.record_span_logits(tape, trunk)?,
    };
    tape.keep(result);
    Ok(Recorded { shape, ids, positions, types, documents, patches, ranges, result })
}
