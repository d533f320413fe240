//! PTX as written: what the parser makes and `decode` reads. Names of registers and variables are resolved to indices,
//! labels and functions are still names, modifiers are still text.

/// A scalar type of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    U16x2,
    S16x2,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Type {
    /// The type that a modifier (without its dot) names.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "u16x2" => Self::U16x2,
            "s16x2" => Self::S16x2,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    /// Bytes in memory; a predicate counts as one.
    pub fn bytes(self) -> u32 {
        match self {
            Self::B8 | Self::U8 | Self::S8 | Self::Pred => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
            Self::B128 => 16,
            _ => 4,
        }
    }

    /// Bits of a register of this type; 1 for a predicate.
    pub fn bits(self) -> u32 {
        if self == Self::Pred { 1 } else { self.bytes() * 8 }
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub fn is_unsigned(self) -> bool {
        matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }

    pub fn is_untyped(self) -> bool {
        matches!(self, Self::B8 | Self::B16 | Self::B32 | Self::B64 | Self::B128)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F16x2 | Self::Bf16 | Self::Bf16x2 | Self::Tf32 | Self::F32 | Self::F64)
    }
}

/// A state space that a variable or an access can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    Internal,
    Visible,
    Extern,
    Weak,
    Common,
}

/// A whole `.ptx` text.
#[derive(Debug, Clone)]
pub struct Module<'a> {
    pub version: (u32, u32),
    /// The `.target` list, architecture first.
    pub target: Vec<&'a str>,
    pub address_bits: u32,
    pub variables: Vec<Variable<'a>>,
    pub functions: Vec<Function<'a>>,
    /// `.alias name, aliasee`.
    pub aliases: Vec<(&'a str, &'a str)>,
    /// `.file` numbers and paths.
    pub files: Vec<(u32, String)>,
}

/// A declared variable of any space but `.reg`.
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    pub name: &'a str,
    pub space: Space,
    pub linkage: Linkage,
    pub bytes: u64,
    /// Of the type in its declaration, also where that has vectors of it.
    pub element_bytes: u32,
    pub align: u64,
    pub init: Vec<InitialValue<'a>>,
    /// Declared with `[]`: the launch (or another module) says how large it is.
    pub is_unsized: bool,
    pub line: u32,
}

/// One initialised element of a variable.
#[derive(Debug, Clone)]
pub struct InitialValue<'a> {
    pub offset: u64,
    pub bytes: u32,
    pub value: InitialWord<'a>,
}

#[derive(Debug, Clone)]
pub enum InitialWord<'a> {
    Bits(u64),
    /// The address of a variable or function, plus `addend`, shifted right by `shift` bits (the `0xFF00(name)` forms).
    Address {
        name: &'a str,
        addend: i64,
        is_generic: bool,
        shift: u32,
    },
}

/// A kernel (`.entry`) or a function (`.func`).
#[derive(Debug, Clone)]
pub struct Function<'a> {
    pub name: &'a str,
    pub is_entry: bool,
    pub params: Vec<Parameter>,
    pub returns: Vec<Parameter>,
    pub limits: LaunchLimits,
    pub body: Option<Body<'a>>,
    pub line: u32,
}

/// `.maxntid`, `.reqntid`, `.minnctapersm`, `.maxnreg`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchLimits {
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    /// Blocks of a cluster.
    pub required_cluster: Option<[u32; 3]>,
    pub min_blocks_per_multiprocessor: Option<u32>,
    pub max_registers: Option<u32>,
}

/// A formal parameter of an entry, function or prototype.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub bytes: u64,
    pub align: u64,
    /// Set for the old `.reg` style: the register that holds it.
    pub register: Option<u32>,
    /// Index of the variable that stands for it in the body, for `.param` style.
    pub variable: u32,
}

/// What stands between the braces of a function.
#[derive(Debug, Clone, Default)]
pub struct Body<'a> {
    /// Types of the registers that are used, by index.
    pub registers: Vec<(Type, &'a str)>,
    /// Variables of the function: formal parameters first.
    pub variables: Vec<Variable<'a>>,
    pub instructions: Vec<Instruction<'a>>,
    /// Label name and the instruction that it stands before.
    pub labels: Vec<(&'a str, u32)>,
    /// `.branchtargets` lists.
    pub branch_targets: Vec<(&'a str, Vec<&'a str>)>,
}

#[derive(Debug, Clone)]
pub struct Instruction<'a> {
    /// Guard: the register index of a predicate, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub opcode: &'a str,
    /// Modifiers without their dots, in order.
    pub modifiers: Vec<&'a str>,
    pub operands: Vec<Operand<'a>>,
    /// Line in the PTX text.
    pub line: u32,
    /// File number and line of the source, from `.loc`.
    pub source: Option<(u32, u32)>,
}

#[derive(Debug, Clone)]
pub enum Operand<'a> {
    Register(u32),
    Special(Special),
    Integer(u64),
    /// A literal with a floating-point form, already as f64 (exact for `0f...` too).
    Float(f64),
    /// `0f...` keeps its bits, NaN payloads included.
    FloatBits(u32),
    /// The address of a variable.
    Variable(VariableRef, i64),
    /// `a[2]`: an element of an array, by its offset in bytes. An address where one is expected, as if in brackets.
    Element(VariableRef, i64),
    /// A label, function or prototype.
    Name(&'a str),
    /// `[base + offset]`.
    Address(Base<'a>, i64),
    /// `{a, b, ...}`.
    Vector(Vec<Operand<'a>>),
    /// `(a, b, ...)` of a call.
    List(Vec<Operand<'a>>),
    /// `d|p`.
    Pair(Box<(Operand<'a>, Operand<'a>)>),
    /// `!p`.
    Not(Box<Operand<'a>>),
    /// `a.b0`, `a.h10`: a register of a video instruction and the selector of its parts.
    Part(u32, &'a str),
    /// `_`, where nobody wants the result.
    Sink,
}

#[derive(Debug, Clone)]
pub enum Base<'a> {
    Register(u32),
    Variable(VariableRef),
    Name(&'a str),
    Absolute,
}

/// A variable of the module or of the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VariableRef {
    Module(u32),
    Local(u32),
}

/// A special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    WarpCount,
    SmId,
    SmCount,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    ClockHi,
    Clock64,
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    DynamicSharedBytes,
    TotalSharedBytes,
    /// With the system's part.
    AggregateSharedBytes,
    /// Address of the grid barrier's workspace of a cooperative launch: upper and lower half (%envreg1, %envreg2).
    WorkspaceHi,
    WorkspaceLo,
    /// Address of this byte of the shared memory that is the system's: a part of it belongs to cooperative groups.
    ReservedShared(u32),
    /// Size of that memory.
    ReservedSharedBytes,
    /// Reads as zero: environment registers, performance counters, cluster ids of a cluster of one.
    Zero,
    /// Reads as one: sizes of a cluster of one.
    One,
}

/// Shared memory that is the system's, in blocks of kernels that look for it: "CUDA reserves 1 KB of shared memory per thread
/// block" (Blackwell tuning guide, 1.4.2.3, as NVIDIA/cudnn-frontend pull request 1164 has it). %reserved_smem_offset_cap is
/// its "total size" (PTX ISA, 10.29).
pub const RESERVED_SHARED_BYTES: u32 = 1024;

impl Special {
    /// The special register called `name` (with its `%`), with component `xyzw` where it has them.
    pub fn parse(name: &str, component: Option<&str>) -> Option<Self> {
        let axis = match component {
            Some("x" | "r") => 0u8,
            Some("y" | "g") => 1,
            Some("z" | "b") => 2,
            Some("w" | "a") => 3,
            Some(_) => return None,
            None => 4,
        };
        let vector = |make: fn(u8) -> Self| if axis < 3 { Some(make(axis)) } else { (axis == 3).then_some(Self::Zero) };
        match name {
            "%tid" => return vector(Self::Tid),
            "%ntid" => return vector(Self::Ntid),
            "%ctaid" => return vector(Self::Ctaid),
            "%nctaid" => return vector(Self::Nctaid),
            "%clusterid" => return vector(Self::Ctaid),
            "%nclusterid" => return vector(Self::Nctaid),
            "%cluster_ctaid" => return (axis < 4).then_some(Self::Zero),
            "%cluster_nctaid" => return (axis < 4).then_some(Self::One),
            _ => {}
        }
        if component.is_some() {
            return None;
        }
        Some(match name {
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::WarpCount,
            "%smid" => Self::SmId,
            "%nsmid" => Self::SmCount,
            "%gridid" => Self::GridId,
            "%lanemask_eq" => Self::LaneMaskEq,
            "%lanemask_le" => Self::LaneMaskLe,
            "%lanemask_lt" => Self::LaneMaskLt,
            "%lanemask_ge" => Self::LaneMaskGe,
            "%lanemask_gt" => Self::LaneMaskGt,
            "%clock" => Self::Clock,
            "%clock_hi" => Self::ClockHi,
            "%clock64" => Self::Clock64,
            "%globaltimer" => Self::GlobalTimer,
            "%globaltimer_lo" => Self::GlobalTimerLo,
            "%globaltimer_hi" => Self::GlobalTimerHi,
            "%dynamic_smem_size" => Self::DynamicSharedBytes,
            "%total_smem_size" => Self::TotalSharedBytes,
            "%aggr_smem_size" => Self::AggregateSharedBytes,
            "%envreg1" => Self::WorkspaceHi,
            "%envreg2" => Self::WorkspaceLo,
            "%reserved_smem_offset_begin" | "%reserved_smem_offset_0" => Self::ReservedShared(0),
            "%reserved_smem_offset_1" => Self::ReservedShared(RESERVED_SHARED_BYTES / 2),
            "%reserved_smem_offset_end" => Self::ReservedShared(RESERVED_SHARED_BYTES),
            "%reserved_smem_offset_cap" => Self::ReservedSharedBytes,
            "%cluster_nctarank" => Self::One,
            "%cluster_ctarank" | "%is_explicit_cluster" | "%current_graph_exec" => Self::Zero,
            _ => {
                let numbered = ["%envreg", "%pm"].iter().any(|stem| name.starts_with(stem));
                return numbered.then_some(Self::Zero);
            }
        })
    }

    /// True for the registers that change while a thread runs.
    pub fn is_volatile(self) -> bool {
        use Special::*;
        matches!(self, Clock | ClockHi | Clock64 | GlobalTimer | GlobalTimerLo | GlobalTimerHi)
    }
}
