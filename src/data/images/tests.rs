use super::*;
use crate::data::labelled::Label;
use std::io::Write;

fn idx(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let header = [0, 0, 8, sizes.len() as u8].into_iter();
    header.chain(sizes.iter().flat_map(|size| size.to_be_bytes())).chain(bytes.iter().copied()).collect()
}

fn png(width: u32, height: u32, color: png::ColorType, bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(bytes).unwrap();
    file
}

fn write(path: PathBuf, bytes: &[u8]) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_files_give_images_and_labels_plain_and_gzipped() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..24).collect();
    let (images, labels) = (idx(&[2, 3, 4], &pixels), idx(&[2], &[3, 0]));
    for (name, pack) in [("idx", (|bytes| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>), ("idx.gz", gzipped)] {
        let images = write(folder.path().join(format!("images.{name}")), &pack(&images));
        let labels = write(folder.path().join(format!("labels.{name}")), &pack(&labels));
        let set = Images::from_idx(&images, Some(&labels)).unwrap();
        assert_eq!((set.len(), set.size(), set.classes().len()), (2, (3, 4, 1), 4));
        assert_eq!(set.pixels(1), &pixels[12..]);
        assert_eq!((set.label(0), set.label(1)), (Some(3), Some(0)));
        assert_eq!(Images::from_idx(&images, None).unwrap().label(0), None);
    }
}

#[test]
fn patches_run_from_left_to_right_and_then_down() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..16).collect();
    let set = Images::from_idx(write(folder.path().join("a.idx"), &idx(&[1, 4, 4], &pixels)), None).unwrap();
    let (count, numbers) = set.patches(2).unwrap();
    let mut out = vec![f32::NAN; count * numbers];
    set.write_patches(0, &Patching { side: 2, mean: 0.0, deviation: 1.0 / 255.0 }, [0, 0], &mut out).unwrap();
    let rounded: Vec<u8> = out.iter().map(|value| value.round() as u8).collect();
    assert_eq!(rounded, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    assert_eq!(set.patches(1).unwrap(), (16, 1));
    assert!(set.patches(3).unwrap_err().to_string().contains("do not tile images of 4 x 4"));
    assert!(set.patches(0).is_err());
    let (mean, deviation) = set.mean_and_deviation();
    let mut out = vec![0.0; 16];
    set.write_patches(0, &Patching { side: 4, mean, deviation }, [0, 0], &mut out).unwrap();
    let square: f32 = out.iter().map(|value| value * value).sum();
    assert!(out.iter().sum::<f32>().abs() < 1e-4 && (square / 16.0 - 1.0).abs() < 1e-4);
}

#[test]
fn a_shift_moves_the_image_and_repeats_its_edge() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..9).collect();
    let set = Images::from_idx(write(folder.path().join("a.idx"), &idx(&[1, 3, 3], &pixels)), None).unwrap();
    let moved = |shift| {
        let mut out = vec![f32::NAN; 9];
        set.write_patches(0, &Patching { side: 1, mean: 0.0, deviation: 1.0 / 255.0 }, shift, &mut out).unwrap();
        out.iter().map(|value| value.round() as u8).collect::<Vec<u8>>()
    };
    assert_eq!(moved([1, 0]), [0, 1, 2, 0, 1, 2, 3, 4, 5]);
    assert_eq!(moved([0, -1]), [1, 2, 2, 4, 5, 5, 7, 8, 8]);
    assert_eq!(moved([-9, 9]), [6; 9]);
    let of_epoch = |epoch| (0..500).map(|image| random_shift(3, epoch, image, 2)).collect::<Vec<[i32; 2]>>();
    let shifts = of_epoch(1);
    for way in 0..2 {
        let count = |by: i32| shifts.iter().filter(|shift| shift[way] == by).count();
        assert!((-2..=2).all(|by| (60..140).contains(&count(by))), "each of five about a fifth of the times");
    }
    assert!(shifts == of_epoch(1) && shifts != of_epoch(2), "the same each time, and others in another epoch");
    assert_eq!(random_shift(3, 2, 7, 0), [0, 0]);
}

#[test]
fn labels_lie_beside_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let images = write(folder.path().join("train-images-idx3-ubyte"), &idx(&[2, 1, 1], &[5, 6]));
    let message = Images::open(&[&images]).unwrap().examples(&[1, 0]).err().unwrap().to_string();
    assert!(message.contains("train-images-idx3-ubyte: the images have no labels"), "{message}");
    write(folder.path().join("train-labels-idx1-ubyte"), &idx(&[2], &[2, 0]));
    let set = Images::open(&[&images]).unwrap();
    assert_eq!(set.name(1), format!("{}:1", images.display()));
    let examples = set.examples(&[1, 0]).unwrap();
    assert_eq!((examples.len(), examples.total_tokens(), examples.classes().len()), (2, 4, 3));
    assert_eq!((examples.label(0), examples.label(1)), (Label::Class(2), Label::Class(0)));
}

#[test]
fn images_are_made_to_fit_but_not_scaled() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path().join("a.png"), &png(2, 1, png::ColorType::Rgb, &[9, 9, 9, 255, 0, 0]));
    let mut set = Images::open(&[file]).unwrap();
    set.fit((1, 2, 1)).unwrap();
    assert_eq!((set.size(), set.pixels(0)), ((1, 2, 1), &[9, 76][..]));
    set.fit((1, 2, 3)).unwrap();
    assert_eq!(set.pixels(0), [9, 9, 9, 76, 76, 76]);
    let message = set.fit((2, 2, 3)).unwrap_err().to_string();
    assert!(message.contains("a.png: images of 2 x 1 pixels, but 2 x 2 are needed; scale them"), "{message}");
}

#[test]
fn the_folders_of_png_files_are_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    let grey = png(2, 1, png::ColorType::Grayscale, &[7, 9]);
    let colour = png(2, 1, png::ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255]);
    write(folder.path().join("dog/b.png"), &colour);
    write(folder.path().join("cat/a.PNG"), &grey);
    write(folder.path().join("cat/notes.txt"), b"no image");
    let mut set = Images::from_folder(folder.path()).unwrap();
    assert_eq!((set.len(), set.size(), set.classes()), (2, (1, 2, 3), &["cat".to_string(), "dog".into()][..]));
    assert_eq!((set.pixels(0), set.pixels(1)), (&[7, 7, 7, 9, 9, 9][..], &[1, 2, 3, 4, 5, 6][..]));
    set.renumber(&["dog", "bird", "cat"].map(String::from)).unwrap();
    assert_eq!((set.label(0), set.label(1)), (Some(2), Some(0)));
    let message = set.renumber(&["dog".into(), "cat".into()]).unwrap_err().to_string();
    assert!(message.contains("class \"bird\" of the images is none of those known, dog, cat"), "{message}");
    assert_eq!(Images::from_files(&[folder.path().join("cat/a.PNG")]).unwrap().size(), (1, 2, 1));
}

#[test]
fn broken_and_odd_images_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = png(2, 1, png::ColorType::Grayscale, &[7, 9]);
    write(folder.path().join("set/cat/a.png"), &good);
    write(folder.path().join("set/cat/b.png"), &png(1, 2, png::ColorType::Grayscale, &[7, 9]));
    let message = Images::from_folder(folder.path().join("set")).unwrap_err().to_string();
    assert!(message.contains("cat/b.png: is 1 x 2, but the first image is 2 x 1"), "{message}");
    for (name, bytes) in [("cut.png", &good[..good.len() - 20]), ("empty.png", b""), ("text.png", b"no image")] {
        let message = Images::from_files(&[write(folder.path().join(name), bytes)]).unwrap_err().to_string();
        assert!(message.contains(&format!("{name}: not a whole PNG file")) && !message.contains('\n'), "{message}");
    }
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    assert!(Images::from_files(&[write(folder.path().join("huge.png"), &huge)]).is_err());
    assert!(
        Images::from_folder(folder.path().join("set/cat")).unwrap_err().to_string().contains("no folders with .png")
    );
    let images = idx(&[2, 2, 2], &[0; 8]);
    for (name, bytes, expected) in [
        ("a.idx", images[..images.len() - 1].to_vec(), "cut short: its header names 8 bytes"),
        ("b.idx", [&images[..], &[0]].concat(), "longer than it says"),
        ("c.idx", b"text".to_vec(), "not an idx file of bytes"),
        ("d.idx", idx(&[2], &[0, 1]), "not images"),
        ("e.idx", idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), "its header names sizes"),
        ("f.idx", images[..9].to_vec(), "its header names sizes"),
        ("g.idx", idx(&[0, 2, 2], &[]), "holds no images"),
        ("h.idx.gz", images.clone(), "cannot be read on"),
    ] {
        let message = Images::from_idx(write(folder.path().join(name), &bytes), None).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
    let images = write(folder.path().join("images.idx"), &images);
    let labels = write(folder.path().join("labels.idx"), &idx(&[3], &[0, 1, 2]));
    let message = Images::from_idx(&images, Some(&labels)).unwrap_err().to_string();
    assert!(message.contains("labels.idx: holds numbers of sizes [3], but there are 2 images"), "{message}");
}
