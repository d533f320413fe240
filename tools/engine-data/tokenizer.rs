//! `engine-data tokenizer`: trains one.

use super::{ProgressReport, print, print_json};
use clap::{Args, ValueEnum};
use engine::data::Tokenizer;
use engine::data::tokenizer::{Chinese, EncoderTraining, Model, TrainingText};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

pub const EXAMPLES: &str = "\
Without --model: a byte-level BPE laid out as GPT-2's, with <|endoftext|> as its last id, for decoders. With it: [PAD], [UNK],
[CLS], [SEP] and [MASK] are the first ids, for encoders; texts are cut into words as BERT does.

Examples:
  engine-data tokenizer --input wiki.txt --vocab-size 32000 --out wiki.json
  engine-data tokenizer --model wordpiece --lowercase --input reviews.txt.gz --vocab-size 8000 --out reviews.json
  engine-data tokenizer --model unigram --input en_zh.tsv.gz --column zh --chinese subword --vocab-size 8000 --out zh.json";

#[derive(Args)]
pub struct TokenizerArguments {
    /// Text files, UTF-8; or TSV, CSV, JSONL, plain or .gz, of which one column is read.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// The column that is read of files with columns; `text` where it is not given.
    #[arg(long, value_name = "COLUMN")]
    column: Option<String>,
    /// Number of ids, special ones included.
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// For an encoder: how words are cut.
    #[arg(long, value_enum)]
    model: Option<ModelArgument>,
    /// Make all text lower-case (with --model).
    #[arg(long, requires = "model")]
    lowercase: bool,
    /// What Chinese text is cut into before the vocabulary cuts it (with --model).
    #[arg(long, value_enum, default_value_t = ChineseArgument::Characters)]
    chinese: ChineseArgument,
    /// The tokenizer.json to write.
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModelArgument {
    /// Merges of bytes: nothing is unknown.
    Bpe,
    /// The longest pieces of a word from its start, as BERT.
    Wordpiece,
    /// The most likely pieces, as T5. Two runs on one text may differ in some pieces.
    Unigram,
}

#[derive(Clone, Copy, ValueEnum)]
enum ChineseArgument {
    /// Each character is a word of its own.
    Characters,
    /// The vocabulary learns pieces of several characters.
    Subword,
}

pub fn tokenizer_command(arguments: &TokenizerArguments, as_json: bool) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let progress = ProgressReport::new("counting words");
    let show = |done, total| progress.show(done, total);
    let text = TrainingText::open(&arguments.input, arguments.column.as_deref())?;
    let (name, tokenizer) = match arguments.model {
        None => ("byte-level BPE", Tokenizer::train_bpe_on(text, arguments.vocab_size, &show)?),
        Some(model) => {
            let (name, model) = match model {
                ModelArgument::Bpe => ("byte-level BPE for encoders", Model::Bpe),
                ModelArgument::Wordpiece => ("WordPiece", Model::WordPiece),
                ModelArgument::Unigram => ("unigram", Model::Unigram),
            };
            let chinese = match arguments.chinese {
                ChineseArgument::Characters => Chinese::Characters,
                ChineseArgument::Subword => Chinese::Subword,
            };
            let (vocabulary, lower_case) = (arguments.vocab_size, arguments.lowercase);
            let training = EncoderTraining { model, vocabulary, lower_case, chinese };
            (name, Tokenizer::train_encoder(text, &training, &show)?)
        }
    };
    progress.finish();
    tokenizer.save(&arguments.out)?;
    let (seconds, vocabulary) = (start.elapsed().as_secs_f64(), tokenizer.vocabulary());
    if vocabulary < arguments.vocab_size {
        eprintln!("engine-data: the text gave only {vocabulary} ids of the {} asked for", arguments.vocab_size);
    }
    if as_json {
        return print_json(&json!({
            "out": arguments.out.display().to_string(), "model": name, "vocabulary": vocabulary,
            "end_of_text": tokenizer.end_of_text(), "seconds": seconds,
        }));
    }
    print(&format!("{}: {name}, {vocabulary} ids, {seconds:.2} s\n", arguments.out.display()))
}
