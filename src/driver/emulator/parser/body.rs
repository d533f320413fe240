//! Function bodies: scopes, register and variable declarations, labels, instructions and their operands.

use std::collections::HashMap;

use super::expression::Constant;
use super::{MAX_DEPTH, Parser};
use crate::ast::{Base, Body, Instruction, Linkage, Operand, Space, Special, Type, Variable, VariableRef};
use crate::error::Result;
use crate::lexer::TokenKind;

/// What a name stands for inside a function.
#[derive(Debug, Clone)]
enum Entity {
    Register(u32),
    VectorRegister(Vec<u32>),
    Variable(u32),
}

#[derive(Debug, Default)]
struct Scope<'a> {
    names: HashMap<&'a str, Entity>,
    /// `%r<N>`: prefix to count and type; registers get an index when first used.
    ranges: HashMap<&'a str, (u32, Type)>,
}

/// The scopes that are open at a point of a function, outermost first.
#[derive(Debug)]
pub(super) struct Scopes<'a> {
    open: Vec<Scope<'a>>,
}

impl Default for Scopes<'_> {
    fn default() -> Self {
        Self { open: vec![Scope::default()] }
    }
}

impl<'a> Scopes<'a> {
    fn innermost(&mut self) -> &mut Scope<'a> {
        let last = self.open.len() - 1;
        &mut self.open[last]
    }

    pub(super) fn add_register(&mut self, body: &mut Body<'a>, name: &'a str, ty: Type) -> u32 {
        let index = body.registers.len() as u32;
        body.registers.push((ty, name));
        self.innermost().names.insert(name, Entity::Register(index));
        index
    }

    pub(super) fn add_variable(&mut self, body: &mut Body<'a>, variable: Variable<'a>) -> u32 {
        let index = body.variables.len() as u32;
        self.innermost().names.insert(variable.name, Entity::Variable(index));
        body.variables.push(variable);
        index
    }

    fn find(&mut self, body: &mut Body<'a>, name: &'a str) -> Option<Entity> {
        let stem = name.trim_end_matches(|character: char| character.is_ascii_digit());
        let digits = &name[stem.len()..];
        for scope in self.open.iter_mut().rev() {
            if let Some(entity) = scope.names.get(name) {
                return Some(entity.clone());
            }
            if scope.ranges.is_empty() || digits.is_empty() {
                continue;
            }
            // The prefix may itself end in digits: try every split.
            for split in stem.len()..name.len() {
                let Some(&(count, ty)) = scope.ranges.get(&name[..split]) else { continue };
                let number = &name[split..];
                let is_canonical = number.len() == 1 || !number.starts_with('0');
                if is_canonical && number.parse::<u32>().is_ok_and(|number| number < count) {
                    let index = body.registers.len() as u32;
                    body.registers.push((ty, name));
                    scope.names.insert(name, Entity::Register(index));
                    return Some(Entity::Register(index));
                }
            }
        }
        None
    }
}

impl<'a> Parser<'a, '_> {
    pub(super) fn body(&mut self, scopes: &mut Scopes<'a>, body: &mut Body<'a>) -> Result<()> {
        self.expect("{")?;
        let mut depth = 1usize;
        let mut source = None;
        while depth > 0 {
            match self.kind() {
                TokenKind::Punctuation("{") => {
                    self.advance();
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return self.error("at most 64 nested scopes");
                    }
                    scopes.open.push(Scope::default());
                }
                TokenKind::Punctuation("}") => {
                    self.advance();
                    depth -= 1;
                    if depth > 0 {
                        scopes.open.pop();
                    }
                }
                TokenKind::Punctuation(";") => {
                    self.advance();
                }
                TokenKind::Dotted("loc") => source = Some(self.location()?),
                TokenKind::Dotted("pragma") => self.pragma()?,
                TokenKind::Dotted("reg") => self.registers(scopes, body)?,
                TokenKind::Dotted(word @ ("local" | "shared" | "param" | "global" | "const")) => {
                    self.advance();
                    let space = match word {
                        "local" => Space::Local,
                        "shared" => Space::Shared,
                        "param" => Space::Param,
                        "global" => Space::Global,
                        _ => Space::Const,
                    };
                    for variable in self.variables(space, Linkage::Internal)? {
                        scopes.add_variable(body, variable);
                    }
                    self.expect(";")?;
                }
                TokenKind::Word(name) if self.kind_ahead(1) == TokenKind::Punctuation(":") => {
                    self.advance();
                    self.advance();
                    self.label(name, body)?;
                }
                TokenKind::Word(_) | TokenKind::Punctuation("@") => {
                    let instruction = self.instruction(scopes, body, source)?;
                    body.instructions.push(instruction);
                }
                TokenKind::Dotted(word @ ("extern" | "visible" | "weak")) => {
                    return self.error(format!("a statement (declare '.{word}' variables outside of functions)"));
                }
                _ => return self.error("an instruction, a label, a declaration or '}'"),
            }
        }
        Ok(())
    }

    /// `.loc file line column [, function_name label, inlined_at file line column]`.
    pub(super) fn location(&mut self) -> Result<(u32, u32)> {
        self.advance();
        let file = self.small_integer("a file number")?;
        let line = self.small_integer("a line number")?;
        self.small_integer("a column number")?;
        while self.is(",") {
            self.advance();
            match self.word("function_name or inlined_at")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.accept("+") {
                        self.integer("an offset")?;
                    }
                }
                _ => {
                    for what in ["a file number", "a line number", "a column number"] {
                        self.small_integer(what)?;
                    }
                }
            }
        }
        Ok((file, line))
    }

    fn registers(&mut self, scopes: &mut Scopes<'a>, body: &mut Body<'a>) -> Result<()> {
        self.advance();
        let mut vector = 1usize;
        if let TokenKind::Dotted(word @ ("v2" | "v4")) = self.kind() {
            self.advance();
            vector = usize::from(word.as_bytes()[1] - b'0');
        }
        let ty = self.scalar_type()?;
        if let TokenKind::Dotted(word @ ("v2" | "v4")) = self.kind() {
            self.advance();
            vector = usize::from(word.as_bytes()[1] - b'0');
        }
        loop {
            let name = self.word("a register name")?;
            if self.accept("<") {
                let count = self.bounded_count()?;
                self.expect(">")?;
                scopes.innermost().ranges.insert(name, (count, ty));
            } else if vector > 1 {
                let first = body.registers.len() as u32;
                body.registers.extend((0..vector).map(|_| (ty, name)));
                let elements = (first..first + vector as u32).collect();
                scopes.innermost().names.insert(name, Entity::VectorRegister(elements));
            } else {
                scopes.add_register(body, name, ty);
            }
            if !self.accept(",") {
                break;
            }
        }
        self.expect(";")
    }

    fn label(&mut self, name: &'a str, body: &mut Body<'a>) -> Result<()> {
        match self.kind() {
            TokenKind::Dotted("branchtargets") => {
                self.advance();
                let names = self.names()?;
                body.branch_targets.push((name, names));
            }
            TokenKind::Dotted("calltargets") => {
                // The indirect call checks its target when it runs, so the list adds nothing.
                self.advance();
                self.names()?;
            }
            TokenKind::Dotted("callprototype") => {
                self.advance();
                // The call checks its target when it runs.
                let mut scopes = Scopes::default();
                let mut ignored = Body::default();
                if self.is("(") {
                    self.parameters(&mut scopes, &mut ignored)?;
                }
                self.word("'_' or a name")?;
                if self.is("(") {
                    self.parameters(&mut scopes, &mut ignored)?;
                }
                while let TokenKind::Dotted("noreturn" | "abi_preserve" | "abi_preserve_control") = self.kind() {
                    self.advance();
                    if let TokenKind::Integer(_) = self.kind() {
                        self.advance();
                    }
                }
                self.expect(";")?;
            }
            _ => {
                if body.labels.iter().any(|&(known, at)| known == name && at as usize == body.instructions.len()) {
                    return self.error(format!("a label other than '{name}', which is already here"));
                }
                body.labels.push((name, body.instructions.len() as u32));
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<Vec<&'a str>> {
        let mut names = Vec::new();
        loop {
            names.push(self.word("a name")?);
            if !self.accept(",") {
                break;
            }
        }
        self.expect(";")?;
        Ok(names)
    }

    fn instruction(
        &mut self,
        scopes: &mut Scopes<'a>,
        body: &mut Body<'a>,
        source: Option<(u32, u32)>,
    ) -> Result<Instruction<'a>> {
        let mut guard = None;
        if self.accept("@") {
            let negated = self.accept("!");
            let at = self.at;
            let name = self.word("a predicate register")?;
            guard = match scopes.find(body, name) {
                Some(Entity::Register(index)) if body.registers[index as usize].0 == Type::Pred => {
                    Some((index, negated))
                }
                _ => return self.error_at(at, "a predicate register"),
            };
        }
        let line = self.line();
        let opcode = self.word("an instruction")?;
        let mut modifiers = Vec::new();
        while let TokenKind::Dotted(modifier) = self.kind() {
            self.advance();
            modifiers.push(modifier);
        }
        let mut operands = Vec::new();
        while !self.accept(";") {
            if !operands.is_empty() {
                self.expect(",")?;
            }
            operands.push(self.operand(scopes, body, 0)?);
        }
        Ok(Instruction { guard, opcode, modifiers, operands, line, source })
    }

    fn operand(&mut self, scopes: &mut Scopes<'a>, body: &mut Body<'a>, depth: usize) -> Result<Operand<'a>> {
        if depth > 8 {
            return self.error("a simpler operand");
        }
        match self.kind() {
            TokenKind::Punctuation("{") => {
                self.advance();
                Ok(Operand::Vector(self.operand_list("}", scopes, body, depth)?))
            }
            TokenKind::Punctuation("(")
                if !matches!(self.kind_ahead(1), TokenKind::Integer(_) | TokenKind::Dotted(_))
                    || depth == 0 && self.is_call_list() =>
            {
                self.advance();
                Ok(Operand::List(self.operand_list(")", scopes, body, depth)?))
            }
            TokenKind::Punctuation("[") => {
                self.advance();
                self.address(scopes, body, depth)
            }
            TokenKind::Punctuation("!") if matches!(self.kind_ahead(1), TokenKind::Word(_)) => {
                self.advance();
                Ok(Operand::Not(Box::new(self.operand(scopes, body, depth + 1)?)))
            }
            TokenKind::Word(name) if name != "WARP_SZ" => {
                self.advance();
                let first = self.named(name, scopes, body)?;
                if self.accept("|") {
                    let second = self.operand(scopes, body, depth + 1)?;
                    return Ok(Operand::Pair(Box::new((first, second))));
                }
                Ok(first)
            }
            _ => Ok(match self.constant()? {
                Constant::Integer { bits, .. } => Operand::Integer(bits),
                Constant::Float(value) => Operand::Float(value),
                Constant::FloatBits(bits) => Operand::FloatBits(bits),
            }),
        }
    }

    /// `(1, %r2)` is a call's list, `(1 + 2)` a constant: a comma or ')' right after the first literal tells.
    fn is_call_list(&self) -> bool {
        matches!(self.kind_ahead(2), TokenKind::Punctuation("," | ")"))
    }

    fn operand_list(
        &mut self,
        close: &str,
        scopes: &mut Scopes<'a>,
        body: &mut Body<'a>,
        depth: usize,
    ) -> Result<Vec<Operand<'a>>> {
        let mut items = Vec::new();
        while !self.accept(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(self.operand(scopes, body, depth + 1)?);
        }
        Ok(items)
    }

    /// A word in an operand: register (or component, or whole vector), variable (plus offset), special register, name.
    fn named(&mut self, name: &'a str, scopes: &mut Scopes<'a>, body: &mut Body<'a>) -> Result<Operand<'a>> {
        if name == "_" {
            return Ok(Operand::Sink);
        }
        let entity = scopes.find(body, name);
        let component = match self.kind() {
            TokenKind::Dotted(word) => Some(word),
            _ => None,
        };
        match entity {
            Some(Entity::Register(index)) => Ok(match component {
                // Only video instructions take these: the others refuse them.
                Some(selector) => {
                    self.advance();
                    Operand::Part(index, selector)
                }
                None => Operand::Register(index),
            }),
            Some(Entity::VectorRegister(elements)) => {
                let Some(component) = component else {
                    return Ok(Operand::Vector(elements.into_iter().map(Operand::Register).collect()));
                };
                let index = match component {
                    "x" | "r" => 0,
                    "y" | "g" => 1,
                    "z" | "b" => 2,
                    "w" | "a" => 3,
                    _ => return self.error("a component .x, .y, .z or .w"),
                };
                match elements.get(index) {
                    Some(&element) => {
                        self.advance();
                        Ok(Operand::Register(element))
                    }
                    None => self.error(format!("a component that '{name}' has")),
                }
            }
            Some(Entity::Variable(index)) => {
                let element_bytes = body.variables[index as usize].element_bytes;
                self.variable(VariableRef::Local(index), element_bytes)
            }
            None => {
                if let Some(special) = Special::parse(name, component) {
                    if component.is_some() {
                        self.advance();
                    }
                    return Ok(Operand::Special(special));
                }
                if matches!(name, "%tid" | "%ntid" | "%ctaid" | "%nctaid") && component.is_none() {
                    let part = |axis| Operand::Special(Special::parse(name, Some(axis)).unwrap_or(Special::Zero));
                    return Ok(Operand::Vector(["x", "y", "z", "w"].map(part).to_vec()));
                }
                if let Some(&(index, element_bytes)) = self.module_variables.get(name) {
                    return self.variable(VariableRef::Module(index), element_bytes);
                }
                if name.starts_with('%') {
                    return self.error_at(self.at - 1, "a declared register");
                }
                Ok(Operand::Name(name))
            }
        }
    }

    /// What follows the name of a variable: nothing, an offset in bytes, or the index of an element.
    fn variable(&mut self, variable: VariableRef, element_bytes: u32) -> Result<Operand<'a>> {
        if !self.accept("[") {
            return Ok(Operand::Variable(variable, self.offset()?));
        }
        if matches!(self.kind(), TokenKind::Word(name) if name != "WARP_SZ") {
            return self.error("an index that is a constant");
        }
        let index = self.constant_integer()? as i64;
        self.expect("]")?;
        Ok(Operand::Element(variable, index.wrapping_mul(i64::from(element_bytes))))
    }

    /// Any number of `+ constant expression` and `- constant`.
    fn offset(&mut self) -> Result<i64> {
        let mut offset = 0i64;
        loop {
            if self.accept("+") {
                offset = offset.wrapping_add(self.constant_integer()? as i64);
            } else if self.accept("-") {
                offset = offset.wrapping_sub(self.offset_term()?);
            } else {
                return Ok(offset);
            }
        }
    }

    fn offset_term(&mut self) -> Result<i64> {
        if self.is("(") {
            return Ok(self.constant_integer()? as i64);
        }
        Ok(self.integer("an offset")? as i64)
    }

    fn address(&mut self, scopes: &mut Scopes<'a>, body: &mut Body<'a>, depth: usize) -> Result<Operand<'a>> {
        let mut operand = match self.kind() {
            TokenKind::Word(name) => {
                let at = self.at;
                self.advance();
                match self.named(name, scopes, body)? {
                    Operand::Register(index) => Operand::Address(Base::Register(index), self.offset()?),
                    Operand::Variable(variable, offset) => Operand::Address(Base::Variable(variable), offset),
                    Operand::Name(name) => Operand::Address(Base::Name(name), self.offset()?),
                    _ => return self.error_at(at, "a register or variable in an address"),
                }
            }
            _ => Operand::Address(Base::Absolute, self.constant_integer()? as i64),
        };
        // `[image, {x, y}]` of textures and tensors, which no instruction here takes: a list, so that the instruction is
        // refused and not the text.
        while self.accept(",") {
            operand = Operand::Vector(vec![operand, self.operand(scopes, body, depth + 1)?]);
        }
        self.expect("]")?;
        Ok(operand)
    }
}
