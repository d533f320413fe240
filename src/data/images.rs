//! Images with labels: MNIST's idx files, PNG files, and folders of PNG files whose names are classes.
//!
//! All images of a set have one size and as many channels, grey or RGB, as bytes. What leaves are `f32` rows: an image as a
//! sequence of square patches (Dosovitskiy et al. 2021), each the row of its pixels, channels last; a patch of one pixel makes
//! it a sequence of pixels. For batches the images of a set are examples like any others ([`Images::examples`]): all of the
//! same token ids, each with its class.

mod idx;
mod png_file;

use super::error::{Error, Result};
use super::hash::Hash;
use super::labelled::LabelledSet;
use crate::ops::philox::philox;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Marks the random words of shifts, so that no other use of the same seed draws the same ones.
const DOMAIN: u32 = 0x7368_6966;

/// How an image becomes patches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patching {
    /// Side of a patch.
    pub side: usize,
    /// A pixel becomes `(value / 255 - mean) / deviation`.
    pub mean: f32,
    pub deviation: f32,
}

/// Images of one size.
#[derive(Clone, Debug)]
pub struct Images {
    /// What they were read from.
    place: PathBuf,
    /// The file of each, where each has one.
    files: Vec<PathBuf>,
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
    /// One for each image, or none at all.
    labels: Vec<u32>,
    classes: Vec<String>,
}

/// One image as it was read.
struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Images {
    /// Reads what the paths name: PNG files, or one folder as [`from_folder`](Self::from_folder) reads it, or one idx file;
    /// its labels are in the file beside it that has "labels" in its name instead of "images" (and "idx1" instead of
    /// "idx3"), if it is there.
    ///
    /// # Errors
    /// As those of the other readers.
    pub fn open<P: AsRef<Path> + Sync>(paths: &[P]) -> Result<Self> {
        let [path] = paths else { return Self::from_files(paths) };
        let path = path.as_ref();
        if path.is_dir() {
            return Self::from_folder(path);
        }
        if is_png(path) {
            return Self::from_files(&[path]);
        }
        Self::from_idx(path, labels_beside(path).filter(|labels| labels.exists()).as_deref())
    }

    /// Reads images in idx format, and their labels where a file of them is given; both may be `.gz`. Classes are the numbers
    /// from 0 to the largest label.
    ///
    /// # Errors
    /// A file cannot be read, is broken or cut short, or the numbers of images and labels differ.
    pub fn from_idx(images: impl AsRef<Path>, labels: Option<&Path>) -> Result<Self> {
        let path = images.as_ref();
        let (sizes, pixels) = idx::read(path)?;
        let (count, height, width, channels) = match sizes.as_slice() {
            &[count, height, width] => (count, height, width, 1),
            &[count, height, width, 3] => (count, height, width, 3),
            sizes => {
                let what = format!("holds numbers of sizes {sizes:?}, not images (count, height, width)");
                return Err(Error::table(path, what, "name the file of images"));
            }
        };
        if count * height * width == 0 {
            return Err(Error::table(path, "holds no images", "give a file with at least one"));
        }
        let mut set = Self {
            place: path.to_owned(),
            files: Vec::new(),
            width,
            height,
            channels,
            pixels,
            labels: Vec::new(),
            classes: Vec::new(),
        };
        if let Some(path) = labels {
            let (sizes, labels) = idx::read(path)?;
            if sizes != [count] {
                let what = format!("holds numbers of sizes {sizes:?}, but there are {count} images");
                return Err(Error::table(path, what, "name the file of labels that belongs to the images"));
            }
            let classes = labels.iter().max().map_or(0, |&largest| u32::from(largest) + 1);
            set.classes = (0..classes).map(|class| class.to_string()).collect();
            set.labels = labels.into_iter().map(u32::from).collect();
        }
        Ok(set)
    }

    /// Reads a folder of folders of PNG files: the name of each inner folder is the class of its images. Files and folders come
    /// in the order of their names; files that are no `.png` are passed over.
    ///
    /// # Errors
    /// The folder cannot be read or holds no images, a file is no PNG, or one has another size than the first.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        for path in entries(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !path.is_dir() || name.starts_with('.') {
                continue;
            }
            let images: Vec<PathBuf> = entries(&path)?.into_iter().filter(|file| is_png(file)).collect();
            labels.extend(images.iter().map(|_| classes.len() as u32));
            files.extend(images);
            classes.push(name);
        }
        if files.is_empty() {
            let what = "the folder has no folders with .png files in them";
            return Err(Error::table(folder, what, "put the images of each class into a folder of its name"));
        }
        Ok(Self { place: folder.to_owned(), labels, classes, ..Self::from_files(&files)? })
    }

    /// Reads PNG files, without labels.
    ///
    /// # Errors
    /// There is none, a file is no PNG, or one has another size than the first.
    pub fn from_files<P: AsRef<Path> + Sync>(files: &[P]) -> Result<Self> {
        let images: Vec<Image> = files.par_iter().map(|file| png_file::read(file.as_ref())).collect::<Result<_>>()?;
        let Some(first) = images.first() else {
            return Err(Error::Argument("no image given; name at least one".into()));
        };
        let (width, height) = (first.width, first.height);
        // One image in colour makes all of them so.
        let channels = images.iter().map(|image| image.channels).max().unwrap_or(1);
        let mut pixels = Vec::with_capacity(images.len() * width * height * channels);
        for (image, file) in images.iter().zip(files) {
            if (image.width, image.height) != (width, height) {
                let what = format!("is {} x {}, but the first image is {width} x {height}", image.width, image.height);
                return Err(Error::table(file, what, "scale all images to one size"));
            }
            if image.channels == channels {
                pixels.extend_from_slice(&image.pixels);
            } else {
                pixels.extend(image.pixels.iter().flat_map(|&grey| [grey; 3]));
            }
        }
        let files: Vec<PathBuf> = files.iter().map(|file| file.as_ref().to_owned()).collect();
        let place = files[0].clone();
        Ok(Self { place, files, width, height, channels, pixels, labels: Vec::new(), classes: Vec::new() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_bytes()
    }

    /// True where there are none; those that were read have one at least.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Height, width and channels (1 or 3) of each.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.height, self.width, self.channels)
    }

    /// The names of the classes, in the order of their numbers; none where there are no labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The class of an image; None where there are no labels.
    pub fn label(&self, image: usize) -> Option<usize> {
        self.labels.get(image).map(|&label| label as usize)
    }

    /// What an image is called: its file, or that of all images and its number in it, from 0.
    pub fn name(&self, image: usize) -> String {
        match self.files.get(image) {
            Some(file) => file.display().to_string(),
            None => format!("{}:{image}", self.place.display()),
        }
    }

    /// The bytes of an image, row by row, channels last.
    ///
    /// # Panics
    /// Where there is no such image.
    pub fn pixels(&self, image: usize) -> &[u8] {
        &self.pixels[image * self.image_bytes()..][..self.image_bytes()]
    }

    /// Number of patches of an image, and of numbers in each, for square patches of this side.
    ///
    /// # Errors
    /// The side does not divide height and width.
    pub fn patches(&self, side: usize) -> Result<(usize, usize)> {
        let is_divisor = |size: usize| side > 0 && size.is_multiple_of(side);
        if !is_divisor(self.height) || !is_divisor(self.width) {
            let what = format!("patches of {side} x {side} do not tile images of {} x {}", self.width, self.height);
            return Err(Error::Argument(format!("{what}; choose a side that divides both")));
        }
        Ok((self.height / side * (self.width / side), side * side * self.channels))
    }

    /// Writes an image as its patches, `(patches, side * side * channels)`: from left to right, then down. The image is moved
    /// by `shift` pixels down and to the right; what that uncovers is filled with the pixels at the edge.
    ///
    /// # Errors
    /// As [`patches`](Self::patches).
    ///
    /// # Panics
    /// Where there is no such image, or `out` has another length.
    pub fn write_patches(&self, image: usize, patching: &Patching, shift: [i32; 2], out: &mut [f32]) -> Result<()> {
        let &Patching { side, mean, deviation } = patching;
        let (count, numbers) = self.patches(side)?;
        assert_eq!(out.len(), count * numbers, "room for {count} patches of {numbers} numbers");
        let (pixels, across, run) = (self.pixels(image), self.width / side, side * self.channels);
        let moved = |at: usize, by: i32, size: usize| at.saturating_add_signed(-by as isize).min(size - 1);
        for (patch, out) in out.chunks_exact_mut(numbers).enumerate() {
            let (top, left) = (patch / across * side, patch % across * side);
            for (line, out) in out.chunks_exact_mut(run).enumerate() {
                let first = moved(top + line, shift[0], self.height) * self.width;
                for (column, out) in out.chunks_exact_mut(self.channels).enumerate() {
                    let at = (first + moved(left + column, shift[1], self.width)) * self.channels;
                    for (out, &pixel) in out.iter_mut().zip(&pixels[at..at + self.channels]) {
                        *out = (f32::from(pixel) / 255.0 - mean) / deviation;
                    }
                }
            }
        }
        Ok(())
    }

    /// Mean and standard deviation of all pixels, as parts of 255: what makes them average 0 and 1.
    pub fn mean_and_deviation(&self) -> (f32, f32) {
        let mut counts = [0u64; 256];
        self.pixels.iter().for_each(|&pixel| counts[usize::from(pixel)] += 1);
        let count = self.pixels.len().max(1) as f64;
        let average = |of: &dyn Fn(f64) -> f64| {
            counts.iter().zip(0u32..).map(|(&count, value)| count as f64 * of(f64::from(value) / 255.0)).sum::<f64>()
                / count
        };
        let mean = average(&|value| value);
        let deviation = average(&|value| (value - mean) * (value - mean)).sqrt();
        // All alike: nothing to scale.
        (mean as f32, if deviation > 0.0 { deviation as f32 } else { 1.0 })
    }

    /// Numbers the classes as those of `classes`, which are the training set's.
    ///
    /// # Errors
    /// A class is none of them.
    pub fn renumber(&mut self, classes: &[String]) -> Result<()> {
        let number = |name: &String| {
            classes.iter().position(|known| known == name).map(|number| number as u32).ok_or_else(|| {
                let what = format!("class {name:?} of the images is none of those known, {}", classes.join(", "));
                Error::table(&self.place, what, "take its images out, or train with them")
            })
        };
        let numbers: Vec<u32> = self.classes.iter().map(number).collect::<Result<_>>()?;
        self.labels.iter_mut().for_each(|label| *label = numbers[*label as usize]);
        self.classes = classes.to_vec();
        Ok(())
    }

    /// Makes the images fit to `(height, width, channels)`: grey ones become RGB by repetition, RGB ones grey by their luma
    /// (ITU-R BT.601).
    ///
    /// # Errors
    /// Their height or width is another.
    pub fn fit(&mut self, (height, width, channels): (usize, usize, usize)) -> Result<()> {
        if (self.height, self.width) != (height, width) {
            let what = format!("images of {} x {} pixels, but {width} x {height} are needed", self.width, self.height);
            return Err(Error::table(&self.place, what, "scale them to that size"));
        }
        self.pixels = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(|rgb| luma([rgb[0], rgb[1], rgb[2]])).collect(),
            _ => return Ok(()),
        };
        self.channels = channels;
        Ok(())
    }

    /// The images as examples of these token ids, each labelled with its class.
    ///
    /// # Errors
    /// They have no labels.
    pub fn examples(&self, ids: &[u32]) -> Result<LabelledSet> {
        if self.labels.is_empty() {
            let what = "the images have no labels";
            let remedy = "name a folder with a folder for each class, or an idx file of images, such as \
                          train-images.idx.gz, with one of labels beside it, such as train-labels.idx.gz";
            return Err(Error::table(&self.place, what, remedy));
        }
        LabelledSet::of_classes(ids, &self.labels, &self.classes)
    }

    /// Bytes of memory that the pixels take.
    pub fn bytes(&self) -> usize {
        self.pixels.len()
    }

    /// A short text that changes when images or labels do.
    pub fn fingerprint(&self) -> String {
        let mut hash = Hash::new();
        self.pixels.iter().for_each(|&pixel| hash.add(u64::from(pixel)));
        self.labels.iter().for_each(|&label| hash.add(u64::from(label)));
        format!("{}-{}x{}x{}-{}", self.len(), self.height, self.width, self.channels, hash.text())
    }

    fn image_bytes(&self) -> usize {
        self.width * self.height * self.channels
    }
}

/// How an image is moved for training: up to `most` pixels in each direction, by chance, but the same for the same seed,
/// epoch and image.
pub fn random_shift(seed: u64, epoch: u64, image: usize, most: usize) -> [i32; 2] {
    let counter = [image as u32, epoch as u32, (epoch >> 32) as u32, DOMAIN];
    let words = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let within = |word: u32| ((u64::from(word) * (2 * most as u64 + 1)) >> 32) as i32 - most as i32;
    [within(words[0]), within(words[1])]
}

/// Where the labels of an idx file of images are by custom.
fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str().filter(|name| name.contains("images"))?;
    Some(images.with_file_name(name.replace("images", "labels").replace("idx3", "idx1")))
}

/// The brightness of a pixel, weighted as the eye sees colours; that of a grey pixel is its value.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue) + 500) / 1000) as u8
}

/// What is in a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::read(folder))? {
        paths.push(entry.map_err(Error::read(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_png(path: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

#[cfg(test)]
mod tests;
