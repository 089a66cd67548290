//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives a value; panics with `what` and the last refusal after `deadline`.
///
/// # Panics
/// When the deadline passes first.
pub fn eventually<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(refusal) if Instant::now() >= end => panic!("{what}: not within {deadline:?}: {refusal}"),
            Err(_) => std::thread::park_timeout(PACE),
        }
    }
}
