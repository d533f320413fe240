//! What is put on top of the last block: predictions of tokens, classes and spans.

use super::block::Affine;
use crate::tape::{ParameterId, Parameters};

/// Parameters of the heads that a model has.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadParameters {
    pub(super) output_projection: Option<ParameterId>,
    pub(super) output_bias: Option<ParameterId>,
    /// The layer before the output projection, and its norm.
    pub(super) transform: Option<(Affine, Affine)>,
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
            pooler: layer("pooler"),
            classifier: layer("classifier"),
            spans: layer("spans"),
        }
    }
}
