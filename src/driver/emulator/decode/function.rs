//! Decoding of one function: layout of its variables, order of its blocks, then instruction by instruction.

use std::collections::HashMap;

use super::modifiers::Modifiers;
use super::program::{Flow, FormalParameter, FunctionInfo, Instr, Meta, NONE, Op, PresetValue, RegisterUse};
use super::{Decoder, Environment, control_flow};
use crate::ast::{Body, Function, Instruction, Operand, Space, Special, Type};
use crate::error::{EmulatorError, Result};
use crate::machine::warp::MAX_LOCAL_BYTES;

/// What one function became.
pub struct DecodedFunction {
    pub code: Vec<Instr>,
    pub meta: Vec<Meta>,
    pub flows: Vec<Flow>,
    pub register_uses: Vec<RegisterUse>,
    pub opcodes: Vec<String>,
    /// Functions whose address it takes.
    pub addressed: Vec<u32>,
    pub info: FunctionInfo,
}

fn align_up(value: u64, align: u64) -> u64 {
    value.next_multiple_of(align.max(1))
}

/// Offsets of the variables of a body in their spaces, and the bytes of local and of shared memory.
pub fn place_variables(function: &Function<'_>, body: &Body<'_>, shared_start: u64) -> (Vec<u64>, u64, u64, u64) {
    let (mut local, mut shared, mut dynamic_align) = (0u64, shared_start, 1u64);
    let mut param = 0u64;
    let mut offsets = Vec::with_capacity(body.variables.len());
    for (index, variable) in body.variables.iter().enumerate() {
        let formal = function.params.iter().any(|p| p.register.is_none() && p.variable as usize == index);
        let cursor = match variable.space {
            Space::Shared if variable.is_unsized => {
                dynamic_align = dynamic_align.max(variable.align);
                offsets.push(0);
                continue;
            }
            Space::Shared => &mut shared,
            Space::Param if function.is_entry && formal => &mut param,
            _ => &mut local,
        };
        *cursor = align_up(*cursor, variable.align);
        offsets.push(*cursor);
        *cursor = cursor.saturating_add(variable.bytes);
    }
    (offsets, align_up(local, 16), shared, dynamic_align)
}

/// The head of a function: its parameters in the order of the launch or call.
pub fn signature(function: &Function<'_>) -> FunctionInfo {
    let empty = Body::default();
    let body = function.body.as_ref().unwrap_or(&empty);
    let (offsets, ..) = place_variables(function, body, 0);
    let mut bare = 0u32;
    let formal = |parameter: &crate::ast::Parameter, bare: &mut u32| {
        let (bytes, align) = (parameter.bytes as u32, parameter.align.max(1) as u32);
        let offset = match offsets.get(parameter.variable as usize) {
            Some(&offset) => offset as u32,
            // A declaration without a body: parameters side by side.
            None => {
                let offset = bare.next_multiple_of(align);
                *bare = offset + bytes;
                offset
            }
        };
        FormalParameter { offset, bytes, align, plane: NONE }
    };
    let params: Vec<_> = function.params.iter().map(|parameter| formal(parameter, &mut bare)).collect();
    let returns: Vec<_> = function.returns.iter().map(|parameter| formal(parameter, &mut bare)).collect();
    FunctionInfo {
        name: function.name.into(),
        is_entry: function.is_entry,
        is_defined: function.body.is_some(),
        param_bytes: params.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0),
        params,
        returns,
        limits: function.limits,
        ..FunctionInfo::default()
    }
}

/// Planes of each register, in order of first use, and the planes in all. Wide registers start on even planes.
pub fn place_registers(body: &Body<'_>) -> (Vec<u32>, u32) {
    let mut next = 0u32;
    let slots = body
        .registers
        .iter()
        .map(|(ty, _)| {
            let planes = ty.bits().div_ceil(32);
            let slot = next;
            next += planes;
            slot
        })
        .collect();
    (slots, next)
}

impl<'e> Decoder<'e> {
    /// Decodes `function`, whose shared variables start at `shared_start`.
    ///
    /// # Errors
    /// The first instruction that is wrong, unknown or not supported, with its line.
    pub fn decode(
        environment: &'e Environment<'e>,
        function: &'e Function<'e>,
        body: &'e Body<'e>,
        shared_start: u64,
    ) -> Result<DecodedFunction> {
        let (variable_offsets, local_bytes, shared_bytes, dynamic_shared_align) =
            place_variables(function, body, shared_start);
        if local_bytes > MAX_LOCAL_BYTES {
            let message = format!(
                "{} needs {local_bytes} bytes of local memory per thread; a thread has at most {MAX_LOCAL_BYTES}",
                function.name
            );
            return Err(EmulatorError::Instruction {
                file: environment.file.into(),
                line: function.line,
                function: function.name.into(),
                message,
            });
        }
        let (slots, next_plane) = place_registers(body);
        let mut decoder = Decoder {
            environment,
            function,
            body,
            level: environment.level,
            slots,
            next_plane,
            presets: Vec::new(),
            preset_slots: HashMap::new(),
            variable_offsets,
            local_bytes,
            stack_pointer: None,
            carry: None,
            addressed: Vec::new(),
            code: Vec::new(),
            meta: Vec::new(),
            flows: Vec::new(),
            register_uses: Vec::new(),
            current_flow: Flow::default(),
            opcodes: HashMap::new(),
            opcode_names: Vec::new(),
            current_guard: (NONE, false),
            current_meta: Meta::default(),
            line: function.line,
        };
        if decoder.next_plane > super::MAX_PLANES {
            return decoder.fail("the function uses more registers than the emulator has (131072 words per thread)");
        }
        let entry_pc = decoder.blocks()?;
        let mut info = signature(function);
        for (formal, parameter) in
            info.params.iter_mut().zip(&function.params).chain(info.returns.iter_mut().zip(&function.returns))
        {
            formal.plane = parameter.register.map_or(NONE, |register| decoder.slots[register as usize]);
        }
        info.planes = decoder.next_plane;
        info.entry_pc = entry_pc;
        for preset in &decoder.presets {
            if let PresetValue::Special32(special) | PresetValue::Special64(special) = preset.value {
                info.reads_workspace |= matches!(special, Special::WorkspaceHi | Special::WorkspaceLo);
                info.reads_reserved_shared |=
                    matches!(special, Special::ReservedShared(_) | Special::AggregateSharedBytes);
            }
        }
        info.presets = decoder.presets;
        info.local_bytes = local_bytes;
        info.stack_pointer = decoder.stack_pointer;
        info.shared_bytes = shared_bytes;
        info.dynamic_shared_align = dynamic_shared_align;
        info.register_words = next_plane;
        info.sums_floats = decoder.code.iter().any(|instr| instr.op.is_ordered_sum());
        info.register_names =
            decoder.slots.iter().zip(&body.registers).map(|(&slot, (_, name))| (slot, (*name).into())).collect();
        let Decoder { code, meta, flows, register_uses, opcode_names: opcodes, addressed, .. } = decoder;
        Ok(DecodedFunction { code, meta, flows, register_uses, opcodes, addressed, info })
    }

    fn label(&self, name: &str) -> Result<u32> {
        match self.body.labels.iter().find(|(label, _)| *label == name) {
            Some(&(_, at)) => Ok(at),
            None => self.fail(format!("unknown label '{name}'")),
        }
    }

    /// Instruction numbers that a control instruction can go to.
    fn targets(&mut self, instruction: &Instruction<'e>, labels: &HashMap<&str, u32>) -> Result<Vec<u32>> {
        self.line = instruction.line;
        let find = |name: &str| labels.get(name).copied();
        match (instruction.opcode, instruction.operands.as_slice()) {
            ("bra", [Operand::Name(name)]) => match find(name) {
                Some(target) => Ok(vec![target]),
                None => self.label(name).map(|target| vec![target]),
            },
            ("brx", [_, Operand::Name(list)]) => {
                let Some((_, names)) = self.body.branch_targets.iter().find(|(name, _)| name == list) else {
                    return self.fail(format!("unknown branch target list '{list}'"));
                };
                names.iter().map(|name| find(name).map_or_else(|| self.label(name), Ok)).collect()
            }
            ("bra" | "brx", _) => {
                self.fail(format!("{} takes a label (and brx.idx an index before it)", instruction.opcode))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Lays out and decodes all blocks; returns where the first one starts.
    fn blocks(&mut self) -> Result<u32> {
        let instructions = &self.body.instructions;
        let count = instructions.len() as u32;
        let labels: HashMap<&str, u32> = self.body.labels.iter().copied().collect();
        let mut is_leader = vec![false; instructions.len() + 1];
        is_leader[0] = true;
        for &(_, at) in &self.body.labels {
            is_leader[at as usize] = true;
        }
        let mut targets: HashMap<u32, Vec<u32>> = HashMap::new();
        for (index, instruction) in instructions.iter().enumerate() {
            if matches!(instruction.opcode, "bra" | "brx" | "ret" | "exit" | "trap") {
                is_leader[index + 1] = true;
                let found = self.targets(instruction, &labels)?;
                targets.insert(index as u32, found);
            }
        }
        // A last, empty block stands for running off the end, which returns.
        let starts: Vec<u32> = (0..=count).filter(|&at| is_leader[at as usize] || at == count).collect();
        let block_at = |at: u32| starts.partition_point(|&start| start <= at) as u32 - 1;
        let ends: Vec<u32> = starts.iter().skip(1).copied().chain([count]).collect();
        let mut successors: Vec<Vec<u32>> = Vec::with_capacity(starts.len());
        let mut falls_through = Vec::with_capacity(starts.len());
        for (block, (&start, &end)) in starts.iter().zip(&ends).enumerate() {
            let last = (end > start).then(|| &instructions[end as usize - 1]);
            let mut next: Vec<u32> = match last {
                Some(_) => targets.get(&(end - 1)).into_iter().flatten().map(|&at| block_at(at)).collect(),
                None => Vec::new(),
            };
            let ends_flow = last.is_some_and(|last| {
                last.guard.is_none() && matches!(last.opcode, "bra" | "brx" | "ret" | "exit" | "trap")
            });
            let falls = !ends_flow && block + 1 < starts.len();
            if falls {
                next.push(block as u32 + 1);
            }
            falls_through.push(falls);
            successors.push(next);
        }
        let order = control_flow::order(&successors);
        let mut pc_of_block = vec![0u32; starts.len()];
        // (pc, block) of jumps whose target is known once everything is placed.
        for (position, &block) in order.iter().enumerate() {
            let block = block as usize;
            pc_of_block[block] = self.code.len() as u32;
            for index in starts[block]..ends[block] {
                let instruction = &instructions[index as usize];
                self.line = instruction.line;
                self.current_guard = match instruction.guard {
                    Some((register, negated)) => (self.slots[register as usize], negated),
                    None => (NONE, false),
                };
                let opcode = self.opcode(instruction);
                self.current_meta =
                    Meta { line: instruction.line, source: instruction.source, opcode, tensor_flops: 0 };
                self.current_flow = self.flow(instruction);
                let before = self.code.len();
                match targets.get(&index).map(Vec::as_slice) {
                    Some(&[target]) if instruction.opcode == "bra" => {
                        let mut modifiers = Modifiers::new(&instruction.modifiers);
                        modifiers.flag("uni");
                        self.finish(instruction, &modifiers)?;
                        self.emit(Op::Branch { target: block_at(target) });
                    }
                    Some(list) if instruction.opcode == "brx" => {
                        let mut modifiers = Modifiers::new(&instruction.modifiers);
                        modifiers.flag("idx");
                        modifiers.flag("uni");
                        self.finish(instruction, &modifiers)?;
                        let index = self.source(&instruction.operands[0], Type::U32)?;
                        self.emit(Op::BranchIndexed { index, targets: list.iter().map(|&at| block_at(at)).collect() });
                    }
                    _ => {
                        self.instruction(instruction)?;
                        // The flops are known only after decoding.
                        for meta in &mut self.meta[before..] {
                            meta.tensor_flops = self.current_meta.tensor_flops;
                        }
                    }
                }
                // Of several operations the first one stands for the instruction; reading a clock comes before it.
                let is_read = |instr: &Instr| matches!(instr.op, Op::ReadClock { .. });
                let first = before + self.code[before..].iter().take_while(|instr| is_read(instr)).count();
                self.flows.resize(self.code.len(), Flow::default());
                if let Some(flow) = self.flows.get_mut(first) {
                    *flow = self.current_flow;
                }
            }
            self.current_guard = (NONE, false);
            self.current_meta = Meta { line: self.line, opcode: NONE, ..Meta::default() };
            if falls_through[block] {
                if order.get(position + 1) != Some(&(block as u32 + 1)) {
                    self.emit(Op::Jump { target: block as u32 + 1 });
                }
            } else if block + 1 == starts.len() {
                self.emit(Op::Return);
            }
            self.flows.resize(self.code.len(), Flow::default());
        }
        for instr in &mut self.code {
            match &mut instr.op {
                Op::Branch { target } | Op::Jump { target } => *target = pc_of_block[*target as usize],
                Op::BranchIndexed { targets, .. } => {
                    targets.iter_mut().for_each(|target| *target = pc_of_block[*target as usize])
                }
                _ => {}
            }
        }
        Ok(pc_of_block[0])
    }

    /// The number of the instruction's spelling, for counts per opcode.
    fn opcode(&mut self, instruction: &Instruction<'e>) -> u32 {
        let mut name = String::from(instruction.opcode);
        for modifier in &instruction.modifiers {
            name.push('.');
            name.push_str(modifier);
        }
        let next = self.opcode_names.len() as u32;
        *self.opcodes.entry(name).or_insert_with_key(|name| {
            self.opcode_names.push(name.clone());
            next
        })
    }

    /// Refuses modifiers that nobody took.
    pub(crate) fn finish(&self, instruction: &Instruction<'e>, modifiers: &Modifiers<'_>) -> Result<()> {
        match modifiers.rest() {
            Some(rest) => self.fail(format!("unsupported modifier .{rest} on {}", instruction.opcode)),
            None => Ok(()),
        }
    }
}
