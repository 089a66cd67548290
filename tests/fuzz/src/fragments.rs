//! Parts of a few datagrams, in any order, of any size, overlapping or not, by any queue of two workers, in every mode.
//!
//! What must hold is told by a model that knows no more than RFC 791, 5722 and 8200 say: what goes on is a part that came,
//! as it came, and once; never two parts of one datagram that have an octet in common, and nothing after such parts came;
//! nothing to anybody else than the flow's other end; whatever was kept is sent or given up in the end; and a sound
//! datagram of somebody else arrives in any order.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use etherparse::{IpNumber, Ipv6FragmentHeaderSlice, NetSlice, SlicedPacket};
use lb::model::Mode;
use lb::{DropReason, Now, PortId, Verdict, emit};
use wire::{Protocol, TcpFlags};

use crate::packet::{ACK, RST, SYN_ACK, Segment};
use crate::parts::{parts, payload_at, raw_part};
use crate::rig::{INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, OUTSIDE_MAC, ROOM, Rig};

const WORKERS: u8 = 2;
const STEPS: usize = 96;
/// Datagrams that are taken apart at a time; two of each flow.
const DATAGRAMS: usize = 4;
/// How long parts may come after one another.
const LIFETIME: Duration = Duration::from_secs(2);
const UNIT: usize = 8;
const MODES: [Mode; 3] = [Mode::Nat, Mode::Preserve, Mode::DsrL2];

/// Runs the steps that the input tells.
///
/// # Panics
/// Where something does not hold.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(mut run) = Run::new(&mut input) else { return };
    // An input that ends ends the run.
    let _ = run.steps(&mut input);
    run.end();
}

/// A part that was sent: octets of its datagram, and whether it says that more follow.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Part {
    octets: Range<usize>,
    more: bool,
    bytes: Vec<u8>,
}

impl Part {
    fn is_like(&self, other: &Self) -> bool {
        (&self.octets, self.more) == (&other.octets, other.more)
    }

    /// Whether a sender may have made it: it has something, whole units unless it is the last one, and does not begin
    /// within a TCP header.
    fn is_sound(&self, kind: Kind) -> bool {
        let tiny = kind.protocol == Protocol::TCP && self.octets.start == UNIT;
        !self.octets.is_empty() && (!self.more || self.octets.len().is_multiple_of(UNIT)) && !tiny
    }

    /// Whether both cannot be of one datagram: they have a unit in common, or one says that the datagram ends before the
    /// other.
    fn contradicts(&self, other: &Self) -> bool {
        let units = |part: &Self| part.octets.start / UNIT..part.octets.end.div_ceil(UNIT);
        let (one, two) = (units(self), units(other));
        let past = |last: &Self, part: &Self| !last.more && part.octets.end >= last.octets.end;
        one.start < two.end && two.start < one.end || past(self, other) || past(other, self)
    }
}

/// A datagram as the model sees it, since its first part came.
struct Datagram {
    kind: Kind,
    /// Where its parts come in and go out.
    from: PortId,
    to: PortId,
    source: IpAddr,
    whole: Vec<u8>,
    id: u32,
    /// Where what is its own begins: behind the ports and checksums that are changed.
    header: usize,
    destinations: Vec<IpAddr>,
    /// All that were ever sent.
    sent: Vec<Part>,
    since: Now,
    taken: Vec<Part>,
    delivered: Vec<Part>,
    poisoned: bool,
    /// Something was dropped for reasons that this model does not know.
    uncertain: bool,
}

impl Datagram {
    fn reset(&mut self, now: Now) {
        self.since = now;
        self.taken.clear();
        self.delivered.clear();
        (self.poisoned, self.uncertain) = (false, false);
    }

    fn is_done(&self) -> bool {
        let end = self.taken.iter().find(|part| !part.more).map(|part| part.octets.end);
        let octets: usize = self.taken.iter().map(|part| part.octets.len()).sum();
        end == Some(octets) && self.delivered.len() == self.taken.len()
    }

    /// Takes note of a part that is about to be given to a worker.
    fn comes(&mut self, part: &Part, now: Now) {
        let is_over = Duration::from_nanos(now.0 - self.since.0) > LIFETIME;
        if is_over || self.taken.is_empty() && !self.poisoned || self.is_done() {
            self.reset(now);
        }
        if !part.is_sound(self.kind) {
            return;
        }
        self.sent.push(part.clone());
        let others = || self.taken.iter().filter(|taken| !taken.is_like(part));
        self.poisoned |= others().any(|taken| taken.contradicts(part));
    }

    /// Judges a part that went on.
    fn goes_on(&mut self, part: Part) {
        assert!(!self.poisoned || self.uncertain, "a part goes on after some that overlap: {:?}", part.octets);
        let again = self.delivered.iter().any(|other| other.contradicts(&part) || other.is_like(&part));
        assert!(!again || self.uncertain, "octets go on twice: {:?}", part.octets);
        self.delivered.push(part);
    }
}

struct Run {
    rig: Rig,
    datagrams: Vec<Datagram>,
    /// Kept parts that were sent, or handed over.
    released: u64,
    /// Errors and resets to who sent parts.
    answers: u64,
}

impl Run {
    fn new(input: &mut Unstructured<'_>) -> Result<Self> {
        let mode = *input.choose(&MODES)?;
        let mut run = Self { rig: Rig::with(usize::from(WORKERS), 64), datagrams: Vec::new(), released: 0, answers: 0 };
        run.rig.change(|port| {
            port.mode = mode;
            if mode.is_direct() {
                port.endpoints.iter_mut().for_each(|endpoint| endpoint.port = 80);
            }
        });
        for number in 0..DATAGRAMS {
            let kind = *input.choose(&KINDS)?;
            let reply = input.arbitrary::<bool>()? && !mode.is_direct();
            let owner = input.int_in_range(0..=WORKERS - 1)?;
            let datagram = run.datagram(number, kind, reply, owner);
            run.datagrams.push(datagram);
        }
        Ok(run)
    }

    /// Opens a flow at a worker, and makes a datagram of it.
    fn datagram(&mut self, number: usize, kind: Kind, reply: bool, owner: u8) -> Datagram {
        let client = 7 + (number % 2) as u8;
        let opening = Segment { payload: vec![], ..kind.opening_of(client, 6000 + u16::from(client)) };
        let frame = self.whole(owner, OUTSIDE, opening.bytes());
        let mut segment = opening.with_flags(ACK);
        let direct = self.rig.desired.service_ports[0].mode.is_direct();
        if !direct {
            let got = Segment::read(&frame);
            self.whole(owner, INSIDE, got.back().with_flags(SYN_ACK).bytes());
            if reply {
                segment = got.back().with_flags(ACK);
            }
        }
        segment.payload = (0..640).map(|at| octet(number, at)).collect();
        let (from, to) = if reply { (INSIDE, OUTSIDE) } else { (OUTSIDE, INSIDE) };
        let backends = (1..=3).map(|n| kind.backend(n).ip());
        let destinations = match (reply, direct) {
            (true, _) => vec![kind.client(client)],
            (false, true) => vec![kind.vip()],
            (false, false) => backends.collect(),
        };
        Datagram {
            kind,
            from,
            to,
            source: segment.src.ip(),
            whole: segment.bytes(),
            id: 100 + number as u32,
            header: if segment.tcp.is_some() { 20 } else { 8 },
            destinations,
            sent: vec![],
            since: self.rig.now,
            taken: vec![],
            delivered: vec![],
            poisoned: false,
            uncertain: false,
        }
    }

    /// A whole packet, which goes on.
    fn whole(&mut self, worker: u8, port: PortId, frame: Vec<u8>) -> Vec<u8> {
        let mut out = self.rig.process(worker, port, false, &frame);
        if let Verdict::HandOff(owner) = out.verdict {
            out = self.rig.process(owner.0, port, true, &frame);
        }
        assert!(matches!(out.verdict, Verdict::Tx(_)), "{:?}", out.verdict);
        out.frame
    }

    fn steps(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.int_in_range(0..=9u8)? {
                0..=6 => self.part(input)?,
                7 | 8 => {
                    let worker = input.int_in_range(0..=WORKERS - 1)?;
                    let most = input.int_in_range(1..=8u8)?;
                    for _ in 0..most {
                        if !self.emission(worker) {
                            break;
                        }
                    }
                }
                _ => self.wait(Duration::from_millis(if input.arbitrary()? { 700 } else { 2_600 })),
            }
        }
        Ok(())
    }

    /// One part of a datagram, sound or not, with the datagram's octets or others.
    fn part(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let number = input.choose_index(DATAGRAMS)?;
        let datagram = &self.datagrams[number];
        let whole = &datagram.whole[payload_at(&datagram.whole)..];
        let start = usize::from(input.int_in_range(0..=90u8)?) * UNIT;
        let len = match input.int_in_range(0..=39u8)? {
            // Whatever is left, an odd number, or units.
            0 => whole.len().saturating_sub(start),
            1 => usize::from(input.arbitrary::<u8>()?),
            units => usize::from(units) * UNIT,
        };
        let len = if input.ratio(7, 8)? { len.min(whole.len().saturating_sub(start)) } else { len };
        let end = start + len;
        let more = (end < whole.len()) != input.ratio(1, 16)?;
        if start == 0 && !more {
            // That is a whole packet.
            return Ok(());
        }
        let forged = input.ratio(1, 8)?;
        let octet_at = |at: usize| whole.get(at).map_or(0xee, |octet| if forged { !octet } else { *octet });
        let mut bytes: Vec<u8> = (start..end).map(octet_at).collect();
        if start == 0 {
            // The ports are what they are.
            let header = datagram.header.min(len);
            bytes[..header].copy_from_slice(&whole[..header]);
        }
        let frame = raw_part(&datagram.whole, datagram.id, start, &bytes, more);
        let port = datagram.from;
        let part = Part { octets: start..end, more, bytes };
        let worker = input.int_in_range(0..=WORKERS - 1)?;
        self.datagrams[number].comes(&part, self.rig.now);
        let answers = self.answers;
        let verdict = self.give(worker, port, frame, 0);
        let datagram = &mut self.datagrams[number];
        match verdict {
            // Its sender was told that it leads nowhere.
            Verdict::Tx(_) if self.answers > answers => datagram.uncertain = true,
            Verdict::Tx(_) | Verdict::Keep => datagram.taken.push(part),
            Verdict::Drop(
                DropReason::FragmentOverlap
                | DropReason::FragmentDuplicate
                | DropReason::FragmentLimit
                | DropReason::FragmentMalformed
                | DropReason::FragmentTiny,
            ) => {}
            Verdict::Drop(_) => datagram.uncertain = true,
            other => panic!("{other:?} in the end"),
        }
        Ok(())
    }

    /// Carries a frame over workers, `crossed` times so far; gives the last verdict.
    fn give(&mut self, worker: u8, port: PortId, frame: Vec<u8>, crossed: usize) -> Verdict {
        let out = self.rig.process(worker, port, crossed > 0, &frame);
        match out.verdict {
            Verdict::HandOff(to) | Verdict::HandOffPart(to) => {
                assert!(
                    crossed == 0 || crossed == 1 && matches!(out.verdict, Verdict::HandOffPart(_)),
                    "it goes round"
                );
                assert!(to.0 < WORKERS && to.0 != worker && out.frame == frame);
                return self.give(to.0, port, frame, crossed + 1);
            }
            Verdict::Tx(to) => self.judge(to, &out.frame),
            _ => {}
        }
        out.verdict
    }

    /// One packet that a worker sends of itself, if there is one.
    fn emission(&mut self, worker: u8) -> bool {
        let mut room = [0; ROOM];
        let state = &mut self.rig.workers[usize::from(worker)];
        let Some(emission) = emit(self.rig.now, &self.rig.tables, state, &mut room) else { return false };
        self.released += 1;
        let frame = room[..emission.len].to_vec();
        match emission.to {
            // From where parts meet to the flow's owner.
            Some(to) => drop(self.give(to.0, emission.port, frame, 2)),
            None => self.judge(emission.port, &frame),
        }
        true
    }

    /// What must hold of a frame that is sent.
    fn judge(&mut self, out: PortId, frame: &[u8]) {
        assert_eq!(frame[6..12], if out == OUTSIDE { OUTSIDE_MAC } else { INSIDE_MAC }.0);
        let Some((dst, protocol, part)) = read(frame) else { panic!("what goes out can be read") };
        let is_reset =
            protocol == IpNumber::TCP && part.octets == (0..20) && !part.more && TcpFlags(part.bytes[13]).contains(RST);
        if is_reset || matches!(protocol, IpNumber::ICMP | IpNumber::IPV6_ICMP) {
            let is_to = |datagram: &Datagram| datagram.from == out && datagram.source == dst;
            assert!(self.datagrams.iter().any(is_to), "an answer to {dst}, who sent nothing");
            self.answers += 1;
            return;
        }
        let is_its = |datagram: &Datagram| {
            let own = if part.octets.start == 0 { datagram.header.min(part.bytes.len()) } else { 0 };
            let same = |sent: &Part| sent.is_like(&part) && sent.bytes[own..] == part.bytes[own..];
            datagram.to == out
                && datagram.kind.protocol.0 == protocol.0
                && datagram.destinations.contains(&dst)
                && datagram.sent.iter().any(same)
        };
        let Some(at) = self.datagrams.iter().position(is_its) else {
            panic!("nobody sent this to {dst}: {:?}, {}", part.octets, part.more)
        };
        self.datagrams[at].goes_on(part);
    }

    /// Lets time pass. Workers send what is due in each round, so nothing that was let go is still there after that: it
    /// would live on beyond its datagram's time.
    fn wait(&mut self, time: Duration) {
        self.send_all();
        self.rig.wait(time);
        let now = self.rig.now;
        for worker in &mut self.rig.workers {
            while worker.housekeep(now, &self.rig.tables) {}
        }
    }

    fn send_all(&mut self) {
        for worker in 0..WORKERS {
            while self.emission(worker) {}
        }
    }

    /// Nothing is left behind, and somebody else's datagram arrives whatever came before.
    fn end(&mut self) {
        self.send_all();
        let kind = self.datagrams[0].kind;
        let mut strange = self.datagram(DATAGRAMS, Kind { protocol: Protocol::UDP, ..kind }, false, 0);
        strange.id = 7;
        let sound = Segment::read_unchecked(&strange.whole);
        let mut frames = parts(&sound, 7, 176);
        frames.rotate_left(1);
        let whole = frames.len();
        self.datagrams = vec![strange];
        for (n, frame) in frames.into_iter().enumerate() {
            let (_, _, part) = read(&frame).expect("a part");
            self.datagrams[0].comes(&part, self.rig.now);
            let verdict = self.give(n as u8 % WORKERS, OUTSIDE, frame, 0);
            assert!(matches!(verdict, Verdict::Tx(_) | Verdict::Keep), "{verdict:?}");
            self.datagrams[0].taken.push(part);
        }
        self.send_all();
        assert_eq!(self.datagrams[0].delivered.len(), whole, "a sound datagram arrives");
        self.wait(LIFETIME * 2);
        let counted = |count: fn(&lb::counters::Counters) -> u64| -> u64 {
            self.rig.workers.iter().map(|worker| count(&worker.counters())).sum()
        };
        let (kept, given_up) = (counted(|c| c.fragments_kept), counted(|c| c.fragments_given_up));
        assert_eq!(kept, self.released + given_up, "what is kept is sent or given up");
    }
}

/// Octet `at` of a datagram's data, unlike those of the others.
fn octet(number: usize, at: usize) -> u8 {
    (number * 61 + at * 7 + at / 256) as u8
}

/// Where a packet goes, its protocol, and the part that it is.
fn read(frame: &[u8]) -> Option<(IpAddr, IpNumber, Part)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (dst, protocol, offset, more, bytes): (IpAddr, _, _, _, &[u8]) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            let (offset, more) = (header.fragments_offset(), header.more_fragments());
            let payload = &frame[34..14 + usize::from(header.total_len())];
            (header.destination_addr().into(), header.protocol(), offset, more, payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (dst, end) = (header.destination_addr().into(), 54 + usize::from(header.payload_length()));
            match header.next_header() {
                IpNumber::IPV6_FRAGMENTATION_HEADER => {
                    let part = Ipv6FragmentHeaderSlice::from_slice(&frame[54..]).ok()?;
                    (dst, part.next_header(), part.fragment_offset(), part.more_fragments(), &frame[62..end])
                }
                next => (dst, next, etherparse::IpFragOffset::ZERO, false, &frame[54..end]),
            }
        }
        _ => return None,
    };
    let start = usize::from(offset.byte_offset());
    Some((dst, protocol, Part { octets: start..start + bytes.len(), more, bytes: bytes.to_vec() }))
}
