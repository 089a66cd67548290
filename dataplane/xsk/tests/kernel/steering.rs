//! The steering program's verdict on crafted frames: one row a case.

use std::net::IpAddr;

use crate::lab::{CLIENT, GATEWAY, Lab, Port, wait_for};
use millrace_xsk::{AttachMode, PacketSocket, SteeredAddress, Steering};

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const OPTIONS: u8 = 60;
const MORE: u16 = 0x2000;
/// Steered wholly.
const VIP: [u8; 4] = [10, 77, 0, 100];
/// Steered by UDP port 9000 and the range 40000 to 40100.
const HOST: [u8; 4] = [10, 77, 0, 2];
const CLIENT_4: [u8; 4] = [10, 77, 0, 1];

/// The gateway's link-layer address.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OTHER_STATION: [u8; 6] = [2, 0, 0, 0, 0, 10];

fn six(last: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfd, 0x77]);
    address[14..].copy_from_slice(&last.to_be_bytes());
    address
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [STATION, [2, 0, 0, 0, 0, 1]].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn sent_to(station: [u8; 6], frame: &[u8]) -> Vec<u8> {
    [&station, &frame[6..]].concat()
}

fn tagged(inner: &[u8], tag: [u8; 4]) -> Vec<u8> {
    let mut frame = inner[..12].to_vec();
    frame.extend(tag);
    frame.extend(&inner[12..]);
    frame
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(((words * 4 + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    packet
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = source.to_be_bytes().to_vec();
    packet.extend(destination.to_be_bytes());
    packet.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}

/// An IPv6 fragment header before `payload`.
fn fragment_6(next: u8, offset_and_more: u16, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(offset_and_more.to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(payload);
    header
}

fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, code, 0, 0, 0, 0, 0, 0];
    packet.extend(quoted);
    packet
}

fn arp(operation: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 1]);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    ethernet(0x0806, &packet)
}

fn solicitation(target: [u8; 16]) -> Vec<u8> {
    let mut group = six(0);
    group[..2].copy_from_slice(&[0xff, 0x02]);
    group[11..14].copy_from_slice(&[1, 0xff, 0]);
    group[14..].copy_from_slice(&target[14..]);
    ethernet(0x86dd, &ipv6(six(1), group, ICMPV6, &icmp(135, 0, &target)))
}

/// What the socket gets.
const OURS: bool = true;
/// What the kernel gets.
const THEIRS: bool = false;

fn cases_4() -> Vec<(&'static str, Vec<u8>, bool)> {
    let ip = |packet: Vec<u8>| ethernet(0x0800, &packet);
    let vip = ip(ipv4(CLIENT_4, VIP, UDP, 0, &[], &udp(1, 2)));
    let to_host = |fragment, options: &[u8], payload: &[u8]| ip(ipv4(CLIENT_4, HOST, UDP, fragment, options, payload));
    let error = |kind, sport| {
        let quoted = ipv4(HOST, CLIENT_4, UDP, 0, &[], &udp(sport, 7));
        ip(ipv4(CLIENT_4, HOST, 1, 0, &[], &icmp(kind, 3, &quoted)))
    };
    let error_about = |fragment| {
        let quoted = ipv4(HOST, CLIENT_4, UDP, fragment, &[], &udp(9000, 7));
        ip(ipv4(CLIENT_4, HOST, 1, 0, &[], &icmp(11, 1, &quoted)))
    };
    vec![
        ("UDP to a VIP", vip.clone(), OURS),
        ("a VIP's packet for another station", sent_to(OTHER_STATION, &vip), THEIRS),
        ("a tagged one for another station", sent_to(OTHER_STATION, &tagged(&vip, [0x81, 0, 0, 5])), THEIRS),
        ("a VIP's packet to all stations", sent_to([0xff; 6], &vip), OURS),
        ("a VIP's packet to a group", sent_to([1, 0, 0x5e, 0, 0, 1], &vip), OURS),
        ("any protocol to a VIP", ip(ipv4(CLIENT_4, VIP, 132, 0, &[], &[0; 12])), OURS),
        ("a later fragment to a VIP", ip(ipv4(CLIENT_4, VIP, UDP, 100, &[], &[0; 8])), OURS),
        ("a VLAN tag before a VIP", tagged(&vip, [0x81, 0, 0, 5]), OURS),
        ("two VLAN tags before a VIP", tagged(&tagged(&vip, [0x81, 0, 0, 5]), [0x88, 0xa8, 0, 6]), OURS),
        ("an IPv6 version in an IPv4 frame", ethernet(0x0800, &ipv6(six(1), six(0x100), UDP, &udp(1, 2))), THEIRS),
        ("a header that is cut short", vip[..30].to_vec(), THEIRS),
        ("the steered port", to_host(0, &[], &udp(1, 9000)), OURS),
        ("the steered port behind IP options", to_host(0, &[1; 8], &udp(1, 9000)), OURS),
        ("the port before the range", to_host(0, &[], &udp(1, 39999)), THEIRS),
        ("the range's first port", to_host(0, &[], &udp(1, 40000)), OURS),
        ("the range's last port", to_host(0, &[], &udp(1, 40100)), OURS),
        ("the port behind the range", to_host(0, &[], &udp(1, 40101)), THEIRS),
        ("a port of a protocol without ports", ip(ipv4(CLIENT_4, HOST, 47, 0, &[], &udp(1, 9000))), THEIRS),
        ("a later fragment before its first", to_host(1, &[], &[0; 8]), THEIRS),
        ("a first fragment of another port", to_host(MORE, &[], &udp(1, 9001)), THEIRS),
        ("the later fragment of another port", to_host(1, &[], &[0; 8]), THEIRS),
        ("a first fragment", to_host(MORE, &[], &udp(1, 9000)), OURS),
        ("the later fragment", to_host(1, &[], &[0; 8]), OURS),
        ("a first fragment of another port with the same identification", to_host(MORE, &[], &udp(1, 9001)), THEIRS),
        ("what follows it", to_host(1, &[], &[0; 8]), THEIRS),
        ("an ICMP error about a first fragment from a steered port", error_about(MORE), OURS),
        ("an ICMP error about a later fragment", error_about(1), THEIRS),
        ("an ICMP error about a steered port", error(3, 40000), OURS),
        ("an ICMP error about another port", error(3, 9001), THEIRS),
        ("time exceeded about a steered port", error(11, 9000), OURS),
        ("an ICMP redirect about a steered port", error(5, 9000), THEIRS),
        ("an ICMP echo to the host", ip(ipv4(CLIENT_4, HOST, 1, 0, &[], &icmp(0, 0, &[0; 8]))), THEIRS),
        ("an ARP request for a VIP", arp(1, CLIENT_4, VIP), OURS),
        ("a broadcast ARP request for a VIP", sent_to([0xff; 6], &arp(1, CLIENT_4, VIP)), OURS),
        ("an ARP request of another station", sent_to(OTHER_STATION, &arp(1, CLIENT_4, VIP)), THEIRS),
        ("an ARP probe for a VIP", arp(1, [0; 4], VIP), OURS),
        ("an ARP announcement of a VIP by another", arp(1, VIP, VIP), THEIRS),
        ("an ARP reply", arp(2, CLIENT_4, VIP), THEIRS),
        ("an ARP request for another", arp(1, CLIENT_4, [10, 77, 0, 9]), THEIRS),
    ]
}

fn cases_6() -> Vec<(&'static str, Vec<u8>, bool)> {
    let to_host = |next, payload: &[u8]| ethernet(0x86dd, &ipv6(six(1), six(2), next, payload));
    let options = |next| [&[next, 1][..], &[0; 14]].concat();
    let error = |kind, sport| {
        let quoted = ipv6(six(2), six(1), UDP, &udp(sport, 7));
        to_host(ICMPV6, &icmp(kind, 0, &quoted))
    };
    let error_about = |offset_and_more| {
        let quoted = ipv6(six(2), six(1), FRAGMENT, &fragment_6(UDP, offset_and_more, 9, &udp(9000, 7)));
        to_host(ICMPV6, &icmp(2, 0, &quoted))
    };
    vec![
        ("IPv6 UDP to a VIP", ethernet(0x86dd, &ipv6(six(1), six(0x100), UDP, &udp(1, 2))), OURS),
        ("the steered port", to_host(UDP, &udp(1, 9000)), OURS),
        ("another port", to_host(UDP, &udp(1, 9001)), THEIRS),
        ("the steered port behind options", to_host(OPTIONS, &[options(UDP), udp(1, 9000)].concat()), OURS),
        ("another port behind options", to_host(OPTIONS, &[options(UDP), udp(1, 9001)].concat()), THEIRS),
        ("a later fragment before its first", to_host(FRAGMENT, &fragment_6(UDP, 8, 5, &[0; 8])), THEIRS),
        ("a first fragment", to_host(FRAGMENT, &fragment_6(UDP, 1, 5, &udp(1, 9000))), OURS),
        ("the later fragment", to_host(FRAGMENT, &fragment_6(UDP, 8, 5, &[0; 8])), OURS),
        ("a later fragment of another datagram", to_host(FRAGMENT, &fragment_6(UDP, 8, 6, &[0; 8])), THEIRS),
        ("a first fragment of another port", to_host(FRAGMENT, &fragment_6(UDP, 1, 5, &udp(1, 9001))), THEIRS),
        ("what follows it", to_host(FRAGMENT, &fragment_6(UDP, 8, 5, &[0; 8])), THEIRS),
        (
            "a first fragment behind options",
            to_host(OPTIONS, &[options(FRAGMENT), fragment_6(UDP, 1, 7, &udp(1, 9000))].concat()),
            OURS,
        ),
        ("its later fragment", to_host(FRAGMENT, &fragment_6(UDP, 8, 7, &[0; 8])), OURS),
        ("packet too big about a first fragment", error_about(1), OURS),
        ("packet too big about a later fragment", error_about(8), THEIRS),
        ("packet too big about a steered port", error(2, 40050), OURS),
        ("packet too big about another port", error(2, 9001), THEIRS),
        ("a solicitation for a VIP", solicitation(six(0x100)), OURS),
        ("a solicitation to its group", sent_to([0x33, 0x33, 0xff, 0, 1, 0], &solicitation(six(0x100))), OURS),
        ("a solicitation for the host", solicitation(six(2)), THEIRS),
    ]
}

#[test]
fn each_frame_goes_where_it_belongs() {
    let lab = Lab::new(1);
    let wire = lab.client.enter(|| PacketSocket::open(CLIENT, 0x88b5).expect("a packet socket"));
    lab.gateway.ip(&format!("link set {GATEWAY} address 02:00:00:00:00:09"));
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        let by_port =
            |address| SteeredAddress::Ports { address, ports: vec![(UDP, 9000)], range: Some((40000, 40100)) };
        steering
            .set_addresses(&[
                SteeredAddress::Whole(IpAddr::from(VIP)),
                SteeredAddress::Whole(IpAddr::from(six(0x100))),
                by_port(IpAddr::from(HOST)),
                by_port(IpAddr::from(six(2))),
            ])
            .expect("addresses");
        let mut port = Port::bind(1, &mut steering);
        judge(&wire, &mut port, cases_4().into_iter().chain(cases_6()));
        port.assert_conserved();
    });
}

/// Sends each frame and asserts whether the socket gets it. The VIP must be steered.
fn judge(wire: &PacketSocket, port: &mut Port, cases: impl IntoIterator<Item = (&'static str, Vec<u8>, bool)>) {
    // Follows each frame, so that what does not arrive is known to have gone elsewhere.
    let marker = ethernet(0x0800, &ipv4(CLIENT_4, VIP, 253, 0, &[], b"marker"));
    for (case, frame, ours) in cases {
        wire.send(&frame).expect("sending");
        wire.send(&marker).expect("sending");
        let (_, got) = port.expect(case, |packet| packet == frame || packet == marker);
        assert_eq!(port.umem.packet(&got) == frame, ours, "{case}");
        port.pool.push(got);
        if ours {
            let (_, got) = port.expect(case, |packet| packet == marker);
            port.pool.push(got);
        }
    }
}

/// An endpoint in mode `preserve`, and a client that is behind the gateway.
const ENDPOINT: [u8; 4] = [10, 78, 0, 11];
const FAR_CLIENT: [u8; 4] = [198, 51, 100, 7];
/// A router between the gateway and the endpoint.
const ROUTER: [u8; 4] = [198, 51, 100, 77];

/// What is steered where [`ENDPOINT`] and its IPv6 twin reply from UDP port 9000.
fn replies_by_source() -> Vec<SteeredAddress> {
    let source = |address| SteeredAddress::Source { address, protocol: UDP, port: 9000 };
    vec![
        SteeredAddress::Whole(IpAddr::from(VIP)),
        source(IpAddr::from(ENDPOINT)),
        source(IpAddr::from(six(0x11))),
        SteeredAddress::Host(IpAddr::from(HOST)),
        SteeredAddress::Host(IpAddr::from(six(2))),
    ]
}

fn cases_by_source() -> Vec<(&'static str, Vec<u8>, bool)> {
    let to = |destination, protocol, fragment, payload: &[u8]| {
        ethernet(0x0800, &ipv4(ENDPOINT, destination, protocol, fragment, &[], payload))
    };
    let reply = to(FAR_CLIENT, UDP, 0, &udp(9000, 40000));
    let six_to = |destination, next, payload: &[u8]| ethernet(0x86dd, &ipv6(six(0x11), destination, next, payload));
    let quoted = ipv4(FAR_CLIENT, ENDPOINT, UDP, 0, &[], &udp(40000, 9000));
    let other = ipv4(FAR_CLIENT, ENDPOINT, UDP, 0, &[], &udp(40000, 9001));
    let own = ipv4(HOST, ENDPOINT, UDP, 0, &[], &udp(40000, 9000));
    let quoted_6 = ipv6(six(0x99), six(0x11), UDP, &udp(40000, 9000));
    let router_says = |to, quoted: &[u8]| ethernet(0x0800, &ipv4(ROUTER, to, 1, 0, &[], &icmp(3, 4, quoted)));
    let router_says_6 = |to, quoted: &[u8]| ethernet(0x86dd, &ipv6(six(0x77), to, ICMPV6, &icmp(2, 0, quoted)));
    vec![
        ("a reply to a client", reply.clone(), OURS),
        ("a reply for another station", sent_to(OTHER_STATION, &reply), THEIRS),
        ("a reply to all stations", sent_to([0xff; 6], &reply), THEIRS),
        ("a reply with a VLAN tag", tagged(&reply, [0x81, 0, 0, 5]), OURS),
        ("an answer to the gateway's own question", to(HOST, UDP, 0, &udp(9000, 40000)), THEIRS),
        ("another port of the endpoint's", to(FAR_CLIENT, UDP, 0, &udp(9001, 40000)), THEIRS),
        ("the port by another protocol", to(FAR_CLIENT, 6, 0, &udp(9000, 40000)), THEIRS),
        (
            "what is for the endpoint's port",
            { ethernet(0x0800, &ipv4(FAR_CLIENT, ENDPOINT, UDP, 0, &[], &udp(9000, 9000))) },
            THEIRS,
        ),
        ("an ICMP error of the endpoint's", to(FAR_CLIENT, 1, 0, &icmp(3, 3, &quoted)), OURS),
        ("a router's error about a packet to the endpoint", router_says(FAR_CLIENT, &quoted), OURS),
        ("a router's error about another port of it", router_says(FAR_CLIENT, &other), THEIRS),
        ("a router's error for the gateway itself", router_says(HOST, &own), THEIRS),
        ("an IPv6 router's error about a packet to it", router_says_6(six(0x99), &quoted_6), OURS),
        ("an IPv6 router's error for the gateway itself", router_says_6(six(2), &quoted_6), THEIRS),
        ("a later fragment before its first", to(FAR_CLIENT, UDP, 2, &[0; 8]), THEIRS),
        ("a first fragment of a reply", to(FAR_CLIENT, UDP, MORE, &udp(9000, 40000)), OURS),
        ("its later fragment", to(FAR_CLIENT, UDP, 2, &[0; 8]), OURS),
        ("an IPv6 reply to a client", six_to(six(0x99), UDP, &udp(9000, 40000)), OURS),
        ("an IPv6 answer to the gateway's own question", six_to(six(2), UDP, &udp(9000, 40000)), THEIRS),
        ("another port over IPv6", six_to(six(0x99), UDP, &udp(9001, 40000)), THEIRS),
        ("a first fragment of an IPv6 reply", six_to(six(0x99), FRAGMENT, &fragment_6(UDP, 1, 5, &udp(9000, 1))), OURS),
        ("its later fragment over IPv6", six_to(six(0x99), FRAGMENT, &fragment_6(UDP, 8, 5, &[0; 8])), OURS),
        ("an ICMPv6 echo reply of the endpoint's", six_to(six(0x99), ICMPV6, &icmp(129, 0, &[])), THEIRS),
    ]
}

#[test]
fn replies_that_keep_the_clients_address_are_told_by_their_source_and_the_hosts_own_are_not() {
    let lab = Lab::new(1);
    let wire = lab.client.enter(|| PacketSocket::open(CLIENT, 0x88b5).expect("a packet socket"));
    lab.gateway.ip(&format!("link set {GATEWAY} address 02:00:00:00:00:09"));
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        steering.set_addresses(&replies_by_source()).expect("addresses");
        let mut port = Port::bind(1, &mut steering);
        judge(&wire, &mut port, cases_by_source());
        // A successor finds it so, before it was told anything; and stops it.
        drop(steering);
        let mut successor = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("the successor");
        let known: Vec<_> = successor.sources().collect();
        assert_eq!(known, [(IpAddr::from(ENDPOINT), UDP, 9000), (IpAddr::from(six(0x11)), UDP, 9000)]);
        judge(&wire, &mut port, cases_by_source().into_iter().take(2));
        successor.set_addresses(&[SteeredAddress::Whole(IpAddr::from(VIP))]).expect("addresses");
        assert_eq!(successor.sources().count(), 0);
        judge(
            &wire,
            &mut port,
            cases_by_source().into_iter().take(1).map(|(_, frame, _)| ("no source", frame, THEIRS)),
        );
        port.assert_conserved();
    });
}

#[test]
fn frames_for_a_changed_link_layer_address_are_taken_once_it_is_told() {
    let lab = Lab::new(1);
    let wire = lab.client.enter(|| PacketSocket::open(CLIENT, 0x88b5).expect("a packet socket"));
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(IpAddr::from(VIP))]).expect("an address");
        let mut port = Port::bind(1, &mut steering);
        let frame = |station, text| sent_to(station, &ethernet(0x0800, &ipv4(CLIENT_4, VIP, 253, 0, &[], text)));
        let (early, late) = (frame(STATION, b"early"), frame(STATION, b"later"));
        let passed = steering.counters().passed;
        wire.send(&early).expect("sending");
        wait_for("the frame to pass", || (steering.counters().passed > passed).then_some(()));
        steering.set_station(STATION).expect("room for the address");
        wire.send(&late).expect("sending");
        let (_, got) = port.expect("the later frame", |packet| packet == early || packet == late);
        assert_eq!(port.umem.packet(&got), late);
        port.pool.push(got);
        port.assert_conserved();
    });
}

fn syn(ipv6_to: Option<[u8; 16]>, source_port: u16, flags: u8) -> Vec<u8> {
    let mut segment = [source_port.to_be_bytes(), 80u16.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    match ipv6_to {
        Some(to) => ethernet(0x86dd, &ipv6(six(1), to, 6, &segment)),
        None => ethernet(0x0800, &ipv4(CLIENT_4, VIP, 6, 0, &[], &segment)),
    }
}

#[test]
fn syns_beyond_a_limit_are_dropped_by_address_and_nothing_else_is() {
    const SENT: u16 = 400;
    let lab = Lab::new(1);
    let wire = lab.client.enter(|| PacketSocket::open(CLIENT, 0x88b5).expect("a packet socket"));
    lab.gateway.ip(&format!("link set {GATEWAY} address 02:00:00:00:00:09"));
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        let vips = [IpAddr::from(VIP), IpAddr::from(six(0x100)), IpAddr::from(six(0x101))];
        steering.set_addresses(&vips.map(SteeredAddress::Whole)).expect("addresses");
        // Nobody is bound: what is not a flood is dropped for that, and counted so.
        let counted = |steering: &Steering, frames: &[Vec<u8>]| {
            let before = steering.counters();
            frames.iter().for_each(|frame| wire.send(frame).expect("sending"));
            let sum = |now: &millrace_xsk::SteeringCounters| now.no_socket_dropped + now.syn_flood_dropped;
            let now = wait_for("the frames", || {
                let now = steering.counters();
                (sum(&now) >= sum(&before) + frames.len() as u64).then_some(now)
            });
            now.syn_flood_dropped - before.syn_flood_dropped
        };
        let flood = |to: Option<[u8; 16]>, flags| (0..SENT).map(|port| syn(to, port, flags)).collect::<Vec<_>>();
        assert_eq!(counted(&steering, &flood(None, 0x02)), 0, "no limit");
        // One in a window.
        steering.set_syn_limit(1).expect("the limit");
        for to in [None, Some(six(0x100))] {
            let dropped = counted(&steering, &flood(to, 0x02));
            assert!(dropped > u64::from(SENT) / 2 && dropped < u64::from(SENT), "{dropped} of {SENT}");
            assert!(counted(&steering, &flood(to, 0xc2)) > u64::from(SENT) / 2, "with ECN");
            for flags in [0x10, 0x12, 0x04, 0x11, 0x14, 0] {
                assert_eq!(counted(&steering, &flood(to, flags)), 0, "flags {flags:#x}");
            }
        }
        for within in [flood(None, 0x02), flood(Some(six(0x100)), 0x02)] {
            let one: Vec<_> = within.iter().map(|frame| tagged(frame, [0x81, 0, 0, 5])).collect();
            let two: Vec<_> = one.iter().map(|frame| tagged(frame, [0x88, 0xa8, 0, 6])).collect();
            assert!(counted(&steering, &one) > u64::from(SENT) / 2, "behind a tag");
            assert!(counted(&steering, &two) > u64::from(SENT) / 2, "behind two tags");
        }
        let other = [syn(Some(six(0x101)), 1, 0x02)];
        assert_eq!(counted(&steering, &other), 0, "another address has its own");
        // A successor finds it so, and ends it.
        drop(steering);
        let mut successor = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("the successor");
        assert!(counted(&successor, &flood(None, 0x02)) > u64::from(SENT) / 2);
        successor.set_syn_limit(0).expect("the limit");
        assert_eq!(counted(&successor, &flood(None, 0x02)), 0);
    });
}
