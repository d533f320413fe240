//! Launches `kernels/scale.cu`.

use super::{Arguments, Gpu, Source, source, strided};
use crate::driver::Result;
use crate::ops::{View, ViewMut, Write};

static SOURCE: Source = source!("scale");
const BLOCK: u32 = 256;

/// See [`crate::ops::scale::forward`].
pub fn forward(gpu: &Gpu, factor: f32, source: View<'_, f32>, target: ViewMut<'_, f32>, write: Write) -> Result<()> {
    let count = source.len();
    let list = Arguments::new().view(&source).view_mut(&target).float(factor).write(write).count(count);
    gpu.launch(&SOURCE, "scale_forward", strided(count, BLOCK), list)
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, Write, scale};

    fn products_are_set_or_added_over_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        for length in [0, 1, 3, 113, 203, 1023, 40_001] {
            let source = random.normal(length);
            let [once, twice] = [0.3f32, 0.6]
                .map(|factor| -> Vec<f64> { double(&source).iter().map(|x| x * f64::from(factor)).collect() });
            let (source, mut target) = (Buffer::upload(device, &source), Buffer::poisoned(device, length));
            for (write, expected) in [(Write::Set, once), (Write::Add, twice)] {
                scale::forward(device, 0.3, source.view(), target.view_mut(), write).unwrap();
                assert_close(&format!("{length}, {write:?}"), &target.download(), &expected, 1e-6, 0.0);
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "scale: products are set or added over odd sizes",
        claim: products_are_set_or_added_over_odd_sizes,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
