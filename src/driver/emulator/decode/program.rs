//! The decoded program: what the machine runs.

use crate::ast::{LaunchLimits, Special};
use crate::error::EmulatorError;
use crate::lanes::Alu;

pub const NONE: u32 = u32::MAX;

/// A loaded module's code. Functions follow each other in `code`; within a function, blocks are in an order in which
/// every edge that is not a loop's back edge goes forward (see `control_flow`).
#[derive(Default)]
pub struct Program {
    pub code: Vec<Instr>,
    pub meta: Vec<Meta>,
    /// By instruction: what it does with registers, of which `register_uses` has the list.
    pub flows: Vec<Flow>,
    pub register_uses: Vec<RegisterUse>,
    pub functions: Vec<FunctionInfo>,
    /// Opcode names with their modifiers, by [`Meta::opcode`].
    pub opcodes: Vec<String>,
    /// Bytes of `.shared` that module-level and function variables take.
    pub common_shared_bytes: u64,
    pub source_files: Vec<(u32, String)>,
}

/// One instruction.
pub struct Instr {
    pub op: Op,
    /// Plane of the guard predicate, or [`NONE`].
    pub guard: u32,
    pub is_negated: bool,
}

/// What is known of an instruction beside its execution.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meta {
    pub line: u32,
    pub source: Option<(u32, u32)>,
    /// Index into [`Program::opcodes`]; `u32::MAX` for what decoding adds (jumps between blocks).
    pub opcode: u32,
    /// Floating-point operations of the tensor cores per warp.
    pub tensor_flops: u32,
}

/// A register of an instruction, as written in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterUse {
    /// [`NONE`] for a sink `_`.
    pub slot: u32,
    pub planes: u8,
    pub role: Role,
}

/// What an instruction does with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Written,
    /// Goes into what is written.
    Read,
    /// The predicate of a selection.
    Choice {
        is_negated: bool,
    },
    /// Goes to memory.
    Stored,
    /// Decides whether the instruction is carried out.
    Guard,
    Address,
    /// Anything else whose value shows: member masks, counts, barrier numbers, branch indices.
    Needed,
}

/// How the values of the read registers become those of the written ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// Each lane's result depends on all that the lane reads.
    #[default]
    Compute,
    /// Values go through as they are.
    Copy,
    /// Keeps some bits of the first and drops the others: how fields are set in a word that may hold nothing yet.
    Mask,
    /// Parts of several go side by side: one that was written makes a word of them, as a structure's padding does not
    /// unmake it.
    Pack,
    /// Both, of predicates.
    And,
    /// Either, of predicates.
    Or,
    /// The first or the second, as the choice says.
    Select,
    /// From another lane; with the planes of the operands that say which.
    Shuffle { mode: Shuffle, amount: u32, clamp: u32 },
    /// On what all lanes read.
    Warp,
    /// As `Warp`, and every lane of the warp must take part.
    WholeWarp,
}

/// The mode of a shfl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What an instruction does with registers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flow {
    /// Its part of [`Program::register_uses`].
    pub start: u32,
    pub count: u32,
    pub rule: Rule,
}

/// A kernel or function.
#[derive(Debug, Clone, Default)]
pub struct FunctionInfo {
    pub name: String,
    pub is_entry: bool,
    pub is_defined: bool,
    pub entry_pc: u32,
    /// Planes of a frame.
    pub planes: u32,
    pub presets: Vec<Preset>,
    /// `.local` and `.param` bytes of a frame, per thread.
    pub local_bytes: u64,
    /// Plane of each thread's stack pointer, where the function moves it: the end of what it has of local memory.
    pub stack_pointer: Option<u32>,
    /// What its frame and those of the deepest calls that it may make take; none if nothing bounds them.
    pub deepest: Option<Frames>,
    /// Static `.shared` bytes of a kernel, and where dynamic shared memory starts.
    pub shared_bytes: u64,
    pub dynamic_shared_align: u64,
    pub params: Vec<FormalParameter>,
    pub param_bytes: u32,
    pub returns: Vec<FormalParameter>,
    pub limits: LaunchLimits,
    /// Registers as declared and used, in 32-bit words per thread (an upper bound of what hardware needs).
    pub register_words: u32,
    /// It or a function that it may call adds floating-point numbers atomically in global memory: in what order shows in the result.
    pub sums_floats: bool,
    /// It or a function that it may call looks for the workspace of a cooperative launch, to synchronise the grid.
    pub reads_workspace: bool,
    /// It or a function that it may call looks for the system's part of shared memory.
    pub reads_reserved_shared: bool,
    /// Names of the registers, by plane.
    pub register_names: Vec<(u32, String)>,
    pub host_function: Option<HostFunction>,
    /// Why it cannot run, if it or a function that it calls has an instruction that is not known here.
    pub refusal: Option<Box<EmulatorError>>,
}

impl FunctionInfo {
    /// What one activation takes, without what alloca adds.
    pub fn own_frame(&self) -> Frames {
        Frames { local_bytes: self.local_bytes, planes: self.planes }
    }
}

/// What activations take: local memory of each thread, and registers of each warp, in planes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    pub local_bytes: u64,
    pub planes: u32,
}

impl Frames {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self { local_bytes: self.local_bytes.max(other.local_bytes), planes: self.planes.max(other.planes) }
    }

    /// One after the other.
    pub fn behind(self, other: Self) -> Self {
        Self {
            local_bytes: self.local_bytes.saturating_add(other.local_bytes),
            planes: self.planes.saturating_add(other.planes),
        }
    }
}

/// Functions that the driver provides to kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFunction {
    Vprintf,
    AssertFail,
    Malloc,
    Free,
}

/// A formal parameter: in `.param` memory at `offset`, or in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormalParameter {
    pub offset: u32,
    pub bytes: u32,
    pub align: u32,
    /// Plane, for the `.reg` style, else `u32::MAX`.
    pub plane: u32,
}

/// A register that has its value when the frame is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    pub slot: u32,
    pub value: PresetValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PresetValue {
    Word32(u32),
    Word64(u64),
    Predicate(bool),
    Special32(Special),
    Special64(Special),
    /// The frame's local memory plus an offset; 32 or 64 bits wide.
    Local32(u64),
    Local64(u64),
    /// First byte of dynamic shared memory.
    DynamicShared32(i64),
    DynamicShared64(i64),
}

impl PresetValue {
    pub fn planes(self) -> u32 {
        match self {
            Self::Word32(_) | Self::Predicate(_) | Self::Special32(_) | Self::Local32(_) | Self::DynamicShared32(_) => {
                1
            }
            _ => 2,
        }
    }
}

/// An operation. Those that only touch registers are closures; the rest is data for `machine`.
pub enum Op {
    Alu(Alu),
    /// Lanes of `members` (a plane) must arrive before it runs on all of them at once.
    Collective {
        members: u32,
        alu: Alu,
        is_barrier: bool,
    },
    /// Continues at `target`; added by decoding, free of charge.
    Jump {
        target: u32,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: u32,
        targets: Box<[u32]>,
    },
    Call(Box<Call>),
    Return,
    Exit,
    Trap,
    Breakpoint,
    Load(Load),
    Store(Store),
    Atomic(Box<Atomic>),
    CopyAsync(Box<CopyAsync>),
    MatrixMove(Box<MatrixMove>),
    Barrier(Box<BarrierOp>),
    /// barrier.cluster, in a cluster of one block.
    ClusterBarrier {
        waits: bool,
    },
    Mbarrier(Box<MbarrierOp>),
    Stack(StackOp),
    ReadClock {
        d: u32,
        special: Special,
        is_wide: bool,
    },
    AddressTest {
        d: u32,
        address: u32,
        is_wide: bool,
        /// None for the constants, which lie in global memory here.
        space: Option<AddressSpace>,
        /// Start and bytes of each.
        constants: Box<[(u64, u64)]>,
    },
    /// Stops who names another block of the cluster than the only one.
    OwnBlock {
        rank: u32,
    },
    /// Gives other lanes and warps a turn.
    Yield,
    Fence,
    /// Commits or waits for asynchronous copies: nothing to do, since they are done when issued, but observers want to know.
    CopyFence(CopyFence),
    /// Hints.
    Nothing,
}

impl Op {
    /// True for additions whose result depends on the order in which blocks make them.
    pub fn is_ordered_sum(&self) -> bool {
        matches!(self, Self::Atomic(atomic) if atomic.op == AtomicOp::Add
            && atomic.ty.is_float()
            && atomic.address.space != AddressSpace::Shared)
    }

    /// True for what must wait until the lanes that take part form a group of their own.
    pub fn gathers(&self) -> bool {
        matches!(
            self,
            Self::Collective { .. }
                | Self::MatrixMove(_)
                | Self::BranchIndexed { .. }
                | Self::Call(_)
                | Self::Return
                | Self::Exit
                | Self::Barrier(_)
                | Self::ClusterBarrier { .. }
                | Self::Trap
                | Self::Breakpoint
        )
    }
}

/// What cp.async.commit_group and the waits say of a thread's copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFence {
    /// What was issued since the last one is a group.
    Commit,
    /// All groups but this many of the latest are done.
    WaitGroups(u32),
    WaitAll,
}

/// Where an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSpace {
    Generic,
    Global,
    Shared,
    Local,
    /// The kernel's parameters.
    Param,
}

/// `[register + offset]`.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    pub space: AddressSpace,
    /// Plane of the base.
    pub base: u32,
    pub is_wide: bool,
    pub offset: i64,
}

/// A register that a load fills or a store empties, with its width in planes.
#[derive(Debug, Clone, Copy)]
pub struct DataRegister {
    /// [`NONE`] for the sink `_`.
    pub slot: u32,
    pub planes: u8,
    /// 16 for a register whose plane must stay zero-extended.
    pub bits: u8,
}

impl DataRegister {
    pub const SINK: Self = Self { slot: NONE, planes: 1, bits: 32 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extend {
    Zero,
    Sign,
}

pub const MAX_VECTOR: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub address: Address,
    /// Bytes of an element.
    pub bytes: u8,
    pub count: u8,
    pub extend: Extend,
    pub is_volatile: bool,
    pub registers: [DataRegister; MAX_VECTOR],
}

#[derive(Debug, Clone, Copy)]
pub struct Store {
    pub address: Address,
    pub bytes: u8,
    pub count: u8,
    pub is_volatile: bool,
    pub registers: [DataRegister; MAX_VECTOR],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Min,
    Max,
    Increment,
    Decrement,
}

#[derive(Debug, Clone, Copy)]
pub struct Atomic {
    pub address: Address,
    pub op: AtomicOp,
    pub ty: crate::ast::Type,
    /// Elements of a vector `red`/`atom`; 1 otherwise.
    pub count: u8,
    /// [`NONE`] for `red`.
    pub d: [u32; MAX_VECTOR],
    pub b: [u32; MAX_VECTOR],
    pub c: u32,
    pub flush: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct CopyAsync {
    pub destination: Address,
    pub source: Address,
    pub bytes: u32,
    /// Plane of the bytes to read, [`NONE`] for all; the rest is zero-filled.
    pub source_bytes: u32,
    /// Predicate of ignore-src, and its negation.
    pub ignore: Option<(u32, bool)>,
}

#[derive(Debug, Clone, Copy)]
pub struct MatrixMove {
    pub address: Address,
    pub registers: [u32; 4],
    pub count: u8,
    pub is_store: bool,
    pub is_transposed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarrierReduction {
    Popcount,
    And,
    Or,
}

#[derive(Debug, Clone, Copy)]
pub struct BarrierOp {
    /// Plane of the barrier's number.
    pub id: u32,
    /// Plane of the thread count, or [`NONE`] for all threads of the block.
    pub count: u32,
    pub waits: bool,
    /// Reduction, destination, predicate and its negation.
    pub reduction: Option<(BarrierReduction, u32, u32, bool)>,
    pub is_aligned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MbarrierKind {
    Init,
    Invalidate,
    Arrive {
        drops: bool,
        completes: bool,
        /// The operand is not a count of arrivals but of bytes to expect.
        expects: bool,
    },
    TestWait {
        is_parity: bool,
    },
    /// Bytes that the phase waits for, or that have come.
    Transaction {
        completes: bool,
    },
    /// cp.async.mbarrier.arrive: copies are done when issued, so it arrives at once.
    ArriveAfterCopies {
        is_counted: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct MbarrierOp {
    pub kind: MbarrierKind,
    pub address: Address,
    /// State (64-bit) or predicate destination, or [`NONE`].
    pub d: u32,
    /// Count, state or parity, or [`NONE`].
    pub operand: u32,
    pub may_yield: bool,
}

/// alloca or stackrestore: moves each thread's stack pointer, which the frame keeps in a plane. (stacksave only reads it.)
#[derive(Debug, Clone, Copy)]
pub struct StackOp {
    pub pointer: u32,
    pub kind: StackKind,
    /// Addresses and sizes have 64 bits.
    pub is_wide: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum StackKind {
    /// The address of `size` (a plane) new bytes goes to `d`.
    Allocate {
        d: u32,
        size: u32,
        align: u64,
    },
    Restore {
        source: u32,
    },
}

/// A call site.
#[derive(Debug, Clone)]
pub struct Call {
    pub target: CallTarget,
    pub args: Vec<CallValue>,
    pub returns: Vec<CallValue>,
}

#[derive(Debug, Clone, Copy)]
pub enum CallTarget {
    Function(u32),
    /// Plane of a 64-bit function address.
    Register(u32),
}

/// An actual parameter or return value: `.param` memory of the caller's frame, or a register.
#[derive(Debug, Clone, Copy)]
pub enum CallValue {
    Local { offset: u32, bytes: u32 },
    Plane { slot: u32, planes: u8 },
}
