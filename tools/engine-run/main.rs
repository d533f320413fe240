//! `engine-run`: use a checkpoint or a Hugging Face folder. A file here for each subcommand, and what they share:
//! `model` (which model), `texts` (which texts, as tokens) and `output`.

mod answer;
mod benchmark;
mod classify;
mod embed;
mod evaluate;
mod fill;
mod generate;
mod images;
mod model;
mod output;
mod texts;
mod translate;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  engine-run generate runs/austen --prompt \"It is a truth\"
  engine-run generate gpt2 --input prompts.txt --max-tokens 50 --json > completions.jsonl
  engine-run embed minilm \"A first text.\" \"Another one.\" --normalize --similarity
  engine-run fill bert \"Paris is the [MASK] of France.\"
  engine-run classify runs/imdb --input reviews.tsv --json
  engine-run answer runs/squad --question \"Who came?\" --context \"It was Anne who came.\"
  engine-run translate runs/en-zh \"Good morning.\"
  engine-run evaluate runs/imdb --data dev.tsv.gz

Exit codes: 0 done, 1 failed, 2 bad usage.";

/// Use a checkpoint: generate text, encode it, fill masks, classify, answer questions, translate, evaluate.
#[derive(Parser)]
#[command(name = "engine-run", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue text.
    #[command(after_help = "\
Prompts come from --prompt (may be repeated), from --input, or else from standard input, all of which is one prompt
(a line break at its end is left out). An empty prompt starts from the token that ends a text, or from a line break.

The text goes to standard output, after its prompt, as it is generated. Several texts come in the order of their
prompts, with lines of \"---\" between them. The same command gives the same text: change --seed for another one.

Examples:
  engine-run generate runs/austen --prompt \"It is a truth\"
  engine-run generate runs/austen --prompt \"Emma\" --samples 3 --temperature 1 --top-p 0.9 --seed 7
  engine-run generate runs/austen/checkpoints/best --prompt \"Mr. \" --stop \".\" --stop \"!\"
  echo \"Once upon a time\" | engine-run generate gpt2 --top-k 40 --max-tokens 100
  engine-run generate gpt2 --input prompts.txt --batch 8 --json > completions.jsonl
  engine-run generate gpt2 --benchmark")]
    Generate(generate::GenerateArguments),
    /// Turn texts into vectors.
    #[command(after_help = "\
Texts come after the checkpoint or from --text, from --input, or else from standard input, one a line. Each gives an
object on a line of its own, {\"text\", \"tokens\", \"vector\"}; or all vectors go into an array with --out.

Examples:
  engine-run embed minilm \"A first text.\" \"Another one.\" --normalize
  engine-run embed minilm --input sentences.txt --normalize --out sentences.npy
  engine-run embed minilm \"The cat sat.\" \"A cat was sitting.\" \"Stocks fell.\" --similarity
  zcat reviews.txt.gz | engine-run embed runs/masked-lm --pooling first --max-tokens 128 > vectors.jsonl")]
    Embed(embed::EmbedArguments),
    /// Fill masks: the likeliest tokens for each mask of a text.
    #[command(after_help = "\
Texts come after the checkpoint or from --text, from --input, or else from standard input, one a line. Printed is each
text with its masks filled, and below it, a line for each mask, the likeliest tokens and their probabilities.

Examples:
  engine-run fill bert \"Paris is the [MASK] of France.\"
  engine-run fill runs/masked-lm --input texts.txt --top-k 3 --json")]
    Fill(fill::FillArguments),
    /// Classify texts, pairs of them, or images.
    #[command(after_help = "\
Texts come after the checkpoint or from --text, from --input, or else from standard input, one a line. Printed is each
text after its class and the class's probability; after its labels with --multi-label; after its number where the model
is a regression.

Examples:
  engine-run classify runs/imdb \"What a film!\" --top-k 2
  engine-run classify runs/imdb --input reviews.tsv --text-column text --json > predictions.jsonl
  engine-run classify runs/entailment \"It rains.\" --pair \"It is wet.\"
  engine-run classify runs/digits seven.png four.png
  engine-run classify runs/digits --input images.idx.gz --json > predictions.jsonl")]
    Classify(classify::ClassifyArguments),
    /// Answer questions by a part of a text.
    #[command(after_help = "\
Printed is the answer and its probability, for each question on a line of its own; with --no-answer an empty answer
where \"no answer\" is likeliest.

Examples:
  engine-run answer runs/squad --question \"Who came?\" --context \"It was Anne who came.\"
  engine-run answer runs/squad --input questions.jsonl --no-answer --json > answers.jsonl")]
    Answer(answer::AnswerArguments),
    /// Translate texts.
    #[command(after_help = "\
Texts come after the checkpoint or from --text, from --input, or else from standard input, one a line; each gives a line.
Beam search by default: --beam 1 takes the likeliest token each time, --temperature chooses by chance.

Examples:
  engine-run translate runs/en-zh \"Good morning.\" \"How are you?\"
  engine-run translate runs/en-zh --input texts.txt --beam 8 --length-penalty 1 --json > translations.jsonl
  zcat dev.tsv.gz | cut -f1 | engine-run translate runs/en-zh --beam 1 > hypotheses.txt")]
    Translate(translate::TranslateArguments),
    /// Judge a model's predictions on labelled data.
    #[command(after_help = "\
The task is that of the model's heads: classification, multi-label, regression, question-answering or masked-lm.

Examples:
  engine-run evaluate runs/imdb --data dev.tsv.gz
  engine-run evaluate runs/digits --data dev-images.idx.gz
  engine-run evaluate runs/squad --data dev.jsonl --json
  engine-run evaluate runs/masked-lm --data held-out.txt --max-tokens 128")]
    Evaluate(evaluate::EvaluateArguments),
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more".into()),
        Ok(number) => Ok(number),
    }
}

fn utf8(bytes: Vec<u8>, place: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{place}: not UTF-8 at byte {offset}; convert it (for example with iconv)")
    })
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Generate(arguments) if arguments.benchmark => benchmark::benchmark(&arguments),
        Command::Generate(arguments) => generate::generate(&arguments),
        Command::Embed(arguments) => embed::embed(&arguments),
        Command::Fill(arguments) => fill::fill(&arguments),
        Command::Classify(arguments) => classify::classify(&arguments),
        Command::Answer(arguments) => answer::answer(&arguments),
        Command::Translate(arguments) => translate::translate(&arguments),
        Command::Evaluate(arguments) => evaluate::evaluate(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the error holds.
            eprintln!("engine-run: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}
