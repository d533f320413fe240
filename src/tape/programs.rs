//! Programs that take turns over one arena: the same model for batches of several shapes, for training and for
//! evaluation. Together they need no more memory than the largest of them.

use super::memory::Memory;
use super::plan;
use super::{Error, Program, Tape};

/// Programs of which one at a time has the memory.
pub struct Programs {
    list: Vec<Program>,
    /// Which one has it.
    holder: usize,
}

impl Programs {
    /// Plans each tape.
    ///
    /// # Errors
    /// As [`Tape::finish`].
    ///
    /// # Panics
    /// There are no tapes.
    pub fn new(tapes: Vec<Tape<'_>>) -> Result<Self, Error> {
        let device = std::sync::Arc::clone(&tapes.first().expect("at least one tape").device);
        let mut list = Vec::with_capacity(tapes.len());
        for tape in tapes {
            tape.check()?;
            let plan = plan::plan(&tape);
            list.push(Program::without_arena(tape, plan));
        }
        let largest = list.iter().map(|program| program.memory().arena).max().unwrap_or(0);
        list[0].take_arena(Memory::allocate(&device, "the activations", largest)?)?;
        Ok(Self { list, holder: 0 })
    }

    /// Gives the memory to one of the programs. What another has left there is gone.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// There is no such program.
    pub fn select(&mut self, index: usize) -> Result<&mut Program, Error> {
        if index != self.holder {
            let arena = std::mem::replace(&mut self.list[self.holder].state.arena, Memory::none());
            self.holder = index;
            self.list[index].take_arena(arena)?;
        }
        Ok(&mut self.list[index])
    }
}
