//! The clock that figures are of.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Processor time of this thread. Loops that never sleep take as much of it as of any other time, and on a machine that
/// is shared it leaves out when others ran.
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has this clock").into()
}
