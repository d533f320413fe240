//! Gradients of attention: shared heads, key lengths, dropout, and over another sequence with a bias that learns.

use super::*;

#[test]
fn of_attention_with_shared_heads_key_lengths_and_dropout() {
    for (mask, key_value_heads, dropout, has_lengths) in
        [(Mask::Causal, 4, 0.0, false), (Mask::Full, 2, 0.0, true), (Mask::Causal, 1, 0.3, true)]
    {
        let options = AttentionOptions { heads: HEADS, key_value_heads, mask, dropout };
        Case {
            name: &format!("attention, {mask:?}, {key_value_heads} key/value heads, dropout {dropout}"),
            parameters: vec![leaf("head", &[VOCABULARY, CHANNELS])],
            inputs: vec![leaf("qkv", &[BATCH, TIME, (HEADS + 2 * key_value_heads) * HEAD_SIZE])],
            record: &|tape, p, v, ids| {
                let mixed = tape.attention(
                    v[0],
                    &options,
                    AttentionInputs {
                        key_lengths: has_lengths.then_some(ids.key_lengths),
                        ..AttentionInputs::default()
                    },
                )?;
                let logits = tape.linear(mixed, p[0], None, Activation::Identity, None)?;
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| {
                let key_lengths = has_lengths.then_some(&ids.key_lengths[..]);
                let mixed = attention64(&options, 1, &v[0], Around { key_lengths, ..Around::default() });
                mean_loss(&linear64(Activation::Identity, &mixed, &p[0], None, None), ids, 0.0)
            },
        }
        .check();
    }
}

/// Keys of the cross-attention case.
const KEY_TIME: usize = 3;

#[test]
fn of_cross_attention_with_a_bias_that_is_a_parameter() {
    let options = AttentionOptions { heads: HEADS, key_value_heads: 2, mask: Mask::Full, dropout: 0.0 };
    let key_columns = 2 * HEAD_SIZE;
    Case {
        name: "cross-attention",
        parameters: vec![leaf("head", &[VOCABULARY, CHANNELS]), leaf("bias", &[HEADS, TIME, KEY_TIME])],
        inputs: vec![leaf("query", &[BATCH, TIME, CHANNELS]), leaf("key_value", &[BATCH, KEY_TIME, 2 * key_columns])],
        record: &|tape, p, v, ids| {
            let bias = tape.parameter(p[1])?;
            let inputs = AttentionInputs { bias: Some(bias), ..AttentionInputs::default() };
            let mixed = tape.cross_attention(v[0], v[1], &options, inputs)?;
            let logits = tape.linear(mixed, p[0], None, Activation::Identity, None)?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let half = |right: usize| -> Vec<f64> {
                v[1].chunks(2 * key_columns)
                    .flat_map(|row| row[right * key_columns..(right + 1) * key_columns].to_vec())
                    .collect()
            };
            let inputs = attention::reference::Inputs {
                shape: attention::Shape {
                    batch: BATCH,
                    query_time: TIME,
                    key_time: KEY_TIME,
                    heads: HEADS,
                    key_value_heads: 2,
                    head_size: HEAD_SIZE,
                    scale: 1.0 / (HEAD_SIZE as f32).sqrt(),
                    mask: Mask::Full,
                },
                query: &v[0],
                key: &half(0),
                value: &half(1),
                key_lengths: None,
                documents: None,
                bias: Some(&p[1]),
                relative_bias: None,
                dropout: None,
            };
            let mixed = attention::reference::forward(&inputs).0;
            mean_loss(&linear64(Activation::Identity, &mixed, &p[0], None, None), ids, 0.0)
        },
    }
    .check();
}
