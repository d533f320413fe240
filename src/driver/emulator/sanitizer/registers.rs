//! Follows values that nobody wrote through registers, local and shared memory, to where they show.
//!
//! Compilers copy, shuffle and even compute with registers that were never written, as long as nothing depends on the
//! result: reporting every such read would make correct programs look wrong. So each register has a state per lane, which
//! goes along with its value; a finding is made when a value that comes from nowhere becomes an address, a value in global
//! memory, a guard or branch, or steers a synchronisation. It names the instruction that first read the unwritten register (or
//! local or shared memory, or the register of a lane that took no part in a shuffle), because that is where the mistake is.
//!
//! (Seward and Nethercote, "Using Valgrind to detect undefined value errors with bit-precision", 2005; here per register.)

mod shared;

use super::fast_map::FastMap;
use super::races::NEVER_WRITTEN;
use super::{FindingKind, Place, Report};
use crate::decode::program::{CallValue, Flow, NONE, Op, Program, RegisterUse, Role, Rule};
use crate::error::Access;
use crate::execute::warp::shuffle_source;
use crate::lanes::{LANES, Plane, Word, predicate};
use crate::machine::Launch;
use crate::machine::access::lanes_of;
use crate::machine::observe::{AccessEvent, CallEvent, IssueEvent, Order, PassEvent, PassPlace, StackEvent, Target};
use crate::machine::resident::{Shadow, local_stride, register_room};
use crate::machine::stack::STACK_GAP;
use crate::machine::warp::MAX_LOCAL_BYTES;

/// What is known of a value: [`DEFINED`], [`NEVER`] written, or two more than the number of the [`Origin`] that it has.
type State = u32;
const DEFINED: State = 0;
const NEVER: State = 1;
/// Of bytes of local memory: what alloca leaves between its blocks.
const OUTSIDE: State = State::MAX;

/// What the states take.
pub const SHADOW: Shadow = Shadow {
    per_local_byte: size_of::<State>() as u64,
    per_register_byte: (size_of::<States>() / size_of::<Plane>()) as u64,
};

/// States of a register's plane, or of any value, by lane.
type States = [State; LANES];

/// Where a value from nowhere entered a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    kind: FindingKind,
    pc: u32,
    /// Plane within the frame (to name the register), address in local or shared memory, or lane.
    detail: u64,
}

#[derive(Debug, Default)]
struct WarpStates {
    /// By plane of the warp's register stack.
    planes: Vec<States>,
    /// By byte of local memory, for each lane.
    local: Vec<Vec<State>>,
    /// Where the last load of each lane from shared or local memory was that found something, and where the one before.
    loads: [Option<Box<[u64; LANES]>>; 2],
}

/// The space of an address in [`WarpStates::loads`].
const LOCAL_LOAD: u64 = 1 << 63;
const NO_LOAD: u64 = u64::MAX;

impl WarpStates {
    fn plane(&mut self, index: u32) -> &mut States {
        let index = index as usize;
        if self.planes.len() <= index {
            // As much as the machine has taken for the registers themselves: what is counted is what there is.
            self.planes.reserve_exact(register_room(index + 1) - self.planes.len());
            self.planes.resize(index + 1, [NEVER; LANES]);
        }
        &mut self.planes[index]
    }

    fn local(&mut self, lane: usize, start: u64, bytes: u64) -> &mut [State] {
        self.local.resize(LANES, Vec::new());
        let (memory, start, end) = (&mut self.local[lane], start as usize, (start + bytes) as usize);
        if memory.len() < end {
            memory.reserve_exact(local_stride(end as u64) as usize - memory.len());
            memory.resize(end, NEVER);
        }
        &mut memory[start..end]
    }

    /// Notes a load.
    fn loaded(&mut self, event: &AccessEvent<'_>) {
        let space = if event.target == Target::Local { LOCAL_LOAD } else { 0 };
        let [last, before] = &mut self.loads;
        let last = last.get_or_insert_with(|| Box::new([NO_LOAD; LANES]));
        let before = before.get_or_insert_with(|| Box::new([NO_LOAD; LANES]));
        for lane in lanes_of(event.lanes) {
            before[lane] = std::mem::replace(&mut last[lane], space | event.addresses[lane]);
        }
    }

    /// Whether a word that nobody wrote, which the last load found, is the padding of a structure that is copied word by word,
    /// as unoptimised code does it: it fills up a unit of eight bytes, of which the thread has just loaded the other word.
    fn is_padding(&mut self, event: &AccessEvent<'_>, lane: usize) -> bool {
        let [Some(last), Some(before)] = &mut self.loads else { return false };
        let is_padding = event.bytes == 4 && last[lane] % 8 == 4 && before[lane] == last[lane] - 4;
        if !is_padding {
            last[lane] = NO_LOAD;
        }
        is_padding
    }

    fn set_local(&mut self, lanes: u32, start: u64, bytes: u64, state: State) {
        lanes_of(lanes).for_each(|lane| self.local(lane, start, bytes).fill(state));
    }
}

/// The states of all values of a launch.
#[derive(Debug, Default)]
pub struct Registers {
    warps: FastMap<([u32; 3], u32), WarpStates>,
    /// Bytes of a block's shared memory that hold values from nowhere.
    shared: FastMap<[u32; 3], FastMap<u64, State>>,
    origins: Vec<Origin>,
    known_origins: FastMap<Origin, State>,
    /// First plane of the frame that runs, and the end of each thread's local memory.
    base: u32,
    local_ends: [u64; LANES],
}

fn uses<'p>(program: &'p Program, flow: &Flow) -> &'p [RegisterUse] {
    &program.register_uses[flow.start as usize..(flow.start + flow.count) as usize]
}

/// The planes of the registers with this role, in order; constants have none.
fn slots(list: &[RegisterUse], role: Role) -> impl Iterator<Item = u32> {
    list.iter().filter(move |item| item.role == role).flat_map(|item| {
        (0..u32::from(item.planes)).map(|plane| if item.slot == NONE { NONE } else { item.slot + plane })
    })
}

/// The first state of each lane that is not [`DEFINED`].
fn merge(into: &mut States, states: &States) {
    for (kept, state) in into.iter_mut().zip(states) {
        *kept = if *kept == DEFINED { *state } else { *kept };
    }
}

impl Registers {
    pub fn block_ended(&mut self, block: [u32; 3]) {
        self.warps.retain(|(of, _), _| *of != block);
        self.shared.remove(&block);
    }

    /// The state of a value that came from nowhere here.
    fn origin(&mut self, origin: Origin) -> State {
        *self.known_origins.entry(origin).or_insert_with(|| {
            self.origins.push(origin);
            self.origins.len() as State + 1
        })
    }

    /// States that the instruction computes with: unwritten registers have their origin here.
    fn read(&mut self, states: &mut WarpStates, pc: u32, slot: u32) -> States {
        if slot == NONE {
            return [DEFINED; LANES];
        }
        let mut result = *states.plane(self.base + slot);
        if result.contains(&NEVER) {
            let kind = FindingKind::UninitialisedRegister;
            let origin = self.origin(Origin { kind, pc, detail: u64::from(slot) });
            result.iter_mut().filter(|state| **state == NEVER).for_each(|state| *state = origin);
        }
        result
    }

    /// Reports lanes of a register whose value shows here; they count as defined afterwards.
    #[allow(clippy::too_many_arguments)]
    fn demand(
        &mut self,
        report: &mut Report,
        launch: &Launch<'_>,
        states: &mut WarpStates,
        mut place: Place,
        slot: u32,
        lanes: u32,
        becomes: &str,
    ) {
        if slot == NONE {
            return;
        }
        if lanes_of(lanes).all(|lane| states.plane(self.base + slot)[lane] == DEFINED) {
            return;
        }
        let found = self.read(states, place.pc, slot);
        for lane in lanes_of(lanes).filter(|&lane| found[lane] != DEFINED) {
            states.plane(self.base + slot)[lane] = DEFINED;
            place.thread = place.warp * 32 + lane as u32;
            self.tell(report, launch, found[lane], place, becomes);
        }
    }

    /// Reports a value from nowhere that shows at `place`.
    fn tell(&self, report: &mut Report, launch: &Launch<'_>, state: State, mut place: Place, becomes: &str) {
        let (pc, origin) = (place.pc, self.origins[state as usize - 2]);
        let line = launch.program.meta.get(pc as usize).map_or(0, |meta| meta.line);
        let what = match origin.kind {
            FindingKind::UninitialisedLocal => "this local memory was never written".to_owned(),
            FindingKind::UninitialisedShared => NEVER_WRITTEN.to_owned(),
            FindingKind::InactiveLane => format!("lane {} takes no part in this shuffle", origin.detail),
            _ => format!("nothing wrote {} before", register_name(launch.program, origin)),
        };
        let way = if origin.pc == pc { "here".to_owned() } else { format!("at line {line}") };
        place.pc = origin.pc;
        place.address = match origin.kind {
            FindingKind::UninitialisedLocal | FindingKind::UninitialisedShared => origin.detail,
            _ => 0,
        };
        // One read of shared memory is one finding, wherever its value goes.
        let other_pc = if origin.kind == FindingKind::UninitialisedShared { 0 } else { pc };
        report.add(launch, origin.kind, place, other_pc, format!("{what}; its value {becomes} {way}"));
    }

    pub fn issued(&mut self, report: &mut Report, launch: &Launch<'_>, event: &IssueEvent<'_>) {
        self.base = event.base;
        self.local_ends = match event.stack_pointer {
            Some(pointer) => u32::view(event.planes, pointer).map(u64::from),
            None => [event.local.end; LANES],
        };
        let Some(flow) = launch.program.flows.get(event.pc as usize) else { return };
        let is_call = matches!(launch.program.code[event.pc as usize].op, Op::Call(_));
        if flow.count == 0 && flow.rule == Rule::Compute && !is_call {
            return;
        }
        let mut states = self.warps.remove(&(event.block, event.warp)).unwrap_or_default();
        self.carry_out(report, launch, event, flow, &mut states);
        self.warps.insert((event.block, event.warp), states);
    }

    fn carry_out(
        &mut self,
        report: &mut Report,
        launch: &Launch<'_>,
        event: &IssueEvent<'_>,
        flow: &Flow,
        states: &mut WarpStates,
    ) {
        let list = uses(launch.program, flow);
        let pc = event.pc;
        let place = Place { pc, block: event.block, warp: event.warp, thread: event.warp * 32, address: 0 };
        for (role, lanes, becomes) in [
            (Role::Guard, event.group, "decides what runs"),
            (Role::Address, event.active, "becomes an address"),
            (Role::Needed, event.active, "takes effect"),
        ] {
            for slot in slots(list, role) {
                self.demand(report, launch, states, place, slot, lanes, becomes);
            }
        }
        if event.active == 0 {
            return;
        }
        if flow.rule == Rule::WholeWarp && event.active != u32::MAX {
            let thread = event.warp * 32 + event.active.trailing_zeros();
            let detail = format!("{} lanes of the warp take no part", (!event.active).count_ones());
            report.add(launch, FindingKind::InactiveLane, Place { thread, ..place }, 0, detail);
        }
        if let Some(Op::Call(call)) = launch.program.code.get(pc as usize).map(|instr| &instr.op) {
            for value in &call.returns {
                if let CallValue::Local { offset, bytes } = *value {
                    states.set_local(event.active, event.local.start + u64::from(offset), bytes.into(), DEFINED);
                }
            }
        }
        let write = |states: &mut WarpStates, slot: u32, result: &States| {
            if slot != NONE {
                let plane = states.plane(event.base + slot);
                lanes_of(event.active).for_each(|lane| plane[lane] = result[lane]);
            }
        };
        if flow.rule == Rule::Copy {
            // As it is: an unwritten register that is only copied has not been used yet.
            let mut whole = [DEFINED; LANES];
            let sources: Vec<States> = slots(list, Role::Read)
                .map(|slot| if slot == NONE { [DEFINED; LANES] } else { *states.plane(event.base + slot) })
                .inspect(|states| merge(&mut whole, states))
                .collect();
            let targets: Vec<u32> = slots(list, Role::Written).collect();
            for (index, &slot) in targets.iter().enumerate() {
                write(states, slot, if sources.len() == targets.len() { &sources[index] } else { &whole });
            }
            return;
        }
        let result = match flow.rule {
            Rule::Select => self.selected(states, event, list),
            Rule::Pack => self.packed(states, event, list),
            Rule::And | Rule::Or => self.decided(states, event, flow.rule == Rule::Or, list),
            Rule::Shuffle { .. } => self.shuffled(states, event, flow.rule, list),
            _ => {
                let mut result = [DEFINED; LANES];
                for slot in slots(list, Role::Read) {
                    merge(&mut result, &self.read(states, pc, slot));
                }
                if flow.rule == Rule::Mask {
                    // Compilers set a field of a local structure so, whether or not the other fields were ever set. States
                    // are per word, so which bits are which is not known: better silent than wrong.
                    for state in &mut result {
                        let is_local =
                            |state: State| self.origins[state as usize - 2].kind == FindingKind::UninitialisedLocal;
                        if *state != DEFINED && is_local(*state) {
                            *state = DEFINED;
                        }
                    }
                } else if flow.rule != Rule::Compute
                    && let Some(lane) = lanes_of(event.active).find(|&lane| result[lane] != DEFINED)
                {
                    result = [result[lane]; LANES];
                }
                result
            }
        };
        slots(list, Role::Written).for_each(|slot| write(states, slot, &result));
    }

    fn selected(&mut self, states: &mut WarpStates, event: &IssueEvent<'_>, list: &[RegisterUse]) -> States {
        let (pc, half) = (event.pc, list.iter().filter(|item| item.role == Role::Read).count() / 2);
        let mut either = [[DEFINED; LANES]; 2];
        for (index, item) in list.iter().filter(|item| item.role == Role::Read).enumerate() {
            for slot in slots(std::slice::from_ref(item), Role::Read) {
                merge(&mut either[usize::from(index >= half)], &self.read(states, pc, slot));
            }
        }
        let mut result = either[0];
        for item in list {
            if let (Role::Choice { is_negated }, true) = (item.role, item.slot != NONE) {
                let chosen = predicate(event.planes, item.slot, is_negated);
                let choice = self.read(states, pc, item.slot);
                result = std::array::from_fn(|lane| match choice[lane] {
                    DEFINED => either[usize::from(chosen >> lane & 1 == 0)][lane],
                    unknown => unknown,
                });
            }
        }
        result
    }

    fn packed(&mut self, states: &mut WarpStates, event: &IssueEvent<'_>, list: &[RegisterUse]) -> States {
        let mut result = [DEFINED; LANES];
        let mut written = 0u32;
        for slot in slots(list, Role::Read).filter(|&slot| slot != NONE) {
            let read = self.read(states, event.pc, slot);
            merge(&mut result, &read);
            written |= (0..LANES).filter(|&lane| read[lane] == DEFINED).fold(0, |mask, lane| mask | 1 << lane);
        }
        lanes_of(written).for_each(|lane| result[lane] = DEFINED);
        result
    }

    /// `and` and `or` of predicates: one that decides alone makes the other one's value not matter.
    fn decided(
        &mut self,
        states: &mut WarpStates,
        event: &IssueEvent<'_>,
        decides: bool,
        list: &[RegisterUse],
    ) -> States {
        let mut result = [DEFINED; LANES];
        let mut decided = 0;
        for slot in slots(list, Role::Read).filter(|&slot| slot != NONE) {
            let read = self.read(states, event.pc, slot);
            let values = predicate(event.planes, slot, !decides);
            decided |= lanes_of(values).filter(|&lane| read[lane] == DEFINED).fold(0, |mask, lane| mask | 1 << lane);
            merge(&mut result, &read);
        }
        lanes_of(decided).for_each(|lane| result[lane] = DEFINED);
        result
    }

    fn shuffled(
        &mut self,
        states: &mut WarpStates,
        event: &IssueEvent<'_>,
        rule: Rule,
        list: &[RegisterUse],
    ) -> States {
        let Rule::Shuffle { mode, amount, clamp } = rule else { return [DEFINED; LANES] };
        let mut values = [DEFINED; LANES];
        for slot in slots(list, Role::Read) {
            merge(&mut values, &self.read(states, event.pc, slot));
        }
        let (amounts, clamps) = (u32::view(event.planes, amount), u32::view(event.planes, clamp));
        let mut result = values;
        for lane in lanes_of(event.active) {
            let (source, _) = shuffle_source(mode, lane as u32, amounts[lane], clamps[lane]);
            result[lane] = if event.active >> source & 1 != 0 {
                values[source as usize]
            } else {
                let kind = FindingKind::InactiveLane;
                self.origin(Origin { kind, pc: event.pc, detail: u64::from(source) })
            };
        }
        result
    }

    /// Loads and stores carry states along to and from local and shared memory; what is stored anywhere else shows.
    pub fn access(&mut self, report: &mut Report, launch: &Launch<'_>, event: &AccessEvent<'_>) {
        let flow = launch.program.flows.get(event.pc as usize).copied().unwrap_or_default();
        let list = uses(launch.program, &flow);
        let mut states = self.warps.remove(&(event.block, event.warp)).unwrap_or_default();
        let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread: 0, address: 0 };
        let is_shared = event.target == Target::Shared;
        if event.access == Access::Read && (is_shared || event.target == Target::Local) {
            states.loaded(event);
        }
        let is_store = event.access == Access::Write && event.order == Order::Plain && flow.rule != Rule::WholeWarp;
        if event.target == Target::Local {
            self.access_local(report, launch, event, list, &mut states);
        } else if is_shared && is_store {
            self.store_shared(event, list, &mut states);
        } else {
            for slot in slots(list, Role::Stored) {
                self.demand(report, launch, &mut states, place, slot, event.lanes, "is stored");
            }
            if is_shared && self.shared.get(&event.block).is_some_and(|bytes| !bytes.is_empty()) {
                self.meet_shared(report, launch, event, flow.rule, list, &mut states);
            }
        }
        self.warps.insert((event.block, event.warp), states);
    }

    fn access_local(
        &mut self,
        report: &mut Report,
        launch: &Launch<'_>,
        event: &AccessEvent<'_>,
        list: &[RegisterUse],
        states: &mut WarpStates,
    ) {
        for lane in lanes_of(event.lanes) {
            let (address, thread) = (event.addresses[lane], event.warp * 32 + lane as u32);
            let end = self.local_ends[lane];
            let is_between =
                |states: &mut WarpStates| states.local(lane, address, event.bytes.into()).contains(&OUTSIDE);
            if address + u64::from(event.bytes) > end || is_between(states) {
                let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address };
                let detail = if address + u64::from(event.bytes) > end {
                    format!("the thread has {end} bytes of local memory here")
                } else {
                    "outside the blocks that alloca gave the thread".into()
                };
                report.add(launch, FindingKind::OutOfBounds, place, 0, detail);
                continue;
            }
            let role = if event.access == Access::Read { Role::Written } else { Role::Stored };
            let elements = list.iter().filter(|item| item.role == role);
            let size = u64::from(event.bytes) / (elements.clone().count().max(1) as u64);
            for (element, item) in elements.enumerate() {
                for (plane, slot) in slots(std::slice::from_ref(item), role).enumerate() {
                    let offset = 4 * plane as u64;
                    let bytes = size.saturating_sub(offset).min(4);
                    let start = address + element as u64 * size + offset;
                    if event.access == Access::Read && slot != NONE {
                        // Structures are copied with their padding: one written byte makes an element of them.
                        let whole = states.local(lane, address + element as u64 * size, size);
                        let is_unwritten = bytes > 0 && whole.iter().all(|&state| state != DEFINED);
                        let read = states.local(lane, start, bytes);
                        let state = match read.first().copied() {
                            Some(NEVER) if is_unwritten && states.is_padding(event, lane) => DEFINED,
                            Some(NEVER) if is_unwritten => {
                                let kind = FindingKind::UninitialisedLocal;
                                self.origin(Origin { kind, pc: event.pc, detail: start })
                            }
                            Some(state) if is_unwritten => state,
                            _ => DEFINED,
                        };
                        states.plane(self.base + slot)[lane] = state;
                    } else if event.access != Access::Read {
                        // A constant takes one plane here, however wide it is stored.
                        let bytes = if slot == NONE { size } else { bytes };
                        let state = self.read(states, event.pc, slot)[lane];
                        states.local(lane, start, bytes).fill(state);
                    }
                }
            }
            if event.access != Access::Read && !list.iter().any(|item| item.role == Role::Stored) {
                states.local(lane, address, event.bytes.into()).fill(DEFINED);
            }
        }
    }

    /// New bytes hold nothing, and those around them are nobody's.
    pub fn stack_grew(&mut self, event: &StackEvent<'_>) {
        let states = self.warps.entry((event.block, event.warp)).or_default();
        for lane in lanes_of(event.lanes) {
            let (before, start, end) = (event.before[lane], event.start[lane], event.end[lane]);
            states.local(lane, before, start - before).fill(OUTSIDE);
            states.local(lane, start, end - start).fill(NEVER);
            states.local(lane, end, STACK_GAP.min(MAX_LOCAL_BYTES - end)).fill(OUTSIDE);
        }
    }

    /// A new activation: its registers and local memory hold nothing but the parameters.
    pub fn called(&mut self, event: &CallEvent<'_>) {
        let states = self.warps.entry((event.block, event.warp)).or_default();
        for plane in event.base..event.base + event.function.planes {
            let plane = states.plane(plane);
            lanes_of(event.lanes).for_each(|lane| plane[lane] = NEVER);
        }
        states.set_local(event.lanes, event.local_base, event.function.local_bytes, NEVER);
        for formal in &event.function.params {
            if formal.plane == NONE {
                states.set_local(
                    event.lanes,
                    event.local_base + u64::from(formal.offset),
                    formal.bytes.into(),
                    DEFINED,
                );
                continue;
            }
            for plane in 0..formal.bytes.div_ceil(4).max(1) {
                let plane = states.plane(event.base + formal.plane + plane);
                lanes_of(event.lanes).for_each(|lane| plane[lane] = DEFINED);
            }
        }
    }

    /// A parameter or a result takes its state along.
    pub fn passed(&mut self, event: &PassEvent) {
        let states = self.warps.entry((event.block, event.warp)).or_default();
        for lane in lanes_of(event.lanes) {
            let passed = passed_states(states, event.from, lane, event.bytes);
            match event.to.value {
                CallValue::Local { offset, bytes } => {
                    let count = event.bytes.min(bytes);
                    let start = event.to.local_base + u64::from(offset);
                    states.local(lane, start, count.into()).copy_from_slice(&passed[..count as usize]);
                }
                CallValue::Plane { slot: NONE, .. } => {}
                CallValue::Plane { slot, planes } => {
                    for plane in 0..u32::from(planes) {
                        let part = passed.iter().skip(4 * plane as usize).take(4);
                        // As a load of them would: one known byte makes a known value.
                        let is_known = part.clone().any(|&state| state == DEFINED);
                        let state = part.copied().next().filter(|_| !is_known).unwrap_or(DEFINED);
                        states.plane(event.to.base + slot + plane)[lane] = state;
                    }
                }
            }
        }
    }
}

/// The state of each byte of a value that is passed.
fn passed_states(states: &mut WarpStates, place: PassPlace, lane: usize, bytes: u32) -> Vec<State> {
    match place.value {
        CallValue::Local { offset, bytes: most } => {
            let start = place.local_base + u64::from(offset);
            let mut found = states.local(lane, start, bytes.min(most).into()).to_vec();
            found.resize(bytes as usize, DEFINED);
            found
        }
        CallValue::Plane { slot: NONE, .. } => vec![DEFINED; bytes as usize],
        CallValue::Plane { slot, planes } => {
            let state_of = |byte: u32| match byte / 4 {
                plane if plane < planes.into() => states.plane(place.base + slot + plane)[lane],
                _ => DEFINED,
            };
            (0..bytes).map(state_of).collect()
        }
    }
}

/// The name of the register that an origin speaks of.
fn register_name(program: &Program, origin: Origin) -> String {
    let function = program
        .functions
        .iter()
        .filter(|function| function.is_defined && function.entry_pc <= origin.pc)
        .max_by_key(|function| function.entry_pc);
    let names = function.map_or(&[][..], |function| &function.register_names);
    let name = names.iter().filter(|(slot, _)| u64::from(*slot) <= origin.detail).max_by_key(|(slot, _)| *slot);
    name.map_or_else(|| "a register".to_owned(), |(_, name)| name.clone())
}
