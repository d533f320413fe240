//! What a run is made of: the sections and keys of its TOML file, their meaning, types and defaults.
//!
//! Each section is declared once, by `section!`, and everything else follows from that declaration: the struct with
//! its doc comments, its defaults, the table of known keys behind "did you mean", the checks of types, the writer,
//! and the commented reference that `--help-config` prints. So a key cannot exist without a meaning and a default.
//!
//! [`Config::load`] reads a preset or a file, applies `--set key=value` on top, and refuses what does not make sense;
//! it remembers where each value came from, so that a refusal can say file and line.

mod choices;
mod load;
mod model;
mod validate;

pub use choices::{
    ActivationKind, Architecture, ClassWeights, DeviceKind, Keep, Layout, LoraTargets, LossWeights, MaskUnit, Mix,
    MixedTask, Norm, NormPlace, OptimizerName, Order, Paths, Pooling, PositionKind, ScheduleKind, Setting, Task,
    TokenizerChoice,
};
pub use load::{ConfigError, Source};
pub(crate) use model::DataFacts;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One key of the configuration, as declared.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name inside its section.
    pub name: &'static str,
    /// Its doc comment, one line an element.
    pub meaning: &'static [&'static str],
    /// What its value has to be, in words.
    pub expected: fn() -> &'static str,
}

/// A section of the configuration: `[name]` in TOML.
pub trait Section: Default {
    /// Name between the brackets.
    const NAME: &'static str;
    /// Its doc comment, one line an element.
    const ABOUT: &'static [&'static str];
    /// Its keys, in the order in which they are written.
    const KEYS: &'static [Key];

    /// Assigns `value` to the key of that name, which must be one of [`Section::KEYS`].
    ///
    /// # Errors
    /// The value is not of the key's type; the key then keeps its value.
    fn set(&mut self, key: &str, value: toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>;

    /// The value of the key of that name; `None` where it is not set.
    fn get(&self, key: &str) -> Option<toml::Value>;
}

macro_rules! section {
    (
        $(#[doc = $about:literal])+
        [$section:literal] $name:ident {
            $( $(#[doc = $meaning:literal])+ $key:ident: $type:ty = $default:expr; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $meaning])+ pub $key: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )+ }
            }
        }

        impl Section for $name {
            const NAME: &'static str = $section;
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const KEYS: &'static [Key] = &[$(
                Key { name: stringify!($key), meaning: &[$($meaning),+], expected: <$type as Setting>::expected },
            )+];

            fn set(&mut self, key: &str, value: toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error> {
                match key {
                    $( stringify!($key) => self.$key = Deserialize::deserialize(value)?, )+
                    _ => unreachable!("{key} was looked up in KEYS"),
                }
                Ok(())
            }

            fn get(&self, key: &str) -> Option<toml::Value> {
                match key {
                    $( stringify!($key) => toml::Value::try_from(&self.$key).ok(), )+
                    _ => unreachable!("{key} was looked up in KEYS"),
                }
            }
        }
    };
}

section! {
    /// The network.
    ["model"] Model {
        /// Kind of network: "decoder" (each token sees those before it), "encoder" (all of them), "encoder-decoder".
        /// What is not set otherwise is GPT-2's.
        architecture: Architecture = Architecture::Decoder;
        /// Number of transformer blocks.
        layers: usize = 6;
        /// Attention heads of each block; has to divide channels.
        heads: usize = 6;
        /// Key/value heads of each block; has to divide heads. Not set: as many as heads.
        kv_heads: Option<usize> = None;
        /// Width of the residual stream.
        channels: usize = 384;
        /// Width of the feed-forward layer. Not set: four times channels.
        ffn: Option<usize> = None;
        /// Longest sequence, in tokens: the context, and the length of each training sequence.
        block: usize = 256;
        /// Number of token ids the model knows. Not set: as many as the tokenizer has.
        vocabulary: Option<usize> = None;
        /// Chance that an activation is zeroed while training.
        dropout: f64 = 0.0;
        /// Whether the output projection shares the weights of the token embedding.
        tied: bool = true;
        /// Norms: "layer" or "rms" (without mean and bias).
        norm: Norm = Norm::Layer;
        /// Where a block normalises: "pre" (what enters a branch) or "post" (the sum, as BERT does).
        norm_place: NormPlace = NormPlace::Pre;
        /// Added to the variance in every norm.
        norm_epsilon: f64 = 1e-5;
        /// Of the feed-forward layer: "relu", "gelu", "gelu-tanh" or "swiglu".
        activation: ActivationKind = ActivationKind::GeluTanh;
        /// How a token's place enters: "learned", "sinusoidal", "rotary", "alibi", "relative" (T5's buckets) or "none".
        positions: PositionKind = PositionKind::Learned;
        /// "rotary": base of the wavelengths.
        rotary_theta: f64 = 10000.0;
        /// "relative": number of buckets of distances.
        position_buckets: usize = 32;
        /// "relative": distance from which all share a bucket.
        position_max_distance: usize = 128;
        /// Taps of a gated convolution at the start of each block, odd in an encoder. 0: none.
        convolution_taps: usize = 0;
        /// Positions from one tap to the next.
        convolution_dilation: usize = 1;
        /// Taps of the head that predicts tokens from their surroundings (train.losses.csm), odd.
        csm_taps: usize = 9;
        /// Positions from one of its taps to the next.
        csm_dilation: usize = 1;
        /// Standard deviation of fresh weights. Not set: 0.02, GPT-2's, and for images 1/√channels.
        initializer_range: Option<f64> = None;
        /// "image-classification": side of the square patches, in pixels, that an image is a sequence of; 1 for its pixels. As
        /// many as there are take the place of block.
        patch: usize = 4;
        /// "image-classification": what is taken from each pixel / 255. Not set: the mean of the training images.
        pixel_mean: Option<f64> = None;
        /// "image-classification": what it is then divided by. Not set: the standard deviation of the training images.
        pixel_deviation: Option<f64> = None;
        /// Whether linear layers have biases.
        biases: bool = true;
        /// Kinds of tokens with vectors of their own, for pairs of texts; 0: none.
        token_types: usize = 0;
        /// Whether the sum of the embeddings is normalised, as BERT does.
        embedding_norm: bool = false;
        /// Whether a linear layer, the activation and a norm come before the prediction of tokens, as in BERT.
        head_transform: bool = false;
        /// What stands for a text: the vector of its "first" token, or the "mean" of all. For an image "first" is a class
        /// token before its patches.
        pooling: Pooling = Pooling::First;
        /// Whether a linear layer and tanh come between that vector and the classes, as in BERT.
        pooler: bool = false;
        /// How many of the first blocks are frozen, and with any of them the embeddings. 0: none.
        frozen_layers: usize = 0;
        /// Folder to take the first weights from: a checkpoint, or a Hugging Face model folder. Not set: random ones.
        /// The keys of this section that are not given are then those of that folder; heads of other tasks are left out.
        initial: Option<PathBuf> = None;
    }
}

section! {
    /// The text to learn from.
    ["data"] Data {
        /// A text file, a token shard (.bin), a folder of either, or a list of these; relative to the working
        /// directory. "bundled:austen" is the text that is part of this program. For "image-classification" a folder with a
        /// folder of PNG files for each class, or an idx file of images, such as train-images.idx.gz, whose labels are in
        /// the file beside it of the same name but for "labels" in the place of "images".
        path: Option<Paths> = None;
        /// How text becomes token ids: "char" (the characters that occur in it), "byte", or a tokenizer.json file.
        /// "bundled:austen" is the tokenizer of the bundled text.
        tokenizer: TokenizerChoice = TokenizerChoice::Char;
        /// Share of the tokens, taken from the end, that is kept back for evaluation.
        val_fraction: f64 = 0.1;
        /// Order of training sequences: "shuffled" (each once an epoch), "random" (windows anywhere), "sequential".
        order: Order = Order::Shuffled;
        /// Whether .bin files are bare 16-bit token ids without a header, as nanoGPT writes them.
        raw_u16: bool = false;
        /// Text or shards to evaluate on, instead of a share of path.
        val_path: Option<Paths> = None;
        /// Tasks with examples: the column of the text (the question, for question-answering; what is translated).
        text: String = "text".to_string();
        /// Tasks with examples: the column of a second text (the context, for question-answering; the translation). Not
        /// set: none.
        text_pair: Option<String> = None;
        /// Tasks with examples: the column of the label.
        label: String = "label".to_string();
        /// Tasks with examples: longest example in tokens, special ones included. Not set: model.block. Of a translation by a
        /// decoder each text may have half of them.
        max_tokens: Option<usize> = None;
        /// Which part is kept of a text that is longer: "start", "end" or "both" (a quarter of the tokens from the start,
        /// three quarters from the end). Of pairs of texts it is always the start.
        keep: Keep = Keep::Start;
        /// Question-answering: tokens of the context that two windows share.
        stride: usize = 64;
        /// Examples in batches: "packed" (several in a row, nearly no padding) or "padded" (rows of like lengths).
        layout: Layout = Layout::Packed;
        /// "padded": number of lengths of rows, evenly spaced up to max_tokens.
        buckets: usize = 4;
        /// "image-classification": pixels by which images are moved at most, up or down and sideways, by chance and anew in
        /// each epoch.
        shift: usize = 0;
    }
}

section! {
    /// The training job.
    ["train"] Train {
        /// What is learned: "causal-lm" (the next token), "masked-lm" (hidden tokens), "classification",
        /// "image-classification", "multi-label", "regression", "question-answering" or "translation".
        task: Task = Task::CausalLm;
        /// Sequences in one forward and backward pass.
        batch: usize = 12;
        /// Passes whose gradients are added up before each update.
        accumulate: usize = 1;
        /// Number of updates.
        steps: usize = 2000;
        /// Passes over the data, which decide the number of updates. 0, or --steps or --set train.steps given: train.steps does.
        epochs: f64 = 0.0;
        /// Updates between evaluations; one is always made after the last. 0: only that one.
        eval_every: usize = 250;
        /// Batches in one evaluation.
        eval_batches: usize = 20;
        /// Updates between checkpoints; one is always written at the end. 0: only that one.
        checkpoint_every: usize = 500;
        /// How many of the newest checkpoints are kept.
        keep_last: usize = 2;
        /// Evaluations without a better one after which the run ends. 0: never.
        early_stop: usize = 0;
        /// Whether the checkpoint of the best evaluation is kept as well: by the task's own figure, or the lowest loss.
        keep_best: bool = true;
        /// Where all randomness starts from: weights, order of the data, dropout, samples.
        seed: u64 = 1337;
        /// Largest global norm of the gradient; longer ones are scaled down to it. 0: no limit.
        clip: f64 = 1.0;
        /// Whether each block's activations are computed again in the backward pass: less memory, a third more time.
        recompute: bool = false;
        /// Updates between text samples; one is always made after the last. 0: none at all.
        sample_every: usize = 500;
        /// Length of a sample, in tokens.
        sample_tokens: usize = 200;
        /// What a sample goes on from.
        sample_prompt: String = "\n".to_string();
        /// Divides the logits of a sample: below 1 safer text, above 1 wilder; 0 always takes the likeliest token.
        sample_temperature: f64 = 0.8;
        /// Updates between progress lines where standard error is not a terminal. metrics.jsonl always has each.
        log_every: usize = 10;
        /// Warn when loss or gradient norm is this many standard deviations above its recent mean. 0: never.
        outlier_z: f64 = 6.0;
        /// Share of the target that is spread over all classes or tokens.
        label_smoothing: f64 = 0.0;
        /// Classification of texts and images: "none", or "balanced" (classes weigh by their rarity in the training data).
        class_weights: ClassWeights = ClassWeights::None;
        /// "translation": examples of an evaluation that are translated, for its BLEU and chrF. 0: none.
        eval_translations: usize = 200;
        /// "masked-lm": share of the tokens that are predicted. Of these, 80 % are hidden and 10 % replaced.
        mask_share: f64 = 0.15;
        /// "masked-lm": what is hidden as a whole: "token", "word" or "span".
        mask_unit: MaskUnit = MaskUnit::Token;
        /// "masked-lm": weights of its losses, masked-lm and csm (convolutional sequence modelling). A section of its own,
        /// [train.losses], says the same.
        losses: LossWeights = LossWeights::default();
        /// Tasks that are learned beside this one, from data of their own: each update also takes a batch of each, and adds
        /// its loss times a weight. Sections of their own, [[train.mix]], say the same. Keys of each: task, path, weight,
        /// text, text_pair, label, batch; all else, such as label_smoothing and data.max_tokens, is shared.
        mix: Mix = Mix::default();
        /// Positions whose logits exist at once: less memory if smaller, fewer and larger products if larger.
        chunk_rows: usize = 256;
    }
}

section! {
    /// How gradients become updates.
    ["optimizer"] Optimizer {
        /// "adamw" or "sgd".
        name: OptimizerName = OptimizerName::AdamW;
        /// Largest learning rate; the schedule scales it from step to step.
        learning_rate: f64 = 1e-3;
        /// AdamW: decay of the mean of gradients.
        beta1: f64 = 0.9;
        /// AdamW: decay of the mean of squared gradients.
        beta2: f64 = 0.95;
        /// AdamW: added to the root of the mean square.
        epsilon: f64 = 1e-8;
        /// Share of each weight taken away per update, times the learning rate. Matrices only: no biases, no norms.
        weight_decay: f64 = 0.1;
        /// SGD: share of the last update that is kept.
        momentum: f64 = 0.0;
        /// Factor of the learning rate from each block to the one below it, and to the embeddings. 1: all learn alike.
        layer_decay: f64 = 1.0;
    }
}

section! {
    /// The learning rate over time, as a factor of optimizer.learning_rate.
    ["schedule"] Schedule {
        /// After the warm-up: "cosine", "linear", "constant", or "wsd" (stable, then a decay at the end).
        kind: ScheduleKind = ScheduleKind::Cosine;
        /// Updates over which the factor rises from 0 to 1.
        warmup: usize = 0;
        /// Update at which the factor has come down to min_factor. Not set: train.steps.
        decay_steps: Option<usize> = None;
        /// The factor at the end.
        min_factor: f64 = 0.1;
        /// "wsd": share of decay_steps that the decay takes.
        wsd_decay_fraction: f64 = 0.2;
    }
}

section! {
    /// Low-rank adaptation: small matrices beside the weights learn, all else but the heads is frozen.
    ["lora"] Lora {
        /// Rank of the matrices, 8 for example. 0: no adaptation, all weights learn.
        rank: usize = 0;
        /// The adapters' result is scaled by alpha / rank.
        alpha: f64 = 16.0;
        /// Chance that an element of an adapter's input is zeroed while training.
        dropout: f64 = 0.0;
        /// Which linear layers get adapters: "attention", "ffn" or "all".
        targets: LoraTargets = LoraTargets::All;
    }
}

section! {
    /// What to compute on.
    ["device"] Device {
        /// "auto" (a GPU where there is one, else the CPU), "cpu", "cuda", "cuda:N" or "emulator".
        kind: DeviceKind = DeviceKind::Auto;
        /// Threads of the CPU. 0: one a core.
        threads: usize = 0;
    }
}

/// Everything that defines a run. See [`Config::reference`] for all keys with their meaning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub model: Model,
    pub data: Data,
    pub train: Train,
    pub lora: Lora,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub device: Device,
}

impl Model {
    /// Key/value heads: `kv_heads`, or as many as query heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of the feed-forward layer: `ffn`, or four times the channels.
    pub fn ffn(&self) -> usize {
        self.ffn.unwrap_or(self.channels.saturating_mul(4))
    }
}

impl Config {
    /// The update at which the learning rate has come down: `schedule.decay_steps`, or the end of the run.
    pub fn decay_steps(&self) -> usize {
        self.schedule.decay_steps.unwrap_or(self.train.steps)
    }

    /// The main task first, then those of `train.mix`, each as if it were a run of its own; and what its loss weighs.
    pub fn tasks(&self) -> Vec<(Config, f64)> {
        let mut main = self.clone();
        let mixed = std::mem::take(&mut main.train.mix).0;
        let others = mixed.into_iter().map(|mixed| {
            let mut other = main.clone();
            (other.train.task, other.data.path, other.data.val_path) = (mixed.task, Some(mixed.path), None);
            other.data.text = mixed.text.unwrap_or(other.data.text);
            other.data.text_pair = mixed.text_pair.or(other.data.text_pair);
            other.data.label = mixed.label.unwrap_or(other.data.label);
            other.train.batch = mixed.batch.unwrap_or(other.train.batch);
            (other, mixed.weight)
        });
        let others: Vec<_> = others.collect();
        std::iter::once((main, 1.0)).chain(others).collect()
    }

    /// Tokens that one update learns from.
    pub fn tokens_per_step(&self) -> usize {
        self.train.batch * self.model.block * self.train.accumulate
    }

    /// Calls `visit` with each section.
    fn each_section(&self, mut visit: impl FnMut(SectionView<'_>)) {
        visit(SectionView::of(&self.model));
        visit(SectionView::of(&self.data));
        visit(SectionView::of(&self.train));
        visit(SectionView::of(&self.lora));
        visit(SectionView::of(&self.optimizer));
        visit(SectionView::of(&self.schedule));
        visit(SectionView::of(&self.device));
    }

    /// The configuration as TOML: every key that is set, so that reading it back gives an equal configuration,
    /// whatever the defaults of a later version.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.each_section(|section| {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}[{}]\n", section.name));
            for (key, value) in section.entries {
                if let Some(value) = value {
                    text.push_str(&format!("{} = {value}\n", key.name));
                }
            }
        });
        text
    }

    /// A commented TOML file of all keys with their meaning and defaults; keys without one are commented out.
    pub fn reference() -> String {
        let mut text = String::from("# All keys of a configuration, with their defaults.\n");
        Config::default().each_section(|section| {
            text.push('\n');
            section.about.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
            text.push_str(&format!("[{}]\n", section.name));
            for (key, value) in section.entries {
                key.meaning.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
                match value {
                    Some(value) => text.push_str(&format!("{} = {value}\n", key.name)),
                    None => text.push_str(&format!("# {} = {}\n", key.name, (key.expected)())),
                }
            }
        });
        text
    }

    /// The keys whose values differ from those of `other`, with both values as TOML; `-` where one is not set.
    /// For a run that is resumed: what was changed, and whether that is allowed.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let values = |config: &Self| {
            let mut values = Vec::new();
            config.each_section(|section| {
                for (key, value) in section.entries {
                    let text = value.map_or_else(|| "-".into(), |value| value.to_string());
                    values.push((format!("{}.{}", section.name, key.name), text));
                }
            });
            values
        };
        let pairs = values(self).into_iter().zip(values(other));
        pairs
            .filter(|((_, ours), (_, theirs))| ours != theirs)
            .map(|((key, ours), (_, theirs))| Difference { key, ours, theirs })
            .collect()
    }

    /// All keys, as `section.key`, in the order of the reference.
    pub fn keys() -> Vec<String> {
        let mut names = Vec::new();
        Config::default().each_section(|section| {
            names.extend(section.entries.iter().map(|(key, _)| format!("{}.{}", section.name, key.name)));
        });
        names
    }
}

/// A key with different values in two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `section.key`.
    pub key: String,
    pub ours: String,
    pub theirs: String,
}

/// One section with its values, seen without its type.
struct SectionView<'a> {
    name: &'static str,
    about: &'static [&'static str],
    entries: Vec<(&'a Key, Option<toml::Value>)>,
}

impl SectionView<'_> {
    fn of<S: Section>(section: &S) -> Self {
        let entries = S::KEYS.iter().map(|key| (key, section.get(key.name))).collect();
        Self { name: S::NAME, about: S::ABOUT, entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_lists_every_key_and_parses_to_the_defaults() {
        let reference = Config::reference();
        let parsed: Config = toml::from_str(&reference).expect("the reference is valid TOML");
        assert_eq!(parsed, Config::default());
        for name in Config::keys() {
            let key = name.split('.').nth(1).expect("section.key");
            let lines: Vec<_> = reference.lines().collect();
            let at = lines
                .iter()
                .position(|line| line.starts_with(&format!("{key} = ")) || line.starts_with(&format!("# {key} = ")));
            let at = at.unwrap_or_else(|| panic!("{name} is missing"));
            assert!(lines[at - 1].starts_with("# "), "{name} has no meaning above it");
        }
    }

    #[test]
    fn keys_are_listed_in_the_order_of_their_sections() {
        let keys = Config::keys();
        assert_eq!(keys.first().map(String::as_str), Some("model.architecture"));
        assert_eq!(keys.last().map(String::as_str), Some("device.threads"));
        assert!(keys.contains(&"schedule.wsd_decay_fraction".to_string()));
    }

    #[test]
    fn toml_round_trips_exactly() {
        let mut config = Config::default();
        config.model.kv_heads = Some(2);
        config.model.initial = Some("a \"quoted\" folder".into());
        config.data.path = Some(Paths::from(vec!["one.txt".into(), "two \\ three.txt".into()]));
        config.data.tokenizer = TokenizerChoice::File("tokenizer.json".into());
        config.train.sample_prompt = "\n\tOnce \u{1F600} \"upon\"".into();
        config.train.seed = i64::MAX as u64;
        config.optimizer.learning_rate = 0.1 + 0.2;
        config.optimizer.epsilon = 5e-324;
        config.schedule.decay_steps = Some(7);
        config.device.kind = DeviceKind::Cuda(Some(3));
        let text = config.to_toml();
        let back: Config = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(back, config);
        assert_eq!(back.to_toml(), text);
    }

    #[test]
    fn defaults_that_depend_on_other_keys_follow_them() {
        let mut config = Config::default();
        config.model.heads = 8;
        config.model.channels = 64;
        config.train.steps = 77;
        assert_eq!((config.model.kv_heads(), config.model.ffn(), config.decay_steps()), (8, 256, 77));
    }

    #[test]
    fn differences_are_named_with_both_values() {
        let (ours, mut theirs) = (Config::default(), Config::default());
        assert_eq!(ours.differences(&theirs), []);
        theirs.model.channels = 64;
        theirs.data.path = Some(Paths::from(vec!["a.txt".into()]));
        let found: Vec<_> = ours.differences(&theirs).into_iter().map(|d| (d.key, d.ours, d.theirs)).collect();
        let text = |key: &str, ours: &str, theirs: &str| (key.to_string(), ours.to_string(), theirs.to_string());
        assert_eq!(found, [text("model.channels", "384", "64"), text("data.path", "-", "\"a.txt\"")]);
    }
}
