use super::*;
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
    set.write_patches(0, 2, 0.0, 1.0 / 255.0, &mut out).unwrap();
    let rounded: Vec<u8> = out.iter().map(|value| value.round() as u8).collect();
    assert_eq!(rounded, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    assert_eq!(set.patches(1).unwrap(), (16, 1));
    assert!(set.patches(3).unwrap_err().to_string().contains("do not tile images of 4 x 4"));
    assert!(set.patches(0).is_err());
    let (mean, deviation) = set.mean_and_deviation();
    let mut out = vec![0.0; 16];
    set.write_patches(0, 4, mean, deviation, &mut out).unwrap();
    let square: f32 = out.iter().map(|value| value * value).sum();
    assert!(out.iter().sum::<f32>().abs() < 1e-4 && (square / 16.0 - 1.0).abs() < 1e-4);
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
