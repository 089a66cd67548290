//! Which core does what, and how busy it was.
//!
//! What a core did is all that it did not idle: `/proc/stat` counts idle time by the clock where ticks stop in idle, while
//! it attributes busy time (user, system, softirq) by sampling at ticks. So busy is the time that passed less what is idle,
//! waits for I/O or was stolen by the hypervisor: the softirqs and the kernel's threads on that core are in it. Source:
//! Linux `fs/proc/stat.c`, `kernel/time/tick-sched.c`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Seconds of `/proc/stat`'s unit: `USER_HZ` is 100 wherever Linux shows it to users.
const TICKS_PER_SECOND: u64 = 100;

/// What a core's clock said at one moment.
#[derive(Clone, Copy)]
pub struct Reading {
    at: Instant,
    /// Idle, waiting, stolen.
    absent: Duration,
}

/// Reads a core's clock.
///
/// # Panics
/// If there is no such core.
pub fn read(core: usize) -> Reading {
    let text = fs::read_to_string("/proc/stat").expect("/proc/stat can be read");
    let at = Instant::now();
    let name = format!("cpu{core}");
    let line = text.lines().find(|line| line.split(' ').next() == Some(&name));
    let line = line.unwrap_or_else(|| panic!("there is no core {core}: choose others with --cores"));
    // user nice system idle iowait irq softirq steal
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let absent = Duration::from_millis((ticks[3] + ticks[4] + ticks[7]) * 1000 / TICKS_PER_SECOND);
    Reading { at, absent }
}

impl Reading {
    /// How long ago an earlier reading was.
    pub fn elapsed_since(&self, earlier: &Reading) -> Duration {
        self.at - earlier.at
    }

    /// How long the core was busy since an earlier reading.
    pub fn busy_since(&self, earlier: &Reading) -> Duration {
        (self.at - earlier.at).saturating_sub(self.absent.saturating_sub(earlier.absent))
    }
}

/// Binds all threads that a process has now to a core.
///
/// # Panics
/// If the core is not to be had.
pub fn bind_process(pid: u32, core: usize) {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for task in tasks.flatten() {
        if let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) {
            bind(id, core);
        }
    }
}

/// Binds the calling thread to a core.
///
/// # Panics
/// If the core is not to be had.
pub fn bind_this_thread(core: usize) {
    bind(0, core);
}

/// Has idle cores wait awake instead of asleep, until dropped.
///
/// To wake a sleeping core costs its waker an interrupt to another core, which on a virtual machine takes longer than all
/// else that happens to a packet. Source: Linux `Documentation/power/pm_qos_interface.rst`.
pub struct Awake(#[expect(dead_code, reason = "the request holds while it is open")] File);

impl Awake {
    /// Keeps all cores awake.
    ///
    /// # Errors
    /// If the kernel takes no such request.
    pub fn keep() -> io::Result<Self> {
        let mut request = File::options().write(true).open("/dev/cpu_dma_latency")?;
        request.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self(request))
    }
}

/// Binds a thread to a core.
///
/// # Panics
/// If the core is not to be had.
pub fn bind(id: i32, core: usize) {
    let mut set = CpuSet::new();
    let bound = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(id), &set));
    match bound {
        // A thread that ended meanwhile needs no core.
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(error) => panic!("core {core} is not to be had ({error}): choose others with --cores"),
    }
}
