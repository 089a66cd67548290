use std::collections::HashMap;

use proptest::prelude::*;
use wire::{Addr, MacAddr, Port, Protocol};

use super::*;
use crate::directory::Claim;
use crate::flow::{FlowFile, FlowFileConfig, FlowState};
use crate::id::{BackendId, PortId, ServiceId};
use crate::tables::Timeouts;

const SNAT: [u8; 4] = [192, 0, 2, 10];
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags::SYN.union(TcpFlags::ACK);

fn table(flows: usize) -> FlowTable {
    let config = FlowFileConfig {
        flows,
        services: 8,
        backends: 8,
        affinity_sources: 16,
        snat: vec![Addr::from_v4(SNAT)],
        secret: [7; 16],
        ..FlowFileConfig::default()
    };
    FlowFile::in_memory(&config).unwrap().tables.pop().unwrap()
}

pub(crate) fn spec(n: u16, protocol: Protocol, mode: Mode) -> FlowSpec {
    let client = (Addr::from_v4([10, 0, (n >> 8) as u8, n as u8]), Port::new(40_000));
    FlowSpec {
        protocol,
        client,
        vip: (Addr::from_v4([203, 0, 113, 1]), Port::new(80)),
        snat: if mode == Mode::Nat { (Addr::from_v4(SNAT), Port::new(1024 + n)) } else { client },
        backend: (Addr::from_v4([172, 16, 0, 1]), Port::new(8080)),
        dispensable: false,
        mode,
        service: ServiceId::new(1, 0),
        backend_id: BackendId::new(2, 0),
        client_mac: MacAddr([2, 0, 0, 0, 0, n as u8]),
        client_nic: PortId(0),
        udp_timeout: None,
    }
}

/// The same between other addresses: the client's, the frontend's, what the endpoint sees as the client's, the endpoint's.
fn with_addresses(spec: FlowSpec, [client, vip, snat, backend]: [Addr; 4]) -> FlowSpec {
    FlowSpec {
        client: (client, spec.client.1),
        vip: (vip, spec.vip.1),
        snat: (snat, spec.snat.1),
        backend: (backend, spec.backend.1),
        ..spec
    }
}

/// Opens a flow as the fast path does.
fn open(table: &mut FlowTable, spec: &FlowSpec, now: u32) -> Result<FlowRef, InsertError> {
    let shared = Arc::clone(table.shared());
    let hashes = [Direction::Forward, Direction::Reply].map(|d| table.hash(&spec.key(d)));
    let claims = if spec.mode == Mode::Preserve { &hashes[..] } else { &hashes[..1] };
    for hash in claims {
        assert_eq!(shared.directory.claim(hash.0, table.worker()), Claim::Won);
    }
    assert!(shared.sources.open(&spec.client.0, 0));
    table.insert(spec, Tick(now)).inspect_err(|_| {
        claims.iter().for_each(|hash| shared.directory.release(hash.0, table.worker()));
        shared.sources.close(&spec.client.0);
    })
}

fn look_up(table: &FlowTable, key: &FlowKey) -> Option<(FlowRef, Direction)> {
    let hash = table.hash(key);
    table.lookup(hash, key)
}

fn establish(table: &mut FlowTable, flow: FlowRef, now: u32) {
    table.packet(flow, Direction::Reply, SYN_ACK, Tick(now));
    table.packet(flow, Direction::Forward, ACK, Tick(now));
}

#[test]
fn a_slot_has_steady_packets_only_while_it_has_a_flow_in_a_steady_state() {
    let both = [Direction::Forward, Direction::Reply];
    let mut table = table(16);
    let (tcp, udp) = (spec(1, Protocol::TCP, Mode::Nat), spec(2, Protocol::UDP, Mode::Nat));
    let flows = [&tcp, &udp].map(|spec| open(&mut table, spec, 0).unwrap());
    let steady = |table: &FlowTable, flow: FlowRef| both.map(|d| table.entry(flow).is_steady(d));
    assert_eq!(flows.map(|flow| steady(&table, flow)), [[false; 2], [true, false]], "SYN, first datagram");
    establish(&mut table, flows[0], 0);
    assert_eq!(steady(&table, flows[0]), [true; 2]);
    for (flow, spec) in flows.into_iter().zip([&tcp, &udp]) {
        let hashes = both.map(|d| table.hash(&spec.key(d)));
        assert!(table.entry(flow).is_whole(hashes[0], hashes[1]));
        let mut entry = *table.entry(flow);
        entry.uncommit();
        assert_eq!(both.map(|d| entry.is_steady(d)), [false; 2]);
        entry.commit(hashes[0], hashes[1]);
        assert!(!entry.is_whole(hashes[0], hashes[1]), "the state and what it says of packets disagree");
        table.remove(flow);
        assert_eq!(steady(&table, flow), [false; 2]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_table_finds_what_a_map_finds(
        ops in prop::collection::vec((0..24u16, any::<bool>(), any::<bool>(), any::<bool>()), 1..200),
    ) {
        let mut table = table(1024);
        let mut model: HashMap<(u16, bool), FlowRef> = HashMap::new();
        let spec_of = |n, preserve| spec(n, Protocol::TCP, if preserve { Mode::Preserve } else { Mode::Nat });
        for (n, preserve, insert, twice) in ops {
            // The same client by the same frontend in the other mode has the same forward key.
            let taken = model.contains_key(&(n, true)) || model.contains_key(&(n, false));
            if insert {
                let result = open(&mut table, &spec_of(n, preserve), 0);
                prop_assert_eq!(result.is_err(), taken);
                if let Ok(flow) = result {
                    model.insert((n, preserve), flow);
                }
            } else if let Some(flow) = model.remove(&(n, preserve)) {
                if twice {
                    table.packet(flow, Direction::Forward, TcpFlags::RST, Tick(1));
                }
                table.remove(flow);
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.shared().flows(), model.len() as u64);
            prop_assert_eq!(table.shared().backend_connections(BackendId::new(2, 0)), model.len() as u32);
            for n in 0..24 {
                for preserve in [true, false] {
                    let (spec, flow) = (spec_of(n, preserve), model.get(&(n, preserve)).copied());
                    let reply = look_up(&table, &spec.key(Direction::Reply));
                    prop_assert_eq!(reply, flow.map(|flow| (flow, Direction::Reply)));
                    if let Some(flow) = flow {
                        let forward = look_up(&table, &spec.key(Direction::Forward));
                        prop_assert_eq!(forward, Some((flow, Direction::Forward)));
                    }
                    let open = model.contains_key(&(n, true)) || model.contains_key(&(n, false));
                    let owner = table.shared().directory.owner(table.hash(&spec.key(Direction::Forward)).0);
                    prop_assert_eq!(owner.is_some(), open);
                    prop_assert_eq!(table.shared().sources.count(&spec.client.0), u32::from(open));
                }
            }
        }
    }
}

#[test]
fn an_entry_keeps_what_it_was_opened_with() {
    let v6 = |last| Addr::from_v6([0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, last]);
    let v4 = spec(3, Protocol::UDP, Mode::Nat);
    let v6 = FlowSpec { udp_timeout: Some(5000), ..with_addresses(v4, [1, 2, 3, 4].map(v6)) };
    let mut table = table(16);
    for spec in [v4, v6] {
        let flow = open(&mut table, &spec, 9).unwrap();
        let entry = table.entry(flow);
        let got = FlowSpec {
            protocol: entry.protocol(),
            client: (entry.client(), entry.client_port()),
            vip: (entry.vip(), entry.vip_port()),
            snat: (entry.snat(), entry.snat_port()),
            backend: (entry.backend(), entry.backend_port()),
            dispensable: false,
            mode: entry.mode(),
            service: entry.service(),
            backend_id: entry.backend_id(),
            client_mac: entry.client_mac(),
            client_nic: entry.client_nic(),
            udp_timeout: spec.udp_timeout,
        };
        assert_eq!(got, spec);
        assert_eq!(entry.udp_timeout(), spec.udp_timeout.map(|_| 5120), "rounded up to its unit");
        assert_eq!((entry.opened_at(), entry.last_seen()), (Tick(9), Tick(9)));
        let forward = (spec.client.0, spec.vip.0, spec.client.1, spec.vip.1);
        let towards = (spec.snat.0, spec.backend.0, spec.snat.1, spec.backend.1);
        assert_eq!(entry.rewrite(Direction::Forward, !spec.client.0.is_v4()), wire::Rewrite::new(forward, towards));
        let reply = (spec.backend.0, spec.snat.0, spec.backend.1, spec.snat.1);
        let back = (spec.vip.0, spec.client.0, spec.vip.1, spec.client.1);
        assert_eq!(entry.rewrite(Direction::Reply, !spec.client.0.is_v4()), wire::Rewrite::new(reply, back));
    }
}

#[test]
fn a_reply_key_that_is_taken_is_refused() {
    let mut table = table(16);
    let one = spec(1, Protocol::TCP, Mode::Preserve);
    open(&mut table, &one, 0).unwrap();
    let by_another_vip = FlowSpec { vip: (Addr::from_v4([203, 0, 113, 2]), one.vip.1), ..one };
    let reply = table.hash(&one.key(Direction::Reply));
    assert_eq!(table.insert(&by_another_vip, Tick(0)), Err(InsertError::Taken));
    assert!(table.shared().directory.owner(reply.0).is_some());
    assert_eq!(table.shared().flows(), 1);
}

#[test]
fn a_full_table_evicts_the_unestablished_and_never_the_established() {
    let mut table = table(8);
    for n in 0..8 {
        let flow = open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), u32::from(n)).unwrap();
        if n != 3 && n != 5 {
            establish(&mut table, flow, 10);
        }
    }
    // The longest idle of those that open goes first.
    let late = open(&mut table, &spec(100, Protocol::TCP, Mode::Nat), 20).unwrap();
    assert_eq!(look_up(&table, &spec(3, Protocol::TCP, Mode::Nat).key(Direction::Forward)), None);
    assert!(look_up(&table, &spec(5, Protocol::TCP, Mode::Nat).key(Direction::Forward)).is_some());
    // A closed one before any other.
    establish(&mut table, late, 20);
    table.packet(late, Direction::Reply, TcpFlags::RST, Tick(20));
    let other = open(&mut table, &spec(101, Protocol::TCP, Mode::Nat), 20).unwrap();
    assert_eq!(look_up(&table, &spec(100, Protocol::TCP, Mode::Nat).key(Direction::Forward)), None);
    assert!(look_up(&table, &spec(5, Protocol::TCP, Mode::Nat).key(Direction::Forward)).is_some());
    establish(&mut table, other, 20);
    let last = open(&mut table, &spec(102, Protocol::TCP, Mode::Nat), 20).unwrap();
    establish(&mut table, last, 20);
    assert_eq!(open(&mut table, &spec(103, Protocol::TCP, Mode::Nat), 20), Err(InsertError::Full));
    assert_eq!((table.len(), table.evicted(), table.shared().flows()), (8, 3, 8));
}

#[test]
fn flows_that_open_are_found_behind_any_number_that_are_established() {
    let mut table = table(2048);
    for n in 0..2048 {
        let flow = open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), 0).unwrap();
        if n < 2000 {
            establish(&mut table, flow, 10);
        }
    }
    for n in 3000..13_000 {
        open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), 20).unwrap();
    }
    let established = |n| look_up(&table, &spec(n, Protocol::TCP, Mode::Nat).key(Direction::Forward)).is_some();
    assert!((0..2000).all(established));
    assert_eq!((table.len(), table.evicted()), (2048, 10_000));
}

#[test]
fn a_flow_ends_when_it_was_idle_for_its_states_timeout() {
    let t = Timeouts::default();
    let any = spec(1, Protocol::UDP, Mode::Nat);
    let udp = |port, own| FlowSpec { vip: (any.vip.0, Port::new(port)), udp_timeout: own, ..any };
    let tcp = spec(1, Protocol::TCP, Mode::Nat);
    let (f, r, none) = (Direction::Forward, Direction::Reply, TcpFlags::default());
    let fin = TcpFlags::FIN.union(ACK);
    let open_tcp = [(r, SYN_ACK), (f, ACK)];
    type Case = (FlowSpec, Vec<(Direction, TcpFlags)>, u32);
    let cases: [Case; 11] = [
        (tcp, vec![], t.tcp_opening),
        (tcp, vec![(r, SYN_ACK)], t.tcp_opening),
        (tcp, open_tcp.to_vec(), t.tcp_established),
        (tcp, [&open_tcp[..], &[(f, fin)]].concat(), t.tcp_transitory),
        (tcp, [&open_tcp[..], &[(f, fin), (r, fin), (f, ACK)]].concat(), t.tcp_closed),
        (tcp, [&open_tcp[..], &[(r, TcpFlags::RST)]].concat(), t.tcp_closed),
        (udp(80, None), vec![], t.udp_unreplied),
        (udp(80, None), vec![(r, none)], t.udp),
        (udp(80, Some(2048)), vec![(r, none)], 2048),
        (udp(53, None), vec![(f, none), (r, none)], t.dns),
        (udp(53, None), vec![(r, none)], t.dns_done),
    ];
    for (spec, packets, timeout) in cases {
        let mut table = table(16);
        // Near the wrap of the tick, which must not matter.
        let start = u32::MAX - 3;
        let flow = open(&mut table, &spec, start).unwrap();
        for &(direction, flags) in &packets {
            table.packet(flow, direction, flags, Tick(start));
        }
        let early = Tick(start.wrapping_add(timeout - 1));
        assert_eq!(table.expire(early, &t, 64, None), 0, "{packets:?}");
        let due = Tick(start.wrapping_add(timeout));
        assert_eq!(table.expire(due, &t, 64, None), 1, "{packets:?}");
        assert_eq!((table.len(), table.shared().flows()), (0, 0));
        assert_eq!(table.shared().sources.count(&spec.client.0), 0);
    }
}

#[test]
fn a_scan_looks_at_no_more_than_its_budget() {
    let mut table = table(64);
    for n in 0..20 {
        open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), 0).unwrap();
    }
    let late = Tick(1 << 24);
    let ended: Vec<_> = (0..4).map(|_| table.expire(late, &Timeouts::default(), 6, None)).collect();
    assert_eq!(ended, [8, 8, 4, 0], "but for whole groups");
}

#[test]
fn what_brings_an_end_forward_is_noticed_though_the_group_was_not_due() {
    let t = Timeouts::default();
    let mut table = table(64);
    let flows: Vec<_> = (0..4).map(|n| open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), 0).unwrap()).collect();
    for &flow in &flows {
        establish(&mut table, flow, 0);
    }
    let later = |ticks: u32| Tick(ticks);
    assert_eq!(table.expire(later(1), &t, 64, None), 0, "now the group is due in two hours");
    // A flow that is reset, another one in its place, shorter timeouts, and who asks for all of them.
    table.packet(flows[0], Direction::Reply, TcpFlags::RST, later(2));
    assert_eq!(table.expire(later(2 + t.tcp_closed), &t, 64, None), 1);
    let start = 3 + t.tcp_closed;
    open(&mut table, &spec(9, Protocol::TCP, Mode::Nat), start).unwrap();
    assert_eq!(table.expire(later(start + t.tcp_opening), &t, 64, None), 1);
    let now = start + t.tcp_opening + 1;
    assert_eq!(table.expire(later(now), &t, 64, None), 0);
    assert_eq!(
        table.expire(
            later(now),
            &t,
            64,
            Some(&mut |entry| entry.client() == spec(1, Protocol::TCP, Mode::Nat).client.0)
        ),
        1
    );
    assert_eq!(table.expire(later(now), &Timeouts { tcp_established: now - 1, ..t }, 64, None), 2);
}

#[test]
fn what_takes_a_slot_beside_others_or_another_endpoint_is_noticed_too() {
    let t = Timeouts::default();
    let mut table = table(64);
    let first = open(&mut table, &spec(0, Protocol::TCP, Mode::Nat), 0).unwrap();
    establish(&mut table, first, 0);
    assert_eq!(table.expire(Tick(1), &t, 64, None), 0, "a group of one");
    open(&mut table, &spec(1, Protocol::SCTP, Mode::Nat), 1).unwrap();
    assert_eq!(table.expire(Tick(1 + t.sctp_opening), &t, 64, None), 1, "a second one in it");
    let third = open(&mut table, &spec(2, Protocol::TCP, Mode::Nat), 2).unwrap();
    establish(&mut table, third, 2);
    assert_eq!(table.expire(Tick(t.tcp_opening), &t, 64, None), 0);
    let elsewhere = FlowSpec { backend_id: BackendId::new(3, 0), ..spec(7, Protocol::TCP, Mode::Nat) };
    let towards = FlowSpec { client: spec(2, Protocol::TCP, Mode::Nat).client, ..elsewhere };
    let now = t.tcp_opening + 5;
    assert!(table.retarget(third, &towards, Tick(now)));
    assert_eq!(table.expire(Tick(now + t.tcp_opening), &t, 64, None), 1, "it opens anew");
}

#[test]
fn an_entry_hashes_as_its_keys_do_and_leaves_nothing_behind() {
    let six = |n: u8| Addr::from_v6([0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, n]);
    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
        for mode in [Mode::Nat, Mode::Preserve, Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue] {
            let four = spec(1, protocol, mode);
            let snat = if mode == Mode::Nat { six(3) } else { six(1) };
            let v6 = with_addresses(four, [six(1), six(2), snat, six(4)]);
            for spec in [four, v6] {
                let spec = match mode.is_direct() {
                    true => FlowSpec { backend: spec.vip, ..spec },
                    false => spec,
                };
                let mut table = table(4);
                let hashes = [Direction::Forward, Direction::Reply].map(|d| table.hash(&spec.key(d)));
                let flow = open(&mut table, &spec, 0).unwrap();
                let entry = table.entry(flow);
                assert_eq!(
                    [Direction::Forward, Direction::Reply].map(|d| entry.hash(d, &table.hasher)),
                    hashes,
                    "{spec:?}"
                );
                table.remove(flow);
                assert!(hashes.iter().all(|&hash| table.index.find(hash, |_| true).is_none()), "{spec:?}");
                assert_eq!(
                    (table.shared().directory.owner(hashes[0].0), table.shared().sources.count(&spec.client.0)),
                    (None, 0)
                );
            }
        }
    }
}

#[test]
fn groups_are_looked_at_again_in_time_however_the_clock_wraps() {
    let t = Timeouts::default();
    for start in [0, 1, u32::MAX - 7_000_000, u32::MAX / 2, u32::MAX] {
        let mut table = table(64);
        let flow = open(&mut table, &spec(1, Protocol::TCP, Mode::Nat), start).unwrap();
        establish(&mut table, flow, start);
        // Steps of a scan, packets in between that change nothing but the time of the last one.
        let step = t.tcp_established / 7;
        for n in 1..30 {
            let now = Tick(start.wrapping_add(n * step));
            assert_eq!(table.expire(now, &t, 64, None), 0, "{n}");
            if n <= 20 {
                table.entry_mut(flow).refresh(now);
            }
            if n == 26 {
                break;
            }
        }
        assert_eq!(table.expire(Tick(start.wrapping_add(27 * step + 7)), &t, 64, None), 1);
    }
}

#[test]
fn a_closed_flow_counts_no_longer_and_may_be_reopened() {
    let mut table = table(16);
    let spec = spec(1, Protocol::TCP, Mode::Nat);
    let flow = open(&mut table, &spec, 0).unwrap();
    establish(&mut table, flow, 0);
    assert!(!table.reopens(flow, Direction::Forward, true));
    table.packet(flow, Direction::Reply, TcpFlags::RST, Tick(1));
    let counts = |table: &FlowTable| {
        (table.shared().sources.count(&spec.client.0), table.shared().backend_connections(spec.backend_id))
    };
    assert_eq!((counts(&table), table.len()), ((0, 0), 1));
    assert!(table.reopens(flow, Direction::Forward, true));
    // Both sides go on: the reset was not theirs.
    table.packet(flow, Direction::Reply, ACK, Tick(2));
    table.packet(flow, Direction::Forward, ACK, Tick(2));
    assert_eq!((counts(&table), table.entry(flow).state()), ((1, 1), FlowState::Established));
    table.packet(flow, Direction::Forward, TcpFlags::RST, Tick(3));
    table.remove(flow);
    let again = open(&mut table, &spec, 4).unwrap();
    assert_eq!(table.entry(again).state(), FlowState::Opening);
    assert_eq!(counts(&table), (1, 1));
}

#[test]
fn export_lists_every_flow_once() {
    let mut table = table(64);
    let refs: Vec<_> = (0..30).map(|n| open(&mut table, &spec(n, Protocol::TCP, Mode::Nat), 0).unwrap()).collect();
    table.remove(refs[7]);
    let (mut from, mut records) = (Some(0), Vec::new());
    while let Some(at) = from {
        from = table.export(at, 8, &mut records);
    }
    let clients: std::collections::HashSet<_> = records.iter().map(|record| record.client).collect();
    assert_eq!((records.len(), clients.len()), (29, 29));
    assert!(!clients.contains(&spec(7, Protocol::TCP, Mode::Nat).client));
}
