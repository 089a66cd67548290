//! Blocking until a queue, another worker or the time asks for attention.

use std::{os::fd::BorrowedFd, time::Duration};

use arrayvec::ArrayVec;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::prctl,
};
use xsk::Queue;

use crate::lane::Lane;

/// Most queues of one worker: what the poll set has room for, without allocation.
pub(crate) const MAX_QUEUES: usize = 64;

/// How long to block at most when a queue cannot be polled, or when frames were just sent and come back unannounced.
const SHORT: Duration = Duration::from_millis(1);

/// How late the kernel may end a sleep of the calling thread so as to end several at once; 50,000 unless one asks.
const SLACK_NS: u64 = 1_000;

/// How long a worker blocks. Completions are not announced, so while frames are missed that are in flight it looks again
/// soon, and ever less often while nothing comes back: a receiver that sits on a frame must not cost a core. Where none is
/// missed it need not look: a timer that is set and put off for each packet costs as much as the packet.
#[derive(Debug)]
pub(crate) struct Patience {
    longest: Duration,
    next: Duration,
}

impl Patience {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, next: SHORT.min(longest) }
    }

    /// There was work: be quick again.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.next = SHORT.min(self.longest);
    }

    /// How long to block now. `missed`: frames that come back are of use at once.
    pub(crate) fn timeout<Q: Queue>(&mut self, lanes: &[Lane<Q>], missed: bool) -> Duration {
        if lanes.iter().any(|lane| lane.queue.fd().is_none()) {
            return SHORT.min(self.longest);
        }
        let waits = |lane: &Lane<Q>| lane.stuck || !lane.out.is_empty() || missed && lane.queue.in_flight() > 0;
        if lanes.iter().any(waits) {
            let timeout = self.next;
            self.next = (timeout * 2).min(self.longest);
            return timeout;
        }
        self.longest
    }
}

/// Has the calling thread's short sleeps end on time.
pub(crate) fn be_punctual() {
    // Where the kernel refuses, it sleeps a little longer.
    let _ = prctl::set_timerslack(SLACK_NS);
}

/// Blocks until one of the queues has received, `doorbell` is readable, or `timeout` is over. Says whether the doorbell may
/// be readable.
pub(crate) fn wait<Q: Queue>(lanes: &[Lane<Q>], doorbell: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = ArrayVec::<PollFd<'_>, { MAX_QUEUES + 1 }>::new();
    fds.push(PollFd::new(doorbell, PollFlags::POLLIN));
    fds.extend(lanes.iter().filter_map(|lane| lane.queue.fd()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    // Rounded up: what is due in less than the clock of `poll` counts must not be waited for awake.
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    // A signal or a lack of memory ends the wait early, which is harmless: the caller looks at everything again.
    match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => fds[0].any() != Some(false),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xsk::{
        Umem,
        memory::{MemoryQueue, Wire, WireLimits},
    };

    #[test]
    fn a_worker_without_queues_is_patient_and_one_that_cannot_be_polled_is_not() {
        let mut patience = Patience::new(Duration::from_millis(100));
        assert_eq!(patience.timeout::<MemoryQueue>(&[], true), Duration::from_millis(100));
        let (umem, _frames) = Umem::anonymous(4, 2048).unwrap();
        let (_wire, queue) = Wire::new(&umem, WireLimits::default());
        assert_eq!(patience.timeout(&[Lane::new(lb::PortId(0), queue, 4)], false), SHORT);
    }
}
