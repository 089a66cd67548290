//! The kernel port: endpoints that only the kernel reaches, and what is the host's own.

use std::net::{IpAddr, SocketAddr};

use lb::flow::FlowFile;
use lb::model::{Frontend, FrontendKind, Mode};
use lb::tables::{Hop, KernelPort, PortRow, SnatAddress};
use lb::{DropReason, PortId, Verdict};
use wire::MacAddr;

use crate::packet::{SYN_ACK, Segment};
use crate::rig::{CLIENT_MAC, INSIDE, KINDS, Kind, OUTSIDE, Rig, TCP4, TCP6, UDP4, usual_hop};

const KERNEL: PortId = PortId(2);
const OUR_END: MacAddr = MacAddr([2, 0, 0, 0, 0xe, 0]);
const KERNELS_END: MacAddr = MacAddr([2, 0, 0, 0, 0xe, 1]);
/// The endpoint that only the kernel reaches; the others are on a NIC's link.
const POD: u8 = 3;

fn own(kind: Kind) -> IpAddr {
    if kind.ipv6 { "2001:db8:e::250" } else { "10.244.1.250" }.parse().unwrap()
}

/// A gateway with a kernel port, by which one of three endpoints is reached.
fn rig() -> Rig {
    let nics = Rig::snat();
    let kernel = [TCP4, TCP6].iter().enumerate().map(|(n, kind)| SnatAddress {
        address: own(*kind).into(),
        index: (nics.len() + n) as u16,
        ..nics[n]
    });
    let kernel: Vec<SnatAddress> = kernel.collect();
    let mut file = Rig::file_config(1, 1024, &[&nics[..], &kernel[..]].concat());
    file.kernel_snat = kernel.len();
    let mut rig = Rig::over(FlowFile::in_memory(&file).unwrap(), nics);
    rig.config.ports.push(PortRow { mac: OUR_END, mtu: 1500, virtual_device: true });
    rig.config.kernel_snat = kernel;
    rig.config.kernel = Some(KernelPort { port: KERNEL, peer: KERNELS_END, brings_back: true });
    for kind in [TCP4, TCP6] {
        let address = kind.backend(POD).ip();
        let hop = Hop {
            port: KERNEL,
            src_mac: OUR_END,
            dst_mac: KERNELS_END,
            mtu: 1450,
            on_link: false,
            ..usual_hop(address)
        };
        rig.hops.push((address, hop));
    }
    rig.rebuild();
    rig
}

/// What a client's packets to the endpoints that these are become, each from another port of the client.
fn sent_to(rig: &mut Rig, kind: Kind, pod: bool) -> (Segment, Segment) {
    let find = |port| {
        let sent = kind.opening(port);
        let out = rig.outside(&sent);
        let port = if pod { KERNEL } else { INSIDE };
        (out.verdict == Verdict::Tx(port)).then(|| (sent, out.sent(port)))
    };
    (4000..4100).find_map(find).expect("one of a hundred")
}

#[test]
fn what_leaves_by_the_kernel_port_has_its_addresses_and_comes_back_there_and_the_rest_has_the_nics() {
    let mut rig = rig();
    for kind in KINDS {
        let (sent, got) = sent_to(&mut rig, kind, true);
        assert_eq!((got.src_mac, got.dst_mac), (OUR_END, KERNELS_END));
        assert_eq!((got.src.ip(), got.dst), (own(kind), kind.backend(POD)));
        let answer = got.back().with_flags(SYN_ACK);
        let back = rig.process(0, KERNEL, false, &answer.bytes()).sent(OUTSIDE);
        assert_eq!((back.src, back.dst, back.dst_mac), (sent.dst, sent.src, CLIENT_MAC));
        let (_, got) = sent_to(&mut rig, kind, false);
        assert_eq!(got.src.ip(), kind.snat());
    }
}

#[test]
fn what_is_the_hosts_own_goes_to_the_kernel_as_it_came() {
    let mut rig = rig();
    for kind in KINDS {
        let sent = Segment { dst: SocketAddr::new(kind.host(), 22), ..kind.opening(1005) };
        let expected = Segment { src_mac: KERNELS_END, dst_mac: KERNELS_END, ..sent.clone() };
        let out = rig.outside(&sent);
        assert_eq!((out.verdict, out.frame), (Verdict::Tx(KERNEL), expected.bytes()));
        // Not what all stations of the link got.
        rig.outside(&Segment { dst_mac: MacAddr([0xff; 6]), ..sent }).dropped(DropReason::Martian);
    }
    let long = Segment { dst: SocketAddr::new(UDP4.host(), 22), payload: vec![7; 1500], ..UDP4.opening(1006) };
    rig.outside(&long).dropped(DropReason::TooBig);
    rig.config.kernel = None;
    rig.rebuild();
    let sent = Segment { dst: SocketAddr::new(TCP4.host(), 22), ..TCP4.opening(1007) };
    assert_eq!(rig.outside(&sent).verdict, Verdict::Pass);
}

#[test]
fn an_answer_to_the_hosts_own_connection_goes_to_the_kernel_though_its_port_is_a_frontends() {
    let mut rig = rig();
    rig.change(|port| {
        let kind = if port.key.ipv6 { TCP6 } else { TCP4 };
        port.frontends.push(Frontend { address: kind.host(), port: 30080, kind: FrontendKind::NodePort });
    });
    for kind in [TCP4, TCP6] {
        let to = SocketAddr::new(kind.host(), 30080);
        let sent = Segment { dst: to, ..kind.opening(443).with_flags(SYN_ACK) };
        let expected = Segment { src_mac: KERNELS_END, dst_mac: KERNELS_END, ..sent.clone() };
        let out = rig.outside(&sent);
        assert_eq!((out.verdict, out.frame), (Verdict::Tx(KERNEL), expected.bytes()));
        // What the kernel sends there itself does not go back to it.
        let own = Segment { src_mac: KERNELS_END, dst_mac: OUR_END, ..kind.opening_of(9, 443).with_flags(SYN_ACK) };
        let refused = rig.process(0, KERNEL, false, &Segment { dst: to, ..own }.bytes()).sent(KERNEL);
        assert_eq!(refused.src, to);
        // And what opens a connection is the Service's.
        let opens = rig.outside(&Segment { dst: to, ..kind.opening(4000) });
        assert_ne!((opens.verdict, opens.frame), (Verdict::Tx(KERNEL), sent.bytes()));
    }
}

#[test]
fn the_kernels_end_is_many_clients_and_has_no_share_of_its_own() {
    let mut rig = rig();
    rig.config.flows_per_source = 2;
    rig.rebuild();
    // The second one is a pod that comes as itself.
    for (source, expected) in [("169.254.86.1", 10), ("10.244.1.7", 12)] {
        for port in 4000..4010 {
            let sent = Segment { src_mac: KERNELS_END, dst_mac: OUR_END, ..TCP4.opening(port) };
            let sent = Segment { src: SocketAddr::new(source.parse().unwrap(), port), ..sent };
            rig.process(0, KERNEL, false, &sent.bytes());
        }
        assert_eq!(rig.shared.flows(), expected, "{source}");
    }
}

#[test]
fn endpoints_that_see_the_clients_address_are_reached_where_the_kernel_brings_their_answers_back() {
    let mut rig = rig();
    rig.change(|port| port.mode = Mode::Preserve);
    for kind in KINDS {
        let (sent, got) = sent_to(&mut rig, kind, true);
        assert_eq!((got.src, got.dst, got.dst_mac), (sent.src, kind.backend(POD), KERNELS_END));
        let back = rig.process(0, KERNEL, false, &got.back().with_flags(SYN_ACK).bytes()).sent(OUTSIDE);
        assert_eq!((back.src, back.dst, back.dst_mac), (sent.dst, sent.src, CLIENT_MAC));
        // A client on the host itself or in one of its pods would get the answer past us.
        let find = |port| {
            let sent = Segment { src_mac: KERNELS_END, dst_mac: OUR_END, ..kind.opening_of(9, port) };
            let out = rig.process(0, KERNEL, false, &sent.bytes());
            (out.verdict == Verdict::Tx(KERNEL)).then(|| (sent, out.sent(KERNEL)))
        };
        let (sent, got) = (4000..4100).find_map(find).expect("one of a hundred");
        assert_eq!(got.src.ip(), own(kind));
        let back = rig.process(0, KERNEL, false, &got.back().with_flags(SYN_ACK).bytes()).sent(KERNEL);
        assert_eq!((back.src, back.dst, back.dst_mac), (sent.dst, sent.src, KERNELS_END));
    }
    rig.config.kernel = rig.config.kernel.map(|kernel| KernelPort { brings_back: false, ..kernel });
    rig.rebuild();
    let mut verdicts = (5000..5064).map(|port| rig.outside(&TCP4.opening(port)).verdict).collect::<Vec<_>>();
    verdicts.dedup();
    assert!(verdicts.contains(&Verdict::Drop(DropReason::NoRoute)) && verdicts.contains(&Verdict::Tx(INSIDE)));
    assert!(!verdicts.contains(&Verdict::Tx(KERNEL)), "{verdicts:?}");
}

#[test]
fn the_host_itself_sends_from_its_own_addresses_by_the_kernel_port_and_nobody_else_does() {
    let mut rig = rig();
    for kind in KINDS {
        let sent = Segment { src: SocketAddr::new(kind.host(), 4000), ..kind.opening(4000) };
        rig.outside(&sent).dropped(DropReason::Martian);
        let sent = Segment { dst_mac: OUR_END, ..sent };
        let out = rig.process(0, KERNEL, false, &sent.bytes());
        assert!(matches!(out.verdict, Verdict::Tx(_)), "{:?}", out.verdict);
        // A VIP is no address of the host.
        let land = Segment { src: sent.dst, ..sent };
        rig.process(0, KERNEL, false, &land.bytes()).dropped(DropReason::Martian);
    }
}
