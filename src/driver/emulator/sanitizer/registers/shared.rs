//! Values from nowhere in shared memory: bytes that nobody wrote, and bytes that hold a copy of such a value. Threads of a
//! last, partial tile load and store such copies as their neighbours do, and nobody looks at them.

use super::{DEFINED, Origin, Registers, State, States, WarpStates, slots, uses};
use crate::decode::program::{NONE, RegisterUse, Role, Rule};
use crate::error::Access;
use crate::lanes::LANES;
use crate::machine::Launch;
use crate::machine::access::lanes_of;
use crate::machine::observe::AccessEvent;
use crate::sanitizer::fast_map::FastMap;
use crate::sanitizer::races::NEVER_WRITTEN;
use crate::sanitizer::{FindingKind, Place, Report};

impl Registers {
    pub(super) fn store_shared(&mut self, event: &AccessEvent<'_>, list: &[RegisterUse], states: &mut WarpStates) {
        let elements: Vec<&RegisterUse> = list.iter().filter(|item| item.role == Role::Stored).collect();
        let size = u64::from(event.bytes) / (elements.len().max(1) as u64);
        if elements.is_empty() {
            self.set_shared(event, 0, size, &[DEFINED; LANES]);
        }
        for (element, item) in elements.into_iter().enumerate() {
            for (plane, slot) in slots(std::slice::from_ref(item), Role::Stored).enumerate() {
                let offset = 4 * plane as u64;
                // A constant takes one plane here, however wide it is stored.
                let bytes = if slot == NONE { size } else { size.saturating_sub(offset).min(4) };
                let stored = self.read(states, event.pc, slot);
                self.set_shared(event, element as u64 * size + offset, bytes, &stored);
            }
        }
    }

    /// States of `bytes` bytes from `offset` on behind the address of each lane.
    fn set_shared(&mut self, event: &AccessEvent<'_>, offset: u64, bytes: u64, states: &States) {
        let known = self.shared.entry(event.block).or_default();
        for lane in lanes_of(event.lanes) {
            let start = event.addresses[lane] + offset;
            if states[lane] != DEFINED {
                known.extend((start..start + bytes).map(|byte| (byte, states[lane])));
            } else if !known.is_empty() {
                (start..start + bytes).for_each(|byte| {
                    known.remove(&byte);
                });
            }
        }
    }

    /// An access to shared memory of which some bytes hold values from nowhere: a load takes them along, from anything else
    /// they show.
    pub(super) fn meet_shared(
        &mut self,
        report: &mut Report,
        launch: &Launch<'_>,
        event: &AccessEvent<'_>,
        rule: Rule,
        list: &[RegisterUse],
        states: &mut WarpStates,
    ) {
        let elements: Vec<&RegisterUse> = list.iter().filter(|item| item.role == Role::Written).collect();
        let is_load = event.access == Access::Read && rule != Rule::WholeWarp && !elements.is_empty();
        let size = u64::from(event.bytes) / (if is_load { elements.len() } else { 1 } as u64);
        for lane in lanes_of(event.lanes) {
            // Structures are copied with their padding: one byte of a known value makes an element of them.
            let state_of = |known: &FastMap<u64, State>, start: u64| {
                let first = known.get(&start).copied().unwrap_or(DEFINED);
                if (start..start + size).all(|byte| known.contains_key(&byte)) { first } else { DEFINED }
            };
            let known = self.shared.entry(event.block).or_default();
            let address = event.addresses[lane];
            if is_load {
                for (element, item) in elements.iter().enumerate() {
                    let state = state_of(known, address + element as u64 * size);
                    for slot in slots(std::slice::from_ref(item), Role::Written).filter(|&slot| slot != NONE) {
                        if state != DEFINED {
                            states.plane(self.base + slot)[lane] = state;
                        }
                    }
                }
                continue;
            }
            let state = if event.access == Access::Write { DEFINED } else { state_of(known, address) };
            for byte in address..address + size {
                known.remove(&byte);
            }
            if state != DEFINED {
                let thread = event.warp * 32 + lane as u32;
                let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address };
                self.tell(report, launch, state, place, "takes effect");
            }
        }
    }

    /// After a load from shared memory that found bytes which nobody wrote: the words that hold nothing else come from
    /// nowhere.
    pub fn read_unwritten(
        &mut self,
        report: &mut Report,
        launch: &Launch<'_>,
        event: &AccessEvent<'_>,
        unwritten: &[u32; LANES],
    ) {
        let flow = launch.program.flows.get(event.pc as usize).copied().unwrap_or_default();
        let list = uses(launch.program, &flow);
        let elements = list.iter().filter(|item| item.role == Role::Written);
        let count = elements.clone().count() as u32;
        if count == 0 || flow.rule == Rule::WholeWarp {
            // Copies and matrix loads hand the bytes to other lanes, or nobody.
            for lane in lanes_of(event.lanes).filter(|&lane| unwritten[lane] != 0) {
                let thread = event.warp * 32 + lane as u32;
                let address = event.addresses[lane];
                let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address };
                report.add(launch, FindingKind::UninitialisedShared, place, 0, NEVER_WRITTEN.into());
            }
            return;
        }
        let mut states = self.warps.remove(&(event.block, event.warp)).unwrap_or_default();
        let size = event.bytes / count;
        for (element, item) in elements.enumerate() {
            let start = element as u32 * size;
            let mask = ((1u64 << size) - 1) as u32;
            // As with local memory: structures are copied with their padding.
            let is_unwritten =
                |lane: &usize| size > 0 && unwritten[*lane].checked_shr(start).unwrap_or(0) & mask == mask;
            for lane in lanes_of(event.lanes).filter(is_unwritten) {
                if states.is_padding(event, lane) {
                    continue;
                }
                let (kind, detail) = (FindingKind::UninitialisedShared, event.addresses[lane] + u64::from(start));
                let state = self.origin(Origin { kind, pc: event.pc, detail });
                for slot in slots(std::slice::from_ref(item), Role::Written).filter(|&slot| slot != NONE) {
                    states.plane(self.base + slot)[lane] = state;
                }
            }
        }
        self.warps.insert((event.block, event.warp), states);
    }
}
