//! Layer norm, loss, embedding and dropout: `cargo bench --bench rowwise [-- FILTER]`.

mod shared;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::profile::cases::Family;

fn bench(criterion: &mut Criterion) {
    shared::bench(criterion, Family::Rowwise);
}

criterion_group!(benches, bench);
criterion_main!(benches);
