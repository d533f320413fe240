//! From [`ast`](super::ast) to [`Program`]: names become planes and addresses, instructions become closures and data.
//!
//! Everything that can be wrong with a program's text is found here, before anything runs, and named with its line. The
//! meaning of each instruction family lies in `execute`; this file has what they share: operands, constants, emission.

pub mod call_graph;
pub mod control_flow;
pub mod function;
pub mod modifiers;
mod operands;
pub mod program;

use std::collections::HashMap;

use super::ast::{Base, Body, Function, Instruction, Operand, Space, Special, Type, VariableRef};
use super::error::{EmulatorError, Result};
use super::lanes::{Alu, Level, Value, binary, ternary, unary};
use modifiers::Modifiers;
use program::{Address, AddressSpace, DataRegister, Flow, Instr, Meta, Op, Preset, PresetValue, RegisterUse, Rule};

/// Generic addresses of shared memory start here.
pub const SHARED_WINDOW: u64 = 0x0000_7F00_0000_0000;
/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 0x0000_7F10_0000_0000;
/// Generic addresses of kernel parameters start here.
pub const PARAM_WINDOW: u64 = 0x0000_7F20_0000_0000;
/// Bytes of each window.
pub const WINDOW_BYTES: u64 = 0x0000_0010_0000_0000;
/// "Addresses" of functions: this plus 16 times their index.
pub const FUNCTION_BASE: u64 = 0x0000_7F40_0000_0000;

/// Where a module-level variable lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In device memory, at this address.
    Device(u64),
    /// In every block's shared memory, at this offset.
    Shared(u64),
    /// `.extern .shared x[]`.
    DynamicShared,
}

/// What decoding knows of the module as a whole.
pub struct Environment<'e> {
    pub file: &'e str,
    pub level: Level,
    pub placements: &'e [Placement],
    /// Where the `.const` variables are, and how many bytes each has.
    pub constants: &'e [(u64, u64)],
    /// Function names (aliases included) to indices.
    pub functions: &'e HashMap<&'e str, u32>,
    /// Formal parameters of each function.
    pub signatures: &'e [program::FunctionInfo],
    /// Module-level variables by name, for uses before their declaration.
    pub variables: &'e HashMap<&'e str, u32>,
}

/// Decodes one function.
pub struct Decoder<'e> {
    pub(super) environment: &'e Environment<'e>,
    pub(super) function: &'e Function<'e>,
    pub(super) body: &'e Body<'e>,
    pub(super) level: Level,
    /// Plane of each register.
    slots: Vec<u32>,
    next_plane: u32,
    presets: Vec<Preset>,
    preset_slots: HashMap<PresetValue, u32>,
    /// Offset of each body variable in its space.
    pub(super) variable_offsets: Vec<u64>,
    /// `.local` and `.param` bytes of a frame.
    local_bytes: u64,
    /// Plane of the stack pointer, once an instruction uses it.
    stack_pointer: Option<u32>,
    /// The condition code's carry bit, once an instruction uses it.
    pub(super) carry: Option<u32>,
    /// Functions whose address the function takes.
    addressed: Vec<u32>,
    code: Vec<Instr>,
    meta: Vec<Meta>,
    flows: Vec<Flow>,
    register_uses: Vec<RegisterUse>,
    current_flow: Flow,
    opcodes: HashMap<String, u32>,
    opcode_names: Vec<String>,
    current_guard: (u32, bool),
    current_meta: Meta,
    line: u32,
}

/// Most planes of a frame: 16 MiB of registers a warp is far beyond any kernel, and bounds what a hostile text costs.
const MAX_PLANES: u32 = 1 << 17;

impl<'e> Decoder<'e> {
    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(EmulatorError::Instruction {
            file: self.environment.file.into(),
            line: self.line,
            function: self.function.name.into(),
            message: message.into(),
        })
    }

    pub(super) fn emit(&mut self, op: Op) {
        let (guard, is_negated) = self.current_guard;
        self.code.push(Instr { op, guard, is_negated });
        self.meta.push(self.current_meta);
    }

    pub(super) fn emit_alu(&mut self, alu: Alu) {
        self.emit(Op::Alu(alu));
    }

    /// Marks the instruction as tensor-core work of this many operations per warp.
    pub(super) fn set_tensor_flops(&mut self, flops: u32) {
        self.current_meta.tensor_flops = flops;
    }

    /// How the instruction's results come from what it reads, where its opcode does not say.
    pub(super) fn set_rule(&mut self, rule: Rule) {
        self.current_flow.rule = rule;
    }

    pub(super) fn unary<A: Value, D: Value>(&mut self, d: u32, a: u32, f: impl Fn(A) -> D + Send + Sync + 'static) {
        let alu = unary(self.level, d, [a], f);
        self.emit(Op::Alu(alu));
    }

    pub(super) fn binary<A: Value, B: Value, D: Value>(
        &mut self,
        d: u32,
        sources: [u32; 2],
        f: impl Fn(A, B) -> D + Send + Sync + 'static,
    ) {
        let alu = binary(self.level, d, sources, f);
        self.emit(Op::Alu(alu));
    }

    pub(super) fn ternary<A: Value, B: Value, C: Value, D: Value>(
        &mut self,
        d: u32,
        sources: [u32; 3],
        f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
    ) {
        let alu = ternary(self.level, d, sources, f);
        self.emit(Op::Alu(alu));
    }

    /// Fresh planes, aligned for the width.
    pub(super) fn allocate(&mut self, planes: u32) -> Result<u32> {
        let slot = self.next_plane;
        self.next_plane += planes;
        if self.next_plane > MAX_PLANES {
            return self.fail("the function uses more registers than the emulator has (131072 words per thread)");
        }
        Ok(slot)
    }

    pub(super) fn preset(&mut self, value: PresetValue) -> Result<u32> {
        if let Some(&slot) = self.preset_slots.get(&value) {
            return Ok(slot);
        }
        let slot = self.allocate(value.planes())?;
        self.presets.push(Preset { slot, value });
        self.preset_slots.insert(value, slot);
        Ok(slot)
    }

    /// The plane of each thread's stack pointer, which starts behind the frame's variables.
    pub(super) fn stack_pointer(&mut self) -> Result<u32> {
        if let Some(pointer) = self.stack_pointer {
            return Ok(pointer);
        }
        // Not by `preset`, which would share the plane with a variable's address.
        let pointer = self.allocate(1)?;
        self.presets.push(Preset { slot: pointer, value: PresetValue::Local32(self.local_bytes) });
        self.stack_pointer = Some(pointer);
        Ok(pointer)
    }

    pub(super) fn constant(&mut self, bits: u64, planes: u32) -> Result<u32> {
        self.preset(if planes == 1 { PresetValue::Word32(bits as u32) } else { PresetValue::Word64(bits) })
    }

    pub(super) fn register_type(&self, index: u32) -> Type {
        self.body.registers[index as usize].0
    }

    pub(super) fn slot(&self, index: u32) -> u32 {
        self.slots[index as usize]
    }

    /// The N operands of an instruction that takes exactly N.
    pub(super) fn operands<'i, const N: usize>(
        &self,
        instruction: &'i Instruction<'e>,
    ) -> Result<&'i [Operand<'e>; N]> {
        match instruction.operands.as_slice().try_into() {
            Ok(operands) => Ok(operands),
            Err(_) => {
                let (opcode, found) = (instruction.opcode, instruction.operands.len());
                self.fail(format!("{opcode} takes {N} operands here, found {found}"))
            }
        }
    }

    fn describe(&self, operand: &Operand<'_>) -> String {
        match operand {
            Operand::Register(index) => {
                let (ty, name) = self.body.registers[*index as usize];
                format!("{name} (.{ty:?})").to_lowercase()
            }
            Operand::Part(_, selector) => format!("the part .{selector} of a register"),
            Operand::Name(name) => format!("'{}'", name.chars().take(60).collect::<String>()),
            Operand::Integer(value) => format!("{value}"),
            Operand::Vector(_) => "a vector".into(),
            Operand::Address(..) => "an address".into(),
            Operand::Pair(_) => "a pair".into(),
            Operand::Sink => "'_'".into(),
            _ => "this operand".into(),
        }
    }

    /// The plane of a source operand of type `ty`; registers must have the type's width.
    pub(super) fn source(&mut self, operand: &Operand<'e>, ty: Type) -> Result<u32> {
        if let Operand::Register(index) = operand {
            let register = self.register_type(*index);
            if register.bits() != ty.bits() {
                return self.fail(format!("expected a {}-bit operand, found {}", ty.bits(), self.describe(operand)));
            }
            return Ok(self.slot(*index));
        }
        self.relaxed_source(operand, ty)
    }

    /// Like [`Self::source`], but a register may be wider than the type (ld, st, cvt).
    pub(super) fn relaxed_source(&mut self, operand: &Operand<'e>, ty: Type) -> Result<u32> {
        let planes = ty.bits().div_ceil(32).max(1);
        match operand {
            Operand::Register(index) => {
                let register = self.register_type(*index);
                if register == Type::Pred || register.bits() < ty.bits() {
                    return self.fail(format!(
                        "expected an operand of {} bits, found {}",
                        ty.bits(),
                        self.describe(operand)
                    ));
                }
                let slot = self.slot(*index);
                if register.bits() != 64 || planes != 1 {
                    return Ok(slot);
                }
                // Lanes of 64 bits lie twice as far apart: what reads 32 needs them closed up.
                let low = self.allocate(1)?;
                self.unary(low, slot, |value: u64| value as u32);
                Ok(low)
            }
            // Constants have 64 bits at most.
            _ if planes > 2 => self.fail(format!("expected a 128-bit register, found {}", self.describe(operand))),
            Operand::Integer(value) => {
                let bits = match ty {
                    Type::F32 => u64::from((*value as i64 as f32).to_bits()),
                    Type::F64 => (*value as i64 as f64).to_bits(),
                    _ if ty.bits() < 32 => value & ((1 << ty.bits()) - 1),
                    _ => *value,
                };
                self.constant(bits, planes)
            }
            Operand::Float(value) => {
                let bits = match ty.bits() {
                    64 => value.to_bits(),
                    16 if ty == Type::Bf16 => u64::from(half::bf16::from_f64(*value).to_bits()),
                    16 => u64::from(half::f16::from_f64(*value).to_bits()),
                    _ => u64::from((*value as f32).to_bits()),
                };
                self.constant(bits, planes)
            }
            Operand::FloatBits(bits) => {
                let bits = if ty.bits() == 64 { f64::from(f32::from_bits(*bits)).to_bits() } else { u64::from(*bits) };
                self.constant(bits, planes)
            }
            Operand::Special(special) => self.special(*special, planes),
            Operand::Variable(variable, offset) | Operand::Element(variable, offset) => {
                self.variable_address(*variable, *offset, planes)
            }
            Operand::Name(name) => {
                if let Some(&index) = self.environment.functions.get(name) {
                    self.addressed.push(index);
                    return self.constant(FUNCTION_BASE + 16 * u64::from(index), planes);
                }
                if let Some(&index) = self.environment.variables.get(name) {
                    return self.variable_address(VariableRef::Module(index), 0, planes);
                }
                self.fail(format!("unknown name {}", self.describe(operand)))
            }
            _ => self.fail(format!("expected a register or constant, found {}", self.describe(operand))),
        }
    }

    fn special(&mut self, special: Special, planes: u32) -> Result<u32> {
        if special.is_volatile() {
            let d = self.allocate(2)?;
            self.emit(Op::ReadClock { d, special, is_wide: planes == 2 });
            return Ok(d);
        }
        self.preset(if planes == 2 { PresetValue::Special64(special) } else { PresetValue::Special32(special) })
    }

    /// The plane of a variable's address in its own space.
    pub(super) fn variable_address(&mut self, variable: VariableRef, offset: i64, planes: u32) -> Result<u32> {
        let (space, base) = self.variable_place(variable);
        let value = match base {
            None if planes == 1 => PresetValue::DynamicShared32(offset),
            None => PresetValue::DynamicShared64(offset),
            Some(base) => {
                let address = base.wrapping_add_signed(offset);
                match space {
                    AddressSpace::Local if planes == 1 => PresetValue::Local32(address),
                    AddressSpace::Local => PresetValue::Local64(address),
                    _ if planes == 1 => PresetValue::Word32(address as u32),
                    _ => PresetValue::Word64(address),
                }
            }
        };
        self.preset(value)
    }

    /// The space of a variable and its address there; none for dynamic shared memory.
    fn variable_place(&self, variable: VariableRef) -> (AddressSpace, Option<u64>) {
        match variable {
            VariableRef::Module(index) => match self.environment.placements[index as usize] {
                Placement::Device(address) => (AddressSpace::Global, Some(address)),
                Placement::Shared(offset) => (AddressSpace::Shared, Some(offset)),
                Placement::DynamicShared => (AddressSpace::Shared, None),
            },
            VariableRef::Local(index) => {
                let variable = &self.body.variables[index as usize];
                let offset = Some(self.variable_offsets[index as usize]);
                match variable.space {
                    Space::Shared if variable.is_unsized => (AddressSpace::Shared, None),
                    Space::Shared => (AddressSpace::Shared, offset),
                    Space::Local => (AddressSpace::Local, offset),
                    Space::Param if self.is_kernel_parameter(index) => (AddressSpace::Param, offset),
                    Space::Param => (AddressSpace::Local, offset),
                    _ => (AddressSpace::Global, offset),
                }
            }
        }
    }

    fn is_kernel_parameter(&self, variable: u32) -> bool {
        self.function.is_entry && self.function.params.iter().any(|p| p.register.is_none() && p.variable == variable)
    }

    /// A source predicate, maybe negated.
    pub(super) fn predicate(&mut self, operand: &Operand<'e>) -> Result<(u32, bool)> {
        match operand {
            Operand::Not(inner) => self.predicate(inner).map(|(slot, negated)| (slot, !negated)),
            Operand::Register(index) if self.register_type(*index) == Type::Pred => Ok((self.slot(*index), false)),
            Operand::Integer(value) => Ok((self.preset(PresetValue::Predicate(*value != 0))?, false)),
            _ => self.fail(format!("expected a predicate, found {}", self.describe(operand))),
        }
    }

    /// The plane of a destination of exactly the type's width; `_` gets a plane that nobody reads.
    pub(super) fn destination(&mut self, operand: &Operand<'e>, ty: Type) -> Result<u32> {
        match operand {
            Operand::Register(index) if self.register_type(*index).bits() == ty.bits() => Ok(self.slot(*index)),
            Operand::Sink => self.allocate(ty.bits().div_ceil(32).max(1)),
            _ => self.fail(format!("expected a {}-bit register to write, found {}", ty.bits(), self.describe(operand))),
        }
    }

    pub(super) fn predicate_destination(&mut self, operand: &Operand<'e>) -> Result<u32> {
        match operand {
            Operand::Register(index) if self.register_type(*index) == Type::Pred => Ok(self.slot(*index)),
            Operand::Sink => self.allocate(1),
            _ => self.fail(format!("expected a predicate register to write, found {}", self.describe(operand))),
        }
    }

    /// The first operand and, of a pair `d|p`, the second.
    pub(super) fn pair<'i>(operand: &'i Operand<'e>) -> (&'i Operand<'e>, Option<&'i Operand<'e>>) {
        match operand {
            Operand::Pair(pair) => (&pair.0, Some(&pair.1)),
            _ => (operand, None),
        }
    }

    /// The elements of `{...}`, or the operand alone.
    pub(super) fn elements<'i>(operand: &'i Operand<'e>) -> &'i [Operand<'e>] {
        match operand {
            Operand::Vector(elements) => elements,
            _ => std::slice::from_ref(operand),
        }
    }

    /// A register of a load or store: at least as wide as the type.
    pub(super) fn data_register(&mut self, operand: &Operand<'e>, ty: Type, is_write: bool) -> Result<DataRegister> {
        match operand {
            Operand::Sink if is_write => Ok(DataRegister::SINK),
            Operand::Register(index) => {
                let register = self.register_type(*index);
                if register == Type::Pred || register.bits() < ty.bits() {
                    return self.fail(format!(
                        "expected a register of at least {} bits, found {}",
                        ty.bits(),
                        self.describe(operand)
                    ));
                }
                Ok(DataRegister {
                    slot: self.slot(*index),
                    planes: register.bits().div_ceil(32) as u8,
                    bits: register.bits() as u8,
                })
            }
            _ if is_write => self.fail(format!("expected a register to write, found {}", self.describe(operand))),
            _ => {
                let slot = self.relaxed_source(operand, ty)?;
                Ok(DataRegister { slot, planes: ty.bits().div_ceil(32) as u8, bits: ty.bits() as u8 })
            }
        }
    }

    /// `[...]`, or an element of an array, in a space that the instruction names: its plane, whether that is 64 bits wide,
    /// and the constant part.
    pub(super) fn address(&mut self, operand: &Operand<'e>, space: Space) -> Result<Address> {
        let (base, offset) = match operand {
            Operand::Address(base, offset) => (base.clone(), *offset),
            Operand::Element(variable, offset) => (Base::Variable(*variable), *offset),
            _ => return self.fail(format!("expected an address in brackets, found {}", self.describe(operand))),
        };
        let mut space = match space {
            Space::Generic => AddressSpace::Generic,
            Space::Global | Space::Const => AddressSpace::Global,
            Space::Shared => AddressSpace::Shared,
            Space::Local => AddressSpace::Local,
            Space::Param if self.function.is_entry => AddressSpace::Param,
            Space::Param => AddressSpace::Local,
        };
        let (base, is_wide, offset) = match base {
            Base::Register(index) => {
                let register = self.register_type(index);
                if register.bits() != 32 && register.bits() != 64 {
                    return self.fail(format!(
                        "expected a 32- or 64-bit address register, found {}",
                        self.describe(&Operand::Register(index))
                    ));
                }
                (self.slot(index), register.bits() == 64, offset)
            }
            Base::Variable(variable) => {
                let (place, _) = self.variable_place(variable);
                let is_parameter = matches!(space, AddressSpace::Param | AddressSpace::Local);
                if space == AddressSpace::Generic
                    || (is_parameter && place != space && matches!(place, AddressSpace::Param | AddressSpace::Local))
                {
                    space = place;
                } else if place != space {
                    return self.fail("the variable is in another state space than the instruction names");
                }
                (self.variable_address(variable, 0, 2)?, true, offset)
            }
            Base::Name(name) => match self.environment.variables.get(name) {
                Some(&index) => (self.variable_address(VariableRef::Module(index), 0, 2)?, true, offset),
                None => return self.fail(format!("unknown name '{name}'")),
            },
            Base::Absolute => (self.constant(offset as u64, 2)?, true, 0),
        };
        Ok(Address { space, base, is_wide, offset })
    }

    /// The state space that the modifiers name; generic if none.
    pub(super) fn space(&self, modifiers: &mut Modifiers<'_>) -> Space {
        let named = modifiers.find(|modifier| {
            Some(match modifier.split("::").next()? {
                "global" => Space::Global,
                "shared" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" => Space::Param,
                _ => return None,
            })
        });
        named.unwrap_or(Space::Generic)
    }

    /// The type that an instruction must name.
    pub(super) fn required_type(&self, modifiers: &mut Modifiers<'_>) -> Result<Type> {
        match modifiers.ty() {
            Some(ty) => Ok(ty),
            None => self.fail("expected a type such as .b32 on the instruction"),
        }
    }

    pub(super) fn wrong_type<T>(&self, opcode: &str, ty: Type) -> Result<T> {
        let ty = format!("{ty:?}").to_lowercase();
        self.fail(format!("unsupported type .{ty} for {opcode}"))
    }
}
