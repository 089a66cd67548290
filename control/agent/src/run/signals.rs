//! What the process is told by signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that mean something.
pub struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub hang_up: Signal,
}

impl Signals {
    /// Takes them from now on.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}
