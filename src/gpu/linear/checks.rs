//! Every product against its f64 reference, on the emulator and through the sanitizer, in both sizes of tiles.

use super::*;
#[cfg(test)]
use crate::driver::emulator::Counters;
use crate::gpu::checks::Check;
#[cfg(test)]
use crate::gpu::counting::CountingDevice;
use crate::gpu::testing::Buffer;
use crate::ops::Device;
use crate::ops::linear::cases::{ACTIVATIONS, Case};
use crate::ops::linear::reference;
use crate::ops::testing::{Random, assert_close, double};

/// Every kind of edge: few rows, less than a tile, more than one, rows of memory that start at any address and those
/// that start at multiples of 16 bytes, sums shorter than a stage and longer than a part.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 203, 113),
    (3, 64, 36),
    (8, 1, 1),
    (9, 1, 17),
    (17, 113, 3),
    (33, 20, 203),
    (70, 36, 68),
    (113, 3, 65),
    (131, 144, 132),
    (300, 17, 31),
];

fn small(rows: usize, columns: usize, depth: usize) -> Tiling {
    Tiling { is_large: false, ..Tiling::new(rows, columns, depth) }
}

fn large(rows: usize, columns: usize, depth: usize) -> Tiling {
    Tiling { is_large: true, ..small(rows, columns, depth) }
}

fn gpu(device: &Device) -> &Gpu {
    match device {
        Device::Gpu(gpu) => gpu,
        Device::Cpu(_) => panic!("the emulated device is a GPU"),
    }
}

/// Pre-activation and output, with bias and residual if `extras`. Without `extras` the pre-activation is kept only
/// where it must be; it then stays poisoned.
fn forward_of(case: &Case, device: &Device, extras: bool, tiling: Option<Tiling>) -> (Vec<f32>, Vec<f32>) {
    let [input, weight] = [&case.input, &case.weight].map(|values| Buffer::upload(device, values));
    let [bias, residual] = [&case.bias, &case.residual].map(|values| Buffer::upload(device, values));
    let mut z = Buffer::poisoned(device, case.shape.rows * case.columns());
    let mut y = Buffer::poisoned(device, case.shape.rows * case.shape.outputs);
    let arguments = Forward {
        input: input.view(),
        weight: weight.view(),
        bias: extras.then(|| bias.view()),
        residual: extras.then(|| residual.view()),
        activation: case.activation,
        pre_activation: (extras || case.activation == Activation::SwiGlu).then(|| z.view_mut()),
        output: y.view_mut(),
    };
    forward_tiled(gpu(device), &case.shape, arguments, tiling).unwrap();
    (z.download(), y.download())
}

/// Gradients of input, weight and bias; `before` is what they hold, or they are overwritten.
fn backward_of(
    case: &Case,
    device: &Device,
    grad_z: &[f32],
    before: Option<f32>,
    tiling: fn(usize, usize, usize) -> Tiling,
) -> [Vec<f32>; 3] {
    let [input, weight] = [&case.input, &case.weight].map(|values| Buffer::upload(device, values));
    let grad_z = Buffer::upload(device, grad_z);
    let [mut dx, mut dw, mut db] = [case.input.len(), case.weight.len(), case.bias.len()].map(|length| match before {
        None => Buffer::poisoned(device, length),
        Some(value) => Buffer::upload(device, &vec![value; length]),
    });
    let write = if before.is_some() { Write::Add } else { Write::Set };
    let grads = Grads {
        rows: case.shape.rows,
        columns: case.columns(),
        inputs: case.shape.inputs,
        input: input.view(),
        weight: weight.view(),
        grad_input: Some((dx.view_mut(), write)),
        grad_weight: Some((dw.view_mut(), write)),
        grad_bias: Some((db.view_mut(), write)),
    };
    let gpu = gpu(device);
    let workspace = gpu.workspace(grads.workspace_bytes_tiled(tiling)).unwrap();
    grads.compute_tiled(gpu, grad_z.view(), workspace, tiling).unwrap();
    [dx, dw, db].map(|buffer| buffer.download())
}

fn forward_matches_reference_for_odd_sizes(device: &Device) {
    let mut random = Random::fresh();
    for activation in ACTIVATIONS {
        // An activation of one variable does not care where its element lies; SwiGLU has tiles of its own.
        let edges = match activation {
            Activation::Identity | Activation::SwiGlu => &SHAPES[..],
            _ => &SHAPES[1..=5],
        };
        for &sizes in edges {
            let case = Case::new(&mut random, sizes, activation);
            let (x, w) = (double(&case.input), double(&case.weight));
            let (b, r) = (double(&case.bias), double(&case.residual));
            for extras in [false, true] {
                let bias = extras.then_some(b.as_slice());
                let residual = extras.then_some(r.as_slice());
                let (z, y) = reference::forward(&case.shape, activation, &x, &w, bias, residual);
                let [small, large] =
                    [small, large].map(|tiling| Tiling { parts: 1, ..tiling(sizes.0, case.columns(), sizes.1) });
                for tiling in [None, Some(small), Some(large)] {
                    if tiling.is_none() && sizes.0 > FEW_ROWS {
                        continue;
                    }
                    let name = format!("{activation:?} {sizes:?} extras {extras} {tiling:?}");
                    let (found_z, found_y) = forward_of(&case, device, extras, tiling);
                    assert_close(&format!("{name}: output"), &found_y, &y, 1e-5, 1e-7);
                    if extras || activation == Activation::SwiGlu {
                        assert_close(&format!("{name}: pre-activation"), &found_z, &z, 1e-5, 1e-7);
                    } else {
                        assert!(found_z.iter().all(|z| z.is_nan()), "{name}: a pre-activation nobody asked for");
                    }
                }
            }
        }
    }
}

fn gradients_match_reference_for_odd_sizes(device: &Device) {
    let mut random = Random::fresh();
    // Deep enough for parts: of rows for the weight and the bias, of columns for the input.
    for sizes in SHAPES.into_iter().chain([(1100, 5, 9), (5, 9, 700), (1023, 64, 4)]) {
        let case = Case::new(&mut random, sizes, Activation::Identity);
        let (x, w, dy) = (double(&case.input), double(&case.weight), double(&case.grad_output));
        let grads = reference::backward(&case.shape, Activation::Identity, &x, &w, &dy, &dy);
        for (tiles, tiling) in [("small", small as fn(usize, usize, usize) -> Tiling), ("large", large)] {
            for before in [None, Some(0.5)] {
                let found = backward_of(&case, device, &case.grad_output, before, tiling);
                for (part, found, expected) in [
                    ("input", &found[0], &grads.input),
                    ("weight", &found[1], &grads.weight),
                    ("bias", &found[2], &grads.bias),
                ] {
                    let expected: Vec<f64> = expected.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect();
                    let name = format!("{sizes:?} in {tiles} tiles, added to {before:?}: grad_{part}");
                    assert_close(&name, found, &expected, 1e-5, 1e-7);
                }
            }
        }
    }
}

fn backward_goes_through_every_activation(device: &Device) {
    let mut random = Random::fresh();
    for activation in ACTIVATIONS {
        for sizes in [(1, 3, 5), (113, 17, 33), (40, 36, 64)] {
            let case = Case::new(&mut random, sizes, activation);
            let (x, w, dy) = (double(&case.input), double(&case.weight), double(&case.grad_output));
            let (z, _) = reference::forward(&case.shape, activation, &x, &w, Some(&double(&case.bias)), None);
            // The same z for both, because ReLU's derivative jumps where rounding may change a sign.
            let z: Vec<f32> = z.iter().map(|&z| z as f32).collect();
            let grads = reference::backward(&case.shape, activation, &x, &w, &double(&z), &dy);
            let [input, weight] = [&case.input, &case.weight].map(|values| Buffer::upload(device, values));
            let [z, grad_output] = [&z, &case.grad_output].map(|values| Buffer::upload(device, values));
            // Each gradient alone: none depends on another being there.
            for wanted in 0..3 {
                let length = [case.input.len(), case.weight.len(), case.bias.len()][wanted];
                let mut grad = Buffer::poisoned(device, length);
                let mut target = Some((grad.view_mut(), Write::Set));
                let mut grad_if = |index| if index == wanted { target.take() } else { None };
                let arguments = Backward {
                    input: input.view(),
                    weight: weight.view(),
                    activation,
                    pre_activation: Some(z.view()),
                    grad_output: grad_output.view(),
                    grad_input: grad_if(0),
                    grad_weight: grad_if(1),
                    grad_bias: grad_if(2),
                };
                backward(gpu(device), &case.shape, arguments).unwrap();
                let expected = [&grads.input, &grads.weight, &grads.bias][wanted];
                let name = format!("{activation:?} {sizes:?}: gradient {wanted}");
                assert_close(&name, &grad.download(), expected, 1e-5, 1e-7);
            }
        }
    }
}

fn operands_may_start_at_any_element(device: &Device) {
    let mut random = Random::fresh();
    let case = Case::new(&mut random, (70, 36, 68), Activation::Identity);
    let (x, w, dy) = (double(&case.input), double(&case.weight), double(&case.grad_output));
    let (_, y) = reference::forward(&case.shape, Activation::Identity, &x, &w, None, None);
    let grads = reference::backward(&case.shape, Activation::Identity, &x, &w, &dy, &dy);
    // One element further than aligned, while all sizes are multiples of 4.
    let [input, weight, grad_output] = [&case.input, &case.weight, &case.grad_output]
        .map(|values| Buffer::upload(device, &[&[f32::NAN], values.as_slice()].concat()));
    let [input_view, weight_view, grad_view] =
        [&input, &weight, &grad_output].map(|buffer| buffer.view().slice(1..buffer.view().len()));
    let mut output = Buffer::poisoned(device, y.len() + 1);
    let output_view = output.view_mut();
    let arguments = Forward {
        input: input_view,
        weight: weight_view,
        bias: None,
        residual: None,
        activation: Activation::Identity,
        pre_activation: None,
        output: output_view.slice(1..y.len() + 1),
    };
    forward(gpu(device), &case.shape, arguments).unwrap();
    assert!(output.download()[0].is_nan(), "the element before the output was written");
    assert_close("output", &output.download()[1..], &y, 1e-5, 1e-7);

    let (mut dx, mut dw) = (Buffer::poisoned(device, x.len() + 1), Buffer::poisoned(device, w.len() + 1));
    let (dx_view, dw_view) = (dx.view_mut(), dw.view_mut());
    let arguments = Backward {
        input: input_view,
        weight: weight_view,
        activation: Activation::Identity,
        pre_activation: None,
        grad_output: grad_view,
        grad_input: Some((dx_view.slice(1..x.len() + 1), Write::Set)),
        grad_weight: Some((dw_view.slice(1..w.len() + 1), Write::Set)),
        grad_bias: None,
    };
    backward(gpu(device), &case.shape, arguments).unwrap();
    assert_close("grad_input", &dx.download()[1..], &grads.input, 1e-5, 1e-7);
    assert_close("grad_weight", &dw.download()[1..], &grads.weight, 1e-5, 1e-7);
}

fn the_size_of_tiles_does_not_change_a_bit(device: &Device) {
    let mut random = Random::fresh();
    let case = Case::new(&mut random, (131, 300, 65), Activation::SwiGlu);
    let whole = |is_large| Some(Tiling { is_large, ..Tiling::whole(131, 130) });
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let (small_z, small_y) = forward_of(&case, device, true, whole(false));
    let (large_z, large_y) = forward_of(&case, device, true, whole(true));
    assert!(bits(&small_z) == bits(&large_z) && bits(&small_y) == bits(&large_y), "forward: bits differ");
    let grad_z = random.normal(131 * 130);
    let in_small = backward_of(&case, device, &grad_z, None, small);
    let in_large = backward_of(&case, device, &grad_z, None, large);
    assert!(in_small.map(|grad| bits(&grad)) == in_large.map(|grad| bits(&grad)), "backward: bits differ");
}

fn an_empty_input_gives_gradients_of_zero(device: &Device) {
    let case = Case::new(&mut Random::fresh(), (0, 5, 7), Activation::Identity);
    let [dx, dw, db] = backward_of(&case, device, &[], None, Tiling::new);
    assert!(dx.is_empty());
    assert_eq!((dw, db), (vec![0.0; 35], vec![0.0; 7]));
}

fn no_kernel_needs_local_memory_or_opted_in_shared_memory(device: &Device) {
    for kernel in [
        "linear_forward_large",
        "linear_forward_small",
        "linear_forward_few_rows",
        "linear_grad_input_large",
        "linear_grad_input_small",
        "linear_grad_weight_large",
        "linear_grad_weight_small",
        "linear_activate",
        "linear_activation_backward",
        "linear_column_sums",
        "linear_sum_parts",
    ] {
        let facts = gpu(device).function_facts(&SOURCE, kernel).unwrap();
        assert_eq!(facts.local_bytes, 0, "{kernel}");
        assert!(facts.shared_bytes <= 32 << 10, "{kernel}: {} bytes of shared memory", facts.shared_bytes);
    }
}

#[test]
fn parts_cover_the_depth_and_fill_a_gpu() {
    for (rows, columns, depth) in [(1, 1, 1), (64, 64, 256), (768, 768, 8192), (3, 5, 1023), (50257, 768, 512)] {
        let tiling = Tiling::new(rows, columns, depth);
        let Tiling { parts, part_depth, .. } = tiling;
        assert!(
            (parts - 1) * part_depth < depth && depth <= parts * part_depth,
            "{rows} {columns} {depth}: {tiling:?}"
        );
        assert!(parts == 1 || part_depth % STAGE_DEPTH == 0, "{rows} {columns} {depth}: {tiling:?}");
    }
    assert_eq!(Tiling::new(768, 768, 8192), Tiling { is_large: true, parts: 4, part_depth: 2048 });
    assert_eq!(Tiling::whole(8192, 768), Tiling { is_large: true, parts: 1, part_depth: STAGE_DEPTH });
    assert!(!Tiling::whole(256, 192).is_large);
}

/// Counts of one product of 256 x 256 x 256 in four large tiles or sixteen small ones.
#[cfg(test)]
fn count(kernel: &str, is_large: bool, list: impl Fn(Arguments, [u64; 3]) -> Arguments) -> Counters {
    const SIZE: usize = 256;
    let device = CountingDevice::new();
    let operands = [(); 3].map(|()| device.upload(&vec![1.0f32; SIZE * SIZE]));
    let tiling = Tiling { is_large, parts: 1, part_depth: SIZE };
    let list = list(Arguments::new(), operands.each_ref().map(View::address));
    let counters = device.count(&SOURCE, (kernel, tiling.config(SIZE, SIZE, tiling.extent()), list));
    assert!(device.download(&operands[2]).iter().all(|&value| value == SIZE as f32), "{kernel}");
    counters
}

#[test]
fn products_multiply_most_of_the_time_and_access_memory_without_waste() {
    let sizes = |list: Arguments, count: usize| (0..count).fold(list, |list, _| list.size(256));
    for (tiles, is_large) in [("large", true), ("small", false)] {
        let extent: u64 = if is_large { 128 } else { 64 };
        let products = [
            count(&format!("linear_forward_{tiles}"), is_large, |list, [left, right, result]| {
                let list = list.address(left).address(right).address(0).address(0).address(0).address(result);
                sizes(list, 3).code(Activation::Identity)
            }),
            count(&format!("linear_grad_input_{tiles}"), is_large, |list, [left, right, result]| {
                let list = list.address(left).address(right).address(0).address(result);
                sizes(list, 4).code(Activation::Identity).flag(false)
            }),
            count(&format!("linear_grad_weight_{tiles}"), is_large, |list, [left, right, result]| {
                sizes(list.address(left).address(right).address(result), 4).flag(false)
            }),
        ];
        for (product, counters) in ["forward", "grad_input", "grad_weight"].into_iter().zip(&products) {
            let name = format!("{product} {tiles}");
            let multiplications = counters.opcodes.get("fma.rn.f32").copied().unwrap_or(0);
            println!(
                "{name}: {:.1} % multiplications of {} warp instructions; {counters:?}",
                100.0 * multiplications as f64 / counters.warp_instructions as f64,
                counters.warp_instructions
            );
            assert!(multiplications >= 256 * 256 * 256 / 32, "{name}: {multiplications} multiplications");
            assert!(multiplications * 100 >= counters.warp_instructions * 75, "{name}: less than 75 % multiply");
            assert_eq!(counters.shared_bank_conflicts, 0, "{name}: bank conflicts");
            assert_eq!(counters.divergent_branches, 0, "{name}: divergent branches");
            // Each tile reads its rows of both operands whole, in requests of 512 bytes: 16 sectors.
            let bytes = 2 * (256 / extent) * (256 * 256 * 4);
            assert_eq!(counters.global_load_sectors, bytes / 32, "{name}: sectors loaded");
            assert_eq!(counters.global_load_requests, bytes / 512, "{name}: load requests");
            assert_eq!(counters.global_store_sectors, 256 * 256 * 4 / 32, "{name}: sectors stored");
            assert_eq!(counters.global_store_requests, 256 * 256 * 4 / 512, "{name}: store requests");
            assert_eq!(counters.dram_read_bytes, 2 * 256 * 256 * 4, "{name}: bytes read once");
            assert_eq!(counters.dram_write_bytes, 256 * 256 * 4, "{name}: bytes written");
        }
    }
}

/// What holds on every GPU.
pub(crate) const ALL: &[Check] = &[
    Check { name: "linear: forward matches reference for odd sizes", claim: forward_matches_reference_for_odd_sizes },
    Check { name: "linear: gradients match reference for odd sizes", claim: gradients_match_reference_for_odd_sizes },
    Check { name: "linear: backward goes through every activation", claim: backward_goes_through_every_activation },
    Check { name: "linear: operands may start at any element", claim: operands_may_start_at_any_element },
    Check { name: "linear: the size of tiles does not change a bit", claim: the_size_of_tiles_does_not_change_a_bit },
    Check { name: "linear: an empty input gives gradients of zero", claim: an_empty_input_gives_gradients_of_zero },
    Check {
        name: "linear: no kernel needs local memory or opted in shared memory",
        claim: no_kernel_needs_local_memory_or_opted_in_shared_memory,
    },
];

#[test]
fn hold_on_the_emulator() {
    crate::gpu::checks::hold(ALL);
}
