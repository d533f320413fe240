//! Loading a module: variables into device memory, functions into a [`Program`].

use std::collections::HashMap;

use super::ast::{self, InitialWord, Linkage, Space, VariableRef};
use super::decode::call_graph::CallGraph;
use super::decode::function::DecodedFunction;
use super::decode::program::{FunctionInfo, HostFunction, Op, Program};
use super::decode::{Decoder, Environment, FUNCTION_BASE, Placement, SHARED_WINDOW};
use super::error::{EmulatorError, Result};
use super::lanes::Level;
use super::memory::DeviceMemory;
use super::parser;

/// A loaded PTX module. Its variables live in the device memory of the emulator that loaded it.
pub struct Module {
    pub(super) file: String,
    pub(super) program: Program,
    /// Names, addresses and sizes of `.global` and `.const` variables.
    pub(super) globals: Vec<(String, u64, u64)>,
    /// Allocations that the module owns.
    pub(super) owned: Vec<u64>,
}

impl Module {
    /// The kernels of the module.
    pub fn kernels(&self) -> impl Iterator<Item = &FunctionInfo> {
        self.program.functions.iter().filter(|function| function.is_entry && function.is_defined)
    }

    /// Address and size of a module variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.iter().find(|(known, ..)| known == name).map(|&(_, address, bytes)| (address, bytes))
    }

    /// True if its kernels may allocate from the device's heap.
    pub(super) fn uses_heap(&self) -> bool {
        let is_heap =
            |function: &FunctionInfo| matches!(function.host_function, Some(HostFunction::Malloc | HostFunction::Free));
        self.program.functions.iter().any(is_heap)
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn kernel(&self, name: &str) -> Result<u32> {
        let found = self.program.functions.iter().position(|f| f.is_entry && f.is_defined && f.name == name);
        match found {
            Some(index) => match &self.program.functions[index].refusal {
                Some(refusal) => Err((**refusal).clone()),
                None => Ok(index as u32),
            },
            None => {
                let names: Vec<&str> = self.kernels().map(|kernel| kernel.name.as_str()).take(8).collect();
                let message = format!(
                    "no such kernel; the module has {}",
                    if names.is_empty() { "none".into() } else { names.join(", ") }
                );
                Err(EmulatorError::Launch { kernel: name.into(), message })
            }
        }
    }
}

fn host_function(name: &str) -> Option<HostFunction> {
    Some(match name {
        "vprintf" => HostFunction::Vprintf,
        "__assertfail" => HostFunction::AssertFail,
        "malloc" => HostFunction::Malloc,
        "free" => HostFunction::Free,
        _ => return None,
    })
}

/// The number in `sm_80`, `sm_90a`.
fn architecture(target: &str) -> Option<u32> {
    let digits = target.strip_prefix("sm_")?.trim_end_matches(|character: char| character.is_ascii_lowercase());
    digits.parse().ok()
}

/// Parses and decodes `text`; allocates its variables in `memory`.
pub fn load(
    file: &str,
    text: &str,
    memory: &mut DeviceMemory,
    level: Level,
    device_architecture: u32,
) -> Result<Module> {
    let parsed = parser::parse(file, text)?;
    let wrong = |message: String| EmulatorError::Module { file: file.into(), message };
    if parsed.address_bits != 64 {
        return Err(wrong("only modules with .address_size 64 are supported".into()));
    }
    if parsed.version.0 > 9 {
        return Err(wrong(format!(
            "PTX {}.{} is newer than what is known here (9.x)",
            parsed.version.0, parsed.version.1
        )));
    }
    if let Some(wanted) = parsed.target.first().and_then(|target| architecture(target))
        && wanted > device_architecture
    {
        return Err(wrong(format!("the module is for sm_{wanted}, the device is sm_{device_architecture}")));
    }
    let mut module = Module { file: file.into(), program: Program::default(), globals: Vec::new(), owned: Vec::new() };
    let result = build(file, &parsed, memory, level, &mut module);
    if let Err(error) = result {
        release(&module, memory);
        return Err(error);
    }
    Ok(module)
}

/// Frees what the module allocated.
pub fn release(module: &Module, memory: &mut DeviceMemory) {
    for &address in &module.owned {
        // They were allocated by `build`; nobody else frees them unless the program passed their address to free, which
        // then has done the work.
        let _ = memory.free(address);
    }
}

fn build(
    file: &str,
    parsed: &ast::Module<'_>,
    memory: &mut DeviceMemory,
    level: Level,
    module: &mut Module,
) -> Result<()> {
    let wrong = |message: String| EmulatorError::Module { file: file.into(), message };
    let mut function_index: HashMap<&str, u32> = HashMap::new();
    for (index, function) in parsed.functions.iter().enumerate() {
        function_index.insert(function.name, index as u32);
    }
    for (alias, target) in &parsed.aliases {
        match function_index.get(target) {
            Some(&index) => function_index.insert(alias, index),
            None => return Err(wrong(format!("alias {alias} of unknown function {target}"))),
        };
    }
    let variable_index: HashMap<&str, u32> =
        parsed.variables.iter().enumerate().map(|(index, variable)| (variable.name, index as u32)).collect();

    // Module-level shared variables first, then those of functions: the same offsets for every kernel.
    let mut shared = 0u64;
    let mut dynamic_align = 16u64;
    let mut placements = Vec::with_capacity(parsed.variables.len());
    for variable in &parsed.variables {
        placements.push(match variable.space {
            Space::Shared if variable.is_unsized => {
                dynamic_align = dynamic_align.max(variable.align);
                Placement::DynamicShared
            }
            Space::Shared => {
                shared = shared.next_multiple_of(variable.align.max(1));
                let offset = shared;
                shared = shared.saturating_add(variable.bytes);
                Placement::Shared(offset)
            }
            _ if variable.linkage == Linkage::Extern => {
                return Err(wrong(format!(
                    "line {}: the extern variable {} is defined nowhere",
                    variable.line, variable.name
                )));
            }
            _ => {
                let address = memory.allocate(variable.bytes)?;
                // Variables without an initialiser start as zeros, as allocations are. Writing zeros would make the host
                // find real memory for whatever size the text names.
                memory.mark(address, variable.bytes as usize);
                module.owned.push(address);
                module.globals.push((variable.name.into(), address, variable.bytes));
                Placement::Device(address)
            }
        });
    }
    initialise(file, parsed, &placements, &function_index, &variable_index, memory)?;

    let mut signatures: Vec<FunctionInfo> = parsed.functions.iter().map(super::decode::function::signature).collect();
    for signature in &mut signatures {
        if !signature.is_defined && !signature.is_entry {
            signature.host_function = host_function(&signature.name);
        }
    }
    let constants: Vec<(u64, u64)> = parsed
        .variables
        .iter()
        .zip(&placements)
        .filter_map(|(variable, placement)| match *placement {
            Placement::Device(address) if variable.space == ast::Space::Const => Some((address, variable.bytes)),
            _ => None,
        })
        .collect();
    let environment = Environment {
        file,
        level,
        placements: &placements,
        constants: &constants,
        functions: &function_index,
        signatures: &signatures,
        variables: &variable_index,
    };
    // Functions (not kernels) are decoded first: kernels' own shared variables come behind all of theirs.
    let mut decoded: Vec<Option<DecodedFunction>> = parsed.functions.iter().map(|_| None).collect();
    let mut common = shared;
    let mut refusals: Vec<Option<EmulatorError>> = parsed.functions.iter().map(|_| None).collect();
    for is_entry in [false, true] {
        for (index, function) in
            parsed.functions.iter().enumerate().filter(|(_, function)| function.is_entry == is_entry)
        {
            let Some(body) = &function.body else { continue };
            // A kernel that uses no common shared variable and calls nothing does not pay for them.
            let start = if is_entry && !uses_common_shared(parsed, body, &placements) { 0 } else { common };
            let result = match Decoder::decode(&environment, function, body, start) {
                Ok(result) => result,
                Err(refusal) => {
                    refusals[index] = Some(refusal);
                    continue;
                }
            };
            if !is_entry {
                common = result.info.shared_bytes;
            }
            decoded[index] = Some(result);
        }
    }
    let in_variables =
        parsed.variables.iter().flat_map(|variable| &variable.init).filter_map(|value| match value.value {
            InitialWord::Address { name, .. } => function_index.get(name).map(|&index| index as usize),
            InitialWord::Bits(_) => None,
        });
    let calls = CallGraph::new(&decoded, in_variables.collect());
    calls.refuse_callers(&mut refusals);
    calls.spread_to_callers(&mut decoded, |info| &mut info.reads_workspace);
    calls.spread_to_callers(&mut decoded, |info| &mut info.reads_reserved_shared);
    calls.spread_to_callers(&mut decoded, |info| &mut info.sums_floats);
    calls.measure(&mut decoded);
    // A module of which nothing can run is wrong as a whole.
    let mut kernels =
        signatures.iter().zip(&refusals).filter(|(signature, _)| signature.is_entry && signature.is_defined);
    if kernels.clone().next().is_none() || kernels.all(|(_, refusal)| refusal.is_some()) {
        let first = |refusal: &&EmulatorError| match refusal {
            EmulatorError::Instruction { line, .. } => *line,
            _ => 0,
        };
        if let Some(refusal) = refusals.iter().flatten().min_by_key(first) {
            return Err(refusal.clone());
        }
    }
    for (signature, refusal) in signatures.iter_mut().zip(&refusals) {
        signature.refusal = refusal.clone().map(Box::new);
    }
    let program = &mut module.program;
    program.common_shared_bytes = common;
    program.source_files = parsed.files.clone();
    for (result, signature) in decoded.into_iter().zip(signatures) {
        let Some(mut result) = result else {
            program.functions.push(signature);
            continue;
        };
        result.info.refusal = signature.refusal;
        let (pc, opcode) = (program.code.len() as u32, program.opcodes.len() as u32);
        for instr in &mut result.code {
            match &mut instr.op {
                Op::Branch { target } | Op::Jump { target } => *target += pc,
                Op::BranchIndexed { targets, .. } => targets.iter_mut().for_each(|target| *target += pc),
                _ => {}
            }
        }
        for meta in &mut result.meta {
            if meta.opcode != super::decode::program::NONE {
                meta.opcode += opcode;
            }
        }
        for flow in &mut result.flows {
            flow.start += program.register_uses.len() as u32;
        }
        result.info.entry_pc += pc;
        result.info.dynamic_shared_align = result.info.dynamic_shared_align.max(dynamic_align);
        program.code.append(&mut result.code);
        program.meta.append(&mut result.meta);
        program.flows.append(&mut result.flows);
        program.register_uses.append(&mut result.register_uses);
        program.opcodes.append(&mut result.opcodes);
        program.functions.push(result.info);
    }
    Ok(())
}

/// True if the body names a module-level shared variable, or may by a call.
fn uses_common_shared(parsed: &ast::Module<'_>, body: &ast::Body<'_>, placements: &[Placement]) -> bool {
    fn names(operand: &ast::Operand<'_>, test: &dyn Fn(VariableRef) -> bool) -> bool {
        match operand {
            ast::Operand::Variable(variable, _)
            | ast::Operand::Element(variable, _)
            | ast::Operand::Address(ast::Base::Variable(variable), _) => test(*variable),
            ast::Operand::Vector(list) | ast::Operand::List(list) => list.iter().any(|operand| names(operand, test)),
            _ => false,
        }
    }
    let defined = |name: &str| parsed.functions.iter().any(|function| function.name == name && function.body.is_some());
    let is_shared = |variable: VariableRef| matches!(variable, VariableRef::Module(index) if matches!(placements[index as usize], Placement::Shared(_)));
    body.instructions.iter().any(|instruction| {
        let calls = instruction.opcode == "call"
            && instruction.operands.iter().any(|operand| match operand {
                ast::Operand::Name(name) => defined(name),
                ast::Operand::Register(_) => true,
                _ => false,
            });
        calls || instruction.operands.iter().any(|operand| names(operand, &is_shared))
    })
}

fn initialise(
    file: &str,
    parsed: &ast::Module<'_>,
    placements: &[Placement],
    functions: &HashMap<&str, u32>,
    variables: &HashMap<&str, u32>,
    memory: &mut DeviceMemory,
) -> Result<()> {
    let wrong = |line: u32, message: String| EmulatorError::Instruction {
        file: file.into(),
        line,
        function: String::new(),
        message,
    };
    for (variable, placement) in parsed.variables.iter().zip(placements) {
        let Placement::Device(address) = *placement else { continue };
        for value in &variable.init {
            let bits = match value.value {
                InitialWord::Bits(bits) => bits,
                InitialWord::Address { name, addend, shift, .. } => {
                    let base = match (functions.get(name), variables.get(name).map(|&index| placements[index as usize]))
                    {
                        (Some(&index), _) => FUNCTION_BASE + 16 * u64::from(index),
                        (_, Some(Placement::Device(address))) => address,
                        (_, Some(Placement::Shared(offset))) => SHARED_WINDOW + offset,
                        (_, Some(Placement::DynamicShared)) => SHARED_WINDOW,
                        _ => {
                            let message = format!("unknown name '{name}' in the initialiser of {}", variable.name);
                            return Err(wrong(variable.line, message));
                        }
                    };
                    base.wrapping_add_signed(addend) >> shift
                }
            };
            let bytes = bits.to_le_bytes();
            let length = (value.bytes as usize).min(8);
            if value.offset + length as u64 > variable.bytes {
                let message = format!("the initialiser of {} is longer than the variable", variable.name);
                return Err(wrong(variable.line, message));
            }
            memory.write(address + value.offset, &bytes[..length])?;
        }
    }
    Ok(())
}
