//! Where and what was measured: named in tables, JSON and plots, for a figure without them says little.

use std::fs;

/// The machine, and which Millrace.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Processor and number of cores.
    pub machine: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Size of base pages, and who gets huge ones by themselves.
    pub pages: String,
    /// Of the repository, when this was built.
    pub commit: &'static str,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.trim()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let huge = huge.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0.to_owned()));
        Self {
            machine: format!("{}, {cores} cores", model.unwrap_or("unknown processor")),
            kernel: format!("Linux {}", release.trim()),
            pages: format!("{} KiB, huge ones {}", size / 1024, huge.as_deref().unwrap_or("never")),
            commit: env!("MILLRACE_COMMIT"),
        }
    }

    /// All of it in a line.
    pub fn line(&self) -> String {
        let Self { machine, kernel, pages, commit } = self;
        format!("{machine}; {kernel}; pages {pages}; commit {commit}")
    }
}
