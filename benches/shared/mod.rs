//! The cases of `engine-bench kernels` under criterion, which keeps the last figures and says whether a change of the
//! code changed them. `ENGINE_SIMD` and `ENGINE_THREADS` choose the instruction set and the threads.

use criterion::{Criterion, Throughput};
use engine::cpu::Cpu;
use engine::ops::Device;
use engine::profile::cases::{self, Call, Family, Work};
use std::sync::Arc;
use std::time::Duration;

/// Benches all cases of a family.
pub fn bench(criterion: &mut Criterion, family: Family) {
    let device = Arc::new(Device::Cpu(Cpu::new().expect("a usable CPU")));
    let mut group = criterion.benchmark_group(family.name());
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for case in cases::all().into_iter().filter(|case| case.family == family) {
        group.throughput(match case.work {
            Work::Flops(flops) => Throughput::Elements(flops as u64),
            Work::Read(bytes) | Work::Moved(bytes) => Throughput::Bytes(bytes as u64),
        });
        // Memory is only taken for the cases that the filter lets through.
        let mut call: Option<Call> = None;
        group.bench_function(&case.name, |bencher| {
            let call = call.get_or_insert_with(|| case.prepare(&device).expect("a case that fits into memory"));
            bencher.iter(|| call().expect("arguments that fit"));
        });
    }
}
