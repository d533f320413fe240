//! Launches `kernels/embedding.cu`: look-up; and for the gradients, the sort of the places by id and the sums.

use super::rows::{WARP, access_width};
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::embedding::{Backward, Forward, Shape};
use crate::ops::{View, ViewMut, Write};

static SOURCE: Source = source!("embedding");

/// Rows of a block, a warp each.
const ROWS: usize = 4;
/// What a pass of the sort looks at, and the keys of a block, as in the kernel file.
const DIGIT_BITS: u32 = 8;
const DIGITS: usize = 1 << DIGIT_BITS;
const SORT_THREADS: u32 = 256;
const SORT_PIECE: usize = 2048;
/// Warps that share the places of one id.
const RUN_WARPS: std::ops::RangeInclusive<usize> = 4..=16;

/// A warp to each of `count` rows.
fn warp_rows(count: usize) -> LaunchConfig {
    LaunchConfig::new([count.div_ceil(ROWS) as u32, 1, 1], [WARP as u32, count.clamp(1, ROWS) as u32, 1])
}

/// See [`crate::ops::embedding::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { ids, token_table, position_table, output } = arguments;
    let positions = position_table.as_ref();
    let addresses = [token_table.address(), positions.map_or(0, View::address), output.address()];
    let kernel = match access_width(shape.channels, &addresses) {
        4 => "embedding_forward_4",
        _ => "embedding_forward_1",
    };
    let list = Arguments::new()
        .view(&ids)
        .view(&token_table)
        .optional(positions)
        .view_mut(&output)
        .size(ids.len())
        .size(shape.time)
        .size(shape.channels)
        .size(shape.vocabulary)
        .size(shape.first_position);
    gpu.launch(&SOURCE, kernel, warp_rows(ids.len()), list)
}

/// See [`crate::ops::embedding::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { ids, grad_output, grad_token_table, grad_position_table } = arguments;
    if let Some((grad, write)) = grad_position_table {
        positions_backward(gpu, shape, &grad_output, &grad, write)?;
    }
    if let Some((grad, write)) = grad_token_table {
        tokens_backward(gpu, shape, &ids, &grad_output, &grad, write)?;
    }
    Ok(())
}

fn positions_backward(
    gpu: &Gpu,
    shape: &Shape,
    grad_output: &View<'_, f32>,
    grad: &ViewMut<'_, f32>,
    write: Write,
) -> Result<()> {
    let kernel = match access_width(shape.channels, &[grad_output.address(), grad.address()]) {
        4 => "embedding_positions_backward_4",
        _ => "embedding_positions_backward_1",
    };
    let list = Arguments::new()
        .view(grad_output)
        .view_mut(grad)
        .write(write)
        .size(shape.batch)
        .size(shape.time)
        .size(shape.channels)
        .size(shape.positions)
        .size(shape.first_position);
    gpu.launch(&SOURCE, kernel, warp_rows(shape.positions), list)
}

fn tokens_backward(
    gpu: &Gpu,
    shape: &Shape,
    ids: &View<'_, i32>,
    grad_output: &View<'_, f32>,
    grad: &ViewMut<'_, f32>,
    write: Write,
) -> Result<()> {
    let Shape { channels, vocabulary, .. } = *shape;
    // With more places than ids, each id looks for its places; else each place that is its id's first sums the others.
    let is_by_id = vocabulary <= ids.len();
    if write == Write::Set && !is_by_id && !grad.is_empty() {
        gpu.driver().fill(gpu.stream(), grad.address(), 0, grad.len() as u64)?;
    }
    if ids.is_empty() || grad.is_empty() {
        return Ok(());
    }
    let (keys, places) = sort_places(gpu, ids, vocabulary)?;
    let width = access_width(channels, &[grad_output.address(), grad.address()]);
    let kernel = match width {
        4 => "embedding_tokens_backward_4",
        _ => "embedding_tokens_backward_1",
    };
    let blocks = if is_by_id { vocabulary } else { ids.len() };
    // Where ids occur many times over, one warp would walk too long.
    let warps = (ids.len() / vocabulary).next_power_of_two().clamp(*RUN_WARPS.start(), *RUN_WARPS.end());
    let grid = [blocks as u32, channels.div_ceil(width * WARP) as u32, 1];
    let list = Arguments::new()
        .address(keys)
        .address(places)
        .view(grad_output)
        .view_mut(grad)
        .write(write)
        .flag(is_by_id)
        .size(ids.len())
        .size(channels)
        .size(vocabulary);
    gpu.launch(&SOURCE, kernel, LaunchConfig::new(grid, [WARP as u32, warps as u32, 1]), list)
}

/// Sorts the places by id, keeping the order of those with the same id: addresses of the sorted ids and their places, in
/// the workspace.
fn sort_places(gpu: &Gpu, ids: &View<'_, i32>, vocabulary: usize) -> Result<(u64, u64)> {
    const WORD_BYTES: usize = size_of::<u32>();
    let count = ids.len();
    let blocks = count.div_ceil(SORT_PIECE);
    // Keys and places, each twice because passes go back and forth; counts of digits.
    let array_bytes = (WORD_BYTES * count) as u64;
    let memory = gpu.workspace(4 * array_bytes + (WORD_BYTES * DIGITS * blocks) as u64)?;
    let [first, second] = [memory, memory + 2 * array_bytes].map(|keys| (keys, keys + array_bytes));
    let counts = memory + 4 * array_bytes;
    let config = LaunchConfig::new([blocks as u32, 1, 1], [SORT_THREADS, 1, 1]);
    // The largest key is the vocabulary's size, which stands for all ids outside.
    let key_bits = usize::BITS - vocabulary.leading_zeros();
    let (mut from, mut to) = ((ids.address(), 0), first);
    for shift in (0..key_bits).step_by(DIGIT_BITS as usize) {
        let (keys, places) = from;
        let sizes = |list: Arguments| list.size(count).size(vocabulary).size(shift as usize);
        let list = sizes(Arguments::new().address(keys)).address(counts);
        gpu.launch(&SOURCE, "embedding_sort_count", config, list)?;
        let list = Arguments::new().address(counts).size(blocks);
        gpu.launch(&SOURCE, "embedding_sort_offsets", LaunchConfig::new([1; 3], [DIGITS as u32, 1, 1]), list)?;
        let list = sizes(Arguments::new().address(keys).address(places)).address(counts).address(to.0).address(to.1);
        gpu.launch(&SOURCE, "embedding_sort_scatter", config, list)?;
        from = to;
        to = if from == first { second } else { first };
    }
    Ok(from)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::embedding::cases::{self, ids, shape};
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, embedding};

    fn shapes() -> impl Iterator<Item = Shape> {
        // More than one block of keys; few ids, so that runs are long and many warps share them.
        let long = [(5, 1023, 12, 5, 1023, 0), (3, 1024, 132, 300, 1024, 0)].map(shape);
        cases::shapes().into_iter().chain(long)
    }

    fn forward_matches_reference(device: &Device) {
        let mut random = Random::fresh();
        for shape in shapes() {
            let ids = ids(&mut random, &shape);
            let tokens = random.normal(shape.vocabulary * shape.channels);
            let positions = random.normal(shape.positions * shape.channels);
            let on_ids = Buffer::upload(device, &ids);
            let [on_tokens, on_positions] = [&tokens, &positions].map(|table| Buffer::upload(device, table));
            for has_positions in [false, shape.positions > 0] {
                let positions = double(&positions);
                let positions = has_positions.then_some(positions.as_slice());
                let expected = embedding::reference::forward(&shape, &ids, &double(&tokens), positions);
                let mut output = Buffer::poisoned(device, expected.len());
                let arguments = Forward {
                    ids: on_ids.view(),
                    token_table: on_tokens.view(),
                    position_table: has_positions.then(|| on_positions.view()),
                    output: output.view_mut(),
                };
                embedding::forward(device, &shape, arguments).unwrap();
                assert_close(&format!("{shape:?}"), &output.download(), &expected, 1e-6, 0.0);
            }
        }
    }

    /// Gradients of both tables; `before` is what they hold first.
    fn run(
        device: &Device,
        shape: &Shape,
        ids: &[i32],
        grad_output: &[f32],
        write: Write,
        before: &[Vec<f32>; 2],
    ) -> [Vec<f32>; 2] {
        let (ids, grad_output) = (Buffer::upload(device, ids), Buffer::upload(device, grad_output));
        let mut gradients = before.each_ref().map(|before| match write {
            Write::Set => Buffer::poisoned(device, before.len()),
            Write::Add => Buffer::upload(device, before),
        });
        let [tokens, positions] = gradients.each_mut().map(|gradient| (gradient.view_mut(), write));
        let arguments = Backward {
            ids: ids.view(),
            grad_output: grad_output.view(),
            grad_token_table: Some(tokens),
            grad_position_table: (shape.positions > 0).then_some(positions),
        };
        embedding::backward(device, shape, arguments).unwrap();
        gradients.map(|gradient| gradient.download())
    }

    fn backward_matches_reference_and_two_runs_have_the_same_bits(device: &Device) {
        let mut random = Random::fresh();
        for shape in shapes() {
            let ids = ids(&mut random, &shape);
            let grad_output = random.normal(ids.len() * shape.channels);
            let before = [shape.vocabulary, shape.positions].map(|rows| random.normal(rows * shape.channels));
            let (tokens, positions) = embedding::reference::backward(&shape, &ids, &double(&grad_output));
            for write in [Write::Set, Write::Add] {
                let found = run(device, &shape, &ids, &grad_output, write, &before);
                for (i, (name, gradient)) in [("tokens", &tokens), ("positions", &positions)].into_iter().enumerate() {
                    let expected: Vec<f64> = match write {
                        Write::Set => gradient.clone(),
                        Write::Add => gradient.iter().zip(&before[i]).map(|(g, &b)| g + f64::from(b)).collect(),
                    };
                    assert_close(&format!("{name}, {shape:?}, {write:?}"), &found[i], &expected, 1e-5, 0.0);
                }
                let again = run(device, &shape, &ids, &grad_output, write, &before);
                assert!(found == again, "two runs differ, {shape:?}, {write:?}");
            }
        }
    }

    #[test]
    fn places_of_one_id_stay_in_order() {
        let mut random = Random::fresh();
        let Device::Gpu(gpu) = &crate::gpu::testing::device() else { unreachable!() };
        // One pass of the sort, two and three; an id outside the vocabulary is the last key.
        for (vocabulary, count) in [(5, 5000), (255, 4097), (256, 33), (3000, 4096), (70_000, 2500)] {
            let mut ids: Vec<i32> = (0..count).map(|_| random.below(vocabulary) as i32).collect();
            (ids[7], ids[9]) = (-1, vocabulary as i32);
            let mut expected: Vec<(u32, u32)> =
                (0..count).map(|place| ((ids[place] as u32).min(vocabulary as u32), place as u32)).collect();
            expected.sort_unstable();
            let bytes: Vec<u8> = bytemuck::cast_slice(&ids).to_vec();
            let address = gpu.driver().allocate(bytes.len() as u64).unwrap();
            gpu.driver().write(gpu.stream(), address, &bytes).unwrap();
            // SAFETY: the range was just allocated.
            let (keys, places) = sort_places(gpu, &unsafe { View::on_device(address, count) }, vocabulary).unwrap();
            let read = |address: u64| {
                let mut words = vec![0u32; count];
                gpu.driver().read(gpu.stream(), address, bytemuck::cast_slice_mut(&mut words)).unwrap();
                words
            };
            let found: Vec<(u32, u32)> = read(keys).into_iter().zip(read(places)).collect();
            assert!(found == expected, "{count} places, {vocabulary} ids");
            gpu.driver().free(address).unwrap();
        }
    }

    fn an_id_outside_the_vocabulary_gives_a_row_of_nan_and_no_gradient(device: &Device) {
        for vocabulary in [3, 300] {
            let shape = Shape { batch: 1, time: 4, channels: 5, vocabulary, positions: 4, first_position: 0 };
            let ids = [2, vocabulary as i32, -7, 2];
            let table = vec![1.0; vocabulary * 5];
            let (on_ids, on_table) = (Buffer::upload(device, &ids), Buffer::upload(device, &table));
            let positions = Buffer::upload(device, &[1.0f32; 20]);
            let mut output = Buffer::poisoned(device, 20);
            let arguments = Forward {
                ids: on_ids.view(),
                token_table: on_table.view(),
                position_table: Some(positions.view()),
                output: output.view_mut(),
            };
            embedding::forward(device, &shape, arguments).unwrap();
            let output = output.download();
            assert!(output[..5].iter().chain(&output[15..]).all(|&y| y == 2.0), "{output:?}");
            assert!(output[5..15].iter().all(|y| y.is_nan()), "{output:?}");

            let [tokens, _] = run(device, &shape, &ids, &[1.0; 20], Write::Set, &[table, vec![0.0; 20]]);
            for (id, row) in tokens.chunks(5).enumerate() {
                assert_eq!(row, [if id == 2 { 2.0 } else { 0.0 }; 5], "row {id} of {vocabulary}");
            }
        }
    }

    fn no_places_have_gradients_of_zero(device: &Device) {
        for vocabulary in [0, 9] {
            let shape = Shape { batch: 0, time: 4, channels: 3, vocabulary, positions: 4, first_position: 0 };
            let before = [vec![1.0; 3 * vocabulary], vec![1.0; 12]];
            let [tokens, positions] = run(device, &shape, &[], &[], Write::Set, &before);
            assert!(tokens.iter().chain(&positions).all(|&g| g == 0.0));
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check { name: "embedding: forward matches reference", claim: forward_matches_reference },
        Check {
            name: "embedding: backward matches reference and two runs have the same bits",
            claim: backward_matches_reference_and_two_runs_have_the_same_bits,
        },
        Check {
            name: "embedding: an id outside the vocabulary gives a row of nan and no gradient",
            claim: an_id_outside_the_vocabulary_gives_a_row_of_nan_and_no_gradient,
        },
        Check { name: "embedding: no places have gradients of zero", claim: no_places_have_gradients_of_zero },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
