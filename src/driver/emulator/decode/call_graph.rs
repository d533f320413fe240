//! Which functions a function may call, and what follows from it for the callers.
//!
//! A call through a register may reach any function whose address the module takes: in an instruction, or in the
//! initialiser of a variable (virtual functions come so). One more node of the graph stands for all of those.

use super::function::DecodedFunction;
use super::program::{CallTarget, Frames, FunctionInfo, Op};
use crate::error::EmulatorError;

pub struct CallGraph {
    /// By function, and last what a call through a register may reach.
    callees: Vec<Vec<usize>>,
}

impl CallGraph {
    /// Of functions of which `addressed` have an address that the module takes.
    pub fn new(decoded: &[Option<DecodedFunction>], mut addressed: Vec<usize>) -> Self {
        let anywhere = decoded.len();
        let mut callees: Vec<Vec<usize>> = decoded
            .iter()
            .map(|function| {
                let calls = function.iter().flat_map(|function| &function.code).filter_map(|instr| match &instr.op {
                    Op::Call(call) => Some(match call.target {
                        CallTarget::Function(function) => function as usize,
                        CallTarget::Register(_) => anywhere,
                    }),
                    _ => None,
                });
                calls.collect()
            })
            .collect();
        addressed
            .extend(decoded.iter().flatten().flat_map(|function| &function.addressed).map(|&index| index as usize));
        callees.push(addressed);
        for list in &mut callees {
            list.sort_unstable();
            list.dedup();
        }
        Self { callees }
    }

    /// What refuses a function refuses those that call it. A call through a register finds out when it happens.
    pub fn refuse_callers(&self, refusals: &mut [Option<EmulatorError>]) {
        let mut has_changed = refusals.iter().any(Option::is_some);
        while has_changed {
            has_changed = false;
            for caller in 0..refusals.len() {
                let refused = self.callees[caller].iter().find_map(|&callee| refusals.get(callee).cloned().flatten());
                if refusals[caller].is_none() && refused.is_some() {
                    (refusals[caller], has_changed) = (refused, true);
                }
            }
        }
    }

    /// What is true of a function becomes true of those that may call it.
    pub fn spread_to_callers(
        &self,
        decoded: &mut [Option<DecodedFunction>],
        field: fn(&mut FunctionInfo) -> &mut bool,
    ) {
        let mut holds: Vec<bool> = decoded
            .iter_mut()
            .map(|function| function.as_mut().is_some_and(|function| *field(&mut function.info)))
            .chain([false])
            .collect();
        let mut has_changed = holds.contains(&true);
        while has_changed {
            has_changed = false;
            for (caller, callees) in self.callees.iter().enumerate() {
                if !holds[caller] && callees.iter().any(|&callee| holds[callee]) {
                    (holds[caller], has_changed) = (true, true);
                }
            }
        }
        for (function, holds) in decoded.iter_mut().zip(holds) {
            if let Some(function) = function {
                *field(&mut function.info) = holds;
            }
        }
    }

    /// Sets what the deepest calls of each function take; nothing for functions without a bound: they recurse, or use
    /// alloca, or call such functions.
    pub fn measure(&self, decoded: &mut [Option<DecodedFunction>]) {
        let nodes = self.callees.len();
        let mut callers = vec![Vec::new(); nodes];
        for (caller, callees) in self.callees.iter().enumerate() {
            callees.iter().for_each(|&callee| callers[callee].push(caller));
        }
        // Who calls nobody comes first, then those all of whose callees are known; a cycle never comes.
        let mut unknown: Vec<usize> = self.callees.iter().map(Vec::len).collect();
        let mut known: Vec<usize> = (0..nodes).filter(|&node| unknown[node] == 0).collect();
        let mut deepest = vec![None; nodes];
        while let Some(node) = known.pop() {
            let (own, is_bounded) = match decoded.get(node) {
                Some(Some(function)) => (function.info.own_frame(), function.info.stack_pointer.is_none()),
                _ => (Frames::default(), true),
            };
            deepest[node] = self.callees[node]
                .iter()
                .try_fold(Frames::default(), |most, &callee| Some(most.max(deepest[callee]?)))
                .filter(|_| is_bounded)
                .map(|most| own.behind(most));
            for &caller in &callers[node] {
                unknown[caller] -= 1;
                if unknown[caller] == 0 {
                    known.push(caller);
                }
            }
        }
        for (function, deepest) in decoded.iter_mut().zip(deepest) {
            if let Some(function) = function {
                function.info.deepest = deepest;
            }
        }
    }
}
