//! What this machine can do at best, measured: multiply-adds and memory traffic of all threads together.
//!
//! Percentages of peak are only honest against a peak that was measured in the same run, on the same cores, at the
//! same clock: so these are short loops (about 0.2 s each) that a benchmark or a trainer runs first.

use super::gemm::prefetch::prefetch_once;
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint};
use memmap2::MmapMut;
use std::time::{Duration, Instant};

/// How long each measurement lasts.
const SECONDS: f64 = 0.2;
/// Floats that one pass over memory touches: 512 MiB. Caches keep part of what is passed over again and again even where
/// it is several times their size: on a Zen 5 with 32 MiB of L3 the same loop "read" 124 GB/s from 128 MiB, depending on
/// what the neighbours on its processor did, and 88 GB/s from 512.
const MEMORY_FLOATS: usize = 128 << 20;
/// How far ahead reading asks for memory, past the caches: worth 10 % over what the machine foresees by itself.
const AHEAD_FLOATS: usize = 2560;

/// Floating-point operations per second of multiply-adds on the widest vectors of the device's instruction set.
pub fn fma_flops(cpu: &Cpu) -> f64 {
    const STEPS: usize = 4_000;
    let threads = cpu.pool().threads();
    let chains = cpu.level().run(MultiplyAdds { steps: 0 }).1;
    let flops_per_task = 2.0 * (STEPS * chains * cpu.level().lanes()) as f64;
    best_per_second(flops_per_task * (threads * 16) as f64, || {
        cpu.pool().run(threads * 16, |_| {
            std::hint::black_box(cpu.level().run(MultiplyAdds { steps: STEPS }));
        });
    })
}

/// Bytes per second that all threads read from memory.
pub fn read_bytes_per_second(cpu: &Cpu) -> f64 {
    let mut pages = huge_pages();
    let memory: &mut [f32] = bytemuck::cast_slice_mut(&mut pages);
    memory.fill(1.0);
    let memory = &*memory;
    best_per_second((MEMORY_FLOATS * 4) as f64, || {
        cpu.pool().run_streams(MEMORY_FLOATS, 1 << 18, |_, range| {
            std::hint::black_box(cpu.level().run(Read { from: &memory[range] }));
        });
    })
}

/// Bytes per second, read and written together, of a copy from memory to memory.
pub fn copy_bytes_per_second(cpu: &Cpu) -> f64 {
    let half = MEMORY_FLOATS / 2;
    let mut pages = huge_pages();
    let memory: &mut [f32] = bytemuck::cast_slice_mut(&mut pages);
    memory.fill(1.0);
    let (from, to) = memory.split_at_mut(half);
    let (from, target) = (&*from, Disjoint::new(to));
    best_per_second((half * 8) as f64, || {
        cpu.pool().run_pieces(half, 1 << 18, |_, range| {
            // SAFETY: pieces do not overlap.
            let to = unsafe { target.get(range.clone()) };
            cpu.level().run(Copy { from: &from[range], to });
        });
    })
}

/// Memory that is passed over, in huge pages where the system has them, as the engine has its own memory: in the
/// best of several runs on a Zen 5, the same loop read 84 GB/s through pages of 4 KiB and 113 through huge ones.
fn huge_pages() -> MmapMut {
    let pages = MmapMut::map_anon(MEMORY_FLOATS * 4).expect("512 MiB of memory");
    #[cfg(target_os = "linux")]
    // Only advice: without huge pages the figure is lower, and so is everything that is compared with it.
    let _ = pages.advise(memmap2::Advice::HugePage);
    pages
}

/// Units per second of the fastest of the calls that fit the time, after one that warms up.
fn best_per_second(units: f64, mut call: impl FnMut()) -> f64 {
    call();
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed().as_secs_f64() < SECONDS {
        let before = Instant::now();
        call();
        best = best.min(before.elapsed());
    }
    units / best.as_secs_f64()
}

/// Independent chains of multiply-adds, enough to hide their latency on two units; returns a sum and the chain count.
struct MultiplyAdds {
    steps: usize,
}

impl Kernel for MultiplyAdds {
    type Output = (f32, usize);

    #[inline(always)]
    fn run<V: Vector>(self) -> (f32, usize) {
        // As many as registers hold beside the two operands.
        if V::REGISTERS >= 16 { (chains::<V, 12>(self.steps), 12) } else { (chains::<V, 4>(self.steps), 4) }
    }
}

#[inline(always)]
fn chains<V: Vector, const CHAINS: usize>(steps: usize) -> f32 {
    let (a, b) = (V::splat(0.999_9), V::splat(1e-3));
    let mut sums = [V::splat(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = sum.mul_add(a, b);
        }
    }
    let mut total = V::zero();
    for sum in sums {
        total = total.add(sum);
    }
    total.reduce_add()
}

/// Sums a slice in four chains.
struct Read<'a> {
    from: &'a [f32],
}

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let mut sums = [V::zero(); 4];
        for chunk in self.from.chunks_exact(4 * V::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                prefetch_once(chunk.as_ptr().wrapping_add(i * V::LANES + AHEAD_FLOATS));
                // SAFETY: the chunk has four vectors.
                *sum = sum.add(unsafe { V::load(chunk.as_ptr().add(i * V::LANES)) });
            }
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}

/// Copies past the caches where the target is aligned.
struct Copy<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let count = self.from.len().min(self.to.len());
        // SAFETY: reads and writes stay below `count`; streaming stores are aligned, as the trait asks.
        unsafe {
            let head = self.to.as_ptr().align_offset(4 * V::LANES).min(count);
            std::ptr::copy_nonoverlapping(self.from.as_ptr(), self.to.as_mut_ptr(), head);
            let mut i = head;
            while i + V::LANES <= count {
                V::load(self.from.as_ptr().add(i)).store_streaming(self.to.as_mut_ptr().add(i));
                i += V::LANES;
            }
            std::ptr::copy_nonoverlapping(self.from.as_ptr().add(i), self.to.as_mut_ptr().add(i), count - i);
        }
    }
}
