//! Gradients of a whole network: two blocks, tied embeddings, dropout.

use super::*;

const BLOCK_LEAVES: usize = 12;

fn block_leaves() -> Vec<Leaf> {
    vec![
        leaf("norm1.weight", &[CHANNELS]),
        leaf("norm1.bias", &[CHANNELS]),
        leaf("qkv.weight", &[3 * CHANNELS, CHANNELS]),
        leaf("qkv.bias", &[3 * CHANNELS]),
        leaf("projection.weight", &[CHANNELS, CHANNELS]),
        leaf("projection.bias", &[CHANNELS]),
        leaf("norm2.weight", &[CHANNELS]),
        leaf("norm2.bias", &[CHANNELS]),
        leaf("ffn.weight_in", &[HIDDEN, CHANNELS]),
        leaf("ffn.bias_in", &[HIDDEN]),
        leaf("ffn.weight_out", &[CHANNELS, HIDDEN]),
        leaf("ffn.bias_out", &[CHANNELS]),
    ]
}

const BLOCK_ATTENTION: AttentionOptions =
    AttentionOptions { heads: HEADS, key_value_heads: HEADS, mask: Mask::Causal, dropout: 0.1 };
const BLOCK_DROPOUT: f32 = 0.2;

fn record_block(tape: &mut Tape<'_>, stream: Value, p: &[ParameterId]) -> Result<Value, Error> {
    let normed = tape.layer_norm(Norm::Layer, stream, p[0], Some(p[1]), EPSILON)?;
    let qkv = tape.linear(normed, p[2], Some(p[3]), Activation::Identity, None)?;
    let mixed = tape.attention(qkv, &BLOCK_ATTENTION, AttentionInputs::default())?;
    let branch = tape.linear(mixed, p[4], Some(p[5]), Activation::Identity, None)?;
    let stream = tape.dropout(branch, BLOCK_DROPOUT, Some(stream))?;
    let normed = tape.layer_norm(Norm::Layer, stream, p[6], Some(p[7]), EPSILON)?;
    tape.ffn(normed, ffn_parameters(&p[8..]), Activation::GeluTanh, Some(stream), false)
}

/// `sites`: how many dropouts were recorded before this block.
fn block64(stream: &[f64], p: &[Vec<f64>], sites: u32) -> Vec<f64> {
    let normed = norm64(Norm::Layer, stream, &p[0], Some(&p[1]));
    let qkv = linear64(Activation::Identity, &normed, &p[2], Some(&p[3]), None);
    let mixed = attention64(&BLOCK_ATTENTION, sites + 1, &qkv, Around::default());
    let branch = linear64(Activation::Identity, &mixed, &p[4], Some(&p[5]), None);
    let stream = dropout64(BLOCK_DROPOUT, sites + 2, &branch, Some(stream));
    let normed = norm64(Norm::Layer, &stream, &p[6], Some(&p[7]));
    ffn64(Activation::GeluTanh, &normed, &p[8..], Some(&stream))
}

#[test]
fn of_a_tied_network_of_two_blocks_with_dropout() {
    for recompute in [false, true] {
        let mut parameters = vec![leaf("tokens", &[VOCABULARY, CHANNELS]), leaf("positions", &[TIME, CHANNELS])];
        let names = |prefix: &'static str| {
            let named = move |(name, shape)| (&*Box::leak(format!("{prefix}.{name}").into_boxed_str()), shape);
            block_leaves().into_iter().map(named)
        };
        parameters.extend(names("first"));
        parameters.extend(names("second"));
        Case {
            name: &format!("two blocks, recompute {recompute}"),
            parameters,
            inputs: vec![],
            record: &|tape, p, _, ids| {
                let mut stream = tape.embedding(ids.tokens, p[0], EmbeddingInputs::learned(p[1]))?;
                for block in p[2..].chunks(BLOCK_LEAVES) {
                    let record = |tape: &mut Tape<'_>| record_block(tape, stream, block);
                    stream = if recompute { tape.recomputed(record)? } else { record(tape)? };
                }
                tape.linear_cross_entropy(stream, p[0], None, ids.targets, 0.0, Some(3))
            },
            compute: &|p, _, ids| {
                let first = block64(&plain_embedding64(ids, &p[0], &p[1]), &p[2..], 0);
                let second = block64(&first, &p[2 + BLOCK_LEAVES..], 2);
                mean_loss(&linear64(Activation::Identity, &second, &p[0], None, None), ids, 0.0)
            },
        }
        .check();
    }
}
