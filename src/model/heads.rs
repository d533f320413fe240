//! What is put on top of the last block: predictions of tokens, classes and spans.

use super::Transformer;
use super::block::{Affine, record_linear, record_norm};
use super::config::Pooling;
use super::convolution::ConvolutionLayer;
use crate::ops::gated_conv::Window;
use crate::ops::linear::Activation;
use crate::tape::{Error, Loss, ParameterId, Parameters, Tape, Value};

/// Parameters of the heads that a model has.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadParameters {
    pub(super) output_projection: Option<ParameterId>,
    pub(super) output_bias: Option<ParameterId>,
    /// The layer before the output projection, and its norm.
    pub(super) transform: Option<(Affine, Affine)>,
    pub(super) surroundings: Option<ConvolutionLayer>,
    pub(super) pooler: Option<Affine>,
    pub(super) classifier: Option<Affine>,
    pub(super) spans: Option<Affine>,
}

impl HeadParameters {
    pub(super) fn find(parameters: &Parameters) -> Self {
        let layer = |name: &str| parameters.find(&format!("{name}.weight")).map(|_| Affine::find(parameters, name));
        Self {
            output_projection: parameters.find("head.weight"),
            output_bias: parameters.find("head.bias"),
            transform: layer("head.transform").zip(layer("head.norm")),
            surroundings: ConvolutionLayer::find(parameters, "surroundings"),
            pooler: layer("pooler"),
            classifier: layer("classifier"),
            spans: layer("spans"),
        }
    }
}

impl Pooling {
    /// The rows of a trunk `(B·T, C)` whose mean stands for a text of `start..end`, for [`Tape::mean_rows`].
    pub fn range(self, start: usize, end: usize) -> [i32; 2] {
        match self {
            Self::First => [start as i32, start as i32 + 1],
            Self::Mean => [start as i32, end as i32],
        }
    }
}

impl Transformer {
    /// Records the logits of tokens for chosen rows of the trunk: `(M, C)` to `(M, V)`.
    ///
    /// # Errors
    /// A model without a head that predicts tokens.
    pub fn record_token_logits(&self, tape: &mut Tape<'_>, rows: Value) -> Result<Value, Error> {
        let rows = self.record_transform(tape, rows)?;
        tape.linear(rows, self.output_projection(), self.heads.output_bias, Activation::Identity, None)
    }

    /// Records the loss of predicting a token for each of chosen rows of the trunk `(M, C)`.
    ///
    /// # Errors
    /// A model without a head that predicts tokens; sizes that do not fit together.
    pub fn record_token_loss(
        &self,
        tape: &mut Tape<'_>,
        rows: Value,
        targets: Value,
        label_smoothing: f32,
        chunk_rows: Option<usize>,
    ) -> Result<Loss, Error> {
        let rows = self.record_transform(tape, rows)?;
        let (weight, bias) = (self.output_projection(), self.heads.output_bias);
        tape.linear_cross_entropy(rows, weight, bias, targets, label_smoothing, chunk_rows)
    }

    fn record_transform(&self, tape: &mut Tape<'_>, rows: Value) -> Result<Value, Error> {
        if self.config().predictions.language.is_none() {
            return Err(missing("a head that predicts tokens"));
        }
        let Some((layer, norm)) = &self.heads.transform else { return Ok(rows) };
        let activated = tape.linear(rows, layer.weight, layer.bias, self.config().activation, None)?;
        record_norm(tape, self.config(), activated, norm)
    }

    /// Records what a convolution makes of the surroundings of each position, without the position itself: `(B, T, C)`
    /// of the trunk `(B, T, C)`. From it [`record_token_loss`](Self::record_token_loss) predicts tokens, which is
    /// convolutional sequence modelling.
    ///
    /// # Errors
    /// A model without that head.
    pub fn record_surroundings(
        &self,
        tape: &mut Tape<'_>,
        trunk: Value,
        documents: Option<Value>,
    ) -> Result<Value, Error> {
        let (Some(layer), Some(convolution)) = (&self.heads.surroundings, self.config().predictions.surroundings)
        else {
            return Err(missing("a head that predicts tokens from their surroundings"));
        };
        let window = Window::Centred { excludes_self: true };
        layer.record(tape, trunk, convolution, window, documents, None)
    }

    /// Records the vector that stands for each of several texts, `(M, C)`; see [`Pooling::range`] for `ranges (M, 2)`.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn record_pooled(&self, tape: &mut Tape<'_>, trunk: Value, ranges: Value) -> Result<Value, Error> {
        let pooled = tape.mean_rows(trunk, ranges)?;
        match &self.heads.pooler {
            Some(layer) => tape.linear(pooled, layer.weight, layer.bias, Activation::Tanh, None),
            None => Ok(pooled),
        }
    }

    /// Records the logits of the classes, `(M, classes)`, of pooled vectors.
    ///
    /// # Errors
    /// A model without classes.
    pub fn record_class_logits(&self, tape: &mut Tape<'_>, pooled: Value) -> Result<Value, Error> {
        let layer = self.heads.classifier.as_ref().ok_or_else(|| missing("classes"))?;
        let pooled = tape.dropout(pooled, self.config().residual_dropout, None)?;
        record_linear(tape, pooled, layer, None)
    }

    /// Records the logits of each position to be the start and the end of an answer, `(B, T, 2)`.
    ///
    /// # Errors
    /// A model without a head for that.
    pub fn record_span_logits(&self, tape: &mut Tape<'_>, trunk: Value) -> Result<Value, Error> {
        let layer = self.heads.spans.as_ref().ok_or_else(|| missing("a head that finds answers"))?;
        record_linear(tape, trunk, layer, None)
    }
}

fn missing(what: &str) -> Error {
    Error::Shape { operation: "heads", what: format!("this model has not {what}: use one that was trained for it") }
}
