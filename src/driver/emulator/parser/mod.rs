//! Tokens to [`ast::Module`]: the module level (directives, variables, entries, functions).
//!
//! A recursive-descent parser. Every recursion carries a depth, every list is bounded by the text that spells it, and
//! register ranges (`%r<1000000>`) are kept as ranges, so memory stays proportional to the text.

mod body;
mod expression;
mod variable;

use std::collections::HashMap;

use super::ast::{Body, Function, LaunchLimits, Linkage, Module, Parameter, Space, Type, Variable};
use super::error::{EmulatorError, Result};
use super::lexer::{Token, TokenKind, position, tokenize};

/// Parses a whole PTX text; `file` is the name that errors carry.
///
/// # Errors
/// [`EmulatorError::Parse`] with file, line, column, and what was expected.
pub fn parse<'a>(file: &str, text: &'a str) -> Result<Module<'a>> {
    let tokens = tokenize(file, text)?;
    let mut parser = Parser { file, text, tokens, at: 0, module_variables: HashMap::new() };
    parser.module()
}

/// Deepest nesting of braces, initialisers and constant expressions that is read.
const MAX_DEPTH: usize = 64;

struct Parser<'a, 'f> {
    file: &'f str,
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    /// Index of each, and the bytes of its elements.
    module_variables: HashMap<&'a str, (u32, u32)>,
}

impl<'a> Parser<'a, '_> {
    fn kind(&self) -> TokenKind<'a> {
        self.tokens[self.at].kind
    }

    fn kind_ahead(&self, ahead: usize) -> TokenKind<'a> {
        self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].kind
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn advance(&mut self) -> TokenKind<'a> {
        let kind = self.kind();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        kind
    }

    fn error<T>(&self, expected: impl Into<String>) -> Result<T> {
        self.error_at(self.at, expected)
    }

    fn error_at<T>(&self, token: usize, expected: impl Into<String>) -> Result<T> {
        let token = &self.tokens[token];
        let (line, column) = position(self.text, token.offset as usize);
        Err(EmulatorError::Parse {
            file: self.file.into(),
            line,
            column,
            expected: expected.into(),
            found: token.kind.describe(),
        })
    }

    fn is(&self, punctuation: &str) -> bool {
        self.kind() == TokenKind::Punctuation(punctuation)
    }

    fn accept(&mut self, punctuation: &str) -> bool {
        let is = self.is(punctuation);
        if is {
            self.advance();
        }
        is
    }

    fn expect(&mut self, punctuation: &str) -> Result<()> {
        if self.accept(punctuation) { Ok(()) } else { self.error(format!("'{punctuation}'")) }
    }

    fn accept_dotted(&mut self, word: &str) -> bool {
        let is = self.kind() == TokenKind::Dotted(word);
        if is {
            self.advance();
        }
        is
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.kind() {
            TokenKind::Word(word) => {
                self.advance();
                Ok(word)
            }
            _ => self.error(what),
        }
    }

    fn integer(&mut self, what: &str) -> Result<u64> {
        match self.kind() {
            TokenKind::Integer(value) => {
                self.advance();
                Ok(value)
            }
            _ => self.error(what),
        }
    }

    fn small_integer(&mut self, what: &str) -> Result<u32> {
        let at = self.at;
        let value = self.integer(what)?;
        u32::try_from(value).or_else(|_| self.error_at(at, format!("{what} below 2^32")))
    }

    fn module(&mut self) -> Result<Module<'a>> {
        let mut module = Module {
            version: self.version()?,
            target: Vec::new(),
            address_bits: 64,
            variables: Vec::new(),
            functions: Vec::new(),
            aliases: Vec::new(),
            files: Vec::new(),
        };
        if !self.accept_dotted("target") {
            return self.error("'.target'");
        }
        loop {
            module.target.push(self.word("a target such as sm_80")?);
            if !self.accept(",") {
                break;
            }
        }
        while self.kind() != TokenKind::End {
            self.module_item(&mut module)?;
        }
        Ok(module)
    }

    fn version(&mut self) -> Result<(u32, u32)> {
        if !self.accept_dotted("version") {
            return self.error("'.version' (every PTX module starts with it)");
        }
        let TokenKind::Float(_) = self.kind() else { return self.error("a version such as 8.0") };
        let start = self.tokens[self.at].offset as usize;
        self.advance();
        let spelled = &self.text[start..];
        let end =
            spelled.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(spelled.len());
        let mut parts = spelled[..end].split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        Ok((parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
    }

    fn module_item(&mut self, module: &mut Module<'a>) -> Result<()> {
        if self.accept(";") {
            return Ok(());
        }
        let TokenKind::Dotted(word) = self.kind() else { return self.error("a module directive such as '.visible'") };
        match word {
            "address_size" => {
                self.advance();
                let at = self.at;
                module.address_bits = self.small_integer("32 or 64")?;
                if module.address_bits != 64 && module.address_bits != 32 {
                    return self.error_at(at, "32 or 64");
                }
            }
            "file" => {
                self.advance();
                let number = self.small_integer("a file number")?;
                let TokenKind::Text(path) = self.kind() else { return self.error("a file name in quotes") };
                self.advance();
                module.files.push((number, path.into()));
                while self.accept(",") {
                    self.integer("a timestamp or size")?;
                }
            }
            "section" => self.skip_section()?,
            "loc" => {
                self.location()?;
            }
            "pragma" => self.pragma()?,
            "alias" => {
                self.advance();
                let name = self.word("the alias's name")?;
                self.expect(",")?;
                module.aliases.push((name, self.word("the aliased function's name")?));
                self.accept(";");
            }
            _ => self.declaration(module)?,
        }
        Ok(())
    }

    /// `.section .debug_x { ... }`: debug data, skipped.
    fn skip_section(&mut self) -> Result<()> {
        self.advance();
        if let TokenKind::Dotted(_) | TokenKind::Word(_) = self.kind() {
            self.advance();
        }
        self.expect("{")?;
        let mut depth = 1;
        while depth > 0 {
            match self.advance() {
                TokenKind::Punctuation("{") => depth += 1,
                TokenKind::Punctuation("}") => depth -= 1,
                TokenKind::End => return self.error("'}' that ends the section"),
                _ => {}
            }
        }
        Ok(())
    }

    fn pragma(&mut self) -> Result<()> {
        self.advance();
        loop {
            let TokenKind::Text(_) = self.kind() else { return self.error("a pragma in quotes") };
            self.advance();
            if !self.accept(",") {
                break;
            }
        }
        self.expect(";")
    }

    fn linkage(&mut self) -> Linkage {
        let mut linkage = Linkage::Internal;
        loop {
            linkage = match self.kind() {
                TokenKind::Dotted("visible") => Linkage::Visible,
                TokenKind::Dotted("extern") => Linkage::Extern,
                TokenKind::Dotted("weak") => Linkage::Weak,
                TokenKind::Dotted("common") => Linkage::Common,
                _ => return linkage,
            };
            self.advance();
        }
    }

    fn declaration(&mut self, module: &mut Module<'a>) -> Result<()> {
        let linkage = self.linkage();
        match self.kind() {
            TokenKind::Dotted("entry") => {
                self.advance();
                let function = self.function(true)?;
                self.add_function(module, function);
            }
            TokenKind::Dotted("func") => {
                self.advance();
                let function = self.function(false)?;
                self.add_function(module, function);
            }
            TokenKind::Dotted(word) => {
                let space = match word {
                    "global" => Space::Global,
                    "const" => Space::Const,
                    "shared" => Space::Shared,
                    "local" => Space::Local,
                    _ => return self.error("'.entry', '.func', '.global', '.const', '.shared' or a module directive"),
                };
                self.advance();
                for variable in self.variables(space, linkage)? {
                    self.add_variable(module, variable);
                }
                self.expect(";")?;
            }
            _ => return self.error("'.entry', '.func' or a variable declaration"),
        }
        Ok(())
    }

    /// A definition replaces a declaration of the same name, never the other way round.
    fn add_function(&mut self, module: &mut Module<'a>, function: Function<'a>) {
        match module.functions.iter_mut().find(|known| known.name == function.name) {
            Some(known) if known.body.is_none() => *known = function,
            Some(_) if function.body.is_none() => {}
            _ => module.functions.push(function),
        }
    }

    fn add_variable(&mut self, module: &mut Module<'a>, variable: Variable<'a>) {
        let place = (module.variables.len() as u32, variable.element_bytes);
        if let Some((index, element_bytes)) = self.module_variables.get_mut(variable.name) {
            let known = &mut module.variables[*index as usize];
            if known.linkage == Linkage::Extern {
                *element_bytes = variable.element_bytes;
                *known = variable;
            }
            return;
        }
        self.module_variables.insert(variable.name, place);
        module.variables.push(variable);
    }

    fn function(&mut self, is_entry: bool) -> Result<Function<'a>> {
        let mut scopes = body::Scopes::default();
        let mut body = Body::default();
        let line = self.line();
        let returns = if !is_entry && self.is("(") { self.parameters(&mut scopes, &mut body)? } else { Vec::new() };
        let name = self.word("a function name")?;
        let params = if self.is("(") { self.parameters(&mut scopes, &mut body)? } else { Vec::new() };
        let mut limits = LaunchLimits::default();
        loop {
            match self.kind() {
                TokenKind::Dotted("maxntid") => limits.max_threads = Some(self.three_sizes()?),
                TokenKind::Dotted("reqntid") => limits.required_threads = Some(self.three_sizes()?),
                TokenKind::Dotted("minnctapersm") => {
                    self.advance();
                    limits.min_blocks_per_multiprocessor = Some(self.small_integer("a count")?);
                }
                TokenKind::Dotted("maxnreg") => {
                    self.advance();
                    limits.max_registers = Some(self.small_integer("a count")?);
                }
                TokenKind::Dotted("maxnctapersm" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control") => {
                    self.advance();
                    self.small_integer("a count")?;
                }
                TokenKind::Dotted("reqnctapercluster") => limits.required_cluster = Some(self.three_sizes()?),
                TokenKind::Dotted("noreturn" | "explicitcluster" | "blocksareclusters") => {
                    self.advance();
                }
                TokenKind::Dotted("pragma") => self.pragma()?,
                _ => break,
            }
        }
        let body = if self.accept(";") {
            None
        } else if self.is("{") {
            self.body(&mut scopes, &mut body)?;
            Some(body)
        } else {
            return self.error("'{' or ';' after the function's head");
        };
        Ok(Function { name, is_entry, params, returns, limits, body, line })
    }

    fn three_sizes(&mut self) -> Result<[u32; 3]> {
        self.advance();
        let mut sizes = [1; 3];
        for (index, size) in sizes.iter_mut().enumerate() {
            if index > 0 && !self.accept(",") {
                break;
            }
            *size = self.small_integer("a size")?;
        }
        Ok(sizes)
    }

    /// `( .param .u64 a, .reg .b32 %b, ... )`, each declared in the function's outermost scope.
    fn parameters(&mut self, scopes: &mut body::Scopes<'a>, body: &mut Body<'a>) -> Result<Vec<Parameter>> {
        self.expect("(")?;
        let mut params = Vec::new();
        while !self.accept(")") {
            if !params.is_empty() {
                self.expect(",")?;
            }
            if self.accept_dotted("reg") {
                let ty = self.scalar_type()?;
                let name = self.word("a register name")?;
                let register = scopes.add_register(body, name, ty);
                let (bytes, align) = (u64::from(ty.bytes()), u64::from(ty.bytes()));
                params.push(Parameter { bytes, align, register: Some(register), variable: 0 });
                continue;
            }
            if !self.accept_dotted("param") {
                return self.error("'.param' or '.reg'");
            }
            let variable = self.one_variable(Space::Param)?;
            let (bytes, align) = (variable.bytes, variable.align);
            let index = scopes.add_variable(body, variable);
            params.push(Parameter { bytes, align, register: None, variable: index });
        }
        Ok(params)
    }

    fn scalar_type(&mut self) -> Result<Type> {
        let at = self.at;
        match self.advance() {
            TokenKind::Dotted(name) => match Type::parse(name) {
                Some(ty) => Ok(ty),
                None if matches!(name, "texref" | "samplerref" | "surfref") => {
                    self.error_at(at, "a type (textures and surfaces are not supported)")
                }
                None => self.error_at(at, "a type such as .b32"),
            },
            _ => self.error_at(at, "a type such as .b32"),
        }
    }
}
