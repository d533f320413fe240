//! Gradients of losses: several of one value, with factors, weights of classes, numbers and spans.

use super::*;

/// The gradient of what two losses have in common is the sum of both; the case asks for the one of their sum.
#[test]
fn of_two_losses_of_one_value() {
    Case {
        name: "two losses",
        parameters: vec![leaf("first", &[VOCABULARY, CHANNELS]), leaf("second", &[VOCABULARY, CHANNELS])],
        inputs: vec![leaf("input", &[ROWS, CHANNELS])],
        record: &|tape, p, v, ids| {
            let trunk = tape.add(v[0], v[0])?;
            tape.linear_cross_entropy(trunk, p[0], None, ids.targets, 0.0, None)?;
            let logits = tape.linear(trunk, p[1], None, Activation::Identity, None)?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let trunk: Vec<f64> = v[0].iter().map(|x| 2.0 * x).collect();
            let loss = |weight| mean_loss(&linear64(Activation::Identity, &trunk, weight, None, None), ids, 0.0);
            loss(&p[0]) + loss(&p[1])
        },
    }
    .check();
}

#[test]
fn of_two_losses_with_factors() {
    Case {
        name: "1.5 of one loss and 0.25 of another",
        parameters: vec![leaf("first", &[VOCABULARY, CHANNELS]), leaf("second", &[VOCABULARY, CHANNELS])],
        inputs: vec![leaf("input", &[ROWS, CHANNELS])],
        record: &|tape, p, v, ids| {
            let first = tape.linear_cross_entropy(v[0], p[0], None, ids.targets, 0.0, None)?;
            let logits = tape.linear(v[0], p[1], None, Activation::Identity, None)?;
            let second = tape.softmax_cross_entropy(logits, ids.targets, 0.0)?;
            tape.scale_loss(first, 1.5)?;
            tape.scale_loss(second, 0.25)?;
            Ok(second)
        },
        compute: &|p, v, ids| {
            let loss = |weight| mean_loss(&linear64(Activation::Identity, &v[0], weight, None, None), ids, 0.0);
            1.5 * loss(&p[0]) + 0.25 * loss(&p[1])
        },
    }
    .check();
}

#[test]
fn of_softmax_cross_entropy_with_weights_of_classes() {
    let weights: Vec<f32> = (0..VOCABULARY).map(|class| if class == 2 { 0.0 } else { 0.25 + class as f32 }).collect();
    for label_smoothing in [0.0, 0.1] {
        Case {
            name: &format!("weights of classes, smoothing {label_smoothing}"),
            parameters: vec![leaf("weight", &[VOCABULARY, CHANNELS])],
            inputs: vec![leaf("input", &[ROWS, CHANNELS])],
            record: &|tape, p, v, ids| {
                let logits = tape.linear(v[0], p[0], None, Activation::Identity, None)?;
                tape.softmax_cross_entropy_weighted(logits, ids.targets, label_smoothing, &weights)
            },
            compute: &|p, v, ids| {
                let logits = linear64(Activation::Identity, &v[0], &p[0], None, None);
                let shape = softmax_cross_entropy::Shape {
                    rows: ROWS,
                    vocabulary: VOCABULARY,
                    label_smoothing,
                    ignored: IGNORED,
                };
                let losses =
                    softmax_cross_entropy::reference::forward(&shape, &logits, &ids.targets, Some(&double(&weights)));
                let counted = ids.targets.iter().filter(|&&target| target != IGNORED);
                losses.iter().sum::<f64>() / counted.map(|&target| f64::from(weights[target as usize])).sum::<f64>()
            },
        }
        .check();
    }
}

#[test]
fn of_binary_cross_entropy_and_the_squared_error() {
    use pointwise_loss::Kind;
    for kind in [Kind::BinaryCrossEntropy, Kind::SquaredError] {
        Case {
            name: &format!("{kind:?}"),
            parameters: vec![leaf("weight", &[VOCABULARY, CHANNELS])],
            inputs: vec![leaf("input", &[ROWS, CHANNELS])],
            record: &|tape, p, v, ids| {
                let logits = tape.linear(v[0], p[0], None, Activation::Identity, None)?;
                match kind {
                    Kind::BinaryCrossEntropy => tape.binary_cross_entropy(logits, ids.floats),
                    Kind::SquaredError => tape.squared_error(logits, ids.floats),
                }
            },
            compute: &|p, v, ids| {
                let logits = linear64(Activation::Identity, &v[0], &p[0], None, None);
                let shape = pointwise_loss::Shape { rows: ROWS, columns: VOCABULARY, kind };
                let losses = pointwise_loss::reference::forward(&shape, &logits, &double(&ids.floats));
                losses.iter().sum::<f64>() / (ROWS - 1) as f64
            },
        }
        .check();
    }
}

#[test]
fn of_span_cross_entropy() {
    Case {
        name: "span cross-entropy",
        parameters: vec![leaf("weight", &[2, CHANNELS])],
        inputs: vec![leaf("input", &[BATCH, TIME, CHANNELS])],
        record: &|tape, p, v, ids| {
            let logits = tape.linear(v[0], p[0], None, Activation::Identity, None)?;
            tape.span_cross_entropy(logits, ids.spans, ids.answers)
        },
        compute: &|p, v, ids| {
            let logits = linear64(Activation::Identity, &v[0], &p[0], None, None);
            let shape = span_cross_entropy::Shape { positions: ROWS, spans: 3, ignored: IGNORED };
            let all = span_cross_entropy::reference::forward_backward(&shape, &logits, &ids.spans, &ids.answers, 1.0);
            all.0.iter().sum::<f64>() / 2.0
        },
    }
    .check();
}
