//! Datagrams in parts: made, let loose on the workers, and put together again by etherparse.

use std::collections::VecDeque;

use etherparse::defrag::IpDefragBuf;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, NetSlice, SlicedPacket};
use lb::{DropReason, PortId, Verdict};

use crate::packet::Segment;
use crate::rig::{ROOM, Rig};

/// Where IP's payload begins in a frame without options and extension headers.
pub fn payload_at(frame: &[u8]) -> usize {
    if frame[12] == 0x86 { 54 } else { 34 }
}

/// The octets of a whole frame's IP payload from `offset` on, as a part of their own.
pub fn part(frame: &[u8], id: u32, offset: usize, len: usize, more: bool) -> Vec<u8> {
    let at = payload_at(frame) + offset;
    raw_part(frame, id, offset, &frame[at..at + len], more)
}

/// A part with any payload, headers as in a whole frame.
pub fn raw_part(frame: &[u8], id: u32, offset: usize, payload: &[u8], more: bool) -> Vec<u8> {
    let units = IpFragOffset::try_new((offset / 8) as u16).unwrap();
    let mut part = frame[..14].to_vec();
    if frame[12] == 0x86 {
        let mut header = frame[14..54].to_vec();
        header[4..6].copy_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
        header[6] = IpNumber::IPV6_FRAGMENTATION_HEADER.0;
        part.extend(header);
        part.extend(Ipv6FragmentHeader::new(IpNumber(frame[20]), units, more, id).to_bytes());
    } else {
        let mut header = Ipv4Header::from_slice(&frame[14..]).unwrap().0;
        header.set_payload_len(payload.len()).unwrap();
        (header.dont_fragment, header.more_fragments, header.fragment_offset) = (false, more, units);
        header.identification = id as u16;
        header.header_checksum = header.calc_header_checksum();
        part.extend(header.to_bytes());
    }
    part.extend(payload);
    part
}

/// A segment in parts of `size` octets.
pub fn parts(segment: &Segment, id: u32, size: usize) -> Vec<Vec<u8>> {
    let frame = segment.bytes();
    let total = frame.len() - payload_at(&frame);
    let offsets = (0..total).step_by(size);
    offsets.map(|offset| part(&frame, id, offset, size.min(total - offset), offset + size < total)).collect()
}

/// The identification of a part.
pub fn id_of(frame: &[u8]) -> u32 {
    match SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
        NetSlice::Ipv4(ip) => ip.header().identification().into(),
        NetSlice::Ipv6(_) => u32::from_be_bytes(frame[58..62].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The datagram that parts of it are, checksums included; their identifications, addresses and TTLs must be the same.
pub fn together(frames: &[Vec<u8>]) -> Segment {
    let mut buffer = IpDefragBuf::new(IpNumber::UDP, vec![], vec![]);
    let mut whole = None;
    let common = |frame: &[u8]| if frame[12] == 0x86 { frame[21..54].to_vec() } else { frame[26..34].to_vec() };
    for frame in frames {
        assert_eq!((id_of(frame), common(frame)), (id_of(&frames[0]), common(&frames[0])));
        match SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let mut header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                let (offset, more) = (header.fragment_offset, header.more_fragments);
                buffer.add(offset, more, ip.payload().payload).unwrap();
                if offset.value() == 0 {
                    header.more_fragments = false;
                    whole = Some((Some(header), frame[..14].to_vec()));
                }
            }
            NetSlice::Ipv6(_) => {
                let (fragment, payload) = Ipv6FragmentHeader::from_slice(&frame[54..]).unwrap();
                let end = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]])) - 8;
                buffer.add(fragment.fragment_offset, fragment.more_fragments, &payload[..end - 54]).unwrap();
                if fragment.fragment_offset.value() == 0 {
                    let mut head = frame[..54].to_vec();
                    head[20] = fragment.next_header.0;
                    whole = Some((None, head));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(buffer.is_complete(), "parts are missing");
    let payload = buffer.take_bufs().0;
    let (header, mut frame) = whole.unwrap();
    match header {
        Some(mut header) => {
            header.set_payload_len(payload.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            frame.extend(header.to_bytes());
        }
        None => frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes()),
    }
    frame.extend(payload);
    Segment::read(&frame)
}

/// What came of frames: those sent, and reasons of those dropped.
#[derive(Default, Debug)]
pub struct Came {
    pub sent: Vec<(PortId, Vec<u8>)>,
    pub dropped: Vec<DropReason>,
    /// Times that frames were handed over.
    pub handed: usize,
}

impl Came {
    /// The frames, which all went out by `port`.
    pub fn all_by(&self, port: PortId) -> Vec<Vec<u8>> {
        assert!(self.dropped.is_empty(), "{:?}", self.dropped);
        self.sent.iter().map(|(out, frame)| (assert_eq!(*out, port), frame.clone()).1).collect()
    }
}

impl Rig {
    /// Gives a frame to a worker, carries out what is said of it, and sends what workers have to send then.
    pub fn deliver(&mut self, worker: u8, port: PortId, frame: &[u8]) -> Came {
        let mut came = Came::default();
        self.carry(worker, port, frame.to_vec(), 0, &mut came);
        while (0..self.workers.len() as u8).any(|worker| self.emit_one(worker, &mut came)) {}
        came
    }

    /// The same of many, each to the worker that `queue` says.
    pub fn deliver_all(&mut self, port: PortId, frames: &[Vec<u8>], mut queue: impl FnMut(usize) -> u8) -> Came {
        let mut all = Came::default();
        for (n, frame) in frames.iter().enumerate() {
            let came = self.deliver(queue(n), port, frame);
            all.sent.extend(came.sent);
            all.dropped.extend(came.dropped);
            all.handed += came.handed;
        }
        all
    }

    fn carry(&mut self, worker: u8, port: PortId, frame: Vec<u8>, crossed: usize, came: &mut Came) {
        let mut next = VecDeque::from([(worker, frame, crossed)]);
        while let Some((worker, frame, crossed)) = next.pop_front() {
            assert!(crossed <= 2, "a frame goes round");
            let out = self.process(worker, port, crossed > 0, &frame);
            match out.verdict {
                Verdict::Tx(port) => came.sent.push((port, out.frame)),
                Verdict::Drop(reason) => came.dropped.push(reason),
                Verdict::HandOff(to) | Verdict::HandOffPart(to) => {
                    // As the worker does.
                    assert!(crossed == 0 || matches!(out.verdict, Verdict::HandOffPart(_)));
                    assert_ne!(to.0, worker);
                    assert_eq!(out.frame, frame, "handed over as it came");
                    came.handed += 1;
                    next.push_back((to.0, frame, crossed + 1));
                }
                Verdict::Keep => {}
                Verdict::Pass => panic!("for the kernel"),
            }
        }
    }

    fn emit_one(&mut self, worker: u8, came: &mut Came) -> bool {
        let mut room = [0; ROOM];
        let state = &mut self.workers[usize::from(worker)];
        let Some(emission) = lb::emit(self.now, &self.tables, state, &mut room) else { return false };
        let frame = room[..emission.len].to_vec();
        match emission.to {
            None => came.sent.push((emission.port, frame)),
            Some(to) => {
                came.handed += 1;
                self.carry(to.0, emission.port, frame, 2, came);
            }
        }
        true
    }
}
