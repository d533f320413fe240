//! Reading a configuration: a preset or a file, then `--set`, with errors that say which key, where, and what to do.

use super::{Config, Key, Section};
use crate::train::presets;
use crate::util::edit_distance::edit_distance;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Where a configuration starts from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// One of [`presets::PRESETS`], by name.
    Preset(&'a str),
    /// A TOML file.
    File(&'a Path),
}

/// Why a configuration was refused: one line that says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no preset {name:?}: use one of {known}, or --config FILE.toml for a file")]
    UnknownPreset { name: String, known: String },
    #[error("cannot read the configuration {}: {source}; check the path given to --config", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{place}: not valid TOML: {what}")]
    Syntax { place: String, what: String },
    #[error("{place}: unknown key {key:?}: did you mean {nearest:?}?")]
    UnknownKey { place: String, key: String, nearest: String },
    #[error("{place}: {key} is {found}, expected {expected}")]
    WrongType { place: String, key: String, found: String, expected: String },
    #[error("{place}: not of the form SECTION.KEY=VALUE, as in --set train.steps=500")]
    NotAnAssignment { place: String },
    #[error("{place}{problem}: {remedy}")]
    Invalid {
        /// Where the value was given, followed by ": "; empty for one that no file or option gave.
        place: String,
        problem: String,
        remedy: String,
    },
}

impl Config {
    /// Reads `source`, applies `sets` (each `section.key=value`, in order) and checks the result.
    ///
    /// A value of a set is read as TOML, and taken as a string (without the spaces around it)
    /// where it is not TOML.
    ///
    /// # Errors
    /// Any [`ConfigError`]; nothing the user can write panics.
    pub fn load<S: AsRef<str>>(source: Source<'_>, sets: &[S]) -> Result<Self, ConfigError> {
        let mut reader = Reader { config: Self::default(), places: HashMap::new() };
        match source {
            Source::Preset(name) => {
                let preset = presets::find(name).ok_or_else(|| ConfigError::UnknownPreset {
                    name: name.into(),
                    known: presets::PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", "),
                })?;
                reader.read_text(preset.toml, &format!("preset {name}"))?;
            }
            Source::File(path) => {
                let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
                let text = std::fs::read_to_string(path).map_err(unreadable)?;
                reader.read_text(&text, &path.display().to_string())?;
            }
        }
        for set in sets {
            reader.read_set(set.as_ref())?;
            // What is said later holds: a number of updates takes the place of the epochs of a preset, file or earlier set.
            if set.as_ref().split_once('=').is_some_and(|(name, _)| name.trim() == "train.steps") {
                reader.config.train.epochs = 0.0;
            }
        }
        reader.read_initial();
        reader
            .config
            .validate_with(|key| reader.places.get(key).map_or_else(String::new, |place| format!("{place}: ")))?;
        Ok(reader.config)
    }
}

struct Reader {
    config: Config,
    /// Where the value of each key that was given came from.
    places: HashMap<String, String>,
}

impl Reader {
    /// Takes from the folder of the first weights what was not given. One that cannot be read is left to the run, which
    /// says what is wrong with it.
    fn read_initial(&mut self) {
        let Some(initial) = &self.config.model.initial else { return };
        let folder = crate::train::checkpoint::resolve(initial).ok();
        if let Some(found) = folder.and_then(|folder| crate::model::ModelConfig::load(&folder).ok()) {
            let places = &self.places;
            self.config.model.fill_from(&found, |key| places.contains_key(key));
        }
    }

    fn read_text(&mut self, text: &str, name: &str) -> Result<(), ConfigError> {
        let place = |span: Range<usize>| {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            format!("{name} line {}", 1 + before.iter().filter(|&&byte| byte == b'\n').count())
        };
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: error.span().map_or_else(|| name.into(), place),
            what: error.message().replace('\n', "; "),
        })?;
        for (section, content) in document.into_inner() {
            let (section_place, section_name) = (place(section.span()), section.into_inner());
            let content_place = place(content.span());
            let DeValue::Table(entries) = content.into_inner() else {
                return Err(match is_section(&section_name) {
                    true => ConfigError::WrongType {
                        place: content_place,
                        key: section_name.to_string(),
                        found: "a value".into(),
                        expected: format!("a section: write [{section_name}] on a line of its own"),
                    },
                    false => unknown_key(section_place, section_name.to_string()),
                });
            };
            if entries.is_empty() && !is_section(&section_name) {
                return Err(unknown_key(section_place, section_name.to_string()));
            }
            for (key, value) in entries {
                let place = place(key.span());
                let name = format!("{section_name}.{}", key.into_inner());
                self.assign(&name, value.into_inner(), place)?;
            }
        }
        Ok(())
    }

    fn read_set(&mut self, set: &str) -> Result<(), ConfigError> {
        let place = format!("--set {set}");
        let Some((name, value)) = set.split_once('=') else {
            return Err(ConfigError::NotAnAssignment { place });
        };
        let name = name.trim();
        let raw = || DeValue::String(value.trim().to_string().into());
        let parsed = DeValue::parse(value.trim()).map(|value| value.into_inner());
        match parsed {
            // `--set data.path=2024` means a file of that name: what is not of the key's type may be as a string.
            Ok(parsed) if !matches!(parsed, DeValue::String(_)) => {
                let Err(error) = self.assign(name, parsed, place.clone()) else { return Ok(()) };
                self.assign(name, raw(), place).map_err(|_| error)
            }
            Ok(parsed) => self.assign(name, parsed, place),
            Err(_) => self.assign(name, raw(), place),
        }
    }

    /// Sets `section.key`.
    fn assign(&mut self, name: &str, value: DeValue<'_>, place: String) -> Result<(), ConfigError> {
        let (section, key) = name.split_once('.').unwrap_or((name, ""));
        let found = Found(&value).to_string();
        let deserializer = deserializer(value);
        let config = &mut self.config;
        let result = match section {
            "model" => set(&mut config.model, key, deserializer),
            "data" => set(&mut config.data, key, deserializer),
            "train" => set(&mut config.train, key, deserializer),
            "lora" => set(&mut config.lora, key, deserializer),
            "optimizer" => set(&mut config.optimizer, key, deserializer),
            "schedule" => set(&mut config.schedule, key, deserializer),
            "device" => set(&mut config.device, key, deserializer),
            _ => Err(Refusal::Unknown),
        };
        match result {
            Ok(()) => {
                self.places.insert(name.into(), place);
                Ok(())
            }
            Err(Refusal::Unknown) => Err(unknown_key(place, name.into())),
            Err(Refusal::NotA(expected)) => {
                Err(ConfigError::WrongType { place, key: name.into(), found, expected: expected.into() })
            }
        }
    }
}

enum Refusal {
    Unknown,
    NotA(&'static str),
}

fn set<S: Section>(section: &mut S, name: &str, value: ValueDeserializer<'_>) -> Result<(), Refusal> {
    let key: &Key = S::KEYS.iter().find(|key| key.name == name).ok_or(Refusal::Unknown)?;
    section.set(name, value).map_err(|_| Refusal::NotA((key.expected)()))
}

fn deserializer(value: DeValue<'_>) -> ValueDeserializer<'_> {
    ValueDeserializer::from(toml::Spanned::new(0..0, value))
}

/// A value as an error names it: kind and content.
struct Found<'a>(&'a DeValue<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DeValue::String(text) => write!(f, "the string {text:?}"),
            DeValue::Integer(number) => write!(f, "the whole number {number}"),
            DeValue::Float(number) => write!(f, "the number {number}"),
            DeValue::Boolean(value) => write!(f, "{value}"),
            DeValue::Datetime(time) => write!(f, "the date {time}"),
            DeValue::Array(_) => f.write_str("a list"),
            DeValue::Table(_) => f.write_str("a table"),
        }
    }
}

fn is_section(name: &str) -> bool {
    Config::keys().iter().any(|key| key.split('.').next() == Some(name))
}

fn unknown_key(place: String, key: String) -> ConfigError {
    let nearest = nearest_key(&key);
    ConfigError::UnknownKey { place, key, nearest }
}

/// What other trainers call our keys: (theirs, ours).
const ALIASES: [(&str, &str); 17] = [
    ("lr", "optimizer.learning_rate"),
    ("max_lr", "optimizer.learning_rate"),
    ("min_lr", "schedule.min_factor"),
    ("warmup_iters", "schedule.warmup"),
    ("warmup_steps", "schedule.warmup"),
    ("lr_decay_iters", "schedule.decay_steps"),
    ("n_layer", "model.layers"),
    ("n_head", "model.heads"),
    ("n_embd", "model.channels"),
    ("hidden_size", "model.channels"),
    ("block_size", "model.block"),
    ("vocab_size", "model.vocabulary"),
    ("batch_size", "train.batch"),
    ("max_iters", "train.steps"),
    ("max_steps", "train.steps"),
    ("grad_clip", "train.clip"),
    ("gradient_accumulation_steps", "train.accumulate"),
];

/// The known key that `unknown` most likely stands for.
fn nearest_key(unknown: &str) -> String {
    let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
    let wanted = name(unknown);
    if let Some((_, ours)) = ALIASES.iter().find(|(theirs, _)| *theirs == wanted) {
        return ours.to_string();
    }
    // The section counts too, but a right name in the wrong section beats a wrong name in the right one.
    let distance = |key: &String| {
        let whole = edit_distance(&unknown.to_lowercase(), key);
        let part = edit_distance(&wanted, &name(key));
        (part.min(whole), whole)
    };
    Config::keys().into_iter().min_by_key(distance).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::{DeviceKind, TokenizerChoice};
    use std::io::Write;

    fn load_text(text: &str, sets: &[&str]) -> Result<Config, ConfigError> {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("written");
        Config::load(Source::File(file.path()), sets)
    }

    /// The message of what must fail, without the folder of the temporary file; always a single line.
    fn refusal(text: &str, sets: &[&str]) -> String {
        let message = load_text(text, sets).expect_err("refused").to_string();
        assert_eq!(message.lines().count(), 1, "{message:?} is one line");
        match message.find(".toml") {
            Some(at) => format!("FILE{}", &message[at + 5..]),
            None => message,
        }
    }

    const DATA: &str = "[data]\npath = 'text.txt'\n";

    #[test]
    fn sets_are_read_as_toml_and_as_strings_where_they_are_not_toml() {
        let sets = [
            "train.steps=50",
            "optimizer.learning_rate=3e-4",
            "train.clip=1",
            "data.tokenizer=some/tokenizer.json",
            "data.path=[\"a.txt\", \"b.txt\"]",
            "train.sample_prompt=2024",
            "train.recompute=true",
            " schedule.kind = linear",
            "device.kind=cuda:2",
            "model.initial=runs/a = b",
        ];
        let config = load_text("", &sets).unwrap();
        assert_eq!(config.train.steps, 50);
        assert_eq!(config.optimizer.learning_rate, 3e-4);
        assert_eq!(config.train.clip, 1.0);
        assert_eq!(config.data.tokenizer, TokenizerChoice::File("some/tokenizer.json".into()));
        assert_eq!(config.data.path.unwrap().as_slice().len(), 2);
        assert_eq!(config.train.sample_prompt, "2024");
        assert!(config.train.recompute);
        assert_eq!(config.device.kind, DeviceKind::Cuda(Some(2)));
        assert_eq!(config.model.initial, Some("runs/a = b".into()));
    }

    #[test]
    fn later_sets_win_over_earlier_ones_and_over_the_file() {
        let text = format!("{DATA}[train]\nsteps = 3\n");
        assert_eq!(load_text(&text, &[]).unwrap().train.steps, 3);
        assert_eq!(load_text(&text, &["train.steps=4", "train.steps=5"]).unwrap().train.steps, 5);
        let epochs = |sets: &[&str]| load_text(&format!("{text}epochs = 2.0\n"), sets).unwrap().train.epochs;
        assert_eq!(epochs(&[]), 2.0);
        assert_eq!(epochs(&["train.steps=4"]), 0.0);
        assert_eq!(epochs(&["train.steps=4", "train.epochs=1"]), 1.0);
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_key_and_the_place() {
        assert_eq!(
            refusal("[train]\nbatch = 4\nstesp = 5\n", &[]),
            "FILE line 3: unknown key \"train.stesp\": did you mean \"train.steps\"?"
        );
        assert_eq!(
            refusal(DATA, &["optimiser.lerning_rate=1"]),
            "--set optimiser.lerning_rate=1: unknown key \"optimiser.lerning_rate\": \
             did you mean \"optimizer.learning_rate\"?"
        );
        let nearest = [
            ("trian.steps", "train.steps"),
            ("steps", "train.steps"),
            ("model.learning_rate", "optimizer.learning_rate"),
            ("train.lr", "optimizer.learning_rate"),
            ("model.n_embd", "model.channels"),
            ("model.droput", "model.dropout"),
            ("data.tokeniser", "data.tokenizer"),
        ];
        for (unknown, known) in nearest {
            assert_eq!(nearest_key(unknown), known, "for {unknown}");
        }
        assert!(refusal("steps = 5\n", &[]).starts_with("FILE line 1: unknown key \"steps\": did you mean \"train.s"));
        assert!(refusal("\n[optimzer]\n", &[]).starts_with("FILE line 2: unknown key \"optimzer\""));
        assert!(refusal("[train.batch]\nsize = 5\n", &[]).contains("train.batch is a table"));
        assert!(refusal(DATA, &["train=5"]).contains("unknown key \"train\""));
    }

    #[test]
    fn wrong_types_name_key_place_what_was_found_and_what_was_expected() {
        let cases = [
            (
                "[train]\nsteps = \"many\"",
                "FILE line 2: train.steps is the string \"many\", expected a whole number, 0 or more",
            ),
            ("[train]\nsteps = 1.5", "FILE line 2: train.steps is the number 1.5, expected a whole number, 0 or more"),
            (
                "[train]\nsteps = -1",
                "FILE line 2: train.steps is the whole number -1, expected a whole number, 0 or more",
            ),
            (
                "[train]\nsteps = 99999999999999999999999",
                "FILE line 2: train.steps is the whole number 99999999999999999999999, expected a whole number, 0 or more",
            ),
            ("[model]\ntied = 1", "FILE line 2: model.tied is the whole number 1, expected true or false"),
            (
                "[data]\npath = 7",
                "FILE line 2: data.path is the whole number 7, expected a path or a list of paths (strings)",
            ),
            (
                "[data]\norder = 'suffled'",
                "FILE line 2: data.order is the string \"suffled\", expected \"shuffled\", \"random\" or \"sequential\"",
            ),
            (
                "[device]\nkind = 'gpu'",
                "FILE line 2: device.kind is the string \"gpu\", expected \"auto\", \"cpu\", \"cuda\", \"cuda:N\" or \"emulator\"",
            ),
            ("[optimizer]\nlearning_rate = []", "FILE line 2: optimizer.learning_rate is a list, expected a number"),
            ("train = 5", "FILE line 1: train is a value, expected a section: write [train] on a line of its own"),
        ];
        for (text, message) in cases {
            assert_eq!(refusal(text, &[]), message);
        }
        assert_eq!(
            refusal(DATA, &["train.steps=ten"]),
            "--set train.steps=ten: train.steps is the string \"ten\", expected a whole number, 0 or more"
        );
    }

    #[test]
    fn broken_toml_missing_files_and_bad_options_are_one_line_each() {
        assert!(refusal("[train]\nsteps = = 5\n", &[]).starts_with("FILE line 2: not valid TOML: "));
        assert!(refusal("[train]\nsteps = 5\nsteps = 6\n", &[]).starts_with("FILE line 3: not valid TOML: duplicate"));
        assert_eq!(
            refusal(DATA, &["train.steps"]),
            "--set train.steps: not of the form SECTION.KEY=VALUE, as in --set train.steps=500"
        );
        let missing = Config::load(Source::File(Path::new("no/such.toml")), &[""; 0]).unwrap_err().to_string();
        assert!(
            missing.starts_with("cannot read the configuration no/such.toml: ") && missing.contains("--config"),
            "{missing}"
        );
        let preset = Config::load(Source::Preset("austin"), &[""; 0]).unwrap_err().to_string();
        assert!(preset.starts_with("there is no preset \"austin\": use one of austen, shakespeare-char"), "{preset}");
    }

    #[test]
    fn values_that_make_no_sense_say_where_they_were_given() {
        assert_eq!(
            refusal(&format!("{DATA}[model]\nheads = 5\nchannels = 64\n"), &[]),
            "FILE line 4: model.heads is 5, which does not divide model.channels = 64: \
             choose channels as a multiple of heads"
        );
        assert!(refusal(DATA, &["train.batch=0"]).starts_with("--set train.batch=0: train.batch is 0"));
    }

    #[test]
    fn hostile_text_is_refused_without_a_panic() {
        let texts =
            ["[", "[[train]]\nsteps=1", "\u{0}", "a.b.c.d = 1", "[train]\nsteps = 1979-05-27", "train.\"\" = 1"];
        for text in texts {
            refusal(text, &[]);
        }
        for set in ["", "=", ".=", "train.=1", ".steps=1", "train.steps=", "train.steps.x=1", "\u{1F600}=\u{0}"] {
            refusal(DATA, &[set]);
        }
    }
}
