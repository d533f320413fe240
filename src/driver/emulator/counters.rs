//! What a launch did, counted: instructions, memory traffic, bank conflicts, tensor-core work.
//!
//! The definitions follow the hardware's profiler. A *request* is one warp-wide access; its *sectors* are the distinct
//! 32-byte pieces that its lanes touch; *DRAM bytes* are the distinct sectors of the whole launch, as if every byte came
//! from memory once (the least traffic possible). A *wavefront* of shared memory is one pass over its 32 banks of 4 bytes:
//! accesses of 8 bytes go by half warps, of 16 bytes by quarters, and a pass takes as many wavefronts as the busiest bank
//! has different words. Everything beyond one wavefront per pass is a *bank conflict*.

use std::collections::{BTreeMap, HashMap};

use super::decode::program::{NONE, Program};
use super::error::Access;
use super::machine::Launch;
use super::machine::access::lanes_of;
use super::machine::observe::{AccessEvent, BarrierEvent, IssueEvent, Observe, Target};

/// The counts of one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub warp_instructions: u64,
    /// Instructions times the lanes whose guard let them through.
    pub thread_instructions: u64,
    pub global_load_requests: u64,
    pub global_load_sectors: u64,
    pub global_store_requests: u64,
    pub global_store_sectors: u64,
    pub global_atomic_requests: u64,
    pub dram_read_bytes: u64,
    pub dram_write_bytes: u64,
    pub shared_wavefronts: u64,
    pub shared_bank_conflicts: u64,
    pub tensor_core_flops: u64,
    /// Warps that came to a block-wide barrier.
    pub barriers: u64,
    pub divergent_branches: u64,
    /// Warp instructions per opcode, with its modifiers.
    pub opcodes: BTreeMap<String, u64>,
}

/// Counts of two launches, one after the other: what either reads or writes counts for itself.
impl std::ops::AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        let Counters {
            warp_instructions,
            thread_instructions,
            global_load_requests,
            global_load_sectors,
            global_store_requests,
            global_store_sectors,
            global_atomic_requests,
            dram_read_bytes,
            dram_write_bytes,
            shared_wavefronts,
            shared_bank_conflicts,
            tensor_core_flops,
            barriers,
            divergent_branches,
            opcodes,
        } = other;
        self.warp_instructions += warp_instructions;
        self.thread_instructions += thread_instructions;
        self.global_load_requests += global_load_requests;
        self.global_load_sectors += global_load_sectors;
        self.global_store_requests += global_store_requests;
        self.global_store_sectors += global_store_sectors;
        self.global_atomic_requests += global_atomic_requests;
        self.dram_read_bytes += dram_read_bytes;
        self.dram_write_bytes += dram_write_bytes;
        self.shared_wavefronts += shared_wavefronts;
        self.shared_bank_conflicts += shared_bank_conflicts;
        self.tensor_core_flops += tensor_core_flops;
        self.barriers += barriers;
        self.divergent_branches += divergent_branches;
        for (opcode, count) in opcodes {
            *self.opcodes.entry(opcode.clone()).or_default() += count;
        }
    }
}

/// Sectors as a sparse bit set: pages of 4096 sectors.
#[derive(Debug, Default)]
struct SectorSet {
    pages: HashMap<u64, Box<[u64; 64]>>,
}

impl SectorSet {
    fn insert(&mut self, sector: u64) {
        let page = self.pages.entry(sector >> 12).or_insert_with(|| Box::new([0; 64]));
        page[(sector >> 6 & 63) as usize] |= 1 << (sector & 63);
    }

    fn merge(&mut self, other: Self) {
        for (number, bits) in other.pages {
            let page = self.pages.entry(number).or_insert_with(|| Box::new([0; 64]));
            page.iter_mut().zip(bits.iter()).for_each(|(word, other)| *word |= other);
        }
    }

    fn bytes(&self) -> u64 {
        32 * self.pages.values().flat_map(|page| page.iter()).map(|word| u64::from(word.count_ones())).sum::<u64>()
    }
}

/// Counts what one host thread runs.
#[derive(Debug, Default)]
pub struct Counting {
    /// Warp and thread instructions by pc.
    issued: Vec<(u64, u64)>,
    totals: Counters,
    read: SectorSet,
    written: SectorSet,
}

impl Counting {
    pub fn new(program: &Program) -> Self {
        Self { issued: vec![(0, 0); program.code.len()], ..Self::default() }
    }

    /// Adds up what the threads of a launch counted.
    pub fn total(program: &Program, parts: Vec<Self>) -> Counters {
        let mut totals = Counters::default();
        let (mut read, mut written) = (SectorSet::default(), SectorSet::default());
        for part in parts {
            for ((warps, threads), meta) in part.issued.iter().zip(&program.meta) {
                if *warps == 0 || meta.opcode == NONE {
                    continue;
                }
                totals.warp_instructions += warps;
                totals.thread_instructions += threads;
                totals.tensor_core_flops += warps * u64::from(meta.tensor_flops);
                if let Some(name) = program.opcodes.get(meta.opcode as usize) {
                    *totals.opcodes.entry(name.clone()).or_default() += warps;
                }
            }
            totals += &part.totals;
            read.merge(part.read);
            written.merge(part.written);
        }
        (totals.dram_read_bytes, totals.dram_write_bytes) = (read.bytes(), written.bytes());
        totals
    }

    fn global(&mut self, event: &AccessEvent<'_>) {
        let mut sectors: Vec<u64> = lanes_of(event.lanes)
            .flat_map(|lane| {
                let first = event.addresses[lane] >> 5;
                let last = (event.addresses[lane] + u64::from(event.bytes.max(1)) - 1) >> 5;
                first..=last
            })
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        let count = sectors.len() as u64;
        match event.access {
            Access::Read => {
                self.totals.global_load_requests += 1;
                self.totals.global_load_sectors += count;
                sectors.into_iter().for_each(|sector| self.read.insert(sector));
            }
            Access::Write => {
                self.totals.global_store_requests += 1;
                self.totals.global_store_sectors += count;
                sectors.into_iter().for_each(|sector| self.written.insert(sector));
            }
            Access::Atomic => {
                self.totals.global_atomic_requests += 1;
                for sector in sectors {
                    self.read.insert(sector);
                    self.written.insert(sector);
                }
            }
        }
    }

    fn shared(&mut self, event: &AccessEvent<'_>) {
        let lanes_per_pass = (128 / event.bytes.max(4)).max(1);
        let mut lane = 0;
        while lane < 32 {
            let pass = event.lanes & (((1u64 << lanes_per_pass) - 1) << lane) as u32;
            lane += lanes_per_pass;
            if pass == 0 {
                continue;
            }
            let mut words: Vec<u64> = lanes_of(pass)
                .flat_map(|lane| event.addresses[lane] >> 2..=(event.addresses[lane] + u64::from(event.bytes) - 1) >> 2)
                .collect();
            words.sort_unstable();
            words.dedup();
            let mut banks = [0u64; 32];
            words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
            let wavefronts = banks.into_iter().max().unwrap_or(1);
            self.totals.shared_wavefronts += wavefronts;
            self.totals.shared_bank_conflicts += wavefronts - 1;
        }
    }
}

impl Observe for Counting {
    const IS_ON: bool = true;

    fn issued(&mut self, _launch: &Launch<'_>, event: &IssueEvent<'_>) {
        let (warps, threads) = &mut self.issued[event.pc as usize];
        *warps += 1;
        *threads += u64::from(event.active.count_ones());
    }

    fn branch(&mut self, _pc: u32, diverged: bool) {
        self.totals.divergent_branches += u64::from(diverged);
    }

    fn access(&mut self, _launch: &Launch<'_>, event: &AccessEvent<'_>) {
        match event.target {
            Target::Global => self.global(event),
            Target::Shared => self.shared(event),
            Target::Local | Target::Param => {}
        }
    }

    fn barrier(&mut self, _launch: &Launch<'_>, _event: &BarrierEvent) {
        self.totals.barriers += 1;
    }
}
