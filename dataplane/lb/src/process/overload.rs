//! Who comes first while the worker cannot keep up: flows that are there.
//!
//! Opening a flow costs as much as some twenty packets of one that is open, so SYNs that lead to nothing would take the
//! better part of a worker that is at its limit. While its worker says that it is ([`Admission::set_overloaded`]) and there
//! is no credit for a SYN, of which [`PRICE`] buys one, SYNs are dropped at the first look: who retries gets in at some
//! time. Whether a SYN has a flow is not asked then, for asking costs what forwarding does. Of a flow that is opening, the
//! endpoint sends its answer again, and Millrace the SYNs that it keeps; where it kept none, the client's has the odds of
//! any other.
//! So are datagrams that nobody has a flow for, but for one in [`DATAGRAM_PRICE`]: a datagram often is the whole question,
//! and nobody's kernel sends it again. Prices are times, for what they limit is how much of the worker's time openings
//! take, however much of it a packet takes; each kind has its own. Where nobody has a flow there is nobody to be kept
//! from, and nothing is dropped.

use wire::{Plain, Protocol};

use super::{BURST, Look, Places};
use crate::flow::Guess;
use crate::time::Now;
use crate::verdict::Frame;

/// Nanoseconds in which one flow may open: a hundredth of the worker's time is about what these take.
pub const PRICE: u64 = 250_000;
/// The same of UDP: a tenth of the worker's time at most.
pub const DATAGRAM_PRICE: u64 = 16_000;
/// SYNs that may be saved up.
const SAVED: u64 = 4;
/// The same of datagrams.
const DATAGRAMS_SAVED: u64 = 16;
/// Frames without one of a flow among them, after which nobody is held to have one: a burst is too short to tell.
const ALONE: u32 = 16 * BURST as u32;

/// What a worker under overload lets in.
#[derive(Debug, Default)]
pub struct Admission {
    overloaded: bool,
    /// Nanoseconds under overload that no SYN was taken for.
    syns: u64,
    /// The same of datagrams.
    datagrams: u64,
    /// Until when they were counted; `None` while there is no overload.
    until: Option<Now>,
    /// Frames for which flows are still held to be there; 0: nobody has one.
    flows: u32,
}

impl Admission {
    /// Whether the worker gets more than it can do.
    #[inline]
    pub fn set_overloaded(&mut self, overloaded: bool) {
        self.overloaded = overloaded;
        if !overloaded {
            self.until = None;
        }
    }

    /// Credits the time since the last burst; says whether all SYNs of the one that begins are to be dropped.
    #[inline]
    pub(super) fn sheds_syns(&mut self, now: Now) -> bool {
        if !self.overloaded {
            return false;
        }
        let passed = self.until.replace(now).map_or(0, |until| now.0.saturating_sub(until.0));
        self.syns = (self.syns + passed).min(SAVED * PRICE);
        self.datagrams = (self.datagrams + passed).min(DATAGRAMS_SAVED * DATAGRAM_PRICE);
        self.syns < PRICE && self.flows > 0
    }

    /// Marks the frames of a burst that are to be dropped, of those `missing` a flow at first sight. Gives those that remain.
    #[inline]
    pub(super) fn admit(
        &mut self,
        frames: &[Frame<'_>],
        looks: &mut [Look],
        missing: Places,
        is_known: impl Fn(&Frame<'_>, &Look, &Plain) -> bool,
    ) -> Places {
        if !self.overloaded {
            return missing;
        }
        if missing == 0 && looks.len() == frames.len() {
            self.flows = ALONE;
            return 0;
        }
        self.choose(frames, looks, missing, is_known)
    }

    #[cold]
    fn choose(
        &mut self,
        frames: &[Frame<'_>],
        looks: &mut [Look],
        missing: Places,
        is_known: impl Fn(&Frame<'_>, &Look, &Plain) -> bool,
    ) -> Places {
        let has_flow = |(i, look): (usize, &Look)| missing >> i & 1 == 0 && look.plain.is_some();
        self.flows = match looks.iter().enumerate().any(has_flow) {
            true => ALONE,
            false => self.flows.saturating_sub(frames.len() as u32),
        };
        let (mut left, mut remain) = (missing, missing);
        while left != 0 && self.flows > 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            // What another worker handed over is its flow's owner's to decide, whatever it is.
            let frame = &frames[usize::from(looks[i].at)];
            let Some(plain) = looks[i].plain.as_ref().filter(|_| !frame.handed) else { continue };
            let paid = match plain.kind.protocol() {
                Protocol::TCP if plain.tcp_flags.opens() => pay(&mut self.syns, PRICE),
                Protocol::UDP if !is_known(frame, &looks[i], plain) => pay(&mut self.datagrams, DATAGRAM_PRICE),
                _ => continue,
            };
            if !paid {
                looks[i].guess = Guess::REFUSED;
                remain &= !(1 << i);
            }
        }
        remain
    }
}

/// Takes a price off a credit, if that is enough.
fn pay(credit: &mut u64, price: u64) -> bool {
    let left = credit.checked_sub(price);
    *credit = left.unwrap_or(*credit);
    left.is_some()
}
