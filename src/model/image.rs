//! Images as the input of an encoder (ViT, Dosovitskiy et al. 2021): a sequence of square patches, each a place with the
//! numbers of its pixels.
//!
//! A place is a token as in a text, of id [`PATCH`] or [`CLASS`], and what enters the first block is
//!
//! `token_embedding[id] + position + patch_embedding · numbers`.
//!
//! The trick is that the table of tokens has all that is learned besides the projection: its row of [`PATCH`] is the
//! projection's bias, and its row of [`CLASS`] is the class token, whose numbers are zeros. So rows of places are batched,
//! packed, pooled and judged as those of texts are.

use super::config::Pooling;
use serde::{Deserialize, Serialize};

/// The id of a place with a patch.
pub const PATCH: u32 = 0;

/// The id of the first place where [`Pooling::First`] stands for the image.
pub const CLASS: u32 = 1;

/// Size of the images that a model reads, and how they become patches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInput {
    pub height: usize,
    pub width: usize,
    /// Numbers of a pixel: 1 (grey) or 3 (RGB).
    pub colors: usize,
    /// Side of a patch, which divides height and width. 1 makes each pixel a place.
    pub patch: usize,
    /// A pixel of 0 to 255 enters as `(pixel / 255 - mean) / deviation`.
    pub mean: f32,
    pub deviation: f32,
}

impl ImageInput {
    /// Number of patches of an image.
    pub fn patches(&self) -> usize {
        self.height / self.patch * (self.width / self.patch)
    }

    /// Numbers of a patch.
    pub fn numbers(&self) -> usize {
        self.patch * self.patch * self.colors
    }

    /// Places of an image: its patches, and that of the class token where there is one.
    pub fn places(&self, pooling: Pooling) -> usize {
        self.patches() + usize::from(pooling == Pooling::First)
    }

    /// The token ids of an image: its patches, after the class token where that is pooled.
    pub fn ids(&self, pooling: Pooling) -> Vec<u32> {
        let class = (pooling == Pooling::First).then_some(CLASS);
        class.into_iter().chain(std::iter::repeat_n(PATCH, self.patches())).collect()
    }

    /// Number of token ids.
    pub fn vocabulary(pooling: Pooling) -> usize {
        match pooling {
            Pooling::First => 2,
            Pooling::Mean => 1,
        }
    }

    /// What makes no sense about it, in words.
    pub(super) fn fault(&self) -> Option<&'static str> {
        const LARGEST: usize = 1 << 14;
        let is_size = |size: usize| (1..=LARGEST).contains(&size) && self.patch > 0 && size.is_multiple_of(self.patch);
        if !is_size(self.height) || !is_size(self.width) {
            return Some("height and width must be from 1 to 16384, and multiples of patch");
        }
        if self.colors != 1 && self.colors != 3 {
            return Some("colors must be 1 or 3");
        }
        let is_scale = self.mean.is_finite() && self.deviation.is_finite() && self.deviation > 0.0;
        (!is_scale).then_some("mean must be a number, and deviation one above 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::model::config::NormPlace;
    use crate::model::transformer::Inputs;
    use crate::model::{ModelConfig, Transformer};
    use crate::ops::Device;
    use crate::tape::{Mode, RunOptions, Tape};
    use std::sync::Arc;

    const IMAGE: ImageInput = ImageInput { height: 4, width: 6, colors: 3, patch: 2, mean: 0.1, deviation: 0.3 };

    /// Without blocks and without a norm the trunk is what enters them.
    #[test]
    fn a_place_is_its_token_its_position_and_its_projected_patch() {
        let device = Arc::new(Device::Cpu(Cpu::new().unwrap()));
        for pooling in [Pooling::First, Pooling::Mean] {
            let (ids, numbers, channels) = (IMAGE.ids(pooling), IMAGE.numbers(), 5);
            assert_eq!((ids.len(), numbers), (IMAGE.places(pooling), 12));
            let config = ModelConfig {
                image: Some(IMAGE),
                vocabulary: ImageInput::vocabulary(pooling),
                block: ids.len(),
                channels,
                layers: 0,
                heads: 1,
                kv_heads: 1,
                norm_place: NormPlace::Post,
                embedding_norm: false,
                token_types: 0,
                embedding_dropout: 0.0,
                ..ModelConfig::bert()
            };
            let (model, mut parameters) = Transformer::new(&device, config, 3).unwrap();
            let mut tape = Tape::new(Arc::clone(&device), &parameters, Mode::Inference);
            let id_values = tape.input_ids("ids", &[2, ids.len()]);
            let refused = model.record_trunk(&mut tape, &Inputs::rows(id_values), false);
            assert!(refused.unwrap_err().to_string().contains("this model reads images"));
            let patches = tape.input("patches", &[2, ids.len(), numbers]);
            let inputs = Inputs { patches: Some(patches), ..Inputs::rows(id_values) };
            let trunk = model.record_trunk(&mut tape, &inputs, false).unwrap();
            tape.keep(trunk);
            let mut program = tape.finish().unwrap();
            let both: Vec<i32> = ids.iter().chain(&ids).map(|&id| id as i32).collect();
            let values: Vec<f32> = (0..2 * ids.len() * numbers).map(|i| (i * 7 % 23) as f32 / 10.0 - 1.0).collect();
            program.write_ids(id_values, &both).unwrap();
            program.write(patches, &values).unwrap();
            program.run(&mut parameters, &RunOptions::default()).unwrap();
            let found = program.read(trunk).unwrap();
            let table = |name: &str| parameters.values(parameters.find(name).unwrap()).unwrap();
            let (tokens, positions) = (table("token_embedding.weight"), table("position_embedding.weight"));
            let projection = table("patch_embedding.weight");
            for (place, patch) in values.chunks_exact(numbers).enumerate() {
                for channel in 0..channels {
                    let row = &projection[channel * numbers..(channel + 1) * numbers];
                    let expected = tokens[both[place] as usize * channels + channel]
                        + positions[place % ids.len() * channels + channel]
                        + row.iter().zip(patch).map(|(weight, number)| weight * number).sum::<f32>();
                    let error = (found[place * channels + channel] - expected).abs();
                    assert!(error < 1e-5, "{pooling:?}, place {place}, channel {channel}: {error:.1e}");
                }
            }
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_found() {
        assert_eq!(IMAGE.fault(), None);
        let is_found = |change: fn(&mut ImageInput)| {
            let mut image = IMAGE;
            change(&mut image);
            image.fault().is_some()
        };
        let changes: [fn(&mut ImageInput); 7] = [
            |image| image.patch = 0,
            |image| image.patch = 3,
            |image| image.width = 0,
            |image| image.height = usize::MAX - 1,
            |image| image.colors = 2,
            |image| image.deviation = 0.0,
            |image| image.mean = f32::NAN,
        ];
        assert!(changes.into_iter().all(is_found));
    }
}
