//! How the parameters of a model are trained: which are frozen, which learn more slowly, which have adapters beside them.

use super::config::ModelConfig;
use super::layout::layouts;
use super::lora::{Adapter, LoraOptions};
use crate::tape::Specification;
use std::collections::HashSet;

/// Which linear layers of a block get adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapts {
    /// Those of attention: queries, keys and values, and the projection.
    Attention,
    /// The two of the feed-forward network.
    Ffn,
    /// All of them.
    All,
}

impl Adapts {
    /// Whether the weight of this name gets an adapter.
    fn includes(self, name: &str) -> bool {
        let ends_with = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        let is_attention = ends_with(&["attention.qkv.weight", "attention.projection.weight"])
            || ends_with(&["cross.query.weight", "cross.key_value.weight", "cross.projection.weight"]);
        let is_ffn = ends_with(&["ffn.up.weight", "ffn.down.weight"]);
        match self {
            Self::Attention => is_attention,
            Self::Ffn => is_ffn,
            Self::All => is_attention || is_ffn,
        }
    }
}

/// Low-rank adaptation of a model's blocks: all else but the heads is frozen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    pub options: LoraOptions,
    pub adapts: Adapts,
}

/// How a model's parameters are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Treatment {
    /// Factor of the learning rate from each block to the one below it, and to the embeddings (Howard and Ruder 2018;
    /// as in ELECTRA, Clark et al. 2020). 1 where all learn alike.
    pub layer_decay: f32,
    /// How many of the first blocks are frozen, and with any the embeddings.
    pub frozen_layers: usize,
    pub lora: Option<Lora>,
}

impl Default for Treatment {
    fn default() -> Self {
        Self { layer_decay: 1.0, frozen_layers: 0, lora: None }
    }
}

/// How deep in a model a parameter lies: 0 for embeddings, 1 for the first block, the number of blocks and one more for
/// what comes after the last.
fn depth(name: &str, layers: usize) -> usize {
    let inside = name.strip_prefix("encoder.").or(name.strip_prefix("decoder.")).unwrap_or(name);
    match inside.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
        Some(layer) => layer.parse::<usize>().map_or(0, |layer| layer + 1),
        None if inside.contains("embedding") || inside.starts_with("position_bias") => 0,
        None => layers + 1,
    }
}

impl Treatment {
    /// Marks the parameters of a model, and appends those of adapters.
    pub(super) fn apply(&self, config: &ModelConfig, specifications: &mut Vec<Specification>) {
        let layers = config.layers;
        for specification in specifications.iter_mut() {
            let depth = depth(&specification.name, layers);
            specification.learning_rate_factor = self.layer_decay.powi((layers + 1 - depth) as i32);
            if self.frozen_layers > 0 && depth <= self.frozen_layers {
                specification.trainable = false;
            }
        }
        let Some(lora) = &self.lora else { return };
        let heads: HashSet<String> =
            layouts(config).into_iter().filter(|layout| layout.is_head).map(|layout| layout.name).collect();
        let adapts = |name: &str| lora.adapts.includes(name) && !heads.contains(name);
        Adapter::attach(specifications, &lora.options, adapts);
        for specification in specifications.iter_mut() {
            let is_adapter = specification.name.contains(".lora_");
            if !is_adapter && !heads.contains(&specification.name) {
                specification.trainable = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::specifications;

    fn treated(treatment: Treatment) -> Vec<Specification> {
        let config = ModelConfig { layers: 3, channels: 8, heads: 2, kv_heads: 2, ffn: 16, ..ModelConfig::bert() };
        let mut list = specifications(&config);
        treatment.apply(&config, &mut list);
        list
    }

    fn find<'a>(list: &'a [Specification], name: &str) -> &'a Specification {
        list.iter().find(|specification| specification.name == name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    #[test]
    fn a_block_learns_faster_than_the_one_below_it() {
        let list = treated(Treatment { layer_decay: 0.5, ..Treatment::default() });
        let factor = |name: &str| find(&list, name).learning_rate_factor;
        assert_eq!(factor("head.transform.weight"), 1.0);
        assert_eq!(factor("blocks.2.ffn.up.weight"), 0.5);
        assert_eq!(factor("blocks.0.attention_norm.bias"), 0.125);
        assert_eq!(factor("token_embedding.weight"), 0.0625);
        assert_eq!(factor("embedding_norm.weight"), 0.0625);
    }

    #[test]
    fn frozen_layers_take_the_embeddings_with_them() {
        let list = treated(Treatment { frozen_layers: 2, ..Treatment::default() });
        let is_trainable = |name: &str| find(&list, name).trainable;
        assert!(!is_trainable("token_embedding.weight") && !is_trainable("blocks.1.ffn.down.bias"));
        assert!(is_trainable("blocks.2.attention.qkv.weight") && is_trainable("head.bias"));
    }

    #[test]
    fn adapters_and_heads_are_all_that_learns() {
        let lora = Lora { options: LoraOptions::default(), adapts: Adapts::Attention };
        let list = treated(Treatment { lora: Some(lora), ..Treatment::default() });
        let learning: Vec<&str> = list.iter().filter(|s| s.trainable).map(|s| s.name.as_str()).collect();
        assert!(learning.iter().all(|name| name.contains(".lora_") || name.starts_with("head.")), "{learning:?}");
        assert_eq!(learning.iter().filter(|name| name.contains(".lora_")).count(), 3 * 2 * 2);
        assert!(list.iter().all(|s| !s.name.contains("ffn.up.lora_")));
    }
}
