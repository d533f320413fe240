//! Values of the right type that make no sense, each refused in one line: what, where it was given, what to do.

use super::choices::bundled_name;
use super::choices::{Architecture, ClassWeights, Layout, PositionKind, Task};
use super::{Config, ConfigError, Paths};
use crate::ops::gated_conv::TAPS_MAX;
use crate::train::presets;

/// The largest sizes that keep every product of two of them, times a few bytes, within 64 bits.
const MAX_LAYERS: usize = 1 << 12;
const MAX_WIDTH: usize = 1 << 22;
const MAX_VOCABULARY: usize = 1 << 28;

impl Config {
    /// Checks that the values make sense, alone and together.
    ///
    /// # Errors
    /// The first value that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_with(|_| String::new())
    }

    /// As [`Config::validate`]; `place` says where a key was given, followed by ": ".
    pub(super) fn validate_with(&self, place: impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let check = Check { place };
        self.validate_model(&check)?;
        self.validate_data(&check)?;
        self.validate_train(&check)?;
        self.validate_optimizer(&check)?;
        self.validate_schedule(&check)?;
        check.size("device.threads", self.device.threads, 0, 1024)
    }

    fn validate_model(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let model = &self.model;
        check.size("model.layers", model.layers, 1, MAX_LAYERS)?;
        check.size("model.heads", model.heads, 1, MAX_WIDTH)?;
        check.size("model.channels", model.channels, 1, MAX_WIDTH)?;
        if !model.channels.is_multiple_of(model.heads) {
            return check.refuse(
                "model.heads",
                format!("model.heads is {}, which does not divide model.channels = {}", model.heads, model.channels),
                "choose channels as a multiple of heads",
            );
        }
        check.size("model.kv_heads", model.kv_heads(), 1, MAX_WIDTH)?;
        if !model.heads.is_multiple_of(model.kv_heads()) {
            return check.refuse(
                "model.kv_heads",
                format!("model.kv_heads is {}, which does not divide model.heads = {}", model.kv_heads(), model.heads),
                "choose heads as a multiple of kv_heads, or leave kv_heads out",
            );
        }
        check.size("model.ffn", model.ffn(), 1, 4 * MAX_WIDTH)?;
        check.size("model.block", model.block, 1, MAX_WIDTH)?;
        if let Some(vocabulary) = model.vocabulary {
            check.size("model.vocabulary", vocabulary, 1, MAX_VOCABULARY)?;
        }
        check.number("model.norm_epsilon", model.norm_epsilon, "from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        check.number("model.rotary_theta", model.rotary_theta, "a finite number, 1 or more", |x| x >= 1.0)?;
        check.size("model.position_buckets", model.position_buckets, 4, MAX_WIDTH)?;
        check.size("model.position_max_distance", model.position_max_distance, 4, MAX_WIDTH)?;
        check.size("model.token_types", model.token_types, 0, MAX_WIDTH)?;
        let fresh = model.initializer_range.unwrap_or(1.0);
        check.number("model.initializer_range", fresh, "from 1e-9 to 1000", |x| (1e-9..=1000.0).contains(&x))?;
        check.size("model.patch", model.patch, 1, MAX_WIDTH)?;
        let mean = model.pixel_mean.unwrap_or(0.0);
        check.number("model.pixel_mean", mean, "a finite 32-bit number", |x| (x as f32).is_finite())?;
        let deviation = model.pixel_deviation.unwrap_or(1.0);
        let is_scale = |x: f64| (x as f32).is_finite() && x as f32 > 0.0;
        check.number("model.pixel_deviation", deviation, "a finite 32-bit number above 0", is_scale)?;
        let is_centred = model.architecture != Architecture::Decoder && model.convolution_taps > 0;
        for (key, taps, needs_odd) in
            [("model.convolution_taps", model.convolution_taps, is_centred), ("model.csm_taps", model.csm_taps, true)]
        {
            check.size(key, taps, 0, TAPS_MAX)?;
            if needs_odd && taps.is_multiple_of(2) {
                let problem = format!("{key} is {taps}, but a window around a position has an odd number of taps");
                return check.refuse(key, problem, "add or take away one");
            }
        }
        check.size("model.convolution_dilation", model.convolution_dilation, 1, MAX_WIDTH)?;
        check.size("model.csm_dilation", model.csm_dilation, 1, MAX_WIDTH)?;
        check.size("model.frozen_layers", model.frozen_layers, 0, model.layers)?;
        let lora = &self.lora;
        check.size("lora.rank", lora.rank, 0, model.channels)?;
        check.number("lora.alpha", lora.alpha, "a finite number above 0", |x| x > 0.0)?;
        check.number("lora.dropout", lora.dropout, "from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        self.validate_task(check)?;
        check.number("model.dropout", model.dropout, "from 0 to below 1", |x| (0.0..1.0).contains(&x))
    }

    /// Whether the network can do what is asked of it.
    fn validate_task(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let (task, model) = (self.train.task, &self.model);
        let wanted = match task {
            Task::CausalLm => Architecture::Decoder,
            Task::Translation if model.architecture == Architecture::Decoder => Architecture::Decoder,
            Task::Translation => Architecture::EncoderDecoder,
            _ => Architecture::Encoder,
        };
        if model.architecture != wanted {
            return check.refuse(
                "model.architecture",
                format!("model.architecture is {}, which cannot learn {}", shown(&model.architecture), shown(&task)),
                &format!("set model.architecture = {}, or another train.task", shown(&wanted)),
            );
        }
        if task == Task::Translation {
            self.validate_translation(check)?;
        }
        self.validate_mix(check)?;
        if model.positions == PositionKind::Rotary && !(model.channels / model.heads).is_multiple_of(2) {
            return check.refuse(
                "model.positions",
                format!("rotary positions rotate pairs, and heads of {} have an odd one", model.channels / model.heads),
                "choose channels and heads so that a head's size is even",
            );
        }
        Ok(())
    }

    /// Whether the tasks can be learned together.
    fn validate_mix(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let is_of_encoder = |task| !matches!(task, Task::CausalLm | Task::Translation | Task::ImageClassification);
        let has_classes = |task| matches!(task, Task::Classification | Task::MultiLabel | Task::Regression);
        let mut tasks = vec![self.train.task];
        for mixed in &self.train.mix.0 {
            let task = mixed.task;
            if !is_of_encoder(task) || !is_of_encoder(self.train.task) {
                let both = [shown(&task), shown(&self.train.task)].join(" and ");
                let problem = format!("train.mix: {both} cannot be learned together");
                return check.refuse("train.mix", problem, "mix tasks of an encoder");
            }
            if tasks.iter().any(|&other| other == task || (has_classes(other) && has_classes(task))) {
                let problem = format!("train.mix: {} would share its head with another task", shown(&task));
                return check.refuse(
                    "train.mix",
                    problem,
                    "mix tasks of different kinds; a path may list several files",
                );
            }
            validate_paths(check, "train.mix: path", &mixed.path)?;
            check.number("train.mix: weight", mixed.weight, "a finite number above 0", |x| x > 0.0)?;
            check.size("train.mix: batch", mixed.batch.unwrap_or(1), 1, MAX_WIDTH)?;
            tasks.push(task);
        }
        Ok(())
    }

    /// Whether the data is laid out as the task needs it.
    fn validate_translation(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        if self.data.text_pair.is_none() {
            return check.refuse(
                "data.text_pair",
                "data.text_pair is not set, so there are no translations to learn from".into(),
                "name the column of the translations, and in data.text that of what is translated",
            );
        }
        let has_two_stacks = self.model.architecture == Architecture::EncoderDecoder;
        if self.data.layout == Layout::Packed && has_two_stacks {
            return check.refuse(
                "data.layout",
                "data.layout is \"packed\", and a decoder cannot look at one of several sources in a row".into(),
                "set data.layout = \"padded\"",
            );
        }
        let longest = self.data.max_tokens.unwrap_or(self.model.block);
        if longest < 6 && !has_two_stacks {
            return check.refuse(
                "data.max_tokens",
                format!("a row of {longest} tokens has no room for a text and its translation, 3 tokens each at least"),
                "raise data.max_tokens or model.block",
            );
        }
        if self.model.token_types > 0 {
            return check.refuse(
                "model.token_types",
                format!("model.token_types is {}, and a translation has no kinds of tokens", self.model.token_types),
                "set model.token_types = 0",
            );
        }
        Ok(())
    }

    fn validate_data(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let Some(path) = &self.data.path else {
            return check.refuse(
                "data.path",
                "data.path is not set, so there is nothing to learn from".into(),
                "give a text file or token shards, as in --set data.path=FILE",
            );
        };
        validate_paths(check, "data.path", path)?;
        if let Some(path) = &self.data.val_path {
            validate_paths(check, "data.val_path", path)?;
        }
        if let Some(max_tokens) = self.data.max_tokens {
            check.size("data.max_tokens", max_tokens, 3, self.model.block)?;
        }
        check.size("data.buckets", self.data.buckets, 1, 64)?;
        check.size("data.shift", self.data.shift, 0, MAX_WIDTH)?;
        check.number("data.val_fraction", self.data.val_fraction, "from 0 to below 1", |x| (0.0..1.0).contains(&x))
    }

    fn validate_train(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let train = &self.train;
        check.size("train.batch", train.batch, 1, MAX_WIDTH)?;
        check.size("train.accumulate", train.accumulate, 1, MAX_WIDTH)?;
        check.size("train.steps", train.steps, 1, 1 << 48)?;
        check.size("train.eval_batches", train.eval_batches, 1, 1 << 32)?;
        check.size("train.keep_last", train.keep_last, 1, 1 << 32)?;
        check.size("train.log_every", train.log_every, 1, 1 << 48)?;
        check.number("train.epochs", train.epochs, "a finite number, 0 (off) or more", |x| x >= 0.0)?;
        let is_share = |x: f64| (0.0..1.0).contains(&x);
        check.number("train.label_smoothing", train.label_smoothing, "from 0 to below 1", is_share)?;
        // Of the tasks that are learned together each takes what it can.
        let (task, is_alone) = (train.task.name(), train.mix.0.is_empty());
        if is_alone
            && train.label_smoothing > 0.0
            && matches!(train.task, Task::MultiLabel | Task::Regression | Task::QuestionAnswering)
        {
            return check.refuse(
                "train.label_smoothing",
                format!(
                    "train.label_smoothing is {}, and train.task = {task} has no use for it",
                    train.label_smoothing
                ),
                "set train.label_smoothing = 0",
            );
        }
        if is_alone
            && train.class_weights != ClassWeights::None
            && !matches!(train.task, Task::Classification | Task::ImageClassification)
        {
            return check.refuse(
                "train.class_weights",
                format!("train.class_weights is set, and train.task = {task} has no classes to weigh"),
                "take it out",
            );
        }
        check.number("train.mask_share", train.mask_share, "above 0 and below 1", |x| x > 0.0 && x < 1.0)?;
        for (key, weight) in [("masked-lm", train.losses.masked_lm), ("csm", train.losses.csm)] {
            let key = format!("train.losses.{key}");
            check.number(&key, weight, "a finite number, 0 (off) or more", |x| x >= 0.0)?;
        }
        check.size("train.chunk_rows", train.chunk_rows, 1, MAX_VOCABULARY)?;
        check.size("train.sample_tokens", train.sample_tokens, 0, MAX_VOCABULARY)?;
        if i64::try_from(train.seed).is_err() {
            let problem = format!("train.seed is {}", train.seed);
            return check.refuse("train.seed", problem, &format!("it has to be at most {}", i64::MAX));
        }
        check.number("train.clip", train.clip, "a finite number, 0 (off) or more", |x| x >= 0.0)?;
        let temperature = train.sample_temperature;
        check.number("train.sample_temperature", temperature, "a finite number, 0 or more", |x| x >= 0.0)?;
        check.number("train.outlier_z", train.outlier_z, "a finite number, 0 (off) or more", |x| x >= 0.0)?;
        let tokens = train.batch.saturating_mul(self.model.block).saturating_mul(train.accumulate);
        if tokens > 1 << 40 {
            return check.refuse(
                "train.batch",
                format!("train.batch x model.block x train.accumulate is {tokens} tokens an update"),
                "lower one of them",
            );
        }
        Ok(())
    }

    fn validate_optimizer(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let optimizer = &self.optimizer;
        let decay = optimizer.weight_decay;
        check.number("optimizer.learning_rate", optimizer.learning_rate, "a finite number above 0", |x| x > 0.0)?;
        check.number("optimizer.beta1", optimizer.beta1, "from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        check.number("optimizer.beta2", optimizer.beta2, "from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        check.number("optimizer.epsilon", optimizer.epsilon, "a finite number above 0", |x| x > 0.0)?;
        check.number("optimizer.weight_decay", decay, "a finite number, 0 (off) or more", |x| x >= 0.0)?;
        check
            .number("optimizer.layer_decay", optimizer.layer_decay, "above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?;
        check.number("optimizer.momentum", optimizer.momentum, "from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        if optimizer.learning_rate * decay >= 1.0 {
            return check.refuse(
                "optimizer.weight_decay",
                format!("optimizer.weight_decay is {decay}: times the learning rate it takes whole weights away"),
                "lower one of them, so that their product is below 1",
            );
        }
        Ok(())
    }

    fn validate_schedule(&self, check: &Check<impl Fn(&str) -> String>) -> Result<(), ConfigError> {
        let schedule = &self.schedule;
        let fraction = schedule.wsd_decay_fraction;
        let is_fraction = |x: f64| x > 0.0 && x <= 1.0;
        check.number("schedule.min_factor", schedule.min_factor, "from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        check.number("schedule.wsd_decay_fraction", fraction, "above 0 and at most 1", is_fraction)?;
        check.size("schedule.warmup", schedule.warmup, 0, 1 << 48)?;
        let Some(decay_steps) = schedule.decay_steps else {
            // A run cut short by --steps may well end within its warm-up; only an explicit decay can contradict it.
            return Ok(());
        };
        check.size("schedule.decay_steps", decay_steps, 1, 1 << 48)?;
        if decay_steps <= schedule.warmup {
            return check.refuse(
                "schedule.decay_steps",
                format!("schedule.decay_steps is {decay_steps}, within the warm-up of {} steps", schedule.warmup),
                "raise it above schedule.warmup, or leave it out to decay until the end of the run",
            );
        }
        Ok(())
    }
}

/// A choice as TOML writes it.
fn shown(choice: &impl serde::Serialize) -> String {
    toml::Value::try_from(choice).map_or_else(|_| String::new(), |value| value.to_string())
}

struct Check<P> {
    place: P,
}

impl<P: Fn(&str) -> String> Check<P> {
    fn refuse(&self, key: &str, problem: String, remedy: &str) -> Result<(), ConfigError> {
        Err(ConfigError::Invalid { place: (self.place)(key), problem, remedy: remedy.into() })
    }

    fn size(&self, key: &str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        self.refuse(key, format!("{key} is {value}"), &format!("it has to be from {least} to {most}"))
    }

    fn number(&self, key: &str, value: f64, range: &str, is_valid: impl Fn(f64) -> bool) -> Result<(), ConfigError> {
        if value.is_finite() && is_valid(value) {
            return Ok(());
        }
        self.refuse(key, format!("{key} is {value}"), &format!("it has to be {range}"))
    }
}

fn validate_paths(check: &Check<impl Fn(&str) -> String>, key: &str, paths: &Paths) -> Result<(), ConfigError> {
    let paths = paths.as_slice();
    if paths.is_empty() || paths.iter().any(|path| path.as_os_str().is_empty()) {
        return check.refuse(key, format!("{key} is empty"), "give a text file or token shards");
    }
    let Some(name) = paths.iter().find_map(|path| bundled_name(path)) else { return Ok(()) };
    if paths.len() > 1 {
        return check.refuse(key, format!("{key} mixes \"bundled:{name}\" with files"), "give one or the other");
    }
    if presets::bundled_text(name).is_none() {
        let known: Vec<_> = presets::BUNDLED_TEXTS.iter().map(|text| format!("\"bundled:{}\"", text.name)).collect();
        let remedy = format!("use {}, or a file of your own", known.join(" or "));
        return check.refuse(key, format!("{key} is \"bundled:{name}\", which does not exist"), &remedy);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Config {
        let mut config = Config::default();
        config.data.path = Some(Paths::from(vec!["text.txt".into()]));
        config
    }

    fn refusal(change: impl Fn(&mut Config)) -> String {
        let mut config = valid();
        change(&mut config);
        let message = config.validate().expect_err("refused").to_string();
        assert_eq!(message.lines().count(), 1, "{message:?} is one line");
        message
    }

    #[test]
    fn the_defaults_with_a_path_are_valid() {
        valid().validate().unwrap();
    }

    #[test]
    fn each_refusal_says_what_is_wrong_and_what_to_do() {
        let no_path = refusal(|c| c.data.path = None);
        assert!(no_path.contains("data.path is not set") && no_path.contains("--set data.path=FILE"), "{no_path}");
        let heads = refusal(|c| c.model.heads = 7);
        assert!(heads.contains("model.heads is 7, which does not divide model.channels = 384"), "{heads}");
        let kv_heads = refusal(|c| c.model.kv_heads = Some(4));
        assert!(kv_heads.contains("model.kv_heads is 4, which does not divide model.heads = 6"), "{kv_heads}");
        let decay = refusal(|c| (c.schedule.warmup, c.schedule.decay_steps) = (100, Some(100)));
        assert!(decay.contains("schedule.decay_steps is 100, within the warm-up of 100 steps"), "{decay}");
        let bundled = refusal(|c| c.data.path = Some(Paths::from(vec!["bundled:bronte".into()])));
        assert!(bundled.contains("which does not exist: use \"bundled:austen\""), "{bundled}");
        let rate = refusal(|c| c.optimizer.learning_rate = f64::NAN);
        assert_eq!(rate, "optimizer.learning_rate is NaN: it has to be a finite number above 0");
    }

    #[test]
    fn values_out_of_range_are_refused_by_the_name_of_their_key() {
        type Change = fn(&mut Config);
        let refused: [(&str, Change); 28] = [
            ("model.layers", |c| c.model.layers = 0),
            ("model.heads", |c| c.model.heads = 0),
            ("model.channels", |c| c.model.channels = 0),
            ("model.channels", |c| c.model.channels = usize::MAX),
            ("model.kv_heads", |c| c.model.kv_heads = Some(0)),
            ("model.ffn", |c| c.model.ffn = Some(0)),
            ("model.block", |c| c.model.block = 0),
            ("model.vocabulary", |c| c.model.vocabulary = Some(0)),
            ("model.dropout", |c| c.model.dropout = 1.0),
            ("model.dropout", |c| c.model.dropout = -0.1),
            ("data.path", |c| c.data.path = Some(Paths::from(vec![]))),
            ("data.val_path", |c| c.data.val_path = Some(Paths::from(vec!["".into()]))),
            ("data.val_fraction", |c| c.data.val_fraction = 1.0),
            ("train.batch", |c| c.train.batch = 0),
            ("train.batch", |c| (c.train.batch, c.train.accumulate, c.model.block) = (1 << 20, 1 << 20, 1 << 20)),
            ("train.accumulate", |c| c.train.accumulate = 0),
            ("train.steps", |c| c.train.steps = 0),
            ("train.seed", |c| c.train.seed = u64::MAX),
            ("train.clip", |c| c.train.clip = f64::INFINITY),
            ("train.sample_temperature", |c| c.train.sample_temperature = -1.0),
            ("train.outlier_z", |c| c.train.outlier_z = f64::NAN),
            ("optimizer.beta1", |c| c.optimizer.beta1 = 1.0),
            ("optimizer.beta2", |c| c.optimizer.beta2 = 1.0),
            ("optimizer.weight_decay", |c| c.optimizer.weight_decay = 1e4),
            ("optimizer.momentum", |c| c.optimizer.momentum = 1.0),
            ("schedule.min_factor", |c| c.schedule.min_factor = 1.5),
            ("schedule.wsd_decay_fraction", |c| c.schedule.wsd_decay_fraction = 0.0),
            ("device.threads", |c| c.device.threads = 5000),
        ];
        for (key, change) in refused {
            let message = refusal(change);
            assert!(message.starts_with(key), "{message:?} starts with {key}");
        }
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_is_valid() {
        let mut config = valid();
        (config.train.steps, config.schedule.warmup) = (50, 100);
        config.validate().unwrap();
    }
}
