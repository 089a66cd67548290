//! A node that takes its leave: it serves until others have what it owned, and a moment longer. Pure, but for telling who
//! waits.
//!
//! Who takes an address tells so at once, and its gratuitous ARP may come after that: frames that are on their way to the
//! former owner by then are served there still. A SYN that is not would come again after a second (RFC 6298, 2.1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long it waits for others at most; on a machine at rest they need some milliseconds.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long it serves after others have all.
const LINGER: Duration = Duration::from_millis(100);

/// What it owned, and who waits for its end.
pub(super) struct Leaving {
    pub owned: BTreeSet<IpAddr>,
    until: Instant,
    is_taken: bool,
    done: mpsc::Sender<()>,
}

impl Leaving {
    pub fn begin(owned: BTreeSet<IpAddr>, done: mpsc::Sender<()>, now: Instant) -> Self {
        Self { owned, until: now + FAREWELL, is_taken: false, done }
    }

    /// Whether it may end. `has_peers`: somebody could take something; `is_taken`: others have all of it.
    pub fn is_over(&mut self, has_peers: bool, is_taken: bool, now: Instant) -> bool {
        if !has_peers || self.owned.is_empty() {
            return true;
        }
        if is_taken && !self.is_taken {
            (self.is_taken, self.until) = (true, now + LINGER);
        }
        now >= self.until
    }

    /// Tells who waits.
    pub fn end(self) {
        let _ = self.done.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(owned: &[&str], now: Instant) -> Leaving {
        Leaving::begin(owned.iter().map(|address| address.parse().unwrap()).collect(), mpsc::channel().0, now)
    }

    #[test]
    fn it_serves_a_moment_longer_than_until_others_have_what_it_owned() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut one = leaving(&["192.0.2.1"], now);
        assert!(!one.is_over(true, false, now) && !one.is_over(true, true, after(40)));
        assert!(!one.is_over(true, true, after(139)) && one.is_over(true, true, after(140)));
        let mut slow = leaving(&["192.0.2.1"], now);
        assert!(!slow.is_over(true, false, after(999)) && slow.is_over(true, false, after(1000)));
    }

    #[test]
    fn it_waits_for_nobody_where_nobody_takes_anything() {
        let now = Instant::now();
        assert!(leaving(&["192.0.2.1"], now).is_over(false, false, now), "there is no other node");
        assert!(leaving(&[], now).is_over(true, true, now), "it owned nothing");
    }
}
