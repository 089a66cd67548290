//! Any frame at all, given to a gateway: what must hold whatever comes of it. Property tests and fuzzers share it.
//!
//! - Nothing panics, and what is sent is within its room and no longer than the answer that it may be.
//! - Nothing goes to a third party: a frame leaves to who sent the one that came (an answer), to an endpoint, or to the
//!   client of a flow, by address and by link-layer address; with the VLAN tags that an answer has, or an endpoint.
//! - There are never more flows than allowed, nor more kept than there is room for.

use std::net::IpAddr;

use lb::flow::FlowRecord;
use lb::{PortId, Verdict};
use wire::{MacAddr, Tags};

use crate::rig::{INSIDE, KINDS, ROOM, Rig, backend_mac};

/// The longest answer: an ICMPv6 error (RFC 4443 section 2.4 (c)).
const LONGEST_ANSWER: usize = 14 + 1280;
/// What an answer may be longer than what it answers: an IPv6 header and one of ICMPv6.
const QUOTING: usize = 48;
/// Neighbour advertisements are as long as this, whatever they answer.
const ADVERTISEMENT: usize = 86;

fn mac(frame: &[u8], at: usize) -> MacAddr {
    MacAddr(frame[at..at + 6].try_into().unwrap())
}

/// Source and destination address of an IP or ARP frame.
fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).unwrap()));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).unwrap()));
    match frame.get(12..14)? {
        [8, 0] => Some((v4(26)?, v4(30)?)),
        [8, 6] => Some((v4(28)?, v4(38)?)),
        [0x86, 0xdd] => Some((v6(22)?, v6(38)?)),
        _ => None,
    }
}

/// A frame's VLAN tags, and the frame without them.
fn untagged(frame: &[u8]) -> (Tags, Vec<u8>) {
    let mut frame = frame.to_vec();
    let (tags, _, len) = Tags::take_off(&mut frame);
    frame.truncate(len);
    (tags, frame)
}

/// Gives a frame to a worker, and panics if what comes of it is not as it must be. Gives the verdict.
pub fn judge(rig: &mut Rig, worker: u8, port: PortId, handed: bool, bytes: &[u8]) -> Verdict {
    let out = rig.process(worker, port, handed, bytes);
    if let Verdict::Tx(to) = out.verdict {
        let most = (bytes.len() + QUOTING).min(LONGEST_ANSWER).max(bytes.len()).max(ADVERTISEMENT);
        assert!(out.frame.len() <= most, "{} octets of {}", out.frame.len(), bytes.len());
        goes_to_nobody_else(rig, to, &out.frame, Some((port, bytes)));
    }
    emissions(rig, worker);
    assert!(rig.shared.flows() <= rig.shared.flow_limit());
    out.verdict
}

/// Takes what a worker sends of itself, and judges it.
fn emissions(rig: &mut Rig, worker: u8) {
    let mut room = [0; ROOM];
    while let Some(emission) = lb::emit(rig.now, &rig.tables, &mut rig.workers[usize::from(worker)], &mut room) {
        assert!(emission.len <= ROOM);
        if emission.to.is_none() {
            goes_to_nobody_else(rig, emission.port, &room[..emission.len], None);
        }
    }
}

fn goes_to_nobody_else(rig: &Rig, by: PortId, frame: &[u8], asked: Option<(PortId, &[u8])>) {
    let (tags, frame) = untagged(frame);
    let asked = asked.map(|(port, asked)| (port, untagged(asked)));
    let asked = asked.as_ref().map(|(port, (tags, asked))| (*port, *tags, &asked[..]));
    let Some((_, destination)) = ends(&frame) else { panic!("neither IP nor ARP was sent: {frame:?}") };
    let to = mac(&frame, 0);
    let is_answer = asked.is_some_and(|(port, of, asked)| {
        // Who solicits from the unspecified address is answered at all nodes (RFC 4861 section 7.2.4).
        let source = ends(asked).map(|(source, _)| source);
        let all_nodes = destination == "ff02::1".parse::<IpAddr>().unwrap() && source == Some("::".parse().unwrap());
        (by, tags) == (port, of) && (to == mac(asked, 6) || all_nodes) && (source == Some(destination) || all_nodes)
    });
    let is_endpoint = || {
        let endpoints = KINDS.iter().flat_map(|kind| (1..=3).map(|n| kind.backend(n).ip()));
        by == INSIDE && tags.is_none() && endpoints.into_iter().any(|ip| ip == destination && backend_mac(ip) == to)
    };
    let is_client = || {
        let mut records: Vec<FlowRecord> = Vec::new();
        for worker in &rig.workers {
            let _ = worker.flows.export(0, u32::MAX, &mut records);
        }
        let is_of = |flow: &FlowRecord| {
            IpAddr::from(flow.client.0) == destination && (flow.client_mac, flow.client_nic) == (to, by)
        };
        records.iter().any(is_of)
    };
    assert!(is_answer || is_endpoint() || is_client(), "to a third party, {destination} {to:?}: {frame:?}");
}
