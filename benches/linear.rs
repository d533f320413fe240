//! Matrix products of linear layers: `cargo bench --bench linear [-- FILTER]`.

mod shared;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::profile::cases::Family;

fn bench(criterion: &mut Criterion) {
    shared::bench(criterion, Family::Linear);
}

criterion_group!(benches, bench);
criterion_main!(benches);
