//! How much memory a run needs, by category, and how much there is.
//!
//! A run that does not fit is refused before its first step, with what to change: the alternative is a machine that
//! swaps, or a process that the kernel kills after an hour.

use super::config;
use super::optimizer::Optimizer;
use crate::ops::Device;
use crate::tape::{MemoryUse, Parameters};
use std::fmt;
use std::path::Path;

/// Memory by category, in bytes: the table that a run prints before its first step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTable {
    rows: Vec<(String, u64)>,
}

impl MemoryTable {
    /// A table without rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a training step needs: parameters, gradients, the optimizer's state, and the arena of its program.
    pub fn of_step(optimizer: &config::Optimizer, parameters: &Parameters, program: &MemoryUse) -> Self {
        let MemoryUse { arena, activations, gradients: activation_gradients, scratch } = *program;
        let (values, gradients) = parameters.bytes();
        let (first, second) = Optimizer::state_bytes(optimizer, gradients);
        let mut table = Self::new();
        table
            .add("parameters", values as u64)
            .add("gradients", gradients as u64)
            .add("optimizer state", (first + second) as u64)
            .add("activations", activations as u64)
            .add("gradients of activations", activation_gradients as u64)
            .add("scratch", scratch as u64)
            .add("gaps", (arena - activations - activation_gradients - scratch) as u64);
        table
    }

    /// Adds a row; one of the same name grows instead.
    pub fn add(&mut self, category: impl Into<String>, bytes: u64) -> &mut Self {
        let category = category.into();
        match self.rows.iter_mut().find(|(name, _)| *name == category) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => self.rows.push((category, bytes)),
        }
        self
    }

    /// The rows, in the order in which they were added.
    pub fn rows(&self) -> &[(String, u64)] {
        &self.rows
    }

    /// Sum of all rows.
    pub fn total_bytes(&self) -> u64 {
        self.rows.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Fails where the table's total does not fit into what the device has left; see [`available_bytes`].
    ///
    /// # Errors
    /// It does not fit.
    pub fn check(&self, device: &Device) -> Result<(), MemoryError> {
        available_bytes_of(device).map_or(Ok(()), |available| self.check_against(available))
    }

    /// Fails where the table's total is more than `available_bytes`.
    ///
    /// # Errors
    /// It is.
    pub fn check_against(&self, available_bytes: u64) -> Result<(), MemoryError> {
        let needed_bytes = self.total_bytes();
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        let (largest, bytes) = self.rows.iter().max_by_key(|(_, bytes)| *bytes).cloned().unwrap_or_default();
        Err(MemoryError { needed_bytes, available_bytes, largest: format!("{largest} {}", human_bytes(bytes)) })
    }
}

impl fmt::Display for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = ("total".to_string(), self.total_bytes());
        let width = self.rows.iter().chain([&total]).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, bytes) in &self.rows {
            writeln!(f, "  {name:<width$}  {:>10}", human_bytes(*bytes))?;
        }
        write!(f, "  {:<width$}  {:>10}", total.0, human_bytes(total.1))
    }
}

/// A run needs more memory than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run needs {} of memory ({largest} of it), but only {} are available: lower train.batch or model.block, \
     or set train.recompute=true",
    human_bytes(*.needed_bytes), human_bytes(*.available_bytes)
)]
pub struct MemoryError {
    pub needed_bytes: u64,
    pub available_bytes: u64,
    /// The largest row: name and size.
    pub largest: String,
}

/// `bytes` with three or four digits and a binary unit: `1.4 GiB`, `998 B`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // 1023.95 would round to "1024.0".
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Memory that this process can still take: what the kernel calls available, or what is left of the limit of any
/// control group (container) around the process, whichever is less. `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| field_bytes(&text, "MemAvailable:"));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_folders(&groups).into_iter().filter_map(|folder| group_available(Path::new(&folder)));
    system.into_iter().chain(limits).min()
}

/// Memory that a device can still give. `None` where nobody says.
pub fn available_bytes_of(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu(_) => available_bytes(),
        // An emulated device has this machine's memory in the end.
        Device::Gpu(gpu) => {
            let free = gpu.driver().memory_info().ok().map(|(free, _)| free);
            if gpu.is_emulated() { free.into_iter().chain(available_bytes()).min() } else { free }
        }
    }
}

/// The most memory that this process has occupied so far (its peak resident size).
pub fn peak_resident_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The memory that this process occupies now.
pub fn resident_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The value of a line such as `MemAvailable:  123 kB`.
fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Folders of all control groups that may limit the memory of a process whose `/proc/self/cgroup` is `text`: its own
/// and every one above. Inside a container the path is often that of the host, so the root is always among them.
fn group_folders(text: &str) -> Vec<String> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            list if list.split(',').any(|controller| controller == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        while !path.is_empty() {
            folders.push(format!("{root}{path}"));
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        folders.push(root.to_string());
    }
    folders
}

/// What is left of a control group's limit: version 2's files, or version 1's. Page cache that the kernel would give
/// back under pressure does not count as used.
fn group_available(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let statistics = read("memory.stat").unwrap_or_default();
    let cache = ["total_inactive_file ", "inactive_file "]
        .iter()
        .find_map(|name| statistics.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    fn table() -> MemoryTable {
        let mut table = MemoryTable::new();
        table.add("parameters", 3 << 20).add("activations", 5 << 30).add("parameters", 1 << 20);
        table
    }

    #[test]
    fn a_table_adds_up_and_lines_up() {
        assert_eq!(table().total_bytes(), (4 << 20) + (5 << 30));
        assert_eq!(table().rows().len(), 2);
        let text = table().to_string();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            ["  parameters      4.0 MiB", "  activations     5.0 GiB", "  total           5.0 GiB"]
        );
    }

    #[test]
    fn a_run_that_does_not_fit_says_what_it_needs_what_there_is_and_what_to_change() {
        assert_eq!(table().check_against(6 << 30), Ok(()));
        let message = table().check_against(1 << 30).unwrap_err().to_string();
        assert_eq!(
            message,
            "the run needs 5.0 GiB of memory (activations 5.0 GiB of it), but only 1.0 GiB are available: \
             lower train.batch or model.block, or set train.recompute=true"
        );
    }

    #[test]
    fn sums_beyond_64_bits_do_not_fit_either() {
        let mut table = table();
        table.add("logits", u64::MAX);
        assert!(table.check_against(1 << 40).is_err());
        assert!(table.check(&Device::Cpu(Cpu::new().unwrap())).is_err());
    }

    #[test]
    fn bytes_read_well() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), ((1 << 20) - 1, "1.0 MiB"), (u64::MAX, "16.0 EiB")];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn fields_of_proc_are_found() {
        let text = "MemTotal:       16314480 kB\nMemAvailable:    8123456 kB\n";
        assert_eq!(field_bytes(text, "MemAvailable:"), Some(8123456 * 1024));
        assert_eq!(field_bytes(text, "VmHWM:"), None);
        assert_eq!(field_bytes("VmHWM: many kB", "VmHWM:"), None);
    }

    #[test]
    fn limits_of_all_groups_around_the_process_count() {
        assert_eq!(
            group_folders("0::/user.slice/job/\n"),
            ["/sys/fs/cgroup/user.slice/job", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]
        );
        let version_1 = "5:cpu,cpuacct:/a\n4:memory:/docker/x\n";
        assert_eq!(
            group_folders(version_1),
            ["/sys/fs/cgroup/memory/docker/x", "/sys/fs/cgroup/memory/docker", "/sys/fs/cgroup/memory"]
        );
        assert!(group_folders("nonsense\n:\n").is_empty());
    }

    #[test]
    fn page_cache_counts_as_available() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group_available(folder.path()), None);
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert_eq!(group_available(folder.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(group_available(folder.path()), Some(300));
        write("memory.stat", "anon 400\nactive_file 100\ninactive_file 200\n");
        assert_eq!(group_available(folder.path()), Some(500));
    }

    /// Other tests allocate and free at the same time, so only what this one holds is certain.
    #[test]
    fn the_resident_size_counts_what_is_touched() {
        let block = vec![1u8; 64 << 20];
        let (Some(now), Some(peak)) = (resident_bytes(), peak_resident_bytes()) else { return };
        drop(std::hint::black_box(block));
        assert!(now >= 60 << 20, "{now}");
        assert!(peak >= 60 << 20, "{peak}");
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
    }
}
