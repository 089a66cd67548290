//! How a sleeping worker is woken: a flag that says that it sleeps, and an eventfd that is written only then.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use publish::Wake;

/// One worker's doorbell. Whoever gave it work rings; while it is awake that costs a fence and a load.
#[derive(Debug)]
pub(crate) struct Doorbell {
    wake: Wake,
    eventfd: EventFd,
}

impl Doorbell {
    /// # Errors
    ///
    /// What `eventfd(2)` returned.
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { wake: Wake::new(), eventfd })
    }

    /// Called after work was given.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.wake.needs_wake() {
            // It fails only when 2^64 - 2 writes were not read, and then it is readable anyway.
            let _ = self.eventfd.write(1);
        }
    }

    /// Blocks in `block`, which must poll the descriptor and say whether it may be readable, unless there is work after
    /// all. Says whether it blocked, and whether somebody rang.
    pub(crate) fn sleep(
        &self,
        still_nothing: impl FnOnce() -> bool,
        block: impl FnOnce(BorrowedFd<'_>) -> bool,
    ) -> Slept {
        if !self.wake.prepare_sleep(still_nothing) {
            return Slept::Not;
        }
        let readable = block(self.eventfd.as_fd());
        self.wake.awake();
        if readable && self.eventfd.read().is_ok() { Slept::Woken } else { Slept::Through }
    }
}

/// How a sleep went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slept {
    /// There was work.
    Not,
    /// Another thread ended it.
    Woken,
    /// A queue or the timeout ended it.
    Through,
}
