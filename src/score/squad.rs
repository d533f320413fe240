//! Extractive question answering: exact match and F1 as the official scripts of SQuAD and MLQA compute them.
//!
//! Both compare an answer with the gold answers of its question, as lists of tokens, and take the best. Exact match
//! asks for the same list; F1 is the harmonic mean of precision `m / p` and recall `m / g`, where `p` and `g` count the
//! tokens of the prediction and of the gold answer and `m` those that both have, each as often as both have it.
//! A text becomes tokens by a language's rules:
//!
//! - [`Language::English`]: lower case; ASCII punctuation taken out, so that `a-b` becomes `ab`; the words a, an and
//!   the, bounded by anything that is not of a word, become a space; split at white space.
//! - [`Language::Chinese`]: lower case; the punctuation of all scripts taken out; each character of U+4E00 to U+9FA5 is a
//!   token of its own, whatever else there is between them and white space is one together (a number, a foreign word).
//!
//! A question without an answer has no gold answers. SQuAD 2.0 made those part of the task: the right prediction is
//! then one that has no tokens, such as an empty one, with F1 1, and gold answers that have no tokens do not count.
//! SQuAD 1.1 knows nothing of them: the F1 with an empty list is 0, even for two of them.
//!
//! One thing is not as in Python: combining vowel signs (as of Devanagari) and circled letters belong to a word here,
//! so that a letter `a` right before one is no article.
//!
//! # Source
//! Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, `evaluate-v1.1.py`;
//! "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018, `evaluate-v2.0.py`; Lewis et al., "MLQA:
//! Evaluating Cross-lingual Extractive Question Answering", 2020, `mlqa_evaluation_v1.py`.

use super::punctuation::is_punctuation;
use super::white_space::words;
use super::{Error, check_lengths};
use serde::Serialize;
use std::collections::HashMap;

const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// How a text is cut into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// By words, as SQuAD does.
    English,
    /// By characters, as MLQA does for `zh`.
    Chinese,
}

impl Language {
    /// That of contexts: Chinese where most of them have a Chinese character.
    pub fn of_texts<'a>(contexts: impl IntoIterator<Item = &'a str>) -> Self {
        if super::are_mostly_chinese(contexts) { Self::Chinese } else { Self::English }
    }
}

/// By which of the evaluations answers are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub language: Language,
    /// Whether there are questions without an answer, as in SQuAD 2.0.
    pub has_unanswerable: bool,
}

impl Rules {
    pub const SQUAD_1: Self = Self { language: Language::English, has_unanswerable: false };
    pub const SQUAD_2: Self = Self { language: Language::English, has_unanswerable: true };
    pub const MLQA_CHINESE: Self = Self { language: Language::Chinese, has_unanswerable: false };
    /// MLQA's Chinese with SQuAD 2.0's questions that have no answer.
    pub const CHINESE_UNANSWERABLE: Self = Self { language: Language::Chinese, has_unanswerable: true };
}

/// The figures of one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub exact_match: bool,
    /// From 0 to 1.
    pub f1: f64,
}

/// The mean over questions, in percent as the scripts print it; 0 for no questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub exact_match: f64,
    pub f1: f64,
    pub questions: u64,
}

/// The figures of a data set, also apart for questions with and without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub all: Figures,
    /// Of the questions that have gold answers.
    pub answerable: Figures,
    /// Of the questions that have none.
    pub unanswerable: Figures,
}

impl Report {
    /// Judges one prediction for each question; `golds` holds each question's gold answers.
    ///
    /// # Errors
    /// The lengths differ.
    pub fn new<P, G, S>(predictions: &[P], golds: &[G], rules: Rules) -> Result<Self, Error>
    where
        P: AsRef<str>,
        G: AsRef<[S]>,
        S: AsRef<str>,
    {
        check_lengths(predictions.len(), "questions", golds.len())?;
        let (mut all, mut answerable, mut unanswerable) = (Sum::default(), Sum::default(), Sum::default());
        for (prediction, golds) in predictions.iter().zip(golds) {
            let score = score(prediction.as_ref(), golds.as_ref(), rules);
            all.add(score);
            if golds.as_ref().is_empty() { &mut unanswerable } else { &mut answerable }.add(score);
        }
        Ok(Self { all: all.figures(), answerable: answerable.figures(), unanswerable: unanswerable.figures() })
    }
}

#[derive(Default)]
struct Sum {
    exact_matches: u64,
    f1: f64,
    questions: u64,
}

impl Sum {
    fn add(&mut self, score: Score) {
        self.exact_matches += u64::from(score.exact_match);
        self.f1 += score.f1;
        self.questions += 1;
    }

    fn figures(&self) -> Figures {
        let percent = |sum: f64| if self.questions == 0 { 0.0 } else { 100.0 * sum / self.questions as f64 };
        Figures { exact_match: percent(self.exact_matches as f64), f1: percent(self.f1), questions: self.questions }
    }
}

/// Judges an answer: exact match and F1, each with the gold answer that is best for it.
///
/// No gold answers are the same as an empty one.
pub fn score(prediction: &str, golds: &[impl AsRef<str>], rules: Rules) -> Score {
    let prediction = tokens(prediction, rules.language);
    let mut golds: Vec<Vec<String>> = golds.iter().map(|gold| tokens(gold.as_ref(), rules.language)).collect();
    if rules.has_unanswerable {
        golds.retain(|gold| !gold.is_empty());
    }
    if golds.is_empty() {
        golds.push(Vec::new());
    }
    Score {
        exact_match: golds.contains(&prediction),
        f1: golds.iter().map(|gold| f1(&prediction, gold, rules.has_unanswerable)).fold(0.0, f64::max),
    }
}

/// A text without what the comparison ignores, as tokens.
pub fn tokens(text: &str, language: Language) -> Vec<String> {
    let lower = text.to_lowercase();
    match language {
        Language::English => {
            let kept: String = lower.chars().filter(|character| !character.is_ascii_punctuation()).collect();
            words(&without_articles(&kept)).map(str::to_owned).collect()
        }
        Language::Chinese => {
            let mut apart = String::with_capacity(2 * lower.len());
            for character in lower.chars().filter(|&character| !is_punctuation(character)) {
                match character {
                    '\u{4e00}'..='\u{9fa5}' => apart.extend([' ', character, ' ']),
                    other => apart.push(other),
                }
            }
            words(&apart).map(str::to_owned).collect()
        }
    }
}

/// The text with a space in place of each article.
fn without_articles(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = is_of_word(first);
        let end = rest.find(|character| is_of_word(character) != is_word).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end);
        kept.push_str(if ARTICLES.contains(&run) { " " } else { run });
        rest = behind;
    }
    kept
}

/// What `\w` matches.
fn is_of_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

/// F1 of two bags of tokens. `empty_counts`: whether two empty ones agree.
fn f1(prediction: &[String], gold: &[String], empty_counts: bool) -> f64 {
    if empty_counts && prediction.is_empty() && gold.is_empty() {
        return 1.0;
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for token in gold {
        *left.entry(token).or_default() += 1;
    }
    let mut matches = 0_usize;
    for token in prediction {
        if let Some(count) = left.get_mut(token.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            matches += 1;
        }
    }
    if matches == 0 {
        return 0.0;
    }
    let precision = matches as f64 / prediction.len() as f64;
    let recall = matches as f64 / gold.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::goldens::{self, assert_close};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        english: Cases,
        chinese: Cases,
    }

    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
        over_all: HashMap<String, HashMap<String, GoldenFigures>>,
    }

    #[derive(Deserialize)]
    struct Case {
        golds: Vec<String>,
        prediction: String,
        #[serde(flatten)]
        scores: HashMap<String, GoldenScore>,
    }

    #[derive(Deserialize)]
    struct GoldenScore {
        exact_match: bool,
        f1: f64,
    }

    #[derive(Deserialize)]
    struct GoldenFigures {
        exact_match: f64,
        f1: f64,
        questions: u64,
    }

    fn compare(cases: &Cases, name: &str, rules: Rules) {
        for case in &cases.cases {
            let (ours, golden) = (score(&case.prediction, &case.golds, rules), &case.scores[name]);
            let what = format!("{name}: {:?} for {:?}", case.prediction, case.golds);
            assert_eq!(ours.exact_match, golden.exact_match, "{what}: exact match");
            assert_close(ours.f1, golden.f1, 1e-15, &what);
        }
        let predictions: Vec<&str> = cases.cases.iter().map(|case| case.prediction.as_str()).collect();
        let golds: Vec<&[String]> = cases.cases.iter().map(|case| case.golds.as_slice()).collect();
        let report = Report::new(&predictions, &golds, rules).unwrap();
        let parts = [("all", report.all), ("answerable", report.answerable), ("unanswerable", report.unanswerable)];
        for (part, figures) in parts {
            let golden = &cases.over_all[name][part];
            assert_eq!(figures.questions, golden.questions, "{name}: {part}");
            assert_close(figures.exact_match, golden.exact_match, 1e-13, &format!("{name}: {part}: exact match"));
            assert_close(figures.f1, golden.f1, 1e-13, &format!("{name}: {part}: F1"));
        }
    }

    #[test]
    fn english_figures_are_those_of_squads_scripts() {
        let golden: Golden = goldens::load("squad.json");
        assert!(golden.english.cases.len() >= 50);
        compare(&golden.english, "squad_1", Rules::SQUAD_1);
        compare(&golden.english, "squad_2", Rules::SQUAD_2);
    }

    #[test]
    fn chinese_figures_are_those_of_mlqas_rules() {
        let golden: Golden = goldens::load("squad.json");
        assert!(golden.chinese.cases.len() >= 40);
        compare(&golden.chinese, "mlqa_chinese", Rules::MLQA_CHINESE);
        compare(&golden.chinese, "mlqa_chinese_unanswerable", Rules::CHINESE_UNANSWERABLE);
    }

    #[test]
    fn articles_go_only_as_whole_words() {
        assert_eq!(
            tokens("The theatre, an Anna a 'a' “the” a1 1a the", Language::English),
            ["theatre", "anna", "“", "”", "a1", "1a"]
        );
    }

    #[test]
    fn chinese_is_cut_by_character_and_the_rest_by_word() {
        assert_eq!(
            tokens("在Google公司，2010 年 the end。", Language::Chinese),
            ["在", "google", "公", "司", "2010", "年", "the", "end"]
        );
    }

    #[test]
    fn a_report_is_one_flat_object_with_its_parts() {
        let report = Report::new(&["Paris", ""], &[vec!["in Paris"], vec![]], Rules::SQUAD_2).unwrap();
        let value = serde_json::to_value(report).unwrap();
        assert_eq!(value["exact_match"], 50.0);
        assert_eq!(value["answerable"]["exact_match"], 0.0);
        assert_eq!(value["unanswerable"]["f1"], 100.0);
    }

    #[test]
    fn no_questions_have_figures_of_0() {
        let report = Report::new(&[] as &[&str], &[] as &[Vec<String>], Rules::SQUAD_1).unwrap();
        assert_eq!(report, Report::default());
    }

    #[test]
    fn every_question_needs_a_prediction() {
        let error = Report::new(&["a"], &[["b"], ["c"]], Rules::SQUAD_1).unwrap_err();
        assert_eq!(error.to_string(), "1 predictions for 2 questions; there must be one for each");
    }
}
