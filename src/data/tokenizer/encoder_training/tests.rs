use super::*;
use crate::data::labelled::{LabelledSet, Long, Options, Task};
use crate::data::masking::{Masker, Masking};
use std::path::PathBuf;

const TEXT: &str = "The cats played, and the cat sat; playing cats sit. 汤姆在玩，汤姆喜欢猫。 café naïve?\n";
const MODELS: [Model; 3] = [Model::WordPiece, Model::Bpe, Model::Unigram];

fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn training(model: Model, chinese: Chinese) -> EncoderTraining {
    EncoderTraining { model, vocabulary: if model == Model::Bpe { 300 } else { 90 }, lower_case: true, chinese }
}

fn train_on(text: &str, training: &EncoderTraining) -> Result<Tokenizer> {
    let (_folder, path) = file(text);
    Tokenizer::train_encoder(TrainingText::open(&[path], None).unwrap(), training, &|_, _| ())
}

fn spelled(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.token_text(id).unwrap()).collect()
}

#[test]
fn each_model_has_the_special_tokens_first_and_knows_its_text() {
    let text = TEXT.repeat(20);
    for model in MODELS {
        for chinese in [Chinese::Characters, Chinese::Subword] {
            let training = training(model, chinese);
            let tokenizer = train_on(&text, &training).unwrap();
            assert!(tokenizer.vocabulary() <= training.vocabulary, "{model:?}: {}", tokenizer.vocabulary());
            for (token, id) in SPECIAL.iter().zip(0..) {
                assert_eq!(tokenizer.token_id(token), Some(id), "{model:?}");
                assert!(tokenizer.is_special(id));
            }
            let ids = tokenizer.encode(TEXT).unwrap();
            assert!(ids.iter().all(|&id| id > 4), "{model:?}: {:?}", spelled(&tokenizer, TEXT));
            assert_eq!(ids, tokenizer.encode(&TEXT.to_lowercase()).unwrap(), "{model:?}");
            assert!(tokenizer.encode("[MASK]").unwrap() == [4]);
            // It does for what it is there for.
            let (_folder, path) = file(&text);
            let task = Task::Text { text: "text".into(), long: Long::Cut };
            let set = LabelledSet::from_files(&[path], &tokenizer, &Options::new(task, 32), &|_, _| ()).unwrap();
            assert!(set.longest() <= 32);
            Masker::new(&tokenizer, Masking::default()).unwrap();
        }
    }
}

#[test]
fn a_text_gives_one_word_piece_or_bpe_whatever_the_run_and_the_threads() {
    let text: String = (0..400).map(|line| format!("{} {line} w{}x{}\n", &TEXT[..40], line % 7, line % 11)).collect();
    for model in [Model::WordPiece, Model::Bpe] {
        let training = EncoderTraining { vocabulary: 400, ..training(model, Chinese::Characters) };
        let first = train_on(&text, &training).unwrap().to_json();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| train_on(&text, &training)).unwrap().to_json();
            assert!(again == first, "{model:?} with {threads} threads");
        }
    }
}

#[test]
fn words_are_cut_into_pieces_that_know_whether_they_begin_one() {
    let tokenizer = train_on(&TEXT.repeat(20), &training(Model::WordPiece, Chinese::Characters)).unwrap();
    assert_eq!(spelled(&tokenizer, "汤姆"), ["汤", "姆"]);
    let pieces = spelled(&tokenizer, "cats");
    assert!(!pieces[0].starts_with("##") && pieces[1..].iter().all(|piece| piece.starts_with("##")), "{pieces:?}");
    assert_eq!(pieces.iter().map(|piece| piece.trim_start_matches("##")).collect::<String>(), "cats");
    assert_eq!(spelled(&tokenizer, "🦀"), ["[UNK]"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("the cats played").unwrap()), "the cats played");
    let subword = train_on(&TEXT.repeat(20), &training(Model::WordPiece, Chinese::Subword)).unwrap();
    assert!(spelled(&subword, "汤姆喜欢猫").iter().skip(1).all(|piece| piece.starts_with("##")));
}

#[test]
fn columns_of_gzipped_rows_are_text_too() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tsv.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(format!("id\tzh\n{}", "x\t猫在玩\n".repeat(50)).as_bytes()).unwrap();
    std::fs::write(&path, encoder.finish().unwrap()).unwrap();
    let text = TrainingText::open(&[&path], Some("zh")).unwrap();
    let training = EncoderTraining { vocabulary: 20, ..training(Model::WordPiece, Chinese::Characters) };
    let tokenizer = Tokenizer::train_encoder(text, &training, &|_, _| ()).unwrap();
    assert_eq!(spelled(&tokenizer, "猫x"), ["猫", "[UNK]"]);
    let message = TrainingText::open(&[&path], None).err().unwrap().to_string();
    assert!(message.contains("no column \"text\"; it has \"id\", \"zh\""), "{message}");
}

#[test]
fn too_small_vocabularies_and_empty_texts_are_refused() {
    for (model, vocabulary, expected) in [
        (Model::WordPiece, 20, "different letters, so the vocabulary needs at least"),
        (Model::Unigram, 20, "different letters, so the vocabulary needs at least"),
        (Model::Bpe, 260, "a byte-level vocabulary has at least 261 ids"),
        (Model::Bpe, 3, "a vocabulary of 3 ids is not above 5"),
    ] {
        let training = EncoderTraining { vocabulary, ..training(model, Chinese::Characters) };
        let message = train_on(TEXT, &training).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
    for model in MODELS {
        let message = train_on("", &training(model, Chinese::Characters)).err().unwrap().to_string();
        assert!(message.contains("no words"), "{model:?}: {message}");
    }
}
