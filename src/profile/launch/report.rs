//! A launch in words and in JSON.

use super::{Launch, Outcome, describe};
use crate::driver::emulator::{Counters, Finding, FindingKind};
use crate::profile::roofline::Roofline;
use crate::profile::table::Table;
use crate::profile::timing::median;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Opcodes in the table of a report.
const TOP_OPCODES: usize = 10;
/// Findings that a report lists; JSON has them all.
const LISTED_FINDINGS: usize = 50;

/// Everything as one object: what was launched, the counters side by side at the top, and what was asked for besides.
///
/// Counters are null where the kernel was stopped, or the device does not count.
pub fn to_json(launch: &Launch, outcome: &Outcome, roofline: Option<&Roofline>) -> Value {
    let config = launch.options().config;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.into(), value);
    };
    put("file", json!(launch.file()));
    put("kernel", json!(launch.kernel()));
    put("device", json!(outcome.device));
    put("grid", json!(config.grid));
    put("block", json!(config.block));
    put("shared_bytes", json!(config.shared_bytes));
    for (key, value) in counter_values(outcome.counters.as_ref()) {
        put(key, json!(value));
    }
    put("opcodes", json!(outcome.counters.as_ref().map(|counters| &counters.opcodes)));
    put("seconds", json!(outcome.seconds));
    let middle = median(&outcome.seconds);
    let rate = |count: Option<u64>| count.filter(|_| middle > 0.0).map(|count| count as f64 / middle);
    // JSON has no NaN; serde_json makes null of it.
    put("seconds_median", json!(middle));
    put("warp_instructions_per_second", json!(rate(outcome.counters.as_ref().map(|c| c.warp_instructions))));
    put("thread_instructions_per_second", json!(rate(outcome.counters.as_ref().map(|c| c.thread_instructions))));
    put("printed", json!(String::from_utf8_lossy(&outcome.printed)));
    let outputs: Vec<Value> = outcome
        .outputs
        .iter()
        .map(|output| {
            json!({
                "argument": output.position,
                "file": output.path.to_string_lossy(),
                "dtype": output.dtype.name(),
                "shape": output.shape,
                "unwritten_elements": output.unwritten_elements,
            })
        })
        .collect();
    put("outputs", json!(outputs));
    if let Some(findings) = &outcome.findings {
        put("findings", findings.iter().map(|finding| finding_json(launch, finding)).collect());
    }
    if let Some(roofline) = roofline {
        put("roofline", roofline.to_json());
    }
    Value::Object(object)
}

/// The counters by their stable names.
fn counter_values(counters: Option<&Counters>) -> [(&'static str, Option<u64>); 14] {
    let get = |field: fn(&Counters) -> u64| counters.map(field);
    [
        ("warp_instructions", get(|c| c.warp_instructions)),
        ("thread_instructions", get(|c| c.thread_instructions)),
        ("global_load_requests", get(|c| c.global_load_requests)),
        ("global_load_sectors", get(|c| c.global_load_sectors)),
        ("global_store_requests", get(|c| c.global_store_requests)),
        ("global_store_sectors", get(|c| c.global_store_sectors)),
        ("global_atomic_requests", get(|c| c.global_atomic_requests)),
        ("dram_read_bytes", get(|c| c.dram_read_bytes)),
        ("dram_write_bytes", get(|c| c.dram_write_bytes)),
        ("shared_wavefronts", get(|c| c.shared_wavefronts)),
        ("shared_bank_conflicts", get(|c| c.shared_bank_conflicts)),
        ("tensor_core_flops", get(|c| c.tensor_core_flops)),
        ("barriers", get(|c| c.barriers)),
        ("divergent_branches", get(|c| c.divergent_branches)),
    ]
}

fn finding_json(launch: &Launch, finding: &Finding) -> Value {
    json!({
        "kind": kind_name(finding.kind),
        "kernel": finding.kernel,
        "file": launch.file(),
        "line": finding.line,
        "column": launch.column(finding.line),
        "source": finding.source.as_ref().map(|(file, line)| json!({ "file": file, "line": line })),
        "block": finding.block,
        "thread": finding.thread,
        "address": finding.address,
        "detail": finding.detail,
    })
}

/// `SharedRace` is `shared_race`.
pub fn kind_name(kind: FindingKind) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// A finding in a line, place first.
pub fn finding_line(launch: &Launch, finding: &Finding) -> String {
    let triple = |[x, y, z]: [u32; 3]| format!("({x},{y},{z})");
    let mut line = format!(
        "{}:{}:{}: {}: {} in {}, block {}, thread {}, address {:#x}",
        launch.file(),
        finding.line,
        launch.column(finding.line),
        kind_name(finding.kind),
        finding.detail,
        finding.kernel,
        triple(finding.block),
        triple(finding.thread),
        finding.address
    );
    if let Some((file, number)) = &finding.source {
        let _ = write!(line, " ({file}:{number})");
    }
    line + launch.hint(&finding.detail)
}

/// The report that people read.
pub fn to_text(launch: &Launch, outcome: &Outcome, roofline: Option<&Roofline>) -> String {
    let config = launch.options().config;
    let triple = |[x, y, z]: [u32; 3]| format!("{x},{y},{z}");
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<9}{value}");
    };
    line("kernel", format!("{} of {}", launch.kernel(), launch.file()));
    line(
        "launch",
        format!(
            "grid {}, block {}, {} bytes of dynamic shared memory{}",
            triple(config.grid),
            triple(config.block),
            grouped(u64::from(config.shared_bytes)),
            if config.is_cooperative { ", cooperative" } else { "" }
        ),
    );
    line("device", outcome.device.clone());
    if !outcome.seconds.is_empty() {
        line("time", time(outcome));
    }
    for output in &outcome.outputs {
        let unwritten = match output.unwritten_elements {
            Some(count @ 1..) => format!(", {} of its elements still all ones: not written?", grouped(count as u64)),
            _ => String::new(),
        };
        line("wrote", format!("{} {}{unwritten}", output.path.display(), describe(output.dtype, &output.shape)));
    }
    if let Some(findings) = &outcome.findings {
        line("sanitize", plural(findings.len(), "finding"));
        for finding in findings.iter().take(LISTED_FINDINGS) {
            let _ = writeln!(text, "{}", finding_line(launch, finding));
        }
        if findings.len() > LISTED_FINDINGS {
            let _ = writeln!(text, "and {} more (all are in --json)", findings.len() - LISTED_FINDINGS);
        }
    }
    if let Some(counters) = &outcome.counters {
        let _ = write!(text, "\n{}\n{}", counters_text(counters), opcode_table(counters));
    }
    if let Some(roofline) = roofline {
        let _ = write!(text, "\n{}", roofline_text(roofline));
    }
    text
}

fn time(outcome: &Outcome) -> String {
    let middle = median(&outcome.seconds);
    let mut text = si(middle, "s");
    if outcome.seconds.len() > 1 {
        let _ = write!(text, ", median of {}", outcome.seconds.len());
    }
    if let Some(counters) = &outcome.counters
        && middle > 0.0
    {
        let warps = si(counters.warp_instructions as f64 / middle, " warp");
        let threads = si(counters.thread_instructions as f64 / middle, " thread instructions/s");
        let _ = write!(text, "; {warps} and {threads}");
    }
    text
}

fn counters_text(counters: &Counters) -> String {
    let c = counters;
    let per = |amount: u64, of: u64, what: &str| match of {
        0 => String::new(),
        _ => format!("{:.2} per {what}", amount as f64 / of as f64),
    };
    let branches: u64 =
        c.opcodes.iter().filter(|(name, _)| name.split('.').next() == Some("bra")).map(|(_, count)| count).sum();
    let passes = c.shared_wavefronts.saturating_sub(c.shared_bank_conflicts);
    let percent_of = |part: u64, whole: u64, what: &str| match whole {
        0 => String::new(),
        _ => format!("{:.1} % of {what}", 100.0 * part as f64 / whole as f64),
    };
    let lanes = match c.warp_instructions {
        0 => String::new(),
        warps => format!("{:.1} of 32 lanes active", c.thread_instructions as f64 / warps as f64),
    };
    let coalesced = |kind: &str, requests: u64, sectors: u64| {
        let mut note = per(sectors, requests, "request");
        if let Some(efficiency) = coalescing(c, kind, requests, sectors) {
            let _ = write!(note, ", {:.0} % coalesced", 100.0 * efficiency);
        }
        note
    };
    let rows = [
        ("warp instructions", c.warp_instructions, String::new()),
        ("thread instructions", c.thread_instructions, lanes),
        ("global load requests", c.global_load_requests, String::new()),
        ("global load sectors", c.global_load_sectors, coalesced("ld", c.global_load_requests, c.global_load_sectors)),
        ("global store requests", c.global_store_requests, String::new()),
        (
            "global store sectors",
            c.global_store_sectors,
            coalesced("st", c.global_store_requests, c.global_store_sectors),
        ),
        ("global atomic requests", c.global_atomic_requests, String::new()),
        ("DRAM bytes read", c.dram_read_bytes, "each 32-byte sector once".into()),
        ("DRAM bytes written", c.dram_write_bytes, String::new()),
        ("shared wavefronts", c.shared_wavefronts, String::new()),
        ("shared bank conflicts", c.shared_bank_conflicts, per(c.shared_bank_conflicts, passes, "access")),
        ("tensor core FLOPs", c.tensor_core_flops, String::new()),
        ("barriers", c.barriers, "arrivals of warps".into()),
        ("divergent branches", c.divergent_branches, percent_of(c.divergent_branches, branches, "branches")),
    ];
    let values: Vec<String> = rows.iter().map(|row| grouped(row.1)).collect();
    let width = values.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for ((name, count, note), value) in rows.iter().zip(&values) {
        let note = if *count == 0 { "" } else { note };
        let _ = writeln!(text, "{}", format!("{name:<23} {value:>width$}  {note}").trim_end());
    }
    text
}

/// How near the sectors of global accesses are to the fewest possible: lanes side by side, each with its own bytes.
/// None where an access does not tell its width.
fn coalescing(counters: &Counters, kind: &str, requests: u64, sectors: u64) -> Option<f64> {
    let (mut accesses, mut bytes) = (0u64, 0u64);
    for (opcode, &count) in &counters.opcodes {
        if let Some(width) = global_width(opcode, kind)? {
            accesses = accesses.saturating_add(count);
            bytes = bytes.saturating_add(count.saturating_mul(width));
        }
    }
    if accesses == 0 || sectors == 0 {
        return None;
    }
    // 32 lanes of so many bytes are so many sectors of 32 bytes.
    let fewest = bytes as f64 / accesses as f64 * requests as f64;
    Some((fewest / sectors as f64).min(1.0))
}

/// Bytes per lane of a global access of this kind; `Some(None)` for other opcodes, none where it cannot be told.
fn global_width(opcode: &str, kind: &str) -> Option<Option<u64>> {
    let parts: Vec<&str> = opcode.split('.').collect();
    let has = |part: &str| parts.contains(&part);
    if kind == "ld" && parts.starts_with(&["cp", "async"]) && has("global") {
        // .cg always moves 16 bytes, .ca what an operand says.
        return if has("cg") { Some(Some(16)) } else { None };
    }
    let is_kind = parts[0] == kind || (kind == "ld" && parts[0] == "ldu");
    if !is_kind || parts.iter().any(|part| ["shared", "local", "param", "const"].iter().any(|s| part.starts_with(s))) {
        return Some(None);
    }
    let bits: u64 = parts.last()?.get(1..)?.parse().ok()?;
    let lanes = [("v2", 2), ("v4", 4), ("v8", 8)].iter().find(|(name, _)| has(name)).map_or(1, |(_, count)| *count);
    Some(Some(bits / 8 * lanes))
}

fn opcode_table(counters: &Counters) -> String {
    let mut opcodes: Vec<(&String, u64)> = counters.opcodes.iter().map(|(name, &count)| (name, count)).collect();
    opcodes.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut table = Table::new(&["opcode", "warp instructions", "share"]);
    for (name, count) in opcodes.iter().take(TOP_OPCODES) {
        let share = 100.0 * *count as f64 / counters.warp_instructions.max(1) as f64;
        table.row(vec![(*name).clone(), grouped(*count), format!("{share:.1} %")]);
    }
    let rest = opcodes.len().saturating_sub(TOP_OPCODES);
    if rest == 0 {
        return table.to_string() + "\n";
    }
    let count: u64 = opcodes[TOP_OPCODES..].iter().map(|(_, count)| count).sum();
    let share = 100.0 * count as f64 / counters.warp_instructions.max(1) as f64;
    table.row(vec![format!("{rest} others"), grouped(count), format!("{share:.1} %")]);
    table.to_string() + "\n"
}

/// The bounds of a launch on a GPU.
pub fn roofline_text(roofline: &Roofline) -> String {
    let (gpu, work) = (roofline.gpu, &roofline.work);
    let mut text = format!(
        "roofline {}: {}, {} f32, {} bf16 tensor, {} multiprocessors at {}\n",
        gpu.name,
        si(gpu.dram_bytes_per_second, "B/s"),
        si(gpu.f32_flops_per_second, "FLOP/s"),
        si(gpu.tensor_flops_per_second, "FLOP/s"),
        gpu.multiprocessors,
        si(gpu.clock_hz, "Hz")
    );
    let amounts = [
        work.dram_bytes,
        work.f32_instructions.saturating_mul(32),
        work.tensor_flops,
        work.shared_wavefronts,
        work.warp_instructions,
    ];
    let mut table = Table::new(&["bound", "work", "at least", "busy"]);
    for (bound, amount) in roofline.bounds.iter().zip(amounts) {
        let busy = format!("{:.1} %", roofline.percent(bound));
        table.row(vec![bound.name.into(), grouped(amount), si(bound.seconds, "s"), busy]);
    }
    let _ = writeln!(text, "{table}");
    let ruling = roofline.ruling();
    let _ = write!(text, "bound by {}: at least {}", ruling.name, si(ruling.seconds, "s"));
    if let Some(intensity) = work.intensity() {
        let _ = write!(text, "; {intensity:.2} FLOPs per byte of DRAM traffic");
    }
    if work.flops() > 0 {
        let _ = write!(
            text,
            "; at most {}, {:.1} % of the {} peak",
            si(roofline.attainable_flops_per_second(), "FLOP/s"),
            roofline.percent_of_peak(),
            if work.tensor_flops > work.vector_flops { "tensor" } else { "f32" }
        );
    }
    text.push('\n');
    if roofline.busy_multiprocessors < gpu.multiprocessors {
        let _ = writeln!(
            text,
            "a grid of {} keeps {} of {} multiprocessors busy",
            plural(work.blocks as usize, "block"),
            roofline.busy_multiprocessors,
            gpu.multiprocessors
        );
    }
    text
}

fn plural(count: usize, what: &str) -> String {
    match count {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        _ => format!("{} {what}s", grouped(count as u64)),
    }
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a prefix: `1.23 ms`, `19.5 TFLOP/s`.
pub fn si(value: f64, unit: &str) -> String {
    const STEPS: [(f64, &str); 10] = [
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
        (1e-12, "p"),
    ];
    if value == 0.0 || !value.is_finite() {
        return format!("{value} {unit}");
    }
    let (scale, prefix) = STEPS.into_iter().find(|(scale, _)| value >= *scale).unwrap_or((1e-12, "p"));
    let scaled = value / scale;
    let decimals = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.decimals$} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_accesses_come_from_the_opcode() {
        for (opcode, kind, width) in [
            ("ld.global.f32", "ld", Some(Some(4))),
            ("ld.global.nc.v4.u32", "ld", Some(Some(16))),
            ("ld.global.L1::no_allocate.v2.b64", "ld", Some(Some(16))),
            ("ld.u8", "ld", Some(Some(1))),
            ("cp.async.cg.shared.global", "ld", Some(Some(16))),
            ("cp.async.ca.shared.global", "ld", None),
            ("cp.async.commit_group", "ld", Some(None)),
            ("ld.shared.v4.f32", "ld", Some(None)),
            ("ld.shared::cta.f32", "ld", Some(None)),
            ("ld.param.u64", "ld", Some(None)),
            ("st.global.f64", "st", Some(Some(8))),
            ("st.global.f64", "ld", Some(None)),
            ("add.f32", "ld", Some(None)),
        ] {
            assert_eq!(global_width(opcode, kind), width, "{opcode}");
        }
    }

    #[test]
    fn coalescing_is_one_for_neighbours_and_an_eighth_for_a_sector_per_lane() {
        let opcodes = [("ld.global.f32".to_owned(), 10)].into();
        let counters = Counters { opcodes, ..Counters::default() };
        assert_eq!(coalescing(&counters, "ld", 10, 40), Some(1.0));
        assert_eq!(coalescing(&counters, "ld", 10, 320), Some(0.125));
        assert_eq!(coalescing(&counters, "ld", 10, 10), Some(1.0));
        assert_eq!(coalescing(&counters, "st", 0, 0), None);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!(si(0.001234, "s"), "1.23 ms");
        assert_eq!(si(19.5e12, "FLOP/s"), "19.5 TFLOP/s");
        assert_eq!(si(312e12, "FLOP/s"), "312 TFLOP/s");
        assert_eq!((si(0.0, "s"), si(5e-12, "s")), ("0 s".into(), "5.00 ps".into()));
        assert_eq!(kind_name(FindingKind::UninitialisedShared), "uninitialised_shared");
    }
}
