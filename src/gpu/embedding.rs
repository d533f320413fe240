//! Launches `kernels/embedding.cu`: look-up; and for the gradients, the sort of the places by id and the sums.

use super::rows::{WARP, access_width};
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::embedding::{Backward, Forward, Ids, Positions, SINUSOIDAL_BASE, Shape};
use crate::ops::{View, ViewMut, Write, turn};

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
    let Forward { ids, token_table, positions, type_table, output } = arguments;
    let (position_table, is_sinusoidal) = match positions {
        Some(Positions::Learned(table)) => (Some(table), false),
        Some(Positions::Sinusoidal) => (None, true),
        None => (None, false),
    };
    let optional = |view: &Option<View<'_, f32>>| view.as_ref().map_or(0, View::address);
    let addresses = [token_table.address(), optional(&position_table), optional(&type_table), output.address()];
    let kernel = match (access_width(shape.channels, &addresses), is_sinusoidal) {
        (4, false) => "embedding_forward_4",
        (4, true) => "embedding_forward_sinusoidal_4",
        (_, false) => "embedding_forward_1",
        (_, true) => "embedding_forward_sinusoidal_1",
    };
    let places = ids.tokens.len();
    let mut list = Arguments::new()
        .view(&ids.tokens)
        .optional(ids.positions.as_ref())
        .optional(ids.types.as_ref())
        .view(&token_table);
    if !is_sinusoidal {
        list = list.optional(position_table.as_ref());
    }
    list = list
        .optional(type_table.as_ref())
        .view_mut(&output)
        .size(places)
        .size(shape.time)
        .size(shape.channels)
        .size(shape.vocabulary)
        .size(if is_sinusoidal { 1 << 31 } else { shape.positions })
        .size(shape.types)
        .size(shape.first_position);
    if is_sinusoidal {
        list = list.counts(&turn::powers(SINUSOIDAL_BASE, shape.channels));
    }
    gpu.launch(&SOURCE, kernel, warp_rows(places), list)
}

/// See [`crate::ops::embedding::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { ids, grad_output, grad_token_table, grad_position_table, grad_type_table } = arguments;
    let Ids { tokens, positions, types } = ids;
    let table = |rows: usize, ids: &View<'_, i32>, (grad, write): (ViewMut<'_, f32>, Write)| {
        table_backward(gpu, shape.channels, rows, ids, &grad_output, &grad, write)
    };
    match (grad_position_table, positions) {
        (Some(grad), Some(ids)) => table(shape.positions, &ids, grad)?,
        (Some((grad, write)), None) => positions_backward(gpu, shape, &grad_output, &grad, write)?,
        (None, _) => {}
    }
    if let (Some(grad), Some(ids)) = (grad_type_table, types) {
        table(shape.types, &ids, grad)?;
    }
    if let Some(grad) = grad_token_table {
        table(shape.vocabulary, &tokens, grad)?;
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

/// Sums the gradient of each row of a table of `rows`, of which each place's id names one.
fn table_backward(
    gpu: &Gpu,
    channels: usize,
    rows: usize,
    ids: &View<'_, i32>,
    grad_output: &View<'_, f32>,
    grad: &ViewMut<'_, f32>,
    write: Write,
) -> Result<()> {
    // With more places than ids, each id looks for its places; else each place that is its id's first sums the others.
    let is_by_id = rows <= ids.len();
    if write == Write::Set && !is_by_id && !grad.is_empty() {
        gpu.driver().fill(gpu.stream(), grad.address(), 0, grad.len() as u64)?;
    }
    if ids.is_empty() || grad.is_empty() {
        return Ok(());
    }
    let (keys, places) = sort_places(gpu, ids, rows)?;
    let width = access_width(channels, &[grad_output.address(), grad.address()]);
    let kernel = match width {
        4 => "embedding_table_backward_4",
        _ => "embedding_table_backward_1",
    };
    let blocks = if is_by_id { rows } else { ids.len() };
    // Where ids occur many times over, one warp would walk too long.
    let warps = (ids.len() / rows).next_power_of_two().clamp(*RUN_WARPS.start(), *RUN_WARPS.end());
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
        .size(rows);
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
    use crate::ops::embedding::cases::{self, Case, Sources, shape};
    use crate::ops::testing::{Random, assert_close};
    use crate::ops::{Device, embedding};

    fn cases(random: &mut Random) -> Vec<Case> {
        // More than one block of keys; few ids, so that runs are long and many warps share them.
        let mut cases = cases::cases(random);
        for sizes in [(5, 1023, 12, 5, 1023, 2, 0), (3, 1024, 132, 300, 1024, 0, 0)] {
            cases.push(Case::new(random, shape(sizes), false, Sources::Learned));
        }
        cases
    }

    /// A case's ids on a device.
    struct OnDevice<'d>([Buffer<'d, i32>; 3], [bool; 2]);

    impl<'d> OnDevice<'d> {
        fn new(device: &'d Device, case: &Case) -> Self {
            let [positions, types] = [&case.position_ids, &case.type_ids].map(|ids| ids.as_deref().unwrap_or_default());
            let has = [case.position_ids.is_some(), case.type_ids.is_some()];
            Self([&case.token_ids, positions, types].map(|ids| Buffer::upload(device, ids)), has)
        }

        fn ids(&self) -> Ids<'_> {
            let Self([tokens, positions, types], [has_positions, has_types]) = self;
            Ids {
                tokens: tokens.view(),
                positions: has_positions.then(|| positions.view()),
                types: has_types.then(|| types.view()),
            }
        }
    }

    fn output(device: &Device, case: &Case) -> Vec<f32> {
        let ids = OnDevice::new(device, case);
        let [tokens, positions, types] =
            [&case.tokens, &case.positions, &case.types].map(|table| Buffer::upload(device, table));
        let mut output = Buffer::poisoned(device, case.token_ids.len() * case.shape.channels);
        let arguments = Forward {
            ids: ids.ids(),
            token_table: tokens.view(),
            positions: match case.sources {
                Sources::None => None,
                Sources::Learned => Some(Positions::Learned(positions.view())),
                Sources::Sinusoidal => Some(Positions::Sinusoidal),
            },
            type_table: case.type_ids.as_ref().map(|_| types.view()),
            output: output.view_mut(),
        };
        embedding::forward(device, &case.shape, arguments).unwrap();
        output.download()
    }

    fn forward_matches_reference(device: &Device) {
        for case in cases(&mut Random::fresh()) {
            assert_close(&case.to_string(), &output(device, &case), &case.expected_output(), 1e-6, 0.0);
        }
    }

    /// Gradients of the three tables; `before` is what they hold first.
    fn run(device: &Device, case: &Case, grad_output: &[f32], write: Write, before: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
        let (ids, grad_output) = (OnDevice::new(device, case), Buffer::upload(device, grad_output));
        let mut gradients = before.each_ref().map(|before| match write {
            Write::Set => Buffer::poisoned(device, before.len()),
            Write::Add => Buffer::upload(device, before),
        });
        let [tokens, positions, types] = gradients.each_mut().map(|gradient| (gradient.view_mut(), write));
        let arguments = Backward {
            ids: ids.ids(),
            grad_output: grad_output.view(),
            grad_token_table: Some(tokens),
            grad_position_table: (case.sources == Sources::Learned).then_some(positions),
            grad_type_table: case.type_ids.as_ref().map(|_| types),
        };
        embedding::backward(device, &case.shape, arguments).unwrap();
        gradients.map(|gradient| gradient.download())
    }

    fn backward_matches_reference_and_two_runs_have_the_same_bits(device: &Device) {
        let mut random = Random::fresh();
        for case in cases(&mut random) {
            // There is nothing to differentiate in sines.
            if case.sources == Sources::Sinusoidal {
                continue;
            }
            let grad_output = random.normal(case.token_ids.len() * case.shape.channels);
            let before = case.row_counts().map(|rows| random.normal(rows * case.shape.channels));
            for write in [Write::Set, Write::Add] {
                let expected = case.expected_gradients(&grad_output, write, &before);
                let found = run(device, &case, &grad_output, write, &before);
                for (i, name) in ["tokens", "positions", "types"].into_iter().enumerate() {
                    assert_close(&format!("{name}, {case}, {write:?}"), &found[i], &expected[i], 1e-5, 0.0);
                }
                let again = run(device, &case, &grad_output, write, &before);
                assert!(found == again, "two runs differ, {case}, {write:?}");
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

    fn an_id_outside_its_table_gives_a_row_of_nan_and_no_gradient(device: &Device) {
        for vocabulary in [3, 300] {
            let shape = Shape { batch: 1, time: 4, channels: 5, vocabulary, positions: 4, types: 2, first_position: 0 };
            let case = Case {
                shape,
                sources: Sources::Learned,
                token_ids: vec![2, vocabulary as i32, 2, -7],
                position_ids: Some(vec![0, 1, 4, 3]),
                type_ids: Some(vec![1, 0, 0, 0]),
                tokens: vec![1.0; vocabulary * 5],
                positions: vec![1.0; 20],
                types: vec![1.0; 10],
            };
            let output = output(device, &case);
            assert!(output[..5].iter().all(|&y| y == 3.0), "{output:?}");
            assert!(output[5..].iter().all(|y| y.is_nan()), "{output:?}");

            let before = case.row_counts().map(|rows| vec![0.0; rows * 5]);
            let [tokens, positions, types] = run(device, &case, &[1.0; 20], Write::Set, &before);
            for (id, row) in tokens.chunks(5).enumerate() {
                assert_eq!(row, [if id == 2 { 2.0 } else { 0.0 }; 5], "row {id} of {vocabulary}");
            }
            assert!(positions == [[1.0; 5], [1.0; 5], [0.0; 5], [1.0; 5]].concat(), "{positions:?}");
            assert!(types == [[3.0; 5], [1.0; 5]].concat(), "{types:?}");
        }
    }

    fn sinusoidal_positions_are_accurate_a_hundred_thousand_tokens_in(device: &Device) {
        for channels in [384, 7] {
            let shape = Shape { batch: 1, time: 40, channels, vocabulary: 1, ..Shape::default() };
            let mut case = Case::new(&mut Random::fresh(), shape, true, Sources::Sinusoidal);
            case.tokens.fill(0.0);
            case.position_ids.as_mut().expect("it has position ids")[..3].copy_from_slice(&[0, 99_999, 1_000_000]);
            assert_close(&case.to_string(), &output(device, &case), &case.expected_output(), 2e-7, 0.0);
        }
    }

    fn no_places_have_gradients_of_zero(device: &Device) {
        for vocabulary in [0, 9] {
            let shape = Shape { batch: 0, time: 4, channels: 3, vocabulary, positions: 4, types: 1, first_position: 0 };
            let case = Case::new(&mut Random::fresh(), shape, false, Sources::Learned);
            let before = case.row_counts().map(|rows| vec![1.0; rows * 3]);
            let gradients = run(device, &case, &[], Write::Set, &before);
            assert!(gradients.iter().flatten().all(|&g| g == 0.0));
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
            name: "embedding: an id outside its table gives a row of nan and no gradient",
            claim: an_id_outside_its_table_gives_a_row_of_nan_and_no_gradient,
        },
        Check {
            name: "embedding: sinusoidal positions are accurate a hundred thousand tokens in",
            claim: sinusoidal_positions_are_accurate_a_hundred_thousand_tokens_in,
        },
        Check { name: "embedding: no places have gradients of zero", claim: no_places_have_gradients_of_zero },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
