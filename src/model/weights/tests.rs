//! Claims about files of tensors: what is written comes back, and nothing that a file can hold makes us panic.

use super::*;
use crate::ops::testing::Random;
use std::collections::BTreeMap;

/// A file as the format describes it: length, header, data.
fn bytes_of(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Opens `bytes` as a file and reads every tensor that it has.
fn open(bytes: &[u8]) -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("some.safetensors");
    std::fs::write(&path, bytes).expect("a writable folder");
    read_all(&path)
}

fn read_all(path: &Path) -> Result<(), Error> {
    let file = WeightFile::open(path)?;
    for name in file.names() {
        let view = file.get(name)?;
        if view.check_float().is_ok() {
            let elements: usize = view.shape().iter().product();
            assert_eq!(view.to_f32()?.len(), elements);
            assert_eq!(view.to_f64()?.len(), elements);
        } else {
            view.to_f32().unwrap_err();
        }
    }
    Ok(())
}

/// Demands that `bytes` are refused in one line that names the file and contains each of `expected`.
#[track_caller]
fn assert_refused(bytes: &[u8], expected: &[&str]) {
    let message = open(bytes).expect_err("a bad file").to_string();
    assert_is_useful(&message);
    for part in expected {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[track_caller]
fn assert_is_useful(message: &str) {
    assert!(!message.chars().any(char::is_control), "more than one line: {message:?}");
    assert!(message.len() < 2000, "a message of {} bytes", message.len());
    assert!(message.contains(".safetensors"), "does not name the file: {message}");
}

fn tensor<'a>(name: &'a str, shape: &[usize], values: &'a [f32]) -> NewTensor<'a> {
    NewTensor { name: name.into(), shape: shape.to_vec(), values: values.into(), transposed: false }
}

#[test]
fn what_is_written_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values: Vec<f32> = vec![1.5, -0.0, f32::NAN, f32::INFINITY, 1e-42, f32::MAX];
    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("a \"key\"\n".into(), "é".into())]);
    let tensors = [
        tensor("matrix", &[2, 3], &values),
        tensor("scalar", &[], &values[3..4]),
        tensor("nothing", &[0, 7], &[]),
        tensor("odd \"name\" \u{1}", &[5], &values[1..]),
    ];
    write(&path, &tensors, &metadata).unwrap();

    let file = WeightFile::open(&path).unwrap();
    assert_eq!(file.metadata(), &metadata);
    assert_eq!(file.len(), 4);
    for NewTensor { name, shape, values, .. } in &tensors {
        let view = file.get(name).unwrap();
        assert_eq!((view.shape(), view.dtype()), (shape.as_slice(), Dtype::F32));
        let found = view.to_f32().unwrap();
        assert!(matches!(found, std::borrow::Cow::Borrowed(_)), "{name} was copied");
        assert!(found.iter().map(|v| v.to_bits()).eq(values.iter().map(|v| v.to_bits())), "{name}");
    }
    // The crate of the format agrees, and nothing else lies in the folder.
    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("matrix").unwrap().data(), file.get("matrix").unwrap().bytes());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // The same again is the same file.
    write(&path, &tensors, &metadata).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn transposes_of_odd_sizes_are_transposes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (rows, columns) in [(1, 1), (1, 113), (113, 1), (3, 5), (16, 16), (17, 33), (203, 113), (64, 200), (130, 7)] {
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut turned = vec![f32::NAN; values.len()];
        transpose(&values, rows, columns, &mut turned);
        for (i, &value) in values.iter().enumerate() {
            assert_eq!(turned[i % columns * rows + i / columns], value, "{rows} x {columns}, element {i}");
        }
        let written =
            NewTensor { name: "t".into(), shape: vec![columns, rows], values: (&values).into(), transposed: true };
        write(&path, &[written], &BTreeMap::new()).unwrap();
        let file = WeightFile::open(&path).unwrap();
        assert_eq!(*file.get("t").unwrap().to_f32().unwrap(), *turned, "{rows} x {columns}");
    }
}

#[test]
fn other_types_are_converted_exactly_and_at_any_alignment() {
    let numbers = [0.0f64, -1.5, 0.25, 1024.0, -3.0];
    let encode = |dtype: &str| -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|&number| match dtype {
                "F16" => half::f16::from_f64(number).to_le_bytes().to_vec(),
                "BF16" => half::bf16::from_f64(number).to_le_bytes().to_vec(),
                "F32" => (number as f32).to_le_bytes().to_vec(),
                "F64" => number.to_le_bytes().to_vec(),
                "I32" => (number as i32).to_le_bytes().to_vec(),
                _ => (number as i64).to_le_bytes().to_vec(),
            })
            .collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.safetensors");
    for padding in 0..8 {
        for dtype in ["F16", "BF16", "F32", "F64", "I32", "I64"] {
            let data = encode(dtype);
            let header =
                format!("{{\"t\":{{\"dtype\":\"{dtype}\",\"shape\":[5],\"data_offsets\":[0,{}]}}}}", data.len());
            std::fs::write(&path, bytes_of(&(header + &" ".repeat(padding)), &data)).unwrap();
            let file = WeightFile::open(&path).unwrap();
            let view = file.get("t").unwrap();
            if dtype.starts_with('I') {
                assert_eq!(view.to_i64().unwrap(), [0, -1, 0, 1024, -3]);
                let message = view.to_f32().unwrap_err().to_string();
                assert!(message.contains("tensor t holds I") && message.contains("not F32"), "{message}");
            } else {
                assert_eq!(*view.to_f32().unwrap(), numbers.map(|number| number as f32), "{dtype}, {padding}");
                assert_eq!(view.to_f64().unwrap(), numbers, "{dtype}, {padding}");
                view.to_i64().unwrap_err();
            }
        }
    }
}

#[test]
fn files_that_are_too_short_or_announce_too_much_are_refused() {
    assert_refused(b"", &["0 bytes are too few"]);
    assert_refused(b"1234567", &["7 bytes are too few"]);
    assert_refused(&u64::MAX.to_le_bytes(), &["header of 18446744073709551615 bytes", "at most 100 MB"]);
    assert_refused(&100_000_001u64.to_le_bytes(), &["at most 100 MB"]);
    assert_refused(&bytes_of("{}", b"")[..9], &["header of 2 bytes but holds 1"]);
    assert_refused(&0u64.to_le_bytes(), &["does not begin with a brace"]);
    let valid = bytes_of(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
    open(&valid).unwrap();
    for length in 0..valid.len() {
        assert_refused(&valid[..length], &[]);
    }
}

#[test]
fn headers_that_are_no_description_of_tensors_are_refused() {
    let f32x2 = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    for (header, expected) in [
        (" {}".to_owned(), "brace"),
        ("[]".to_owned(), "brace"),
        ("{".to_owned(), "EOF"),
        ("{} x".to_owned(), "trailing characters"),
        ("{\"a\":1}".to_owned(), "a: invalid type: integer `1`"),
        (format!("{{\"a\":{f32x2},\"a\":{f32x2}}}"), "tensor a"),
        (r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#.to_owned(), "a: unknown variant `F33`"),
        (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.to_owned(), "a: invalid value: integer `-2`"),
        (r#"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#.to_owned(), "a: invalid type: floating"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#.to_owned(), "a: invalid length 1"),
        (r#"{"a":{"dtype":"F32","shape":[2]}}"#.to_owned(), "missing field `data_offsets`"),
        (r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_owned(), "duplicate field"),
        (r#"{"__metadata__":{"a":1}}"#.to_owned(), "__metadata__: invalid type"),
        (r#"{"a\nb":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#.to_owned(), r"tensor a\nb"),
        (format!("{{\"{}\":1}}", "x".repeat(100_000)), "xxx..."),
        (format!("{}1", "{\"a\":".repeat(10_000)), "header: "),
    ] {
        assert_refused(&bytes_of(&header, &[0; 8]), &[expected]);
    }
    let mut not_text = bytes_of(&format!("{{\"a\":{f32x2}}}"), &[0; 8]);
    not_text[10] = 0xff;
    assert_refused(&not_text, &["header: "]);
}

#[test]
fn tensors_whose_bytes_do_not_fit_are_refused_by_name() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    for (header, expected) in [
        (one("F32", "[3]", "[0,8]"), "tensor w: F32 (3) takes 12 bytes, described as 8"),
        (one("F32", "[2]", "[8,0]"), "end at 0, before they start at 8"),
        (one("F32", "[3]", "[0,12]"), "ends at byte 12 of the data, which has only 8"),
        (one("F32", "[1]", "[4,8]"), "leaves a hole before it: starts at byte 4, expected 0"),
        (one("F32", "[1]", "[0,4]"), "4 bytes follow the last tensor"),
        (one("F4", "[1]", "[0,0]"), "F4 (1) is no whole number of bytes"),
        (one("F32", "[9223372036854775807,3]", "[0,8]"), "overflows"),
        (one("F32", "[4611686018427387904]", "[0,0]"), "overflows"),
        (one("F32", "[18446744073709551616]", "[0,8]"), "invalid"),
        (one("F32", &format!("[{}]", ["1"; 17].join(",")), "[0,4]"), "17 dimensions"),
        (one("F32", "[2]", "[18446744073709551608,18446744073709551615]"), "takes 8 bytes, described as 7"),
        (one("F32", "[2]", "[18446744073709551607,18446744073709551615]"), "ends at byte 18446744073709551615"),
        ("{}".to_owned(), "8 bytes follow"),
    ] {
        assert_refused(&bytes_of(&header, &[0; 8]), &[expected]);
    }
    let two =
        r#"{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    assert_refused(&bytes_of(two, &[0; 8]), &["tensor b: overlaps the tensor before it: starts at byte 4, expected 6"]);
}

#[test]
fn no_mutation_of_a_file_panics() {
    let mut random = Random::fresh();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fuzz.safetensors");
    let values = random.normal(40);
    let tensors = [tensor("a.weight", &[4, 5], &values[..20]), tensor("a.bias", &[], &values[..1]), {
        NewTensor { name: "b".into(), shape: vec![5, 4], values: values[20..].into(), transposed: true }
    }];
    write(&path, &tensors, &BTreeMap::from([("format".into(), "pt".into())])).unwrap();
    let valid = std::fs::read(&path).unwrap();
    let header = 8..valid.len() - 41 * 4;
    let pieces: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"\"",
        b"-1",
        b"0",
        b"18446744073709551615",
        b"1e400",
        b"null",
        b"F64",
        b"BOOL",
        b"\\u0000",
    ];
    let mut refused = 0;
    for _ in 0..4000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(3) {
            let at = (header.start + random.below(header.len())).min(bytes.len());
            match random.below(6) {
                0 => bytes.truncate(random.below(valid.len() + 1).min(bytes.len())),
                1 => bytes.extend_from_slice(&valid[..random.below(64)]),
                2 if bytes.len() >= 8 => bytes[random.below(8)] = random.word() as u8,
                3 if at < bytes.len() => bytes[at] = random.word() as u8,
                4 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                _ => {
                    let end = (at + random.below(12)).min(bytes.len());
                    bytes.splice(at..end, pieces[random.below(pieces.len())].iter().copied());
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = read_all(&path) {
            refused += 1;
            assert_is_useful(&error.to_string());
        }
    }
    assert!(refused > 3000, "only {refused} of 4000 mutations were noticed");
}

#[test]
fn things_that_are_no_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere.safetensors");
    assert!(WeightFile::open(&nowhere).unwrap_err().to_string().contains("cannot open"));
    assert!(WeightFile::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));

    let message = WeightFolder::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("no model.safetensors") && message.contains("save_pretrained"), "{message}");
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    let message = WeightFolder::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("pytorch_model.bin, which can run code"), "{message}");
    let message = WeightFolder::open(&nowhere).unwrap_err().to_string();
    assert!(message.contains("not a folder"), "{message}");
}

#[test]
fn weights_in_several_files_are_found_and_a_wrong_index_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = ([1.0, 2.0], [3.0]);
    write(&folder.path().join("one.safetensors"), &[tensor("a", &[2], &first)], &BTreeMap::new()).unwrap();
    write(&folder.path().join("two.safetensors"), &[tensor("b", &[1], &second)], &BTreeMap::new()).unwrap();
    let open = |weight_map: &str| {
        let text = format!("{{\"metadata\":{{\"total_size\":12}},\"weight_map\":{weight_map}}}");
        std::fs::write(folder.path().join(INDEX_FILE), text).unwrap();
        WeightFolder::open(folder.path())
    };
    let weights = open(r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(*weights.get("a").unwrap().to_f32().unwrap(), first);
    assert_eq!(*weights.get("b").unwrap().to_f32().unwrap(), second);
    assert!(weights.get("c").unwrap_err().to_string().contains("no tensor c among its 2"));

    for (weight_map, expected) in [
        (r#"{"a":"one.safetensors","b":"three.safetensors"}"#, "cannot open"),
        (r#"{"a":"one.safetensors","b":"../two.safetensors"}"#, "../two.safetensors is not a plain file name"),
        (r#"{"a":"one.safetensors","b":"/dev/zero"}"#, "/dev/zero is not a plain file name"),
        (r#"{"a":"one.safetensors","b":""}"#, "is not a plain file name"),
        (r#"{"a":"one.safetensors","c":"two.safetensors"}"#, "two.safetensors: there is no tensor c"),
        (r#"{"a":"one.safetensors"}"#, ""),
        (r#"{"a":"one.safetensors","a":"two.safetensors"}"#, "tensor a is listed twice"),
        (r#"{"a":1}"#, "invalid type"),
        ("[]", "invalid type"),
        ("{", "EOF"),
    ] {
        match open(weight_map) {
            // A file that the index leaves out is not opened, so its tensors are simply absent.
            Ok(weights) => assert_eq!((weights.names().count(), expected), (1, "")),
            Err(error) => {
                let message = error.to_string();
                assert!(!expected.is_empty() && message.contains(expected), "{message:?} does not say {expected:?}");
                assert_is_useful(&message);
            }
        }
    }
    let both = [tensor("a", &[2], &first), tensor("b", &[1], &second)];
    write(&folder.path().join("one.safetensors"), &both, &BTreeMap::new()).unwrap();
    let message = open(r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap_err().to_string();
    assert!(message.contains("does not list tensor b"), "{message}");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[tensor("a", &[1], &[7.0])], &BTreeMap::new()).unwrap();
    let before = std::fs::read(&path).unwrap();

    let values = [1.0, 2.0];
    let turned = |shape: &[usize]| NewTensor { transposed: true, ..tensor("a", shape, &values) };
    for (tensors, expected) in [
        (vec![tensor("a", &[3], &values)], "tensor a: 2 values do not fill shape (3)"),
        (vec![tensor("a", &[2], &values), tensor("a", &[2], &values)], "the name is taken"),
        (vec![tensor("__metadata__", &[2], &values)], "the name is taken"),
        (vec![tensor("a", &[usize::MAX, 2], &values)], "do not fill"),
        (vec![turned(&[2])], "do not fill"),
    ] {
        let message = write(&path, &tensors, &BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        assert_is_useful(&message);
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let nowhere = folder.path().join("none").join("model.safetensors");
    let message = write(&nowhere, &[], &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with("cannot write ") && message.ends_with("; check the path"), "{message}");
}
