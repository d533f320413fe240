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
