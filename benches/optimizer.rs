//! Gradient norm and AdamW: `cargo bench --bench optimizer [-- FILTER]`.

mod shared;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::profile::cases::Family;

fn bench(criterion: &mut Criterion) {
    shared::bench(criterion, Family::Optimizer);
}

criterion_group!(benches, bench);
criterion_main!(benches);
