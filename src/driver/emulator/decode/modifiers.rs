//! The modifiers of one instruction, taken one by one; what nobody took is an error that names it.

use crate::ast::Type;
use crate::soft_float::Rounding;

pub struct Modifiers<'a> {
    list: &'a [&'a str],
    taken: Vec<bool>,
}

impl<'a> Modifiers<'a> {
    pub fn new(list: &'a [&'a str]) -> Self {
        Self { list, taken: vec![false; list.len()] }
    }

    /// Takes `name` if it is there.
    pub fn flag(&mut self, name: &str) -> bool {
        self.find(|modifier| (modifier == name).then_some(())).is_some()
    }

    /// Takes the first modifier for which `accept` has an answer.
    pub fn find<T>(&mut self, accept: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        for (index, modifier) in self.list.iter().enumerate() {
            if !self.taken[index]
                && let Some(value) = accept(modifier)
            {
                self.taken[index] = true;
                return Some(value);
            }
        }
        None
    }

    /// Takes the first of `names` that is there.
    pub fn one_of(&mut self, names: &[&str]) -> Option<&'a str> {
        self.find(|modifier| names.contains(&modifier).then_some(modifier))
    }

    /// Takes the next type.
    pub fn ty(&mut self) -> Option<Type> {
        self.find(Type::parse)
    }

    /// Looks at the next type without taking it.
    pub fn peek_type(&self) -> Option<Type> {
        self.list.iter().zip(&self.taken).filter(|(_, taken)| !**taken).find_map(|(name, _)| Type::parse(name))
    }

    pub fn has(&self, name: &str) -> bool {
        self.list.iter().zip(&self.taken).any(|(modifier, taken)| !taken && *modifier == name)
    }

    pub fn rounding(&mut self) -> Option<Rounding> {
        self.find(Rounding::parse)
    }

    /// Takes hints and orderings that change nothing here: caches, scopes, memory models.
    pub fn take_memory_hints(&mut self) {
        while self
            .find(|modifier| {
                let is_hint = modifier.starts_with("L1::")
                    || modifier.starts_with("L2::")
                    || matches!(
                        modifier,
                        "ca" | "cg"
                            | "cs"
                            | "lu"
                            | "cv"
                            | "wb"
                            | "wt"
                            | "nc"
                            | "weak"
                            | "volatile"
                            | "relaxed"
                            | "acquire"
                            | "release"
                            | "acq_rel"
                            | "sc"
                            | "mmio"
                            | "cta"
                            | "cluster"
                            | "gpu"
                            | "sys"
                            | "unified"
                    );
                is_hint.then_some(())
            })
            .is_some()
        {}
    }

    /// The first modifier that nobody took.
    pub fn rest(&self) -> Option<&'a str> {
        self.list.iter().zip(&self.taken).find(|(_, taken)| !**taken).map(|(name, _)| *name)
    }
}
