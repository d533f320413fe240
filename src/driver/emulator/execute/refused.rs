//! What is PTX but not emulated: named, so that nobody takes it for a mistake in the text.

use crate::ast::Instruction;

/// What the emulator has, for messages.
const EMULATED: &str = "the emulator has the PTX of sm_80 and, of later targets, stmatrix, elect, griddepcontrol, setmaxnreg, \
     vector and 128-bit atomics, conversions of 8-bit floats, transaction counts of mbarrier, and clusters of one block";

/// What an instruction is that belongs to a later target or to textures; none if it is to be decoded.
pub fn beyond(opcode: &str, modifiers: &[&str]) -> Option<&'static str> {
    let has = |name: &str| modifiers.contains(&name);
    let is_narrow =
        |name: &&str| matches!(*name, "e4m3" | "e5m2" | "e3m2" | "e2m3" | "e2m1") || name.starts_with("kind::");
    Some(match opcode {
        "wgmma" => "matrix products of a warp group, sm_90a",
        "tcgen05" => "tensor memory and its matrix products, sm_100a",
        "cp" if has("reduce") => "bulk reductions by the copy engine, sm_90",
        "cp" if has("bulk") => "bulk and tensor copies by the copy engine, sm_90",
        "mma" if has("sp") || has("sp::ordered_metadata") => "matrix products with a sparse factor",
        "mma" if modifiers.iter().any(is_narrow) => "matrix products of floats of 8 bits and less, sm_89 and later",
        "cvt" if ["e2m1x2", "e2m3x2", "e3m2x2", "ue8m0x2", "e2m1x4", "e2m3x4", "e3m2x4"].into_iter().any(has) => {
            "conversions of floats of 6 and 4 bits, sm_100a"
        }
        "ldmatrix" | "stmatrix" if ["m16n16", "m8n16", "m16n8"].into_iter().any(has) => {
            "matrices of 8-, 6- and 4-bit elements, sm_100a"
        }
        "tensormap" => "descriptors of tensor copies, sm_90a",
        "multimem" => "memory of several devices, sm_90",
        "clusterlaunchcontrol" => "cancelling of clusters, sm_100",
        "st" | "red" if has("async") => "stores to another block of a cluster, sm_90",
        "tex" | "tld4" | "txq" | "suld" | "sust" | "sured" | "suq" | "istypep" => "textures and surfaces",
        _ => return None,
    })
}

pub fn refusal(instruction: &Instruction<'_>, what: &str) -> String {
    let name: Vec<&str> =
        [instruction.opcode].into_iter().chain(instruction.modifiers.iter().copied()).take(3).collect();
    format!("unsupported instruction '{}' ({what}); {EMULATED}", name.join("."))
}
