//! The section `[model]` as the model's own configuration, and back: what a folder of weights says stands for the keys
//! that are not given.

use super::choices::{ActivationKind, LoraTargets, PositionKind};
use super::{Config, Model, Task};
use crate::model::config::{Architecture, Convolution, Heads, LanguageHead, Positions, TextCut};
use crate::model::image::ImageInput;
use crate::model::lora::LoraOptions;
use crate::model::treatment::{Adapts, Lora, Treatment};
use crate::model::{ModelConfig, translate};
use crate::ops::linear::Activation;

/// What of a model depends on the data.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataFacts {
    pub(crate) vocabulary: usize,
    /// The tokens that begin and end a text.
    pub(crate) start: Option<u32>,
    pub(crate) end: Option<u32>,
    /// Names of the classes, for tasks that have them.
    pub(crate) classes: Vec<String>,
    /// Size and scale of images, for a task with these.
    pub(crate) image: Option<ImageInput>,
}

impl Config {
    /// The model that the configuration describes, for this data.
    pub(crate) fn model_config(&self, facts: &DataFacts) -> ModelConfig {
        let model = &self.model;
        let dropout = model.dropout as f32;
        ModelConfig {
            architecture: model.architecture,
            image: facts.image,
            vocabulary: facts.vocabulary,
            block: facts.image.map_or(model.block, |image| image.places(model.pooling)),
            channels: model.channels,
            layers: model.layers,
            heads: model.heads,
            kv_heads: model.kv_heads(),
            ffn: model.ffn(),
            norm: model.norm,
            norm_place: model.norm_place,
            norm_epsilon: model.norm_epsilon as f32,
            activation: model.activation.into(),
            positions: match model.positions {
                PositionKind::Learned => Positions::Learned,
                PositionKind::Sinusoidal => Positions::Sinusoidal,
                PositionKind::Rotary => Positions::Rotary { theta: model.rotary_theta as f32 },
                PositionKind::Alibi => Positions::Alibi,
                PositionKind::Relative => {
                    Positions::Relative { buckets: model.position_buckets, max_distance: model.position_max_distance }
                }
                PositionKind::None => Positions::None,
            },
            convolution: (model.convolution_taps > 0)
                .then_some(Convolution { taps: model.convolution_taps, dilation: model.convolution_dilation }),
            biases: model.biases,
            token_types: model.token_types,
            embedding_norm: model.embedding_norm,
            tied: model.tied,
            embedding_dropout: dropout,
            attention_dropout: dropout,
            residual_dropout: dropout,
            initializer_range: self.initializer_range(facts),
            pooling: model.pooling,
            predictions: self.heads(&facts.classes),
            bos: facts.start,
            eos: facts.end,
            other: self.purpose(),
        }
    }

    /// GPT-2's 0.02 suits thousands of channels. A small model of images that starts from it takes epochs to tell positions
    /// apart: on the digits, 96 channels, 56 % of the validation images were right after 500 updates, 85 % from
    /// `1/√channels`.
    fn initializer_range(&self, facts: &DataFacts) -> f32 {
        match (self.model.initializer_range, facts.image) {
            (Some(given), _) => given as f32,
            (None, Some(_)) => 1.0 / (self.model.channels as f32).sqrt(),
            (None, None) => ModelConfig::gpt2().initializer_range,
        }
    }

    /// Keys of `config.json` beside the model: what `transformers` calls the task of a classifier; that a decoder
    /// translates, which nothing else of it says; how texts are cut.
    fn purpose(&self) -> serde_json::Map<String, serde_json::Value> {
        let of_task = |task| match task {
            Task::Classification | Task::ImageClassification => Some(("problem_type", "single_label_classification")),
            Task::MultiLabel => Some(("problem_type", "multi_label_classification")),
            Task::Regression => Some(("problem_type", "regression")),
            Task::Translation if self.model.architecture == Architecture::Decoder => Some(translate::PURPOSE),
            _ => None,
        };
        let found = self.all_tasks().filter_map(of_task);
        let mut keys: serde_json::Map<_, _> = found.map(|(key, name)| (key.to_owned(), name.into())).collect();
        if !matches!(self.train.task, Task::CausalLm | Task::ImageClassification) {
            let max_tokens = self.data.max_tokens.unwrap_or(self.model.block);
            let has_questions = self.all_tasks().any(|task| task == Task::QuestionAnswering);
            let stride = has_questions.then_some(self.data.stride);
            let (key, cut) = TextCut { max_tokens, keep: self.data.keep, stride }.entry();
            keys.insert(key, cut);
        }
        keys
    }

    /// How the model's parameters are trained.
    pub(crate) fn treatment(&self) -> Treatment {
        let lora = &self.lora;
        Treatment {
            layer_decay: self.optimizer.layer_decay as f32,
            frozen_layers: self.model.frozen_layers,
            lora: (lora.rank > 0).then(|| Lora {
                options: LoraOptions {
                    rank: lora.rank,
                    alpha: lora.alpha as f32,
                    dropout: lora.dropout as f32,
                    ..LoraOptions::default()
                },
                adapts: match lora.targets {
                    LoraTargets::Attention => Adapts::Attention,
                    LoraTargets::Ffn => Adapts::Ffn,
                    LoraTargets::All => Adapts::All,
                },
            }),
        }
    }

    /// The main task, and those that are learned beside it.
    fn all_tasks(&self) -> impl Iterator<Item = Task> {
        std::iter::once(self.train.task).chain(self.train.mix.0.iter().map(|mixed| mixed.task))
    }

    /// What the tasks put on top.
    fn heads(&self, classes: &[String]) -> Heads {
        let mut heads = Heads::default();
        for task in self.all_tasks() {
            match task {
                Task::CausalLm | Task::MaskedLm | Task::Translation => {
                    let has_surroundings = task == Task::MaskedLm && self.train.losses.csm > 0.0;
                    let surroundings = Convolution { taps: self.model.csm_taps, dilation: self.model.csm_dilation };
                    heads.language = Some(LanguageHead { transform: self.model.head_transform });
                    heads.surroundings = has_surroundings.then_some(surroundings);
                }
                Task::Classification | Task::ImageClassification | Task::MultiLabel | Task::Regression => {
                    heads.pooler = self.model.pooler;
                    heads.classes = Some(classes.to_vec());
                }
                Task::QuestionAnswering => heads.spans = true,
            }
        }
        heads
    }
}

impl Model {
    /// Takes what `folder` says for every key that is not given.
    pub(super) fn fill_from(&mut self, folder: &ModelConfig, is_given: impl Fn(&str) -> bool) {
        let given = |key: &str| is_given(&format!("model.{key}"));
        macro_rules! fill {
            ($($key:ident = $value:expr;)+) => { $( if !given(stringify!($key)) { self.$key = $value; } )+ };
        }
        fill! {
            architecture = folder.architecture;
            vocabulary = Some(folder.vocabulary);
            block = folder.block;
            channels = folder.channels;
            layers = folder.layers;
            heads = folder.heads;
            kv_heads = Some(folder.kv_heads);
            ffn = Some(folder.ffn);
            norm = folder.norm;
            norm_place = folder.norm_place;
            norm_epsilon = shortest(folder.norm_epsilon);
            activation = ActivationKind::from(folder.activation);
            convolution_taps = folder.convolution.map_or(0, |convolution| convolution.taps);
            convolution_dilation = folder.convolution.map_or(1, |convolution| convolution.dilation);
            biases = folder.biases;
            token_types = folder.token_types;
            embedding_norm = folder.embedding_norm;
            tied = folder.tied;
            dropout = shortest(folder.residual_dropout);
            pooling = folder.pooling;
            pooler = folder.predictions.pooler;
            head_transform = folder.predictions.language.is_some_and(|head| head.transform);
        }
        if let Some(image) = folder.image {
            fill! {
                patch = image.patch;
                pixel_mean = Some(shortest(image.mean));
                pixel_deviation = Some(shortest(image.deviation));
            }
        }
        if given("positions") {
            return;
        }
        match folder.positions {
            Positions::Learned => self.positions = PositionKind::Learned,
            Positions::Sinusoidal => self.positions = PositionKind::Sinusoidal,
            Positions::Alibi => self.positions = PositionKind::Alibi,
            Positions::None => self.positions = PositionKind::None,
            Positions::Rotary { theta } => {
                (self.positions, self.rotary_theta) = (PositionKind::Rotary, shortest(theta));
            }
            Positions::Relative { buckets, max_distance } => {
                self.positions = PositionKind::Relative;
                (self.position_buckets, self.position_max_distance) = (buckets, max_distance);
            }
        }
    }
}

/// The shortest decimal that is this f32, as an f64: `0.1`, not `0.10000000149`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().expect("a number's decimal form is a number")
}

impl From<ActivationKind> for Activation {
    fn from(kind: ActivationKind) -> Self {
        match kind {
            ActivationKind::Relu => Self::Relu,
            ActivationKind::Gelu => Self::GeluErf,
            ActivationKind::GeluTanh => Self::GeluTanh,
            ActivationKind::Swiglu => Self::SwiGlu,
        }
    }
}

impl From<Activation> for ActivationKind {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Relu => Self::Relu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::SwiGlu => Self::Swiglu,
            _ => Self::Gelu,
        }
    }
}
