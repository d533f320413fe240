//! Texts for an encoder: where they come from, and the tokens that they become.

use crate::model::{Loaded, ModelArguments, check_vocabulary};
use crate::output::Progress;
use anyhow::{Context, bail};
use clap::Args;
use engine::data::labelled::{Keep, longest_first};
use engine::data::table::{Quotes, Row, Table};
use engine::data::{SpecialTokens, Tokenizer};
use engine::model::ModelConfig;
use engine::model::config::TextCut;
use engine::model::encode::{Arrangement, Encoder, Error, Example, Output};
use rayon::prelude::*;
use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Texts that are encoded before the first of them is printed.
const TOGETHER: usize = 512;

#[derive(Args)]
pub struct TextArguments {
    /// Texts; PNG files, for a model of images.
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    texts: Vec<String>,
    /// A text that may begin with a hyphen. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "input")]
    text: Vec<String>,
    /// The second text of each text, for models of pairs. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "input")]
    pair: Vec<String>,
    /// File of texts: .txt with one a line, or .tsv, .csv or .jsonl with a column of texts; also with .gz. For a model of
    /// images an idx file of these, also with .gz, or a folder of folders of PNG files.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The column of texts.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// The column of second texts.
    #[arg(long, value_name = "NAME", requires = "input")]
    pair_column: Option<String>,
}

#[derive(Args)]
pub struct BatchArguments {
    /// Tokens of a text at most, special ones included: longer ones are cut. As in training if not given, where the folder
    /// says that, else the model's own limit.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub max_tokens: Option<usize>,
    /// Which part is kept of a text that is cut: its `start`, its `end`, or `both` (a quarter and three quarters). As in
    /// training if not given, where the folder says that, else the start.
    #[arg(long, value_name = "PART")]
    keep: Option<Keep>,
    /// Tokens that are worked on together.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = crate::at_least_one)]
    pub batch: usize,
    /// Give each text a padded row of its own, instead of packing several into one.
    #[arg(long)]
    pub padded: bool,
    /// Print a JSON object for each text, one a line.
    #[arg(long)]
    pub json: bool,
}

impl BatchArguments {
    /// How texts are cut for a model.
    pub fn cut(&self, config: &ModelConfig) -> TextCut {
        let trained =
            config.text_cut().unwrap_or(TextCut { max_tokens: config.block, keep: Keep::Start, stride: None });
        TextCut {
            max_tokens: self.max_tokens.unwrap_or(trained.max_tokens).min(config.block),
            keep: self.keep.unwrap_or(trained.keep),
            stride: trained.stride,
        }
    }

    pub fn arrangement(&self) -> Arrangement {
        match self.padded {
            true => Arrangement::Padded { batch_tokens: self.batch },
            false => Arrangement::Packed { batch_tokens: self.batch },
        }
    }
}

#[derive(Args)]
pub struct WindowArguments {
    /// Tokens by which windows over a long context overlap. As in training if not given, where the folder says that, else 128.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
}

impl WindowArguments {
    pub fn stride(&self, config: &ModelConfig) -> usize {
        let trained = || config.text_cut().and_then(|cut| cut.stride);
        self.stride.or_else(trained).unwrap_or(128)
    }
}

/// A text, or a pair of them.
#[derive(Clone, Debug, Default)]
pub struct Text {
    pub first: String,
    pub second: Option<String>,
}

impl TextArguments {
    /// All texts, from wherever they come.
    pub fn read(&self) -> anyhow::Result<Vec<Text>> {
        if let Some(path) = &self.input {
            let mut table = Table::open(path, Quotes::InCsv)?;
            let first = table.column(&self.text_column)?;
            let second = self.pair_column.as_deref().map(|name| table.column(name)).transpose()?;
            let mut texts = Vec::new();
            while let Some(row) = table.next_row()? {
                let second = second.map(|column| cell(&row, column)).transpose()?;
                texts.push(Text { first: cell(&row, first)?, second });
            }
            if texts.is_empty() {
                bail!("{}: the file has no texts; put one on each line", path.display());
            }
            return Ok(texts);
        }
        let firsts = self.given()?;
        if !self.pair.is_empty() && self.pair.len() != firsts.len() {
            bail!("{} texts, but {} second texts; give --pair once for each text", firsts.len(), self.pair.len());
        }
        let mut seconds = self.pair.iter().cloned();
        Ok(firsts.into_iter().map(|first| Text { first, second: seconds.next() }).collect())
    }

    /// What is read as texts, as the names of files: for a model of images.
    pub fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        match &self.input {
            Some(path) => Ok(vec![path.clone()]),
            None => Ok(self.given()?.into_iter().map(PathBuf::from).collect()),
        }
    }

    /// The texts of the command line, or else those of standard input.
    fn given(&self) -> anyhow::Result<Vec<String>> {
        let texts: Vec<String> = self.texts.iter().chain(&self.text).cloned().collect();
        if texts.is_empty() { standard_input() } else { Ok(texts) }
    }
}

/// The text of a cell.
pub fn cell(row: &Row, column: usize) -> anyhow::Result<String> {
    let cell = &row.cells[column];
    let text = cell.text();
    text.ok_or_else(|| row.error(format!("{} instead of a text", cell.kind()), "give it a text").into())
}

fn standard_input() -> anyhow::Result<Vec<String>> {
    if io::stdin().is_terminal() {
        eprintln!("Type the texts, one a line; end them with Ctrl-D.");
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    let text = crate::utf8(bytes, "standard input")?;
    let texts: Vec<String> = text.lines().map(str::to_owned).collect();
    if texts.is_empty() {
        bail!("standard input has no texts; put one on each line");
    }
    Ok(texts)
}

/// Frames the tokens of texts as models are trained on them: `[CLS] a [SEP]`, `[CLS] a [SEP] b [SEP]`.
pub struct Framer<'a> {
    pub tokenizer: &'a Tokenizer,
    special: Option<SpecialTokens>,
    /// Tokens of a text at most.
    pub most: usize,
    keep: Keep,
}

impl<'a> Framer<'a> {
    /// # Errors
    /// The tokenizer has tokens that the model has not; no room for a token.
    pub fn new(tokenizer: &'a Tokenizer, loaded: &Loaded, batch: &BatchArguments) -> anyhow::Result<Self> {
        let config = loaded.model.config();
        check_vocabulary(tokenizer, config)?;
        let TextCut { max_tokens: most, keep, .. } = batch.cut(config);
        if most < 5 {
            bail!("--max-tokens {most} leaves no room beside the special tokens; use 5 or more");
        }
        Ok(Self { tokenizer, special: SpecialTokens::find(tokenizer), most, keep })
    }

    /// The token that is to be filled in.
    pub fn mask(&self) -> Option<u32> {
        self.special?.mask
    }

    /// Tokens that fit beside the special ones around `texts` texts.
    pub fn room(&self, texts: usize) -> usize {
        self.most - if self.special.is_some() { 1 + texts } else { 0 }
    }

    /// Frames tokens.
    pub fn frame(&self, first: &[u32], second: Option<&[u32]>) -> Example {
        let (start, end) = (self.special.map(|special| special.start), self.special.map(|special| special.end));
        let mut ids: Vec<u32> = start.into_iter().chain(first.iter().copied()).chain(end).collect();
        let split = ids.len();
        if let Some(second) = second {
            ids.extend(second.iter().copied().chain(end));
        }
        Example { ids, second: split, ..Example::default() }
    }

    /// The tokens of a text, cut to fit.
    pub fn encode(&self, text: &Text) -> anyhow::Result<Example> {
        let tokens = |text: &str| -> anyhow::Result<Vec<u32>> {
            let tokens = self.tokenizer.encode(text)?;
            if tokens.is_empty() {
                bail!("the text has no tokens; give it some, or leave it out");
            }
            Ok(tokens)
        };
        let first = tokens(&text.first)?;
        let Some(second) = &text.second else {
            return Ok(self.frame(&self.keep.cut(first, self.room(1)), None));
        };
        let second = tokens(second)?;
        let (a, b) = longest_first(first.len(), second.len(), self.room(2));
        Ok(self.frame(&first[..a], Some(&second[..b])))
    }

    /// The tokens of all texts.
    pub fn encode_all(&self, texts: &[Text]) -> anyhow::Result<Vec<Example>> {
        let encoded = texts
            .par_iter()
            .enumerate()
            .map(|(number, text)| self.encode(text).with_context(|| format!("text {}", number + 1)));
        encoded.collect()
    }
}

/// Runs a model over examples, some hundred at a time, and hands each one's values to `each` in their order, until that
/// breaks.
pub fn run_in_order(
    loaded: &mut Loaded,
    examples: &[Example],
    output: Output,
    arrangement: Arrangement,
    mut each: impl FnMut(usize, Vec<f32>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(1);
    let Loaded { model, parameters, device, .. } = loaded;
    let mut encoder = Encoder::new(device, model, parameters, output, arrangement, longest)?;
    let mut progress = Progress::new("texts", examples.len());
    for (part, chunk) in examples.chunks(TOGETHER).enumerate() {
        let before = part * TOGETHER;
        let results = encoder.all(parameters, chunk).map_err(|error| counted_from_one(error, before))?;
        for (index, values) in results.into_iter().enumerate() {
            if each(before + index, values)?.is_break() {
                return Ok(());
            }
        }
        progress.show(before + chunk.len());
    }
    Ok(())
}

/// People count texts from 1, and over all chunks.
fn counted_from_one(mut error: Error, before: usize) -> Error {
    match &mut error {
        Error::Empty { text }
        | Error::TooLong { text, .. }
        | Error::OutOfVocabulary { text, .. }
        | Error::Positions { text, .. }
        | Error::Patches { text, .. }
        | Error::NotFinite { text } => *text += before + 1,
        Error::NoHead { .. } | Error::Tape(_) => {}
    }
    error
}

/// What the subcommands of texts begin with.
pub fn open(arguments: &ModelArguments) -> anyhow::Result<(Tokenizer, PathBuf)> {
    let folder = arguments.folder()?;
    Ok((arguments.tokenizer(&folder)?, folder))
}
