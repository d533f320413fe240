//! The types that a configuration key can have, and how each is written in TOML.

pub use crate::data::labelled::Keep;
pub use crate::model::config::{Architecture, Norm, NormPlace, Pooling};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// A type of configuration values.
pub trait Setting: Serialize + DeserializeOwned {
    /// What a value has to be, in words that follow "expected".
    fn expected() -> &'static str;
}

impl Setting for usize {
    fn expected() -> &'static str {
        "a whole number, 0 or more"
    }
}

impl Setting for u64 {
    fn expected() -> &'static str {
        "a whole number, 0 or more"
    }
}

impl Setting for f64 {
    fn expected() -> &'static str {
        "a number"
    }
}

impl Setting for bool {
    fn expected() -> &'static str {
        "true or false"
    }
}

impl Setting for String {
    fn expected() -> &'static str {
        "a string"
    }
}

impl Setting for PathBuf {
    fn expected() -> &'static str {
        "a path (a string)"
    }
}

impl<T: Setting> Setting for Option<T> {
    fn expected() -> &'static str {
        T::expected()
    }
}

/// Declares a choice among names: an enum that TOML writes in kebab case.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident: $expected:literal { $( $(#[doc = $meaning:literal])+ $variant:ident, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $( $(#[doc = $meaning])+ $variant, )+
        }

        impl Setting for $name {
            fn expected() -> &'static str {
                $expected
            }
        }
    };
}

impl Setting for Architecture {
    fn expected() -> &'static str {
        "\"decoder\", \"encoder\" or \"encoder-decoder\""
    }
}

impl Setting for Norm {
    fn expected() -> &'static str {
        "\"layer\" or \"rms\""
    }
}

impl Setting for NormPlace {
    fn expected() -> &'static str {
        "\"pre\" or \"post\""
    }
}

impl Setting for Keep {
    fn expected() -> &'static str {
        "\"start\", \"end\" or \"both\""
    }
}

impl Setting for Pooling {
    fn expected() -> &'static str {
        "\"first\" or \"mean\""
    }
}

choice! {
    /// What a run learns.
    Task: "\"causal-lm\", \"masked-lm\", \"classification\", \"image-classification\", \"multi-label\", \"regression\", \
           \"question-answering\" or \"translation\"" {
        /// The next token.
        CausalLm,
        /// Tokens that are hidden.
        MaskedLm,
        /// The class of a text, or of a pair of texts.
        Classification,
        /// The class of an image.
        ImageClassification,
        /// Any number of classes of a text.
        MultiLabel,
        /// A number for a text.
        Regression,
        /// Where a text answers a question.
        QuestionAnswering,
        /// A text in another language.
        Translation,
    }
}

impl Task {
    /// As a configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal-lm",
            Self::MaskedLm => "masked-lm",
            Self::Classification => "classification",
            Self::ImageClassification => "image-classification",
            Self::MultiLabel => "multi-label",
            Self::Regression => "regression",
            Self::QuestionAnswering => "question-answering",
            Self::Translation => "translation",
        }
    }
}

choice! {
    /// How a token's place enters the model.
    PositionKind: "\"learned\", \"sinusoidal\", \"rotary\", \"alibi\", \"relative\" or \"none\"" {
        /// A table, added to the embeddings.
        Learned,
        /// Sines and cosines, added to the embeddings.
        Sinusoidal,
        /// Queries and keys are rotated.
        Rotary,
        /// A penalty on distance.
        Alibi,
        /// A learned bias for each bucket of distances.
        Relative,
        /// Not at all.
        None,
    }
}

choice! {
    /// The function between the two products of the feed-forward layer.
    ActivationKind: "\"relu\", \"gelu\", \"gelu-tanh\" or \"swiglu\"" {
        /// `max(x, 0)`.
        Relu,
        /// GELU, exactly.
        Gelu,
        /// GELU by its tanh approximation.
        GeluTanh,
        /// A product of two halves, one through SiLU.
        Swiglu,
    }
}

choice! {
    /// How examples make up a batch.
    Layout: "\"packed\" or \"padded\"" {
        /// Several in a row, each seeing only itself.
        Packed,
        /// One in a row, with others of like length.
        Padded,
    }
}

choice! {
    /// What masked language modelling hides as a whole.
    MaskUnit: "\"token\", \"word\" or \"span\"" {
        /// A token.
        Token,
        /// All tokens of a word.
        Word,
        /// A run of words.
        Span,
    }
}

choice! {
    /// Which linear layers get adapters.
    LoraTargets: "\"attention\", \"ffn\" or \"all\"" {
        /// Queries, keys, values and the projection.
        Attention,
        /// Both of the feed-forward network.
        Ffn,
        /// All of a block.
        All,
    }
}

choice! {
    /// Weights of classes in the loss.
    ClassWeights: "\"none\" or \"balanced\"" {
        /// All alike.
        None,
        /// By their rarity in the training data.
        Balanced,
    }
}

/// Order in which training sequences are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Each sequence once an epoch, in a new order each epoch.
    Shuffled,
    /// Windows that start anywhere, drawn with replacement.
    Random,
    /// From the first token to the last, again and again.
    Sequential,
}

impl Setting for Order {
    fn expected() -> &'static str {
        "\"shuffled\", \"random\" or \"sequential\""
    }
}

/// Optimizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    AdamW,
    Sgd,
}

impl Setting for OptimizerName {
    fn expected() -> &'static str {
        "\"adamw\" or \"sgd\""
    }
}

/// Shapes of the learning rate after its warm-up; [`crate::train::schedule`] has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Constant,
    Wsd,
}

impl Setting for ScheduleKind {
    fn expected() -> &'static str {
        "\"cosine\", \"linear\", \"constant\" or \"wsd\""
    }
}

/// What to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceKind {
    /// A GPU where a usable one is found, else the CPU.
    Auto,
    Cpu,
    /// The GPU of that number, or the first.
    Cuda(Option<usize>),
    /// The GPU kernels, executed on the CPU.
    Emulator,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
            Self::Emulator => f.write_str("emulator"),
        }
    }
}

impl TryFrom<String> for DeviceKind {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            "emulator" => Ok(Self::Emulator),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(Some(number))),
                _ => Err("unknown device"),
            },
        }
    }
}

impl From<DeviceKind> for String {
    fn from(kind: DeviceKind) -> Self {
        kind.to_string()
    }
}

impl Setting for DeviceKind {
    fn expected() -> &'static str {
        "\"auto\", \"cpu\", \"cuda\", \"cuda:N\" or \"emulator\""
    }
}

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerChoice {
    /// The characters that occur in the text.
    Char,
    /// Its bytes.
    Byte,
    /// A Hugging Face `tokenizer.json`.
    File(PathBuf),
}

impl TokenizerChoice {
    /// `NAME` of `bundled:NAME`: the tokenizer of a text that is part of the program.
    pub fn bundled(&self) -> Option<&str> {
        match self {
            Self::File(path) => bundled_name(path),
            _ => None,
        }
    }
}

impl From<String> for TokenizerChoice {
    fn from(text: String) -> Self {
        match text.as_str() {
            "char" => Self::Char,
            "byte" => Self::Byte,
            _ => Self::File(text.into()),
        }
    }
}

impl From<TokenizerChoice> for String {
    fn from(choice: TokenizerChoice) -> Self {
        match choice {
            TokenizerChoice::Char => "char".into(),
            TokenizerChoice::Byte => "byte".into(),
            // A path that came from TOML is UTF-8; one that a program made may not be, and TOML cannot hold it.
            TokenizerChoice::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Setting for TokenizerChoice {
    fn expected() -> &'static str {
        "\"char\", \"byte\" or the path of a tokenizer.json"
    }
}

/// One path, or a list of paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Paths(Vec<PathBuf>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl From<OneOrMany> for Paths {
    fn from(paths: OneOrMany) -> Self {
        match paths {
            OneOrMany::One(path) => Self(vec![path]),
            OneOrMany::Many(paths) => Self(paths),
        }
    }
}

impl From<Paths> for OneOrMany {
    fn from(Paths(mut paths): Paths) -> Self {
        match paths.len() {
            1 => Self::One(paths.remove(0)),
            _ => Self::Many(paths),
        }
    }
}

impl From<Vec<PathBuf>> for Paths {
    fn from(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

impl Paths {
    /// The paths, in the order given.
    pub fn as_slice(&self) -> &[PathBuf] {
        &self.0
    }

    /// `NAME` where the only path is `bundled:NAME`: a text that is part of the program.
    pub fn bundled(&self) -> Option<&str> {
        match self.0.as_slice() {
            [only] => bundled_name(only),
            _ => None,
        }
    }
}

/// `NAME` of `bundled:NAME`.
pub(super) fn bundled_name(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("bundled:")
}

impl Setting for Paths {
    fn expected() -> &'static str {
        "a path or a list of paths (strings)"
    }
}

/// A task that is learned beside the main one, from data of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedTask {
    pub task: Task,
    pub path: Paths,
    /// Of its loss; the main task's weighs 1.
    #[serde(default = "one")]
    pub weight: f64,
    /// As the keys of the same names in `[data]` and `[train]`, whose values stand in where they are not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
}

fn one() -> f64 {
    1.0
}

/// Tasks that are learned beside the main one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mix(pub Vec<MixedTask>);

impl Setting for Mix {
    fn expected() -> &'static str {
        "a list of tables, as in [{ task = \"masked-lm\", path = \"reviews.txt\", weight = 0.5 }]"
    }
}

/// Weights of the losses that pretraining of an encoder mixes: a table, as in `[train.losses]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LossWeights {
    /// Of masked language modelling.
    pub masked_lm: f64,
    /// Of convolutional sequence modelling.
    pub csm: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { masked_lm: 1.0, csm: 0.0 }
    }
}

impl Setting for LossWeights {
    fn expected() -> &'static str {
        "a table of weights: masked-lm and csm, as in { masked-lm = 1.0, csm = 0.3 }"
    }
}
