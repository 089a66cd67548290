//! Life and work of sockets and of the steering program: binding, forwarding, taking over, detaching.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crate::lab::{self, GATEWAY, GATEWAY_ADDRESS, GATEWAY_ADDRESS_6, Lab, Port, exists, wait_for};
use millrace_xsk::{
    AttachMode, BindMode, Queue, QueueConfig, SteeredAddress, Steering, SteeringCounters, Umem, XskError, XskQueue,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const ETHERNET: usize = 14;
/// Ethernet, IPv4 without options, UDP.
const UDP_PAYLOAD: usize = ETHERNET + 20 + 8;

fn vip_6() -> IpAddr {
    "fd77::100".parse().expect("an address")
}

/// A UDP socket of the client, connected.
fn client(lab: &Lab, to: SocketAddr) -> UdpSocket {
    lab.client.enter(|| {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(to).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    })
}

/// A UDP socket of the gateway's own kernel.
fn host_socket(lab: &Lab, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    lab.gateway.enter(|| {
        let socket = UdpSocket::bind(address).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    })
}

fn receives(socket: &UdpSocket, expected: &[u8]) {
    let mut buffer = vec![0; 65536];
    let len = socket.recv(&mut buffer).expect("a datagram");
    assert_eq!(&buffer[..len], expected);
}

fn ends_with(payload: &'static [u8]) -> impl Fn(&[u8]) -> bool {
    move |packet| packet.ends_with(payload)
}

/// Turns a UDP packet over IPv4 into its own reply; the checksum of the UDP header is left out, as RFC 768 allows.
fn turn_around(packet: &mut [u8]) {
    let (destination, source) = packet[..12].split_at_mut(6);
    destination.swap_with_slice(source);
    let (source, destination) = packet[ETHERNET + 12..ETHERNET + 20].split_at_mut(4);
    source.swap_with_slice(destination);
    let (source, destination) = packet[ETHERNET + 20..ETHERNET + 24].split_at_mut(2);
    source.swap_with_slice(destination);
    packet[ETHERNET + 26..ETHERNET + 28].fill(0);
}

#[test]
fn a_vips_packet_reaches_the_socket_and_is_answered_and_others_reach_the_kernel() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    let host = host_socket(&lab, GATEWAY_ADDRESS, 9001);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        assert_eq!(steering.mode(), AttachMode::Native, "veth has native XDP");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let mut port = Port::bind(1, &mut steering);
        assert!(!port.queues[0].zero_copy(), "veth has no zero-copy");

        let asking = client(&lab, SocketAddr::new(VIP, 9000));
        asking.send(b"question").expect("sending");
        let (queue, mut frame) = port.expect("the question", ends_with(b"question"));
        assert_eq!(frame.len(), UDP_PAYLOAD + 8);
        let len = frame.len();
        turn_around(&mut port.umem.room_mut(&mut frame)[..len]);
        let mut answers = vec![frame];
        assert_eq!(port.queues[queue].send(&mut answers), 1);
        port.turn();
        receives(&asking, b"question");

        client(&lab, SocketAddr::new(GATEWAY_ADDRESS.parse().unwrap(), 9001)).send(b"for the host").expect("sending");
        receives(&host, b"for the host");
        let counters = steering.counters();
        assert!(counters.redirected >= 1 && counters.passed >= 1, "{counters:?}");
        assert_eq!(counters.no_socket_dropped, 0);
        port.assert_conserved();
    });
}

#[test]
fn a_burst_larger_than_one_kick_is_sent_whole() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let mut port = Port::bind(1, &mut steering);
        let asking = client(&lab, SocketAddr::new(VIP, 9000));
        asking.send(b"question").expect("sending");
        let (_, mut frame) = port.expect("the question", ends_with(b"question"));
        let len = frame.len();
        turn_around(&mut port.umem.room_mut(&mut frame)[..len]);
        let template = port.umem.packet(&frame).to_vec();
        port.pool.push(frame);
        let mut frames: Vec<_> = port.pool.drain(port.pool.len() - 120..).collect();
        for frame in &mut frames {
            port.umem.room_mut(frame)[..len].copy_from_slice(&template);
            frame.set_len(len);
        }
        assert_eq!(port.queues[0].send(&mut frames), 64);
        assert_eq!(port.queues[0].send(&mut frames), 56);
        assert_eq!(port.queues[0].in_flight(), 120);
        for _ in 0..120 {
            port.queues[0].kick();
        }
        for _ in 0..120 {
            receives(&asking, b"question");
        }
        port.assert_conserved();
    });
}

#[test]
fn arp_and_solicitations_for_a_vip_reach_the_socket_and_the_hosts_own_do_not() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP), SteeredAddress::Whole(vip_6())]).expect("addresses");
        let mut port = Port::bind(1, &mut steering);
        client(&lab, SocketAddr::new(VIP, 9000)).send(b"x").expect("sending");
        let is_arp = |packet: &[u8]| packet[12..14] == [0x08, 0x06] && packet[38..42] == [10, 77, 0, 100];
        let (_, frame) = port.expect("an ARP request", is_arp);
        port.pool.push(frame);
        client(&lab, SocketAddr::new(vip_6(), 9000)).send(b"x").expect("sending");
        let is_solicitation = |packet: &[u8]| packet[12..14] == [0x86, 0xdd] && packet[20] == 58 && packet[54] == 135;
        let (_, frame) = port.expect("a neighbour solicitation", is_solicitation);
        port.pool.push(frame);
        // The kernel still answers for its own addresses.
        for address in [GATEWAY_ADDRESS, GATEWAY_ADDRESS_6] {
            lab.client.ip(&format!("neigh flush dev {} to {address}", lab::CLIENT));
            let host = host_socket(&lab, address, 9001);
            client(&lab, SocketAddr::new(address.parse().unwrap(), 9001)).send(b"hello").expect("sending");
            receives(&host, b"hello");
        }
        port.assert_conserved();
    });
}

#[test]
fn a_vips_packet_without_a_socket_is_dropped_and_the_kernel_does_not_answer() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    // The worst case: the kernel has the address, so it would refuse what no socket of its own wants.
    lab.gateway.ip(&format!("addr add {VIP}/32 dev {GATEWAY}"));
    let asking = client(&lab, SocketAddr::new(VIP, 9000));
    asking.send(b"refused").expect("sending");
    let refused = asking.recv(&mut [0; 16]).expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "without steering the kernel answers");
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        asking.send(b"dropped").expect("sending");
        wait_for("the drop", || (steering.counters().no_socket_dropped > 0).then_some(()));
        assert_eq!(steering.counters().redirected, 0);
    });
    // Had the kernel answered, it would have done so within the sender's own system call.
    assert!(asking.take_error().expect("the socket's error").is_none());
}

#[test]
fn an_address_steered_by_ports_leaves_its_other_ports_to_the_kernel() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        let mut port = Port::bind(1, &mut steering);
        for address in [GATEWAY_ADDRESS, GATEWAY_ADDRESS_6] {
            let address: IpAddr = address.parse().expect("an address");
            let ports = vec![(UDP, 9000), (TCP, 9001)];
            let steered = SteeredAddress::Ports { address, ports, range: Some((40000, 40100)) };
            steering.set_addresses(&[steered]).expect("an address");
            let host = host_socket(&lab, &address.to_string(), 9001);
            let send = |to: u16, payload: &[u8]| {
                client(&lab, SocketAddr::new(address, to)).send(payload).expect("sending");
            };
            send(9001, b"UDP, not TCP");
            receives(&host, b"UDP, not TCP");
            for (to, payload) in [(9000, &b"the port"[..]), (40000, b"the first"), (40100, b"the last")] {
                send(to, payload);
                let (_, frame) = port.expect("a steered port", |packet| packet.ends_with(payload));
                port.pool.push(frame);
            }
            // Both fragmented: later fragments follow the first.
            let large = [7; 4000];
            send(9001, &large);
            receives(&host, &large);
            let before = steering.counters().redirected;
            send(9000, &large);
            wait_for("three fragments", || (steering.counters().redirected == before + 3).then_some(()));
        }
        port.turn();
        // What is no longer steered goes back to the kernel.
        steering.set_addresses(&[]).expect("no addresses");
        let host = host_socket(&lab, GATEWAY_ADDRESS, 9000);
        client(&lab, SocketAddr::new(GATEWAY_ADDRESS.parse().unwrap(), 9000)).send(b"again").expect("sending");
        receives(&host, b"again");
        port.assert_conserved();
    });
}

#[test]
fn an_icmp_error_about_a_steered_port_reaches_the_socket() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        let address: IpAddr = GATEWAY_ADDRESS.parse().expect("an address");
        steering
            .set_addresses(&[SteeredAddress::Ports { address, ports: vec![], range: Some((40000, 40100)) }])
            .expect("an address");
        let mut port = Port::bind(1, &mut steering);
        // The answer finds its port closed, and the client's kernel says so. Asked again until it does: a port stays
        // open while a program that another test starts just now holds a copy of its socket (between fork and exec),
        // and a kernel may limit its errors.
        let unreachable = |packet: &[u8]| packet[ETHERNET + 9] == 1 && packet[ETHERNET + 20] == 3;
        wait_for("an ICMP error", || {
            let asking = client(&lab, SocketAddr::new(address, 40050));
            asking.send(b"question").expect("sending");
            let (queue, mut frame) = port.expect("the question", ends_with(b"question"));
            drop(asking);
            let len = frame.len();
            turn_around(&mut port.umem.room_mut(&mut frame)[..len]);
            port.queues[queue].send(&mut vec![frame]);
            let (_, frame) = port.seek(Duration::from_millis(300), unreachable)?;
            port.pool.push(frame);
            Some(())
        });
        port.assert_conserved();
    });
}

#[test]
fn every_queues_packets_reach_that_queues_socket() {
    for queues in [2, 4] {
        let lab = Lab::new(queues);
        lab.resolve(VIP);
        lab.gateway.enter(|| {
            let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
            assert_eq!(steering.mode(), AttachMode::Native);
            steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
            let mut port = Port::bind(queues, &mut steering);
            let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
            for to in 9000..9064 {
                client(&lab, SocketAddr::new(VIP, to)).send(b"a flow").expect("sending");
                let (queue, frame) = port.expect("a flow's packet", ends_with(b"a flow"));
                port.pool.push(frame);
                *seen.entry(queue).or_default() += 1;
            }
            assert_eq!(seen.values().sum::<usize>(), 64);
            assert!(seen.len() > 1, "all flows on one queue: {seen:?}");
            port.assert_conserved();
        });
    }
}

#[test]
fn a_successor_takes_over_program_maps_and_queues() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let port = Port::bind(1, &mut steering);
        drop(steering);
        let before = lab.xdp().expect("the program stays without its process");

        let mut successor = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("the successor");
        let after = lab.xdp().expect("the successor's program");
        assert_ne!(before["prog"]["id"], after["prog"]["id"]);

        let (umem, _frames) = Umem::new(64, 2048, false).expect("a UMEM");
        let impatient = QueueConfig { ring_size: 64, busy_deadline: Duration::ZERO, ..QueueConfig::default() };
        match XskQueue::bind(&umem, GATEWAY, 0, &impatient) {
            Err(XskError::Bind { source, .. }) => assert_eq!(source.raw_os_error(), Some(16), "EBUSY"),
            other => panic!("the queue is taken, but: {other:?}"),
        }
        let patient = QueueConfig { busy_deadline: Duration::from_secs(5), ..impatient };
        let queue = std::thread::scope(|scope| {
            scope.spawn(move || drop(port));
            XskQueue::bind(&umem, GATEWAY, 0, &patient).expect("the queue, once it is free")
        });
        drop((queue, umem));

        // The address came with the maps: nobody told the successor.
        let mut port = Port::bind(1, &mut successor);
        client(&lab, SocketAddr::new(VIP, 9000)).send(b"still steered").expect("sending");
        let (_, frame) = port.expect("the packet", ends_with(b"still steered"));
        port.pool.push(frame);
        // And they can be taken away by it.
        successor.set_addresses(&[]).expect("no addresses");
        let passed = successor.counters().passed;
        client(&lab, SocketAddr::new(VIP, 9000)).send(b"not steered").expect("sending");
        wait_for("the packet to pass", || (successor.counters().passed > passed).then_some(()));
        port.assert_conserved();
    });
}

#[test]
fn a_successor_with_another_map_layout_makes_that_map_anew_and_keeps_the_rest() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        drop(steering);
        // As of a version whose map of fragments had other keys, and that had no map of ports.
        let pins = lab.bpf.join(GATEWAY);
        std::fs::rename(pins.join("ports"), pins.join("fragments")).expect("a pin in another's place");

        let mut successor = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("the successor");
        let mut port = Port::bind(1, &mut successor);
        client(&lab, SocketAddr::new(VIP, 9000)).send(b"still steered").expect("sending");
        let (_, frame) = port.expect("the packet", ends_with(b"still steered"));
        port.pool.push(frame);
        port.assert_conserved();
        drop(Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("and its own successor"));
    });
}

#[test]
fn detaching_leaves_the_interface_and_the_bpffs_clean() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        for mode in [AttachMode::Native, AttachMode::Generic] {
            let mut steering = Steering::attach(GATEWAY, mode, &lab.bpf).expect("steering");
            assert_eq!(steering.mode(), mode);
            let port = Port::bind(1, &mut steering);
            assert!(lab.xdp().is_some() && exists(&lab.bpf.join(GATEWAY).join("link")));
            drop(port);
            assert!(Steering::detach(GATEWAY, &lab.bpf).expect("detaching"));
            assert!(lab.xdp().is_none(), "{:?}", lab.xdp());
            assert!(!exists(&lab.bpf.join(GATEWAY)));
            assert!(!Steering::detach(GATEWAY, &lab.bpf).expect("detaching again"));
        }
    });
}

#[test]
fn generic_mode_steers_as_native_mode_does() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Generic, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let mut port = Port::bind(1, &mut steering);
        client(&lab, SocketAddr::new(VIP, 9000)).send(b"generic").expect("sending");
        let (_, frame) = port.expect("the packet", ends_with(b"generic"));
        port.pool.push(frame);
        port.assert_conserved();
    });
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        // Another instance's program, with pins of its own, is as foreign as any.
        let theirs = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf.join("theirs")).expect("steering");
        let before = lab.xdp();
        let error = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf.join("ours")).expect_err("it is taken");
        assert!(matches!(&error, XskError::ForeignProgram { name, .. } if name == "millrace_steer"), "{error}");
        assert_eq!(lab.xdp(), before);
        assert_eq!(theirs.counters(), SteeringCounters { passed: theirs.counters().passed, ..Default::default() });
    });
}

#[test]
fn an_interface_made_anew_is_attached_anew_with_the_old_addresses() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        drop(steering);
        lab.gateway.ip(&format!("link del {GATEWAY}"));
        lab.gateway.ip(&format!("link add {GATEWAY} type veth peer name other"));
        assert!(lab.xdp().is_none());
        drop(Steering::attach(GATEWAY, AttachMode::Auto, &lab.bpf).expect("steering"));
        assert!(lab.xdp().is_some());
        lab.gateway.ip(&format!("link del {GATEWAY}"));
        assert!(Steering::detach(GATEWAY, &lab.bpf).expect("detaching"), "pins of an interface that is gone");
    });
}

#[test]
fn what_cannot_be_bound_says_why() {
    let lab = Lab::new(1);
    lab.gateway.enter(|| {
        let config = QueueConfig { ring_size: 64, ..QueueConfig::default() };
        let (umem, _frames) = Umem::new(64, 2048, false).expect("a UMEM");
        assert!(matches!(XskQueue::bind(&umem, "none0", 0, &config), Err(XskError::NoInterface(_))));
        assert!(matches!(XskQueue::bind(&umem, GATEWAY, 7, &config), Err(XskError::Bind { queue: 7, .. })));
        let odd = QueueConfig { ring_size: 100, ..config };
        assert!(matches!(XskQueue::bind(&umem, GATEWAY, 0, &odd), Err(XskError::RingSize(100))));
        let zero_copy = QueueConfig { mode: BindMode::ZeroCopy, ..config };
        let error = XskQueue::bind(&umem, GATEWAY, 0, &zero_copy).expect_err("veth has no zero-copy");
        assert!(error.to_string().contains("zero-copy"), "{error}");
        // What failed leaves the UMEM usable.
        let queue = XskQueue::bind(&umem, GATEWAY, 0, &config).expect("a socket");
        assert!(matches!(XskQueue::bind(&umem, GATEWAY, 0, &config), Err(XskError::Bind { .. })));
        drop(queue);
        let (anonymous, _frames) = Umem::anonymous(64, 2048).expect("memory");
        assert!(matches!(XskQueue::bind(&anonymous, GATEWAY, 0, &config), Err(XskError::AnonymousUmem)));
    });
}

#[test]
fn a_packet_socket_sends_and_receives_whole_frames() {
    use millrace_xsk::PacketSocket;
    let lab = Lab::new(1);
    let near = lab.gateway.enter(|| PacketSocket::open(GATEWAY, 0x88b5).expect("a packet socket"));
    let far = lab.client.enter(|| PacketSocket::open(lab::CLIENT, 0x88b5).expect("a packet socket"));
    far.join_multicast([0x01, 0x00, 0x5e, 0x7f, 0x00, 0x01]).expect("a group");
    let mut frame = vec![0x01, 0x00, 0x5e, 0x7f, 0x00, 0x01, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend([9; 46]);
    near.send(&frame).expect("sending");
    let mut buffer = [0; 2048];
    let len = wait_for("the frame", || far.recv(&mut buffer).expect("receiving"));
    assert_eq!(&buffer[..len], frame);
}

#[test]
fn a_receive_queue_without_a_transmit_queue_of_its_number_is_bound_and_receives() {
    let lab = Lab::new(4);
    lab.resolve(VIP);
    lab.gateway.run(&format!("ethtool -L {GATEWAY} rx 4 tx 2"));
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let (umem, mut pool) = Umem::new(1024, 2048, false).expect("a UMEM");
        let bind = |queue| {
            let config = QueueConfig { ring_size: 64, receive_only: queue >= 2, ..QueueConfig::default() };
            XskQueue::bind(&umem, GATEWAY, queue, &config).expect("a socket")
        };
        let mut queues: Vec<XskQueue> = (0..4).map(bind).collect();
        for queue in &mut queues {
            steering.insert_socket(queue.queue(), queue.socket()).expect("room in the socket map");
            queue.refill(&mut pool);
            assert_eq!(queue.can_send(), queue.queue() < 2);
        }
        let mut seen = [0; 4];
        let mut got = Vec::with_capacity(64);
        let mut to = 9000..;
        wait_for("a packet on each queue", || {
            client(&lab, SocketAddr::new(VIP, to.next()?)).send(b"a flow").expect("sending");
            for (number, queue) in queues.iter_mut().enumerate() {
                queue.kick();
                seen[number] += queue.receive(&mut got, 64);
                pool.append(&mut got);
                queue.refill(&mut pool);
            }
            seen.iter().all(|count| *count > 0).then_some(())
        });
        // What is given to one that only receives stays with the giver.
        let mut frame = pool.pop().expect("a frame");
        frame.set_len(60);
        let mut frames = vec![frame];
        assert_eq!((queues[3].send(&mut frames), frames.len()), (0, 1));
        pool.append(&mut frames);
        let held: usize = queues.iter().map(Queue::held).sum();
        assert_eq!(pool.len() + held, umem.frames() as usize, "frames are lost or doubled");
        assert_eq!(steering.counters().no_socket_dropped, 0);
    });
}

#[test]
fn a_link_that_goes_down_while_frames_are_sent_gives_all_of_them_back_and_sends_again() {
    let lab = Lab::new(1);
    lab.resolve(VIP);
    lab.gateway.enter(|| {
        let mut steering = Steering::attach(GATEWAY, AttachMode::Native, &lab.bpf).expect("steering");
        steering.set_addresses(&[SteeredAddress::Whole(VIP)]).expect("an address");
        let mut port = Port::bind(1, &mut steering);
        let asking = client(&lab, SocketAddr::new(VIP, 9000));
        asking.send(b"question").expect("sending");
        let (_, mut frame) = port.expect("the question", ends_with(b"question"));
        let len = frame.len();
        turn_around(&mut port.umem.room_mut(&mut frame)[..len]);
        let answer = port.umem.packet(&frame).to_vec();
        port.pool.push(frame);
        let total = port.umem.frames() as usize;
        for (namespace, interface) in [(&lab.client, lab::CLIENT), (&lab.gateway, GATEWAY)] {
            namespace.ip(&format!("link set {interface} down"));
            // More than the TX ring holds; each turn ends, whatever the link does.
            for _ in 0..300 {
                port.turn();
                let mut frames: Vec<_> = port.pool.pop().into_iter().collect();
                for frame in &mut frames {
                    port.umem.room_mut(frame)[..len].copy_from_slice(&answer);
                    frame.set_len(len);
                }
                port.queues[0].send(&mut frames);
                port.pool.append(&mut frames);
                assert_eq!(port.pool.len() + port.queues[0].held(), total, "{interface} is down");
            }
            println!("{interface} down: {} in flight, {:?}", port.queues[0].in_flight(), port.queues[0].statistics());
            namespace.ip(&format!("link set {interface} up"));
            wait_for("all frames to come back", || {
                port.turn();
                (port.queues[0].in_flight() == 0).then_some(())
            });
            lab.resolve(VIP);
            wait_for("a question after the link came up", || {
                asking.send(b"again").ok()?;
                port.turn();
                let mut got = Vec::with_capacity(64);
                port.queues[0].receive(&mut got, 64);
                let heard = got.iter().any(|frame| port.umem.packet(frame).ends_with(b"again"));
                port.pool.append(&mut got);
                heard.then_some(())
            });
            assert_eq!(port.pool.len() + port.queues[0].held(), total, "frames are lost or doubled");
        }
    });
}
