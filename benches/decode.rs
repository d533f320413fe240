//! Writing one token at a time: `cargo bench --bench decode [-- FILTER]`.

mod shared;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::profile::cases::Family;

fn bench(criterion: &mut Criterion) {
    shared::bench(criterion, Family::Decode);
}

criterion_group!(benches, bench);
criterion_main!(benches);
