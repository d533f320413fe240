//! Planning: the order of steps, how long each buffer lives, and where in the arena it lies.
//!
//! The order is the recorded one forward, then its reverse backward. A loss runs when the backward pass reaches it,
//! computing loss and gradient in one. A recompute block runs its forward steps a second time, into buffers of their
//! own, just before the first of its backward steps.
//!
//! A buffer lives from the first step that uses it to the last. Buffers whose lives do not overlap share memory:
//! largest first, each at the lowest offset that is free for its whole life.

use super::run::Places;
use super::{Mode, Tape, Value};
use crate::ops::Write;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Buffers are padded to this many bytes, so that no two share a cache line.
const PAD_BYTES: usize = super::memory::ALIGNMENT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
    /// Sets a gradient to the one passed on, or adds to it: `(source, target)` are the node's grad_output 0 and the
    /// grad_input of this place.
    PassGradient(usize),
}

pub(super) struct Step {
    pub(super) node: usize,
    pub(super) direction: Direction,
    pub(super) places: Places,
}

pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Where inputs are written and kept values are read.
    pub(super) values: HashMap<Value, Range<usize>>,
    /// Gradients of inputs that asked for them.
    pub(super) gradients: HashMap<Value, Range<usize>>,
    pub(super) memory: MemoryUse,
    pub(super) arena_bytes: usize,
}

/// Bytes that a program's arena takes, by what is alive when it is fullest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// The whole arena.
    pub arena: usize,
    /// Inputs, activations and what is kept of them for the backward pass, at the fullest moment.
    pub activations: usize,
    /// Gradients of activations, at the fullest moment.
    pub gradients: usize,
    /// Scratch memory of operations (chunks of logits, recomputed hidden layers), at the fullest moment.
    pub scratch: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Category {
    Activation,
    Gradient,
    Scratch,
}

struct Buffer {
    bytes: usize,
    first: usize,
    last: usize,
    category: Category,
}

/// A step whose places are still buffer numbers.
struct Draft {
    node: usize,
    direction: Direction,
    inputs: Vec<(usize, usize, usize)>,
    outputs: Vec<Option<usize>>,
    grad_outputs: Vec<Option<usize>>,
    completed: Option<(usize, Write)>,
    grad_inputs: Vec<Option<(usize, Write)>>,
    grad_parameters: Vec<Option<Write>>,
    scratch: Option<usize>,
}

struct Planner<'t, 'p> {
    tape: &'t Tape<'p>,
    buffers: Vec<Buffer>,
    drafts: Vec<Draft>,
    forward: HashMap<Value, usize>,
    recomputed: HashMap<Value, usize>,
    gradients: HashMap<Value, usize>,
    written_parameters: HashSet<usize>,
    /// Values that some backward step (or a kept one) still needs after their last forward use.
    saved: HashSet<Value>,
}

pub(super) fn plan(tape: &Tape<'_>) -> Plan {
    let mut planner = Planner {
        tape,
        buffers: Vec::new(),
        drafts: Vec::new(),
        forward: HashMap::new(),
        recomputed: HashMap::new(),
        gradients: HashMap::new(),
        written_parameters: HashSet::new(),
        saved: HashSet::new(),
    };
    planner.find_saved();
    planner.add_inputs();
    for node in 0..tape.nodes.len() {
        if !(tape.mode == Mode::Training && planner.is_loss(node)) {
            planner.add_forward(node, false);
        }
    }
    if tape.mode == Mode::Training {
        planner.add_backward();
    }
    planner.finish()
}

impl Planner<'_, '_> {
    fn is_loss(&self, node: usize) -> bool {
        self.tape.nodes[node].needs.as_ref().is_some_and(|needs| needs.is_loss)
    }

    /// Whether the node has a backward step: not where all that it depends on is frozen.
    fn is_differentiated(&self, node: usize) -> bool {
        let outputs = &self.tape.nodes[node].outputs;
        self.is_loss(node) || outputs.iter().any(|value| self.tape.values[value.0].needs_gradient)
    }

    /// Collects the values that backward passes read.
    fn find_saved(&mut self) {
        let tape = self.tape;
        for (index, info) in tape.values.iter().enumerate() {
            if info.kept {
                self.saved.insert(Value(index));
            }
        }
        if tape.mode == Mode::Inference {
            return;
        }
        for (index, node) in tape.nodes.iter().enumerate() {
            if !self.is_differentiated(index) {
                continue;
            }
            let needs = node.needs.as_ref().expect("a training tape only holds operations with a backward pass");
            self.saved.extend(needs.inputs.iter().map(|&place| node.inputs[place]));
            self.saved.extend(needs.outputs.iter().map(|&place| node.outputs[place]));
        }
    }

    fn new_buffer(&mut self, bytes: usize, category: Category) -> usize {
        self.buffers.push(Buffer { bytes: bytes.next_multiple_of(PAD_BYTES), first: usize::MAX, last: 0, category });
        self.buffers.len() - 1
    }

    /// Marks a buffer as used by the step that is added next.
    fn touch(&mut self, buffer: usize) {
        let step = self.drafts.len();
        let buffer = &mut self.buffers[buffer];
        buffer.first = buffer.first.min(step);
        buffer.last = buffer.last.max(step);
    }

    fn add_inputs(&mut self) {
        for (index, info) in self.tape.values.iter().enumerate() {
            if info.producer.is_none() {
                let buffer = self.new_buffer(info.bytes(), Category::Activation);
                // Written before the first step.
                self.touch(buffer);
                self.forward.insert(Value(index), buffer);
            }
        }
    }

    /// The buffer of a value as node `reader` sees it, in the second run of a block or the backward pass (`late`) or
    /// in the first run, with the byte range in it.
    fn buffer_of(&mut self, value: Value, reader: usize, late: bool) -> (usize, usize, usize) {
        let info = &self.tape.values[value.0];
        let (base, offset) = match info.part_of {
            Some((base, start)) => (base, start * 4),
            None => (value, 0),
        };
        let bytes = info.bytes();
        let producer = self.tape.values[base.0].producer;
        let block = self.tape.nodes[reader].block;
        let is_inside = late && block.is_some() && producer.is_some_and(|p| self.tape.nodes[p].block == block);
        let buffer = if is_inside { self.recomputed[&base] } else { self.forward[&base] };
        self.touch(buffer);
        (buffer, offset, offset + bytes)
    }

    fn add_forward(&mut self, index: usize, again: bool) {
        let node = &self.tape.nodes[index];
        let inputs = node.inputs.iter().map(|&value| self.buffer_of(value, index, again)).collect();
        // What a recompute block saves is written by its second run.
        let saves = node.block.is_none() || again;
        let outputs: Vec<Option<usize>> = node
            .outputs
            .iter()
            .map(|&value| {
                let info = &self.tape.values[value.0];
                if info.auxiliary && !(saves && self.saved.contains(&value)) {
                    return None;
                }
                let buffer = self.new_buffer(info.bytes(), Category::Activation);
                self.touch(buffer);
                if again { &mut self.recomputed } else { &mut self.forward }.insert(value, buffer);
                Some(buffer)
            })
            .collect();
        let has_output: Vec<bool> = outputs.iter().map(Option::is_some).collect();
        let scratch = self.scratch(node.operation.forward_scratch(&has_output));
        self.push(index, Direction::Forward, inputs, outputs, scratch);
    }

    fn scratch(&mut self, floats: usize) -> Option<usize> {
        (floats > 0).then(|| {
            let buffer = self.new_buffer(floats * 4, Category::Scratch);
            self.touch(buffer);
            buffer
        })
    }

    fn push(
        &mut self,
        node: usize,
        direction: Direction,
        inputs: Vec<(usize, usize, usize)>,
        outputs: Vec<Option<usize>>,
        scratch: Option<usize>,
    ) {
        self.drafts.push(Draft {
            node,
            direction,
            inputs,
            outputs,
            grad_outputs: Vec::new(),
            completed: None,
            grad_inputs: Vec::new(),
            grad_parameters: Vec::new(),
            scratch,
        });
    }

    fn add_backward(&mut self) {
        let mut recomputed_blocks = HashSet::new();
        for index in (0..self.tape.nodes.len()).rev() {
            let node = &self.tape.nodes[index];
            let has_gradient = node.outputs.iter().any(|value| self.gradients.contains_key(value));
            if !(self.is_loss(index) || (has_gradient && self.is_differentiated(index))) {
                continue;
            }
            if let Some(block) = node.block
                && recomputed_blocks.insert(block)
            {
                self.add_recomputation(block);
            }
            self.add_backward_step(index);
        }
    }

    /// Runs again what the backward steps of a block need, and nothing else.
    fn add_recomputation(&mut self, block: usize) {
        let range = self.tape.blocks[block].clone();
        let mut needed: HashSet<Value> = HashSet::new();
        let mut again = Vec::new();
        for index in range.clone().rev() {
            let node = &self.tape.nodes[index];
            if !self.is_differentiated(index) && !node.outputs.iter().any(|value| needed.contains(value)) {
                continue;
            }
            let needs = node.needs.as_ref().expect("checked as it was recorded");
            needed.extend(needs.inputs.iter().map(|&place| node.inputs[place]));
            if node.outputs.iter().any(|value| needed.contains(value)) || !needs.outputs.is_empty() {
                needed.extend(node.inputs.iter().copied());
                again.push(index);
            }
        }
        for &index in again.iter().rev() {
            self.add_forward(index, true);
        }
    }

    fn add_backward_step(&mut self, index: usize) {
        let node = &self.tape.nodes[index];
        let needs = node.needs.clone().expect("a training tape only holds operations with a backward pass");
        let inputs: Vec<_> = (0..node.inputs.len())
            .map(|place| {
                if needs.inputs.contains(&place) {
                    self.buffer_of(node.inputs[place], index, true)
                } else {
                    (usize::MAX, 0, 0)
                }
            })
            .collect();
        let outputs = (0..node.outputs.len())
            .map(|place| {
                let value = node.outputs[place];
                if needs.is_loss {
                    let buffer = self.new_buffer(self.tape.values[value.0].bytes(), Category::Activation);
                    self.touch(buffer);
                    self.forward.insert(value, buffer);
                    return Some(buffer);
                }
                needs.outputs.contains(&place).then(|| self.buffer_of(value, index, true).0)
            })
            .collect();
        let grad_outputs: Vec<Option<usize>> =
            node.outputs.iter().map(|value| self.gradients.get(value).copied()).collect();
        for buffer in grad_outputs.iter().flatten() {
            self.touch(*buffer);
        }
        // Output 0's own gradient is not an operand where it is completed: it is written.
        let completed = needs.completes_gradient.then(|| self.gradient_of(node.outputs[0], false, &[], 0));
        let mut grad_inputs = vec![None; node.inputs.len()];
        for (place, &value) in node.inputs.iter().enumerate() {
            if !self.tape.values[value.0].needs_gradient || needs.passes_gradient_to.contains(&place) {
                continue;
            }
            grad_inputs[place] = Some(self.gradient_of(value, needs.in_place == Some(place), &inputs, place));
        }
        let grad_parameters = node
            .parameters
            .iter()
            .map(|id| {
                self.tape
                    .parameters
                    .specification(*id)
                    .trainable
                    .then(|| if self.written_parameters.insert(id.0) { Write::Set } else { Write::Add })
            })
            .collect();
        let scratch = self.scratch(needs.scratch);
        self.drafts.push(Draft {
            node: index,
            direction: Direction::Backward,
            inputs,
            outputs,
            grad_outputs,
            completed,
            grad_inputs,
            grad_parameters,
            scratch,
        });
        for &place in &needs.passes_gradient_to {
            self.pass_gradient(index, place, &needs.passes_gradient_to);
        }
    }

    /// The buffer that the gradient of `value` goes to, and whether something is in it already.
    fn gradient_of(
        &mut self,
        value: Value,
        is_in_place: bool,
        inputs: &[(usize, usize, usize)],
        place: usize,
    ) -> (usize, Write) {
        if let Some(&buffer) = self.gradients.get(&value) {
            self.touch(buffer);
            return (buffer, Write::Add);
        }
        // Only a loss asks for this, and it is the last to read its input unless the producer saved it or it is kept.
        let info = &self.tape.values[value.0];
        let is_free = is_in_place
            && !info.kept
            && info.producer.is_some_and(|producer| {
                let node = &self.tape.nodes[producer];
                let needs = node.needs.as_ref().expect("checked as it was recorded");
                !needs.outputs.iter().any(|&output| node.outputs[output] == value)
            })
            && self.readers(value) == 1;
        let buffer = if is_free { inputs[place].0 } else { self.new_buffer(info.bytes(), Category::Gradient) };
        self.touch(buffer);
        self.gradients.insert(value, buffer);
        (buffer, Write::Set)
    }

    fn readers(&self, value: Value) -> usize {
        self.tape.nodes.iter().flat_map(|node| &node.inputs).filter(|&&input| input == value).count()
    }

    /// Hands the gradient of output 0 on to an input: by giving it the buffer where that is the first gradient to
    /// arrive and nobody else took the buffer, otherwise by a step that copies or adds.
    fn pass_gradient(&mut self, index: usize, place: usize, passed: &[usize]) {
        let node = &self.tape.nodes[index];
        let value = node.inputs[place];
        if !self.tape.values[value.0].needs_gradient {
            return;
        }
        let Some(&source) = self.gradients.get(&node.outputs[0]) else { return };
        // The last place that it is passed to may take the buffer over: nobody reads it afterwards.
        let is_last = passed.iter().rev().find(|&&p| self.tape.values[node.inputs[p].0].needs_gradient) == Some(&place);
        if is_last && !self.gradients.contains_key(&value) {
            self.gradients.insert(value, source);
            return;
        }
        self.touch(source);
        let target = self.gradient_of(value, false, &[], place);
        let mut grad_inputs = vec![None; node.inputs.len()];
        grad_inputs[place] = Some(target);
        self.drafts.push(Draft {
            node: index,
            direction: Direction::PassGradient(place),
            inputs: Vec::new(),
            outputs: Vec::new(),
            grad_outputs: vec![Some(source)],
            completed: None,
            grad_inputs,
            grad_parameters: Vec::new(),
            scratch: None,
        });
    }

    fn finish(mut self) -> Plan {
        let end = self.drafts.len();
        for (index, info) in self.tape.values.iter().enumerate() {
            let value = Value(index);
            let is_loss = self.tape.losses.iter().any(|loss| loss.losses == value || loss.targets == value);
            if (info.kept || is_loss || info.constant.is_some())
                && let Some(&buffer) = self.forward.get(&info.part_of.map_or(value, |(base, _)| base))
            {
                self.buffers[buffer].last = end;
            }
        }
        let wanted: Vec<(Value, usize)> = self
            .gradients
            .iter()
            .filter(|(value, _)| self.tape.values[value.0].producer.is_none())
            .map(|(&value, &buffer)| (value, buffer))
            .collect();
        for &(_, buffer) in &wanted {
            self.buffers[buffer].last = end;
        }
        let (offsets, arena_bytes) = place(&self.buffers);
        let range = |buffer: usize| offsets[buffer]..offsets[buffer] + self.buffers[buffer].bytes;
        // Exactly the value's bytes, without the padding: operations check lengths.
        let exact = |buffer: usize, bytes: usize| offsets[buffer]..offsets[buffer] + bytes;
        let bytes_of = |value: Value| self.tape.values[value.0].bytes();
        let steps = self
            .drafts
            .iter()
            .map(|draft| {
                let node = &self.tape.nodes[draft.node];
                let inputs = draft
                    .inputs
                    .iter()
                    .map(|&(buffer, start, end)| match buffer {
                        usize::MAX => 0..0,
                        _ => offsets[buffer] + start..offsets[buffer] + end,
                    })
                    .collect();
                let values = |list: &[Option<usize>]| {
                    list.iter()
                        .zip(&node.outputs)
                        .map(|(buffer, &value)| buffer.map(|buffer| exact(buffer, bytes_of(value))))
                        .collect()
                };
                let grad_inputs = draft
                    .grad_inputs
                    .iter()
                    .zip(&node.inputs)
                    .map(|(grad, &value)| grad.map(|(buffer, write)| (exact(buffer, bytes_of(value)), write)))
                    .collect();
                Step {
                    node: draft.node,
                    direction: draft.direction,
                    places: Places {
                        inputs,
                        outputs: values(&draft.outputs),
                        grad_outputs: values(&draft.grad_outputs),
                        completed: draft
                            .completed
                            .map(|(buffer, write)| (exact(buffer, bytes_of(node.outputs[0])), write)),
                        grad_inputs,
                        grad_parameters: draft.grad_parameters.clone(),
                        scratch: draft.scratch.map_or(0..0, range),
                    },
                }
            })
            .collect();
        let mut values = HashMap::new();
        for (index, info) in self.tape.values.iter().enumerate() {
            let (base, start) = info.part_of.map_or((Value(index), 0), |(base, start)| (base, start * 4));
            if let Some(&buffer) = self.forward.get(&base) {
                values.insert(Value(index), offsets[buffer] + start..offsets[buffer] + start + info.bytes());
            }
        }
        let gradients = wanted.iter().map(|&(value, buffer)| (value, exact(buffer, bytes_of(value)))).collect();
        let memory = fullest(&self.buffers, arena_bytes, end);
        Plan { steps, values, gradients, memory, arena_bytes }
    }
}

/// Offsets of all buffers, and the size of the arena that holds them.
fn place(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).filter(|&index| buffers[index].first != usize::MAX).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(buffers[index].bytes), buffers[index].first, index));
    let mut offsets = vec![0usize; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_bytes = 0;
    for index in order {
        let buffer = &buffers[index];
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&other| buffers[other].first <= buffer.last && buffer.first <= buffers[other].last)
            .map(|&other| offsets[other]..offsets[other] + buffers[other].bytes)
            .collect();
        taken.sort_by_key(|range| range.start);
        let mut offset = 0;
        for range in taken {
            if range.start >= offset + buffer.bytes {
                break;
            }
            offset = offset.max(range.end);
        }
        offsets[index] = offset;
        arena_bytes = arena_bytes.max(offset + buffer.bytes);
        placed.push(index);
    }
    (offsets, arena_bytes)
}

/// What is alive, by category, at the step where most is.
fn fullest(buffers: &[Buffer], arena: usize, steps: usize) -> MemoryUse {
    let at = |step: usize, category: Category| -> usize {
        let is_alive = |buffer: &&Buffer| buffer.first <= step && step <= buffer.last && buffer.category == category;
        buffers.iter().filter(is_alive).map(|buffer| buffer.bytes).sum()
    };
    (0..=steps)
        .map(|step| MemoryUse {
            arena,
            activations: at(step, Category::Activation),
            gradients: at(step, Category::Gradient),
            scratch: at(step, Category::Scratch),
        })
        .max_by_key(|memory| memory.activations + memory.gradients + memory.scratch)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: usize, first: usize, last: usize) -> Buffer {
        Buffer { bytes, first, last, category: Category::Activation }
    }

    #[test]
    fn buffers_alive_together_never_overlap_and_others_share() {
        let buffers = vec![buffer(128, 0, 3), buffer(64, 1, 2), buffer(128, 4, 6), buffer(64, 3, 5), buffer(192, 6, 7)];
        let (offsets, arena) = place(&buffers);
        for (i, a) in buffers.iter().enumerate() {
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let alive_together = a.first <= b.last && b.first <= a.last;
                let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                assert!(!(alive_together && overlap), "buffers {i} and {j}");
            }
        }
        assert!(arena < buffers.iter().map(|b| b.bytes).sum::<usize>());
    }
}
