//! How likely given translations are, by passes over whole sequences: what an evaluation measures.

use super::{Error, is_translator};
use crate::model::Transformer;
use crate::model::config::Architecture;
use crate::model::transformer::Inputs;
use crate::ops::{Device, IGNORED};
use crate::tape::{self, Loss, Mode, Parameters, Program, RunOptions, Tape, Value};
use std::sync::Arc;

/// Pairs of a batch, and what lengths are rounded up to: few shapes, and little padding.
const ROWS: usize = 32;
const LENGTH_STEP: usize = 8;

/// A program for rows of these lengths.
struct Recorded {
    /// Length of the rows of sources and, in an encoder-decoder, of targets.
    lengths: [usize; 2],
    program: Program,
    source: Value,
    /// Documents and lengths of the sources, and what the decoder reads.
    apart: Option<[Value; 3]>,
    predicted: Value,
    loss: Loss,
}

/// Sum of `-ln p` of the tokens of translations, their ends included, and the number of these tokens. Both sides of a pair
/// are [`framed`](super::framed).
///
/// # Errors
/// A model that does not translate; a pair that is too long or has a token outside the vocabulary; not enough memory.
pub fn loss(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    pairs: &[[Vec<u32>; 2]],
) -> Result<(f64, u64), Error> {
    let config = model.config();
    if !is_translator(config) {
        return Err(Error::Model);
    }
    let shares_row = config.architecture == Architecture::Decoder;
    // What a row has to hold. The end of a target is predicted, not read.
    let needs = |[source, target]: &[Vec<u32>; 2]| match shares_row {
        true => [source.len() + target.len() - 1, 0],
        false => [source.len(), target.len() - 1],
    };
    for (sentence, pair) in pairs.iter().enumerate() {
        let tokens = needs(pair).into_iter().max().unwrap_or(0);
        if tokens > config.block {
            return Err(Error::TooLong { sentence, tokens, most: config.block });
        }
    }
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&pair| needs(&pairs[pair]));
    let (mut sum, mut count) = (0.0, 0u64);
    let mut recorded: Option<Recorded> = None;
    for chosen in order.chunks(ROWS) {
        let longest = |side: usize| chosen.iter().map(|&pair| needs(&pairs[pair])[side]).max().unwrap_or(0);
        let lengths = [0, 1].map(|side| longest(side).next_multiple_of(LENGTH_STEP).min(config.block));
        let program = match recorded.take().filter(|recorded| recorded.lengths == lengths) {
            Some(program) => program,
            None => Recorded::new(device, model, parameters, lengths)?,
        };
        let program = recorded.insert(program);
        let batch: Vec<&[Vec<u32>; 2]> = chosen.iter().map(|&pair| &pairs[pair]).collect();
        let (batch_sum, batch_count) = program.run(parameters, &batch)?;
        sum += batch_sum;
        count += batch_count as u64;
    }
    Ok((sum, count))
}

impl Recorded {
    fn new(
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
        lengths: [usize; 2],
    ) -> Result<Self, tape::Error> {
        let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
        let source = tape.input_ids("source", &[ROWS, lengths[0]]);
        let (apart, trunk, time) = match model.config().architecture {
            Architecture::EncoderDecoder => {
                let documents = tape.input_ids("documents", &[ROWS, lengths[0], 2]);
                let counted = tape.input_ids("source lengths", &[ROWS]);
                let target = tape.input_ids("target", &[ROWS, lengths[1]]);
                let from = Inputs { documents: Some(documents), ..Inputs::rows(source) };
                let to = Inputs::rows(target);
                let trunk = model.record_translation_trunk(&mut tape, &from, counted, &to, false)?;
                (Some([documents, counted, target]), trunk, lengths[1])
            }
            // Padding comes after the tokens, which do not see it.
            Architecture::Decoder | Architecture::Encoder => {
                (None, model.record_trunk(&mut tape, &Inputs::rows(source), false)?, lengths[0])
            }
        };
        let predicted = tape.input_ids("predicted", &[ROWS, time]);
        let loss = model.record_token_loss(&mut tape, trunk, predicted, 0.0, None)?;
        Ok(Self { lengths, program: tape.finish()?, source, apart, predicted, loss })
    }

    fn run(&mut self, parameters: &mut Parameters, batch: &[&[Vec<u32>; 2]]) -> Result<(f64, f64), tape::Error> {
        let [source_time, target_time] = self.lengths;
        let time = if self.apart.is_some() { target_time } else { source_time };
        let (mut sources, mut predicted) = (vec![0; ROWS * source_time], vec![IGNORED; ROWS * time]);
        let (mut documents, mut counted) = (vec![0; 2 * ROWS * source_time], vec![0; ROWS]);
        let mut targets = vec![0; ROWS * target_time];
        let copy =
            |to: &mut [i32], tokens: &[u32]| to.iter_mut().zip(tokens).for_each(|(id, &token)| *id = token as i32);
        for (row, [source, target]) in batch.iter().enumerate() {
            let read = &target[..target.len() - 1];
            let at = row * source_time;
            copy(&mut sources[at..], source);
            let first = if self.apart.is_some() {
                counted[row] = source.len() as i32;
                let each = documents[2 * at..2 * (at + source.len())].chunks_exact_mut(2);
                each.for_each(|document| document.copy_from_slice(&[0, source.len() as i32]));
                copy(&mut targets[row * target_time..], read);
                row * target_time
            } else {
                copy(&mut sources[at + source.len()..], read);
                at + source.len()
            };
            copy(&mut predicted[first..], &target[1..]);
        }
        self.program.write_ids(self.source, &sources)?;
        if let Some([document_ids, lengths, target]) = self.apart {
            self.program.write_ids(document_ids, &documents)?;
            self.program.write_ids(lengths, &counted)?;
            self.program.write_ids(target, &targets)?;
        }
        self.program.write_ids(self.predicted, &predicted)?;
        self.program.run(parameters, &RunOptions::default())?;
        self.program.loss_sum(self.loss)
    }
}
