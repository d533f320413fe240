//! Images for an encoder of them: what `classify` and `evaluate` read where the model has no use for texts.

use engine::data::images::{Images, Patching};
use engine::model::encode::Example;
use engine::model::image::ImageInput;
use engine::model::{ModelConfig, huggingface};
use std::path::{Path, PathBuf};

/// What a model's images are like; None of a model of texts.
pub fn input(folder: &Path) -> Result<Option<ImageInput>, huggingface::Error> {
    Ok(ModelConfig::load(folder)?.image)
}

/// Reads images for a model, whatever their colours.
pub fn read(paths: &[PathBuf], input: &ImageInput) -> anyhow::Result<Images> {
    let mut images = Images::open(paths)?;
    images.fit((input.height, input.width, input.colors))?;
    Ok(images)
}

/// Each image as a model of this configuration reads it.
pub fn examples(images: &Images, config: &ModelConfig, input: &ImageInput) -> anyhow::Result<Vec<Example>> {
    let (ids, numbers) = (input.ids(config.pooling), input.numbers());
    let patching = Patching { side: input.patch, mean: input.mean, deviation: input.deviation };
    let example = |image: usize| {
        let mut patches = vec![0.0; ids.len() * numbers];
        // The class token, which comes first where there is one, has none.
        let first = (ids.len() - input.patches()) * numbers;
        images.write_patches(image, &patching, [0, 0], &mut patches[first..])?;
        Ok(Example { patches, ..Example::new(ids.clone()) })
    };
    (0..images.len()).map(example).collect()
}
