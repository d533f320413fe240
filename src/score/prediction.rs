//! What a model said about one example, as an object: a line of `predictions.jsonl`. The trainer and `engine-run evaluate`
//! write the same ones. `index` counts the rows of the data from 0, over all files.

use serde_json::{Map, Value, json};

/// A label applies from this probability on, unless something else is asked for.
pub const LABEL_THRESHOLD: f64 = 0.5;

/// One class: its name, and the probabilities of all.
pub fn class(index: usize, names: &[String], truth: usize, probabilities: &[f64]) -> Value {
    let likeliest = |best: usize, class: usize| if probabilities[class] > probabilities[best] { class } else { best };
    let predicted = (0..probabilities.len()).fold(0, likeliest);
    json!({
        "index": index,
        "label": names[truth],
        "prediction": names[predicted],
        "probabilities": by_name(names, probabilities),
    })
}

/// Any number of labels: those whose probability is at least `threshold`.
pub fn labels(index: usize, names: &[String], truths: &[bool], probabilities: &[f64], threshold: f64) -> Value {
    let list = |applies: &dyn Fn(usize) -> bool| -> Vec<&str> {
        (0..names.len()).filter(|&label| applies(label)).map(|label| names[label].as_str()).collect()
    };
    json!({
        "index": index,
        "label": list(&|label| truths[label]),
        "prediction": list(&|label| probabilities[label] >= threshold),
        "probabilities": by_name(names, probabilities),
    })
}

/// A number.
pub fn number(index: usize, truth: f64, predicted: f64) -> Value {
    json!({ "index": index, "label": truth, "prediction": predicted })
}

/// An answer, empty where the model found none, and those that count as right.
pub fn answer(id: &str, answer: &str, answers: &[String]) -> Value {
    json!({ "id": id, "answer": answer, "answers": answers })
}

/// A translation, and the one that it is compared with.
pub fn translation(source: &str, target: &str, translation: &str) -> Value {
    json!({ "source": source, "target": target, "translation": translation })
}

/// An object a line.
pub fn lines(predictions: &[Value]) -> String {
    predictions.iter().map(|prediction| format!("{prediction}\n")).collect()
}

fn by_name(names: &[String], figures: &[f64]) -> Map<String, Value> {
    names.iter().cloned().zip(figures.iter().map(|&figure| json!(figure))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_prediction_is_one_line_with_its_truth() {
        let names = ["good".to_owned(), "bad".to_owned()];
        let all = [
            class(4, &names, 1, &[0.75, 0.25]),
            labels(5, &names, &[true, true], &[0.5, 0.25], 0.5),
            number(6, 1.5, -2.0),
            answer("q1", "", &["a \"b\"".to_owned()]),
            translation("one\ntwo", "\u{4E00}", "\u{4E8C}"),
        ];
        assert_eq!(
            lines(&all),
            "{\"index\":4,\"label\":\"bad\",\"prediction\":\"good\",\"probabilities\":{\"bad\":0.25,\"good\":0.75}}\n\
             {\"index\":5,\"label\":[\"good\",\"bad\"],\"prediction\":[\"good\"],\
             \"probabilities\":{\"bad\":0.25,\"good\":0.5}}\n\
             {\"index\":6,\"label\":1.5,\"prediction\":-2.0}\n\
             {\"answer\":\"\",\"answers\":[\"a \\\"b\\\"\"],\"id\":\"q1\"}\n\
             {\"source\":\"one\\ntwo\",\"target\":\"\u{4E00}\",\"translation\":\"\u{4E8C}\"}\n"
        );
    }
}
