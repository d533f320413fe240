//! Launches `kernels/add.cu`.

use super::{Arguments, Gpu, Source, source, strided};
use crate::driver::Result;
use crate::ops::add::Forward;
use crate::ops::{View, ViewMut, Write};

static SOURCE: Source = source!("add");
const BLOCK: u32 = 256;

/// Computes `output = left + right`.
pub fn forward(gpu: &Gpu, arguments: Forward<'_>) -> Result<()> {
    let Forward { left, right, output } = arguments;
    let count = left.len();
    let list = Arguments::new().view(&left).view(&right).view_mut(&output).count(count);
    gpu.launch(&SOURCE, "add_forward", strided(count, BLOCK), list)
}

/// Copies `source` to `target`, or adds it.
pub fn accumulate(gpu: &Gpu, source: View<'_, f32>, target: ViewMut<'_, f32>, write: Write) -> Result<()> {
    let count = source.len();
    let list = Arguments::new().view(&source).view_mut(&target).write(write).count(count);
    gpu.launch(&SOURCE, "add_accumulate", strided(count, BLOCK), list)
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, Write, add};

    fn sums_match_the_definition_over_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        for length in [0, 1, 3, 113, 203, 1023, 40_001] {
            let (left, right) = (random.normal(length), random.normal(length));
            let expected: Vec<f64> = left.iter().zip(&right).map(|(a, b)| f64::from(a + b)).collect();
            let (a, b) = (Buffer::upload(device, &left), Buffer::upload(device, &right));
            let mut output = Buffer::poisoned(device, length);
            let arguments = add::Forward { left: a.view(), right: b.view(), output: output.view_mut() };
            add::forward(device, arguments).unwrap();
            assert_close("sum", &output.download(), &expected, 0.0, 0.0);

            let mut target = Buffer::poisoned(device, length);
            add::accumulate(device, a.view(), target.view_mut(), Write::Set).unwrap();
            assert_close("copy", &target.download(), &double(&left), 0.0, 0.0);
            add::accumulate(device, b.view(), target.view_mut(), Write::Add).unwrap();
            assert_close("accumulated", &target.download(), &expected, 0.0, 0.0);
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "add: sums match the definition over odd sizes",
        claim: sums_match_the_definition_over_odd_sizes,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
