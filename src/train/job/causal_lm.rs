//! Causal language modelling: windows of a long text, each token predicted from those before it.

use super::{Amount, Data, DrawState, Evaluation, Job, Learned, not_finite};
use crate::data::{self, Sampler, Tokenizer};
use crate::model::generate::{Generator, Sampling};
use crate::model::{LossOptions, Transformer};
use crate::ops::Device;
use crate::tape::{self, Loss, MemoryUse, Mode, Parameters, Program, RunOptions, Tape, Value};
use crate::train::config::{Config, DataFacts, Order, Train};
use crate::train::source::{self, Source};
use crate::train::trainer::Error;
use std::sync::Arc;

struct Text {
    source: Source,
    facts: DataFacts,
    amount: Amount,
    sampler: Sampler,
    prompt: Vec<u32>,
}

pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    let (source, vocabulary) = source::open(config)?;
    let (train_tokens, val_tokens) = (source.train.len(), source.val.len());
    let has_evaluation = val_tokens > config.model.block;
    let amount = Amount {
        train_tokens,
        val_tokens,
        bytes: source.bytes(vocabulary),
        time: config.model.block,
        predicted: 1.0,
        update_tokens: config.tokens_per_step(),
        line: format!("{train_tokens} tokens to learn from, {val_tokens} kept back"),
        warning: (!has_evaluation)
            .then(|| "too little text is kept back for an evaluation; see data.val_fraction".into()),
    };
    let end_of_text = source.tokenizer.as_ref().and_then(|tokenizer| tokenizer.end_of_text());
    let facts = DataFacts { vocabulary, start: end_of_text, end: end_of_text, ..DataFacts::default() };
    let (sampler, prompt) = (sampler(config, &source)?, prompt(config, &source, vocabulary)?);
    Ok(Box::new(Text { source, facts, amount, sampler, prompt }))
}

impl Text {
    fn has_evaluation(&self, config: &Config) -> bool {
        self.source.val.len() > config.model.block
    }
}

impl Data for Text {
    fn facts(&self) -> &DataFacts {
        &self.facts
    }

    fn amount(&self) -> Amount {
        self.amount.clone()
    }

    fn steps(&self, config: &Config, epochs: f64) -> usize {
        (epochs * self.source.train.len() as f64 / config.tokens_per_step() as f64).ceil() as usize
    }

    fn measure(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<(MemoryUse, usize), Error> {
        let measure = |mode| -> Result<MemoryUse, Error> {
            Ok(Recorded::tape(config, device, model, parameters, mode)?.0.measure()?)
        };
        let evaluation = if self.has_evaluation(config) { measure(Mode::Inference)?.arena } else { 0 };
        Ok((measure(Mode::Training)?, evaluation))
    }

    fn start(
        self: Box<Self>,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<Box<dyn Job>, Error> {
        let record = |mode| Recorded::new(config, device, model, parameters, mode);
        let size = config.train.batch * config.model.block;
        Ok(Box::new(CausalLm {
            training: record(Mode::Training)?,
            evaluation: self.has_evaluation(config).then(|| record(Mode::Inference)).transpose()?,
            settings: config.clone(),
            device: Arc::clone(device),
            source: self.source,
            sampler: self.sampler,
            prompt: self.prompt,
            ids: vec![0; size],
            targets: vec![0; size],
        }))
    }
}

/// A program with its inputs and loss.
struct Recorded {
    program: Program,
    ids: Value,
    targets: Value,
    loss: Loss,
}

impl Recorded {
    fn tape<'p>(
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &'p Parameters,
        mode: Mode,
    ) -> Result<(Tape<'p>, Value, Value, Loss), Error> {
        let shape = [config.train.batch, config.model.block];
        let mut tape = Tape::new(Arc::clone(device), parameters, mode);
        let (ids, targets) = (tape.input_ids("ids", &shape), tape.input_ids("targets", &shape));
        let options = LossOptions {
            recompute: config.train.recompute,
            chunk_rows: Some(config.train.chunk_rows.max(1)),
            label_smoothing: if mode == Mode::Training { config.train.label_smoothing as f32 } else { 0.0 },
        };
        let loss = model.record_loss(&mut tape, ids, targets, options)?;
        Ok((tape, ids, targets, loss))
    }

    fn new(
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
        mode: Mode,
    ) -> Result<Self, Error> {
        let (tape, ids, targets, loss) = Self::tape(config, device, model, parameters, mode)?;
        Ok(Self { program: tape.finish()?, ids, targets, loss })
    }

    /// Runs a batch; the sum of its losses and what its counted rows weigh.
    fn run(
        &mut self,
        parameters: &mut Parameters,
        ids: &[i32],
        targets: &[i32],
        options: &RunOptions,
    ) -> Result<(f64, f64), Error> {
        self.write(ids, targets)?;
        self.program.run(parameters, options)?;
        Ok(self.program.loss_sum(self.loss)?)
    }

    fn write(&mut self, ids: &[i32], targets: &[i32]) -> Result<(), tape::Error> {
        self.program.write_ids(self.ids, ids)?;
        self.program.write_ids(self.targets, targets)
    }

    fn find_non_finite(
        &mut self,
        parameters: &mut Parameters,
        ids: &[i32],
        targets: &[i32],
        options: &RunOptions,
    ) -> String {
        let written = self.write(ids, targets);
        super::examples::name_of_non_finite(written.and_then(|()| self.program.find_non_finite(parameters, options)))
    }
}

struct CausalLm {
    settings: Config,
    device: Arc<Device>,
    source: Source,
    sampler: Sampler,
    training: Recorded,
    evaluation: Option<Recorded>,
    /// What samples go on from; empty where none are written.
    prompt: Vec<u32>,
    ids: Vec<i32>,
    targets: Vec<i32>,
}

impl Job for CausalLm {
    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error> {
        self.sampler.next_batch(&self.source.train, &mut self.ids, &mut self.targets)?;
        let (loss_sum, weight) = self.training.run(parameters, &self.ids, &self.targets, options)?;
        Ok(Learned { loss_sum, weight, tokens: self.ids.len(), beside: Vec::new() })
    }

    fn find_non_finite(&mut self, parameters: &mut Parameters, options: &RunOptions) -> String {
        self.training.find_non_finite(parameters, &self.ids, &self.targets, options)
    }

    fn evaluate(
        &mut self,
        _model: &Transformer,
        parameters: &mut Parameters,
        step: usize,
    ) -> Result<Option<Evaluation>, Error> {
        let Some(evaluation) = &mut self.evaluation else { return Ok(None) };
        let (batch, block) = (self.settings.train.batch, self.settings.model.block);
        let seed = self.settings.train.seed;
        let mut sampler = Sampler::new(self.source.val.len(), data::Order::Shuffled, batch, block, seed)?;
        let batches = self.settings.train.eval_batches.max(1).min(sampler.windows_per_epoch().div_ceil(batch));
        let (mut sum, mut counted) = (0.0, 0.0);
        for _ in 0..batches {
            sampler.next_batch(&self.source.val, &mut self.ids, &mut self.targets)?;
            let options = RunOptions::default();
            let (batch_sum, batch_counted) = evaluation.run(parameters, &self.ids, &self.targets, &options)?;
            if !batch_sum.is_finite() {
                let found = evaluation.find_non_finite(parameters, &self.ids, &self.targets, &options);
                return Err(not_finite(step, batch_sum, found));
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        Ok(Some(Evaluation { loss: sum / counted.max(f64::MIN_POSITIVE), ..Evaluation::default() }))
    }

    fn sample(&mut self, model: &Transformer, parameters: &mut Parameters) -> Result<Option<String>, Error> {
        let Some(tokenizer) = &self.source.tokenizer else { return Ok(None) };
        let train = &self.settings.train;
        let sampling = Sampling { temperature: train.sample_temperature, seed: train.seed, ..Sampling::default() };
        let device = Arc::clone(&self.device);
        let mut generator = Generator::new(device, model, parameters, std::slice::from_ref(&self.prompt))?;
        for draw in 0..train.sample_tokens {
            let token = sampling.choose(generator.logits(0), 0, draw as u64);
            if Some(token) == tokenizer.end_of_text() || draw + 1 == train.sample_tokens {
                break;
            }
            generator.push(parameters, &[token])?;
        }
        Ok(Some(tokenizer.decode(generator.tokens(0))))
    }

    fn state(&self) -> DrawState {
        DrawState::Windows(self.sampler.state())
    }

    fn restore(&mut self, state: &DrawState) -> Result<(), Error> {
        match state {
            DrawState::Windows(state) => Ok(self.sampler.restore(state)?),
            _ => Err(Error::Resume("the checkpoint is of a task with examples".into())),
        }
    }

    fn fingerprint(&self) -> String {
        self.source.train.fingerprint()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.source.tokenizer.as_ref()
    }
}

/// Draws training batches.
fn sampler(config: &Config, source: &Source) -> Result<Sampler, Error> {
    let order = match config.data.order {
        Order::Shuffled => data::Order::Shuffled,
        Order::Random => data::Order::Random,
        Order::Sequential => data::Order::Sequential,
    };
    Ok(Sampler::new(source.train.len(), order, config.train.batch, config.model.block, config.train.seed)?)
}

/// Tokens that samples go on from. Where the text lacks the default, a newline, the first token of the text stands in.
fn prompt(config: &Config, source: &Source, vocabulary: usize) -> Result<Vec<u32>, Error> {
    let Some(tokenizer) = source.tokenizer.as_ref().filter(|_| config.train.sample_every > 0) else {
        return Ok(Vec::new());
    };
    let text = &config.train.sample_prompt;
    let refused = match tokenizer.encode(text) {
        Ok(tokens) if tokens.is_empty() => None,
        Ok(tokens) if tokens.iter().all(|&token| (token as usize) < vocabulary) => return Ok(tokens),
        Ok(_) => Some(format!("{text:?} has tokens beyond model.vocabulary = {vocabulary}; choose another")),
        Err(error) => Some(format!("{error}; or choose a prompt of characters that occur in the text")),
    };
    if let Some(what) = refused.filter(|_| *text != Train::default().sample_prompt) {
        return Err(Error::Prompt(what));
    }
    let mut first = [0];
    source.train.read(0, &mut first);
    let stand_in = tokenizer.end_of_text().filter(|&token| (token as usize) < vocabulary);
    Ok(vec![stand_in.unwrap_or(first[0] as u32)])
}
