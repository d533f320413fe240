//! Images to learn from. To batches they are examples like texts, whose tokens say no more than "a patch is here"; what is
//! there are the numbers that [`Pictures::write`] puts beside them.

use super::config::{Config, Paths};
use super::example_source::{ExampleSource, unsupported};
use super::trainer::Error;
use crate::data::images::{Images, Patching, random_shift};
use crate::data::{self, Batch};
use crate::model::image::ImageInput;
use crate::tape::Mode;

/// The images that examples stand for, by the number of the example.
pub(super) struct Pictures {
    pub(super) input: ImageInput,
    train: Images,
    val: Option<Images>,
    /// Pixels by which those of training are moved at most, and the key of these shifts.
    shift: usize,
    seed: u64,
}

/// Opens the images that `config` names.
///
/// # Errors
/// Images that cannot be read, have no labels, are of different sizes, or cannot be cut into patches.
pub(super) fn open(config: &Config, paths: &Paths) -> Result<ExampleSource, Error> {
    let (model, path) = (&config.model, one(paths, "data.path")?);
    let train = Images::open(path)?;
    train.patches(model.patch)?;
    let (height, width, colors) = train.size();
    let (mean, deviation) = train.mean_and_deviation();
    let input = ImageInput {
        height,
        width,
        colors,
        patch: model.patch,
        mean: model.pixel_mean.map_or(mean, |mean| mean as f32),
        deviation: model.pixel_deviation.map_or(deviation, |deviation| deviation as f32),
    };
    let ids = input.ids(model.pooling);
    let examples = train.examples(&ids)?;
    let read_val = |paths: &Paths| -> Result<Images, Error> {
        let mut val = Images::open(one(paths, "data.val_path")?)?;
        val.fit(train.size())?;
        val.renumber(train.classes())?;
        Ok(val)
    };
    let val = config.data.val_path.as_ref().map(read_val).transpose()?;
    Ok(ExampleSource {
        tokenizer: None,
        train: examples,
        val: val.as_ref().map(|val| val.examples(&ids)).transpose()?,
        pictures: Some(Pictures { input, train, val, shift: config.data.shift, seed: config.train.seed }),
    })
}

fn one<'p>(paths: &'p Paths, key: &str) -> Result<&'p [std::path::PathBuf], Error> {
    match paths.as_slice() {
        one @ [_] => Ok(one),
        several => Err(unsupported(&format!("{key} names {} sets of images; name one", several.len()))),
    }
}

impl Pictures {
    /// Writes the patches of a batch, `(rows, time, numbers)`; zeros where there is none. Those for training are moved by
    /// chance, in each epoch otherwise.
    ///
    /// # Errors
    /// None that the images did not have when they were opened.
    pub(super) fn write(&self, mode: Mode, epoch: u64, batch: &Batch, out: &mut Vec<f32>) -> data::Result<()> {
        let ImageInput { patch, mean, deviation, .. } = self.input;
        let patching = Patching { side: patch, mean, deviation };
        let (numbers, patches) = (self.input.numbers(), self.input.patches());
        let (images, shift) = match (mode, &self.val) {
            (Mode::Inference, Some(val)) => (val, 0),
            _ => (&self.train, self.shift),
        };
        out.clear();
        out.resize(batch.rows * batch.time * numbers, 0.0);
        for placed in &batch.examples {
            // After the class token, if there is one.
            let first = placed.row * batch.time + placed.end - patches;
            let out = &mut out[first * numbers..(first + patches) * numbers];
            images.write_patches(
                placed.example,
                &patching,
                random_shift(self.seed, epoch, placed.example, shift),
                out,
            )?;
        }
        Ok(())
    }

    /// Bytes of memory that the images take.
    pub(super) fn bytes(&self) -> u64 {
        (self.train.bytes() + self.val.as_ref().map_or(0, Images::bytes)) as u64
    }

    /// Changes when the images to learn from do.
    pub(super) fn fingerprint(&self) -> String {
        self.train.fingerprint()
    }
}
