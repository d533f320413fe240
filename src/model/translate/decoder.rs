//! The computation below a search: sentences that were read, and several hypotheses of each, one row a hypothesis. The
//! hypotheses of a sentence lie side by side. In an encoder-decoder they share its row of the encoder's memory; a decoder
//! alone reads the source as a prompt, and each hypothesis goes on from keys and values of it in its own row.

use crate::model::Transformer;
use crate::model::block::BlockCache;
use crate::model::config::Architecture;
use crate::model::generate::{self, Recorded, as_id};
use crate::model::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{Cache, Error, Mode, OutOfMemory, Parameters, Program, RunOptions, Tape, Value};
use std::sync::Arc;

/// Sources are padded to a multiple of this, so that those of like lengths share a program.
const LENGTH_STEP: usize = 8;

pub(super) struct Decoder<'m> {
    model: &'m Transformer,
    device: Arc<Device>,
    /// Hypotheses of each sentence.
    width: usize,
    /// Of each layer: keys and values of the hypotheses' own tokens, and of the sources where there is an encoder.
    caches: Vec<BlockCache>,
    memory: Vec<Arc<Cache>>,
    reader: Option<Reader>,
    /// The program that read the last prompt, and its number of tokens.
    prompt_reader: Option<(usize, Recorded)>,
    /// The program for `i + 1` sentences; recorded when there are that many.
    steps: Vec<Option<Recorded>>,
    /// Where hypotheses stand, and how long the sentences are.
    options: RunOptions,
    /// `(sentences · width, V)`
    logits: Vec<f32>,
}

struct Reader {
    program: Program,
    rows: usize,
    time: usize,
    ids: Value,
    documents: Value,
}

impl<'m> Decoder<'m> {
    pub(super) fn new(
        device: Arc<Device>,
        model: &'m Transformer,
        sentences: usize,
        width: usize,
    ) -> Result<Self, OutOfMemory> {
        let (architecture, block) = (model.config().architecture, model.config().block);
        Ok(Self {
            model,
            width,
            caches: model.caches(&device, sentences * width, block)?,
            memory: match architecture {
                Architecture::EncoderDecoder => model.memory(&device, sentences, block)?,
                Architecture::Decoder | Architecture::Encoder => Vec::new(),
            },
            reader: None,
            prompt_reader: None,
            steps: (0..sentences).map(|_| None).collect(),
            options: RunOptions::default(),
            logits: Vec::new(),
            device,
        })
    }

    /// Sentences at a time.
    pub(super) fn capacity(&self) -> usize {
        self.steps.len()
    }

    /// Reads sentences in place of those before; their hypotheses are empty.
    pub(super) fn read(&mut self, parameters: &mut Parameters, sources: &[&[u32]]) -> Result<(), Error> {
        self.options.memory_lengths = sources.iter().map(|source| source.len()).collect();
        self.options.positions = vec![0; sources.len() * self.width];
        match self.model.config().architecture {
            Architecture::EncoderDecoder => self.encode(parameters, sources),
            Architecture::Decoder | Architecture::Encoder => {
                let mut numbered = sources.iter().enumerate();
                numbered.try_for_each(|(sentence, source)| self.read_prompt(parameters, sentence, source))
            }
        }
    }

    /// Runs a source through the decoder into the rows of a sentence's hypotheses, from position 0 on.
    fn read_prompt(&mut self, parameters: &mut Parameters, sentence: usize, source: &[u32]) -> Result<(), Error> {
        let reader = match self.prompt_reader.take().filter(|(length, _)| *length == source.len()) {
            Some((_, reader)) => reader,
            None => generate::record(&self.device, self.model, parameters, &self.caches, 1, source.len())?,
        };
        let (_, reader) = self.prompt_reader.insert((source.len(), reader));
        let ids: Vec<i32> = source.iter().map(|&token| as_id(token)).collect();
        reader.program.write_ids(reader.ids, &ids)?;
        let first = sentence * self.width;
        let options = RunOptions { cache_row: first, positions: vec![0], ..RunOptions::default() };
        reader.program.run(parameters, &options)?;
        for row in first..first + self.width {
            for cache in &self.caches {
                cache.copy_sequence(parameters, first, row, source.len())?;
            }
            self.options.positions[row] = source.len();
        }
        Ok(())
    }

    /// Encodes sentences.
    fn encode(&mut self, parameters: &mut Parameters, sources: &[&[u32]]) -> Result<(), Error> {
        let longest = sources.iter().map(|source| source.len()).max().unwrap_or(0);
        let (rows, block) = (sources.len(), self.model.config().block);
        let time = longest.next_multiple_of(LENGTH_STEP).min(block);
        let reader = match self.reader.take().filter(|reader| (reader.rows, reader.time) == (rows, time)) {
            Some(reader) => reader,
            None => self.record_reader(parameters, rows, time)?,
        };
        let reader = self.reader.insert(reader);
        let (mut ids, mut documents) = (vec![0; rows * time], vec![0; rows * time * 2]);
        for (row, source) in sources.iter().enumerate() {
            let at = row * time..row * time + source.len();
            ids[at.clone()].iter_mut().zip(*source).for_each(|(id, &token)| *id = as_id(token));
            let each = documents[2 * at.start..2 * at.end].chunks_exact_mut(2);
            each.for_each(|document| document.copy_from_slice(&[0, source.len() as i32]));
        }
        reader.program.write_ids(reader.ids, &ids)?;
        reader.program.write_ids(reader.documents, &documents)?;
        reader.program.run(parameters, &RunOptions::default())
    }

    fn record_reader(&self, parameters: &Parameters, rows: usize, time: usize) -> Result<Reader, Error> {
        let mut tape = Tape::new(Arc::clone(&self.device), parameters, Mode::Inference);
        let (ids, documents) = (tape.input_ids("ids", &[rows, time]), tape.input_ids("documents", &[rows, time, 2]));
        let inputs = Inputs { documents: Some(documents), ..Inputs::rows(ids) };
        self.model.record_memory(&mut tape, &inputs, &self.memory)?;
        Ok(Reader { program: tape.finish()?, rows, time, ids, documents })
    }

    /// Appends a token to each hypothesis and computes the logits that follow.
    pub(super) fn step(&mut self, parameters: &mut Parameters, tokens: &[u32]) -> Result<(), Error> {
        let sentences = self.options.memory_lengths.len();
        assert_eq!(tokens.len(), sentences * self.width, "one token for each hypothesis");
        let step = match &mut self.steps[sentences - 1] {
            Some(step) => step,
            empty => {
                let mut tape = Tape::new(Arc::clone(&self.device), parameters, Mode::Inference);
                let ids = tape.input_ids("ids", &[tokens.len(), 1]);
                let logits = match self.model.config().architecture {
                    Architecture::EncoderDecoder => {
                        self.model.record_next_translated(&mut tape, ids, &self.caches, &self.memory)?
                    }
                    Architecture::Decoder | Architecture::Encoder => {
                        self.model.record_next(&mut tape, ids, &self.caches)?
                    }
                };
                tape.keep(logits);
                empty.insert(Recorded { program: tape.finish()?, ids, logits })
            }
        };
        let ids: Vec<i32> = tokens.iter().map(|&token| as_id(token)).collect();
        step.program.write_ids(step.ids, &ids)?;
        step.program.run(parameters, &self.options)?;
        self.logits.clear();
        self.logits.extend_from_slice(&step.program.read(step.logits)?);
        self.options.positions.iter_mut().for_each(|position| *position += 1);
        Ok(())
    }

    /// `(width, V)`: what follows the hypotheses of a sentence, as of the last step.
    pub(super) fn logits(&self, sentence: usize) -> &[f32] {
        let length = self.width * self.model.config().vocabulary;
        &self.logits[sentence * length..][..length]
    }

    /// Hypothesis `to` of a sentence becomes a copy of `from`; its logits stay.
    pub(super) fn copy(
        &self,
        parameters: &mut Parameters,
        sentence: usize,
        from: usize,
        to: usize,
    ) -> Result<(), Error> {
        let (from, to) = (sentence * self.width + from, sentence * self.width + to);
        for cache in &self.caches {
            cache.copy_sequence(parameters, from, to, self.options.positions[from])?;
        }
        Ok(())
    }

    /// Removes a sentence; the last one takes its number. The logits stay as they are.
    pub(super) fn remove(&mut self, parameters: &mut Parameters, sentence: usize) -> Result<(), Error> {
        let last = self.options.memory_lengths.len() - 1;
        for cache in &self.memory {
            cache.copy_sequence(parameters, last, sentence, self.options.memory_lengths[last])?;
        }
        for hypothesis in 0..self.width {
            let (from, to) = (last * self.width + hypothesis, sentence * self.width + hypothesis);
            for cache in &self.caches {
                cache.copy_sequence(parameters, from, to, self.options.positions[from])?;
            }
            self.options.positions[to] = self.options.positions[from];
        }
        self.options.memory_lengths.swap_remove(sentence);
        self.options.positions.truncate(last * self.width);
        Ok(())
    }
}
