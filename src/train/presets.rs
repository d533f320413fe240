//! Configurations with a name, and the text that is part of the program.
//!
//! The bundled text makes the default preset train with no data at hand: `data.path = "bundled:austen"`.

/// A configuration with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// The configuration, as a file would hold it.
    pub toml: &'static str,
}

/// All presets; the first is the default.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "austen",
        summary: "a small model of two Jane Austen novels, bundled; a minute or two on two cores",
        toml: include_str!("../../presets/austen.toml"),
    },
    Preset {
        name: "shakespeare-char",
        summary: "nanoGPT's CPU recipe for tiny Shakespeare; needs data.path",
        toml: include_str!("../../presets/shakespeare-char.toml"),
    },
    Preset {
        name: "gpt2-124m",
        summary: "GPT-2 of 124 M parameters; needs data.path and data.tokenizer",
        toml: include_str!("../../presets/gpt2-124m.toml"),
    },
    Preset {
        name: "masked-lm",
        summary: "a small encoder from scratch, from hidden tokens; needs data.path and data.tokenizer",
        toml: include_str!("../../presets/masked-lm.toml"),
    },
    Preset {
        name: "masked-lm-csm",
        summary: "the same, with convolutional sequence modelling beside it",
        toml: include_str!("../../presets/masked-lm-csm.toml"),
    },
    Preset {
        name: "imdb",
        summary: "sentiment of reviews, from a pretrained BERT; needs model.initial, data.path and data.val_path",
        toml: include_str!("../../presets/imdb.toml"),
    },
    Preset {
        name: "question-answering",
        summary: "answers within a text, from a pretrained BERT; needs model.initial, data.path and data.val_path",
        toml: include_str!("../../presets/question-answering.toml"),
    },
    Preset {
        name: "digits",
        summary: "handwritten digits, a small vision transformer; needs data.path and data.val_path",
        toml: include_str!("../../presets/digits.toml"),
    },
    Preset {
        name: "translate-en-zh",
        summary: "English to Chinese, a small encoder-decoder; needs data.path, data.val_path and data.tokenizer",
        toml: include_str!("../../presets/translate-en-zh.toml"),
    },
];

/// The preset of that name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// A text that is part of the program: `bundled:NAME` as a path.
#[derive(Clone, Copy, Debug)]
pub struct BundledText {
    pub name: &'static str,
    /// Its files, in order: name and content.
    pub files: &'static [(&'static str, &'static str)],
    /// A `tokenizer.json` made from it: `bundled:NAME` as a tokenizer.
    pub tokenizer: &'static str,
}

/// All bundled texts. Their source and licence: `assets/austen/README.md`.
pub const BUNDLED_TEXTS: &[BundledText] = &[BundledText {
    name: "austen",
    files: &[
        ("pride_and_prejudice.txt", include_str!("../../assets/austen/pride_and_prejudice.txt")),
        ("sense_and_sensibility.txt", include_str!("../../assets/austen/sense_and_sensibility.txt")),
    ],
    tokenizer: include_str!("../../assets/austen/tokenizer.json"),
}];

/// The bundled text of that name.
pub fn bundled_text(name: &str) -> Option<&'static BundledText> {
    BUNDLED_TEXTS.iter().find(|text| text.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::{Config, Order, Source};

    #[test]
    fn every_preset_loads_once_it_has_what_it_asks_for() {
        for preset in PRESETS {
            // The folder that model.initial names says how long a text may be.
            let sets = ["data.path=text.txt", "data.tokenizer=char", "model.block=512"];
            let config = Config::load(Source::Preset(preset.name), &sets).unwrap_or_else(|error| panic!("{error}"));
            let again: Config = toml::from_str(&config.to_toml()).unwrap();
            assert_eq!(again, config, "{} round-trips", preset.name);
        }
    }

    #[test]
    fn the_default_preset_needs_nothing() {
        let config = Config::load(Source::Preset(PRESETS[0].name), &[""; 0]).unwrap();
        let text = bundled_text(config.data.path.unwrap().bundled().unwrap()).unwrap();
        let bytes: usize = text.files.iter().map(|(_, content)| content.len()).sum();
        assert!((1_000_000..1_500_000).contains(&bytes), "{bytes} bytes");
        assert!(text.files.iter().all(|(_, content)| content.is_ascii()));
    }

    /// Model FLOPs of the whole job at the rate of a slow two-core machine: the promise of "under 3 minutes".
    #[test]
    fn the_default_job_is_at_most_two_minutes_of_arithmetic_at_120_gflops() {
        let config = Config::load(Source::Preset("austen"), &[""; 0]).unwrap();
        let (layers, channels, block) = (config.model.layers, config.model.channels, config.model.block);
        let parameters = layers * 12 * channels * channels;
        let per_token = 6 * parameters + 6 * layers * channels * block;
        let seconds = (per_token * config.tokens_per_step() * config.train.steps) as f64 / 120e9;
        assert!((60.0..120.0).contains(&seconds), "{seconds:.0} s");
    }

    #[test]
    fn presets_without_text_say_so() {
        for name in ["shakespeare-char", "gpt2-124m"] {
            let message = Config::load(Source::Preset(name), &[""; 0]).unwrap_err().to_string();
            assert!(message.contains("data.path is not set"), "{message}");
        }
    }

    #[test]
    fn shakespeare_char_is_the_published_recipe_at_twice_its_learning_rate() {
        let c = Config::load(Source::Preset("shakespeare-char"), &["data.path=input.txt"]).unwrap();
        assert_eq!((c.model.layers, c.model.heads, c.model.channels, c.model.block), (4, 4, 128, 64));
        assert_eq!((c.train.batch, c.train.steps, c.train.eval_batches, c.train.accumulate), (12, 2000, 20, 1));
        assert_eq!((c.model.dropout, c.train.clip, c.data.order), (0.0, 1.0, Order::Random));
        assert_eq!((c.optimizer.learning_rate, c.optimizer.beta1, c.optimizer.beta2), (2e-3, 0.9, 0.99));
        assert_eq!((c.optimizer.weight_decay, c.schedule.warmup, c.schedule.min_factor), (0.1, 100, 0.1));
        assert_eq!(c.decay_steps(), 2000);
    }
}
