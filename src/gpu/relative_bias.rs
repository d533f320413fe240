//! Launches `kernels/relative_bias.cu`.

use super::{Arguments, Gpu, Source, source};
use crate::driver::{Error, LaunchConfig, Result};
use crate::ops::relative_bias::{Backward, Forward, Shape, buckets};
use std::ops::Range;

static SOURCE: Source = source!("relative_bias");
const BLOCK: usize = 128;
const WARP: u32 = 32;
/// Buckets whose columns a launch takes.
const MOST_BUCKETS: usize = 256;

/// See [`crate::ops::relative_bias::forward`].
///
/// # Errors
/// More buckets than a launch takes, or the driver refuses.
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Shape { heads, radius, .. } = *shape;
    let Forward { weight, table } = arguments;
    let Some(weight) = weight else {
        let blocks = shape.columns().div_ceil(BLOCK) as u32;
        let list = Arguments::new().view_mut(&table).size(radius).size(1 << heads.ilog2());
        let config = LaunchConfig::new([blocks, heads as u32, 1], [BLOCK as u32, 1, 1]);
        return gpu.launch(&SOURCE, "relative_bias_alibi", config, list);
    };
    let ranges = columns_of_buckets(shape)?;
    let list = Arguments::new().view(&weight).view_mut(&table).size(heads).size(shape.columns());
    let config = LaunchConfig::new([ranges.len() as u32, heads as u32, 1], [BLOCK as u32, 1, 1]);
    gpu.launch(&SOURCE, "relative_bias_buckets", config, with_ranges(list, &ranges))
}

/// See [`crate::ops::relative_bias::backward`].
///
/// # Errors
/// More buckets than a launch takes, or the driver refuses.
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { grad_table, grad_weight, write } = arguments;
    let ranges = columns_of_buckets(shape)?;
    let list =
        Arguments::new().view(&grad_table).view_mut(&grad_weight).size(shape.heads).size(shape.columns()).write(write);
    let config = LaunchConfig::new([ranges.len() as u32, shape.heads as u32, 1], [WARP, 1, 1]);
    gpu.launch(&SOURCE, "relative_bias_buckets_backward", config, with_ranges(list, &ranges))
}

fn columns_of_buckets(shape: &Shape) -> Result<Vec<Range<usize>>> {
    let ranges = buckets(shape);
    if ranges.len() <= MOST_BUCKETS {
        return Ok(ranges);
    }
    let message = format!("{} buckets: the kernels take at most {MOST_BUCKETS}; use fewer", ranges.len());
    Err(Error::failed("relative_bias", message))
}

/// The kernels' last parameter, `Ranges`.
fn with_ranges(list: Arguments, ranges: &[Range<usize>]) -> Arguments {
    let bound = |list: Arguments, of: fn(&Range<usize>) -> usize| {
        (0..MOST_BUCKETS).fold(list, |list, bucket| list.size(ranges.get(bucket).map_or(0, of)))
    };
    bound(bound(list, |range| range.start), |range| range.end)
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::relative_bias::{Backward, Forward, Kind, Shape, backward, cases, forward, reference};
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, Write};

    fn both_directions_match_the_reference(device: &Device) {
        let mut random = Random::fresh();
        for shape in cases() {
            let weights = if let Kind::Buckets { buckets, .. } = shape.kind { buckets * shape.heads } else { 0 };
            let values = random.normal(weights);
            let weight = Buffer::upload(device, &values);
            let mut table = Buffer::poisoned(device, shape.heads * shape.columns());
            let arguments = Forward { weight: (weights > 0).then(|| weight.view()), table: table.view_mut() };
            forward(device, &shape, arguments).unwrap();
            let expected = reference::forward(&shape, &double(&values));
            assert_close(&format!("{shape:?}"), &table.download(), &expected, 1e-6, 0.0);
            if weights == 0 {
                continue;
            }
            let gradients = random.normal(expected.len());
            let before = random.normal(weights);
            let grad_table = Buffer::upload(device, &gradients);
            for write in [Write::Set, Write::Add] {
                let mut grad_weight = match write {
                    Write::Set => Buffer::poisoned(device, weights),
                    Write::Add => Buffer::upload(device, &before),
                };
                let arguments = Backward { grad_table: grad_table.view(), grad_weight: grad_weight.view_mut(), write };
                backward(device, &shape, arguments).unwrap();
                let mut expected = reference::backward(&shape, &double(&gradients));
                if write == Write::Add {
                    expected.iter_mut().zip(&before).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                assert_close(&format!("gradient of {shape:?}"), &grad_weight.download(), &expected, 1e-5, 0.0);
            }
        }
    }

    fn more_buckets_than_a_launch_takes_are_refused(device: &Device) {
        let kind = Kind::Buckets { buckets: 258, max_distance: 1000, bidirectional: true };
        let shape = Shape { kind, heads: 1, radius: 3 };
        let (weight, mut table) = (Buffer::poisoned(device, 258), Buffer::poisoned(device, 5));
        let arguments = Forward { weight: Some(weight.view()), table: table.view_mut() };
        let message = forward(device, &shape, arguments).unwrap_err().to_string();
        assert!(message.contains("258 buckets: the kernels take at most 256"), "{message}");
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "relative_bias: both directions match the reference",
            claim: both_directions_match_the_reference,
        },
        Check {
            name: "relative_bias: more buckets than a launch takes are refused",
            claim: more_buckets_than_a_launch_takes_are_refused,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
