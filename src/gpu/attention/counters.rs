//! What the kernels move, counted by the emulator: no bank conflicts, no local memory, no byte of memory that need not be
//! read or written.

use super::{BLOCK, Kernel, Problem, backward, forward};
use crate::driver::emulator::Counters;
use crate::driver::{DeviceFacts, Emulated, LaunchConfig};
use crate::gpu::counting::CountingDevice;
use crate::gpu::{Arguments, Gpu, Source};
use crate::ops::View;
use crate::ops::attention::cases::{full, shape};
use crate::ops::attention::{Common, Inputs, Shape};

const FLOAT: usize = size_of::<f32>();

/// A device, and its memory for one attention with packed inputs, all zeros.
struct Memory {
    device: CountingDevice,
    shape: Shape,
    /// Elements of qkv, of the output, and of one value for each row of scores.
    sizes: [usize; 3],
    qkv: u64,
}

impl Memory {
    fn new(shape: Shape) -> Self {
        let device = CountingDevice::new();
        let tokens = shape.batch * shape.query_time;
        let qkv = tokens * (shape.query_columns() + 2 * shape.key_columns());
        let sizes = [qkv, tokens * shape.query_columns(), tokens * shape.heads];
        let qkv = device.upload(&vec![0.0f32; qkv]).address();
        Self { device, shape, sizes, qkv }
    }

    fn zeros(&self, elements: usize) -> u64 {
        self.device.upload(&vec![0.0f32; elements]).address()
    }

    fn count(
        &self,
        source: &Source,
        kernel: &Kernel,
        [blocks, y]: [usize; 2],
        tiles: [usize; 2],
        arguments: impl FnOnce(Arguments) -> Arguments,
    ) -> Counters {
        // SAFETY: the emulator checks every access.
        let qkv = unsafe { View::on_device(self.qkv, self.sizes[0]) };
        let inputs = Inputs::Packed(qkv);
        let common =
            Common { inputs, key_lengths: None, documents: None, bias: None, relative_bias: None, dropout: None };
        let problem = Problem { shape: self.shape, common };
        let config = LaunchConfig::new([blocks as u32, y as u32, 1], [BLOCK, 1, 1])
            .shared(kernel.tiles.shared_bytes(tiles[0], tiles[1]));
        self.device.count(source, (kernel.name, config, arguments(problem.arguments())))
    }
}

/// One sequence with one head, for which every kernel reads its inputs once from memory and writes its results once.
#[test]
fn memory_is_read_and_written_once_and_shared_memory_without_conflicts() {
    for (index, head_size) in [32, 64, 128, 256].into_iter().enumerate() {
        let memory = Memory::new(full(shape(1, [64, 64], [1, 1], head_size)));
        let [qkv, output, rows] = memory.sizes;
        let check = |name: &str, counters: &Counters, read: usize, written: usize| {
            assert_eq!(counters.shared_bank_conflicts, 0, "{name}");
            assert_eq!(counters.dram_read_bytes, (read * FLOAT) as u64, "{name}");
            assert_eq!(counters.dram_write_bytes, (written * FLOAT) as u64, "{name}");
        };
        for family in [&forward::FORWARD, &forward::DECODE] {
            let kernel = &family[index];
            let (to, log_sum_exp) = (memory.zeros(output), memory.zeros(rows));
            let blocks = [64 / kernel.tiles.rows(), 1];
            let counters = memory.count(&forward::SOURCE, kernel, blocks, [1, 2], |list| {
                list.address(to).address(log_sum_exp).count(0).size(64)
            });
            check(kernel.name, &counters, qkv, output + rows);
        }
        let [grad_output, log_sum_exp, delta] = [output, rows, rows].map(|elements| memory.zeros(elements));
        let common = |list: Arguments| list.address(grad_output).address(log_sum_exp).address(delta);
        let read = qkv + output + 2 * rows;
        let grad = memory.zeros(qkv);

        let kernel = &backward::KEY_VALUE[index];
        let [key, value] = [1, 2].map(|part| grad + (part * head_size * FLOAT) as u64);
        let blocks = [64 / kernel.tiles.rows(), 1];
        let counters = memory.count(&backward::SOURCE, kernel, blocks, [2, 2], |list| {
            common(list).address(key).address(value).flag(false)
        });
        check(kernel.name, &counters, read, 2 * output);

        let kernel = &backward::QUERY[index];
        let counters = memory
            .count(&backward::SOURCE, kernel, blocks, [2, 2], |list| common(list).address(grad).flag(false).address(0));
        check(kernel.name, &counters, read, output);

        let kernel = &backward::BIAS[index];
        let (to, blocks) = (memory.zeros(64 * 64), [blocks[0], 64 / kernel.tiles.columns()]);
        let counters =
            memory.count(&backward::SOURCE, kernel, blocks, [2, 2], |list| common(list).address(to).flag(false));
        check(kernel.name, &counters, read, 64 * 64);
    }
}

/// A block keeps its rows while it walks over all keys, so every tile of rows reads the keys and values once.
#[test]
fn keys_and_values_are_read_once_for_each_tile_of_rows() {
    const TIME: usize = 256;
    let memory = Memory::new(full(shape(1, [TIME, TIME], [1, 1], 64)));
    let [_, output, rows] = memory.sizes;
    let (to, log_sum_exp) = (memory.zeros(output), memory.zeros(rows));
    let kernel = &forward::FORWARD[1];
    let blocks = TIME / kernel.tiles.rows();
    let counters = memory.count(&forward::SOURCE, kernel, [blocks, 1], [1, 2], |list| {
        list.address(to).address(log_sum_exp).count(0).size(TIME)
    });
    let sectors = (output + blocks * 2 * output) * FLOAT / 32;
    assert_eq!(counters.global_load_sectors, sectors as u64);
    assert_eq!(counters.global_store_sectors, ((output + rows) * FLOAT / 32) as u64);
}

#[test]
fn kernels_use_no_local_memory() {
    let gpu = Gpu::new(Box::new(Emulated::new(DeviceFacts::default()))).unwrap();
    let forwards = forward::FORWARD.iter().chain(&forward::DECODE).map(|kernel| (&forward::SOURCE, kernel.name));
    let backwards = backward::KEY_VALUE.iter().chain(&backward::QUERY).chain(&backward::BIAS);
    let backwards = backwards.chain(&backward::RELATIVE).map(|kernel| (&backward::SOURCE, kernel.name));
    let others = [(&forward::SOURCE, "attention_merge"), (&backward::SOURCE, "attention_delta")];
    for (source, name) in forwards.chain(backwards).chain(others) {
        let facts = gpu.function_facts(source, name).unwrap();
        assert_eq!((facts.local_bytes, facts.max_threads), (0, BLOCK), "{name}");
    }
}
