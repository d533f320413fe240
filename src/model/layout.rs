//! The parameters that a configuration implies: names, shapes and how they start, in the order in which they are used.

use super::config::{Architecture, Convolution, LanguageHead, ModelConfig, Norm, NormPlace, Positions};
use crate::tape::{Initial, Specification};

/// Prefixes of the names of each stack's parameters.
pub(super) fn stack_prefixes(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Decoder | Architecture::Encoder => &[""],
        Architecture::EncoderDecoder => &["encoder.", "decoder."],
    }
}

/// A parameter before memory is allocated, and whether it belongs to what is put on top of the last block.
pub(super) struct Layout {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) is_head: bool,
}

struct List<'c> {
    config: &'c ModelConfig,
    layouts: Vec<Layout>,
    is_head: bool,
}

impl List<'_> {
    fn push(&mut self, name: String, shape: &[usize]) {
        self.layouts.push(Layout { name, shape: shape.to_vec(), is_head: self.is_head });
    }

    fn norm(&mut self, name: &str) {
        self.push(format!("{name}.weight"), &[self.config.channels]);
        if self.config.norm == Norm::Layer {
            self.push(format!("{name}.bias"), &[self.config.channels]);
        }
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, has_bias: bool) {
        self.push(format!("{name}.weight"), &[outputs, inputs]);
        if has_bias {
            self.push(format!("{name}.bias"), &[outputs]);
        }
    }

    /// The layers of a gated convolution: to two halves, depthwise, and back into the stream.
    fn convolution(&mut self, name: &str, taps: usize) {
        let channels = self.config.channels;
        self.linear(&format!("{name}.gate"), 2 * channels, channels, self.config.biases);
        self.push(format!("{name}.depthwise.weight"), &[channels, taps]);
        if self.config.biases {
            self.push(format!("{name}.depthwise.bias"), &[channels]);
        }
        self.linear(&format!("{name}.projection"), channels, channels, self.config.biases);
    }

    fn stack(&mut self, prefix: &str, has_cross_attention: bool) {
        let &ModelConfig { channels, block, layers, token_types, norm_place, .. } = self.config;
        if self.config.positions == Positions::Learned {
            self.push(format!("{prefix}position_embedding.weight"), &[block, channels]);
        }
        if token_types > 0 {
            self.push(format!("{prefix}type_embedding.weight"), &[token_types, channels]);
        }
        if self.config.embedding_norm {
            self.norm(&format!("{prefix}embedding_norm"));
        }
        if let Positions::Relative { buckets, .. } = self.config.positions {
            self.push(format!("{prefix}position_bias.weight"), &[buckets, self.config.heads]);
        }
        for layer in 0..layers {
            self.block(&format!("{prefix}blocks.{layer}"), has_cross_attention);
        }
        if norm_place == NormPlace::Pre {
            self.norm(&format!("{prefix}final_norm"));
        }
    }

    fn block(&mut self, name: &str, has_cross_attention: bool) {
        let &ModelConfig { channels, ffn, biases, activation, heads, kv_heads, .. } = self.config;
        let head_size = self.config.head_size();
        if let Some(Convolution { taps, .. }) = self.config.convolution {
            self.norm(&format!("{name}.convolution_norm"));
            self.convolution(&format!("{name}.convolution"), taps);
        }
        self.norm(&format!("{name}.attention_norm"));
        self.linear(&format!("{name}.attention.qkv"), (heads + 2 * kv_heads) * head_size, channels, biases);
        self.linear(&format!("{name}.attention.projection"), channels, heads * head_size, biases);
        if has_cross_attention {
            self.norm(&format!("{name}.cross_norm"));
            self.linear(&format!("{name}.cross.query"), heads * head_size, channels, biases);
            self.linear(&format!("{name}.cross.key_value"), 2 * kv_heads * head_size, channels, biases);
            self.linear(&format!("{name}.cross.projection"), channels, heads * head_size, biases);
        }
        self.norm(&format!("{name}.ffn_norm"));
        self.linear(&format!("{name}.ffn.up"), ffn * activation.width(), channels, biases);
        self.linear(&format!("{name}.ffn.down"), channels, ffn, biases);
    }

    fn heads(&mut self) {
        let &ModelConfig { channels, vocabulary, tied, .. } = self.config;
        self.is_head = true;
        if let Some(LanguageHead { transform }) = self.config.predictions.language {
            if transform {
                self.linear("head.transform", channels, channels, true);
                self.norm("head.norm");
            }
            if !tied {
                self.push("head.weight".into(), &[vocabulary, channels]);
            }
            if transform {
                self.push("head.bias".into(), &[vocabulary]);
            }
        }
        if let Some(Convolution { taps, .. }) = self.config.predictions.surroundings {
            self.convolution("surroundings", taps);
        }
        if self.config.predictions.pooler {
            self.linear("pooler", channels, channels, true);
        }
        if let Some(classes) = &self.config.predictions.classes {
            self.linear("classifier", classes.len(), channels, true);
        }
        if self.config.predictions.spans {
            self.linear("spans", 2, channels, true);
        }
    }
}

/// All parameters of a model.
pub(super) fn layouts(config: &ModelConfig) -> Vec<Layout> {
    let mut list = List { config, layouts: Vec::with_capacity(12 * config.layers + 8), is_head: false };
    list.push("token_embedding.weight".into(), &[config.vocabulary, config.channels]);
    if let Some(image) = &config.image {
        list.push("patch_embedding.weight".into(), &[config.channels, image.numbers()]);
    }
    for prefix in stack_prefixes(config.architecture) {
        list.stack(prefix, *prefix == "decoder.");
    }
    list.heads();
    list.layouts
}

/// Initial values and weight decay by what a parameter is: decay is for matrices only. As GPT-2's paper says, weights
/// come from N(0, σ²), and those that write to the residual stream are scaled by `1/√(branches)`.
pub(super) fn specifications(config: &ModelConfig) -> Vec<Specification> {
    let branches = if config.architecture == Architecture::EncoderDecoder { 3 } else { 2 } * config.layers.max(1);
    let branch_deviation = config.initializer_range / (branches as f32).sqrt();
    let specification = |Layout { name, shape, .. }: Layout| {
        let is_matrix = shape.len() > 1;
        // After the norm of a post-norm block the scale of a branch no longer adds up.
        let writes_to_stream = config.norm_place == NormPlace::Pre
            && (name.ends_with("projection.weight") || name.ends_with("down.weight"));
        let initial = match (is_matrix, name.ends_with("norm.weight")) {
            (true, _) if name.ends_with("position_bias.weight") => Initial::Constant(0.0),
            // Taps see one channel each: a mean of the window to start from.
            (true, _) if name.ends_with("depthwise.weight") => Initial::Normal(1.0 / (shape[1] as f32).sqrt()),
            (true, _) if writes_to_stream => Initial::Normal(branch_deviation),
            (true, _) => Initial::Normal(config.initializer_range),
            (false, true) => Initial::Constant(1.0),
            (false, false) => Initial::Constant(0.0),
        };
        Specification { decays: is_matrix, ..Specification::new(name, &shape, initial) }
    };
    layouts(config).into_iter().map(specification).collect()
}
