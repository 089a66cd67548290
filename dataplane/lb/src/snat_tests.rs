use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;
use wire::MacAddr;

use super::*;
use crate::flow::{FlowFile, FlowFileConfig, FlowSpec, Opened};
use crate::id::{BackendId, PortId, ServiceId};
use crate::model::Mode;
use crate::tables::SnatPool;
use crate::time::Tick;

const SNAT: Addr = Addr::from_v4([192, 0, 2, 10]);
const BACKEND: Addr = Addr::from_v4([172, 16, 0, 1]);
const HTTP: Port = Port::new(8080);

fn opened(workers: usize) -> Opened {
    let config = FlowFileConfig {
        workers,
        flows: 4096,
        services: 4,
        backends: 4,
        affinity_sources: 16,
        snat: vec![SNAT],
        ..FlowFileConfig::default()
    };
    FlowFile::in_memory(&config).unwrap()
}

fn pool(first_port: u16, last_port: u16) -> SnatPool {
    let address = SnatAddress { address: SNAT, index: 0, first_port, last_port, dedicated: true };
    SnatPool { v4: vec![address], ..SnatPool::default() }
}

/// A port for a SYN that no TIME_WAIT holds.
fn allocate(
    snat: &mut SnatAllocator,
    pool: &SnatPool,
    flows: &FlowTable,
    backend: (Addr, Port),
    protocol: Protocol,
    now: Tick,
) -> Result<(Addr, Port), SnatExhausted> {
    let supply = pool.supply(backend.0.is_v4(), false);
    let allocated = snat.allocate(supply, flows, backend, protocol, |_| false, now)?;
    assert_eq!(allocated.makes_way, None, "no flow is closed");
    Ok(allocated.snat)
}

/// Opens a flow from a client of this number with what the allocator gave.
fn open(flows: &mut FlowTable, n: u16, backend: Addr, (snat, snat_port): (Addr, Port)) -> crate::flow::FlowRef {
    let spec = FlowSpec {
        protocol: Protocol::TCP,
        client: (Addr::from_v4([10, 0, (n >> 8) as u8, n as u8]), Port::new(40_000)),
        vip: (Addr::from_v4([203, 0, 113, 1]), Port::new(80)),
        snat: (snat, snat_port),
        backend: (backend, HTTP),
        dispensable: false,
        mode: Mode::Nat,
        service: ServiceId::new(0, 0),
        backend_id: BackendId::new(0, 0),
        client_mac: MacAddr::UNKNOWN,
        client_nic: PortId(0),
        udp_timeout: None,
    };
    flows.insert(&spec, Tick(0)).unwrap()
}

#[test]
fn towards_one_endpoint_every_port_is_used_once_and_all_of_the_range_are() {
    let mut flows = opened(1).tables.pop().unwrap();
    let mut snat = SnatAllocator::new(&flows, [1; 16]);
    // Neither end is a block's.
    let pool = pool(20_010, 20_200);
    let mut seen = HashSet::new();
    let mut refs = Vec::new();
    for n in 0..191 {
        let taken = allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
        assert!(taken.0 == SNAT && (20_010..=20_200).contains(&taken.1.number()) && seen.insert(taken.1));
        refs.push(open(&mut flows, n, BACKEND, taken));
    }
    assert_eq!(allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)), Err(SnatExhausted));
    // Another endpoint, another protocol: the same ports again.
    let other = Addr::from_v4([172, 16, 0, 2]);
    let taken = allocate(&mut snat, &pool, &flows, (other, HTTP), Protocol::TCP, Tick(0)).unwrap();
    assert!(seen.contains(&taken.1));
    open(&mut flows, 1000, other, taken);
    assert!(allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::UDP, Tick(0)).is_ok());
    // A port that is free again is found.
    let freed = flows.entry(refs[77]).snat_port();
    flows.remove(refs[77]);
    assert_eq!(allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)), Ok((SNAT, freed)));
}

#[test]
fn no_address_gives_no_port() {
    let flows = opened(1).tables.pop().unwrap();
    let mut snat = SnatAllocator::new(&flows, [1; 16]);
    let none = SnatPool::default();
    assert_eq!(allocate(&mut snat, &none, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)), Err(SnatExhausted));
    assert_eq!(allocate(&mut snat, &pool(2, 1), &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)), Err(SnatExhausted));
}

#[test]
fn another_seed_chooses_other_ports() {
    let draw = |seed| {
        let mut flows = opened(1).tables.pop().unwrap();
        let mut snat = SnatAllocator::new(&flows, [seed; 16]);
        (0..16)
            .map(|n| {
                let taken =
                    allocate(&mut snat, &pool(1024, 65535), &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
                open(&mut flows, n, BACKEND, taken);
                taken.1
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn no_two_workers_own_a_port() {
    let Opened { tables, shared, .. } = opened(4);
    let pool = Arc::new(pool(1024, 65535));
    let threads: Vec<_> = tables
        .into_iter()
        .map(|mut flows| {
            let pool = Arc::clone(&pool);
            std::thread::spawn(move || {
                let mut snat = SnatAllocator::new(&flows, [flows.worker().0; 16]);
                let ports: Vec<_> = (0..1000)
                    .map(|n| {
                        let taken =
                            allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
                        open(&mut flows, n, BACKEND, taken);
                        taken.1
                    })
                    .collect();
                (flows, ports)
            })
        })
        .collect();
    let mut all = HashSet::new();
    for thread in threads {
        let (flows, ports) = thread.join().unwrap();
        for port in ports {
            assert!(all.insert(port), "{port} twice");
            assert_eq!(shared.blocks.owner(0, port), Some(flows.worker()));
            assert_eq!(shared.blocks.owner_of(&SNAT, port), Some(flows.worker()));
        }
    }
    assert_eq!(all.len(), 4000);
    assert_eq!(shared.blocks.owner_of(&BACKEND, Port::new(80)), None);
}

#[test]
fn blocks_without_flows_are_given_back_once_they_have_rested() {
    let mut flows = opened(1).tables.pop().unwrap();
    let mut snat = SnatAllocator::new(&flows, [1; 16]);
    let pool = pool(1024, 65535);
    let refs: Vec<_> = (0..3000)
        .map(|n| {
            let taken = allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
            open(&mut flows, n, BACKEND, taken)
        })
        .collect();
    let worker = flows.worker();
    let before = flows.shared().blocks.owned(worker);
    assert!(before > FIRST_BLOCKS);
    let release =
        |snat: &mut SnatAllocator, flows: &FlowTable, now| (0..20_000).for_each(|_| snat.tend(&pool, flows, now));
    release(&mut snat, &flows, Tick(REST));
    let in_use = |flows: &FlowTable| (0..BLOCKS_PER_ADDRESS).filter(|&b| flows.flows_of_block(b) > 0).count();
    assert!(flows.shared().blocks.owned(worker) >= in_use(&flows));
    refs.into_iter().for_each(|flow| flows.remove(flow));
    assert_eq!(in_use(&flows), 0);
    let owned = flows.shared().blocks.owned(worker);
    release(&mut snat, &flows, Tick(REST + REST / 2));
    assert_eq!(flows.shared().blocks.owned(worker), owned, "they rest");
    release(&mut snat, &flows, Tick(2 * REST));
    assert_eq!(flows.shared().blocks.owned(worker), FIRST_BLOCKS);
}

#[test]
fn a_block_rests_for_a_minute_also_for_a_worker_whose_burst_began_before_its_last_use() {
    const UNIT: u32 = 1 << (u32::BITS - TIME_BITS);
    for used in [0, 5 * UNIT, 0_u32.wrapping_sub(UNIT)] {
        let word = USED | time(Tick(used));
        for (later, rested) in
            [(0, false), (1_u32.wrapping_neg(), false), (REST, false), (REST + 2 * UNIT, true), (1 << 31, true)]
        {
            assert_eq!(has_rested(word, Tick(used.wrapping_add(later))), rested, "{used}, {later}");
        }
    }
    assert!(has_rested(0, Tick(5)), "nothing was chosen of it");
}

#[test]
fn a_worker_that_comes_late_has_its_blocks_of_a_small_pool() {
    for (blocks, workers) in [(2_u16, 2_usize), (16, 2), (4, 3), (40, 2)] {
        let mut all = opened(workers).tables;
        let pool = pool(20_032, 20_032 + blocks * BLOCK_PORTS - 1);
        let mut workers: Vec<_> = all.iter().map(|flows| SnatAllocator::new(flows, [flows.worker().0; 16])).collect();
        // Each looks around before there is traffic.
        workers.iter_mut().zip(&all).for_each(|(snat, flows)| snat.tend(&pool, flows, Tick(0)));
        let (flows, snat) = (&mut all[0], &mut workers[0]);
        let mut n = 0;
        while let Ok(taken) = allocate(snat, &pool, flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)) {
            open(flows, n, BACKEND, taken);
            n += 1;
        }
        let of_others = (workers.len() as u16 - 1) * (blocks / (2 * workers.len() as u16)).clamp(1, 16);
        assert!(n >= (blocks - of_others) * BLOCK_PORTS * 9 / 10, "{blocks} blocks: {n}");
        for (snat, flows) in workers.iter_mut().zip(&all).skip(1) {
            let got = allocate(snat, &pool, flows, (BACKEND, HTTP), Protocol::TCP, Tick(0));
            assert!(got.is_ok(), "{blocks} blocks, worker {}: {got:?}", flows.worker().0);
        }
    }
}

#[test]
fn what_a_worker_took_beyond_its_own_of_a_small_pool_comes_back_once_it_has_rested() {
    let Opened { mut tables, shared, .. } = opened(2);
    let flows = &mut tables[0];
    let (pool, worker) = (pool(20_032, 20_032 + 16 * BLOCK_PORTS - 1), flows.worker());
    let mut snat = SnatAllocator::new(flows, [1; 16]);
    let refs: Vec<_> = (0..10 * BLOCK_PORTS)
        .map(|n| {
            let taken = allocate(&mut snat, &pool, flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
            open(flows, n, BACKEND, taken)
        })
        .collect();
    assert!(shared.blocks.owned(worker) >= 10);
    let mut look = |flows: &FlowTable, now| (0..1000).for_each(|_| snat.tend(&pool, flows, now));
    // As long as there are flows, also for a successor.
    look(flows, Tick(REST));
    let rested = |now| {
        (0..BLOCKS_PER_ADDRESS).filter(|n| has_rested(shared.blocks.owners[*n].load(Ordering::Relaxed), now)).count()
    };
    assert!(BLOCKS_PER_ADDRESS - rested(Tick(REST + REST / 2)) >= 10, "they were in use");
    refs.into_iter().for_each(|flow| flows.remove(flow));
    look(flows, Tick(2 * REST));
    assert_eq!(shared.blocks.owned(worker), 4, "half its share");
}

/// The ports that so many short connections to one endpoint use.
fn churn(flows: &mut FlowTable, snat: &mut SnatAllocator, count: u16, now: Tick) -> HashSet<Port> {
    let one = |n| {
        let taken = allocate(snat, &pool(1024, 65535), flows, (BACKEND, HTTP), Protocol::TCP, now).unwrap();
        let flow = open(flows, n, BACKEND, taken);
        flows.remove(flow);
        taken.1
    };
    (0..count).map(one).collect()
}

#[test]
fn a_successor_does_not_begin_with_ports_that_were_used_within_a_minute() {
    let folder = std::env::temp_dir().join(format!("millrace-snat-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let begun = Tick::from_millis(1_000_000);
    let run = |workers, now, seed| {
        let config = FlowFileConfig { workers, flows: 4096, snat: vec![SNAT], ..FlowFileConfig::default() };
        let mut flows = FlowFile::open(&folder, &config).unwrap().tables.remove(0);
        let mut snat = SnatAllocator::new(&flows, [seed; 16]);
        churn(&mut flows, &mut snat, 20_000, Tick(now))
    };
    let first = run(1, begun, 1);
    let second = run(1, begun + Tick::from_millis(10_000), 2);
    assert_eq!((first.len(), second.len()), (20_000, 20_000));
    assert!(first.is_disjoint(&second), "the same sizes");
    // Flows are moved into a file of another size.
    let third = run(2, begun + Tick::from_millis(20_000), 3);
    assert!(third.is_disjoint(&first) && third.is_disjoint(&second), "another number of workers");
    let later = run(1, begun + REST + Tick::from_millis(30_000), 4);
    assert!(!later.is_disjoint(&first) && !later.is_disjoint(&second), "all have rested");
    std::fs::remove_dir_all(folder).unwrap();
}

proptest! {
    /// Connections come and go, to two endpoints in any order; the range is of whole blocks, for of a part of one more than
    /// a 64th is at hand.
    #[test]
    fn a_port_is_used_again_after_nearly_all_others_of_the_range(
        first in 16..600u16, blocks in 1..80u16, seed: u8, order in prop::collection::vec(any::<bool>(), 1..64),
    ) {
        let mut flows = opened(1).tables.pop().unwrap();
        let mut snat = SnatAllocator::new(&flows, [seed; 16]);
        let (first, count) = (first * BLOCK_PORTS, blocks * BLOCK_PORTS);
        let pool = pool(first, first + (count - 1));
        let endpoints = [BACKEND, Addr::from_v4([172, 16, 0, 2])];
        let mut used = [(); 2].map(|()| HashMap::new());
        let mut chosen = [0; 2];
        for n in (0..4 * usize::from(count)).map(|n| usize::from(order[n % order.len()])) {
            let taken = allocate(&mut snat, &pool, &flows, (endpoints[n], HTTP), Protocol::TCP, Tick(0)).unwrap();
            let flow = open(&mut flows, 0, endpoints[n], taken);
            flows.remove(flow);
            let before = used[n].insert(taken.1, chosen[n]);
            // A 64th of them is at hand at a time, and what is drawn late comes round early.
            let least = count / 2;
            prop_assert!(before.is_none_or(|before| chosen[n] - before >= least), "{} after {:?}", taken.1, before);
            chosen[n] += 1;
        }
    }
}

/// A guess at the next port, from all before it and when each was used last.
type Guess<'a> = &'a dyn Fn(&[u16], &HashMap<u16, usize>) -> Option<u16>;

/// How often a rule guesses the next of the ports that an endpoint sees, in percent of the later half.
fn guessed(ports: &[u16], guess: Guess<'_>) -> f64 {
    let (mut last, mut right) = (HashMap::new(), 0);
    for (n, &port) in ports.iter().enumerate() {
        if n >= ports.len() / 2 && guess(&ports[..n], &last) == Some(port) {
            right += 1;
        }
        last.insert(port, n);
    }
    f64::from(right) * 200.0 / ports.len() as f64
}

#[test]
fn who_saw_every_port_so_far_does_not_know_the_next() {
    const PORTS: usize = 4096;
    let mut flows = opened(1).tables.pop().unwrap();
    let mut snat = SnatAllocator::new(&flows, [7; 16]);
    let pool = pool(1024, 1023 + PORTS as u16);
    let mut one = || {
        let taken = allocate(&mut snat, &pool, &flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
        let flow = open(&mut flows, 0, BACKEND, taken);
        flows.remove(flow);
        taken.1.number()
    };
    let ports: Vec<u16> = (0..4 * PORTS).map(|_| one()).collect();
    let next_number: Guess<'_> = &|before, _| before.last().map(|port| port + 1);
    let same_step: Guess<'_> = &|before, _| {
        let [a, b] = *before.last_chunk::<2>()?;
        Some(b & !63 | b.wrapping_add(b.wrapping_sub(a)) & 63)
    };
    let successor: Guess<'_> = &|before, _| {
        let (now, earlier) = before.split_last()?;
        let at = earlier.iter().rposition(|port| port == now)?;
        earlier.get(at + 1).copied()
    };
    let least_recent: Guess<'_> = &|_, last| last.iter().min_by_key(|(_, n)| **n).map(|(port, _)| *port);
    let rules = [
        ("the next number", next_number),
        ("the last step again", same_step),
        ("what followed this one before", successor),
        ("the one that was used longest ago", least_recent),
    ];
    for (rule, guess) in rules {
        let right = guessed(&ports, guess);
        println!("{rule}: right {right:.2} % of the time");
        assert!(right < 4.0, "{rule}: {right} %");
    }
    // As many as there are come round before one comes again, nearly.
    let turn: HashSet<u16> = ports[3 * PORTS..].iter().copied().collect();
    assert!(turn.len() > PORTS * 95 / 100, "{}", turn.len());
}

#[test]
fn the_order_in_a_block_is_a_permutation_and_another_one_in_each() {
    let of = |secret| (0..64).map(|step| shuffled(step, secret)).collect::<Vec<_>>();
    let orders: HashSet<Vec<u16>> = (1..500u64).map(|n| of(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    assert_eq!(orders.len(), 499);
    assert!(orders.iter().all(|order| order.iter().collect::<HashSet<_>>().len() == 64));
}

#[test]
fn a_worker_that_opens_many_flows_leaves_the_others_their_share() {
    let mut tables = opened(2).tables;
    let pool = pool(1024, 65535);
    let churn = |flows: &mut FlowTable| {
        let mut snat = SnatAllocator::new(flows, [flows.worker().0; 16]);
        for n in 0..100_000u32 {
            let taken = allocate(&mut snat, &pool, flows, (BACKEND, HTTP), Protocol::TCP, Tick(0)).unwrap();
            let flow = open(flows, n as u16, BACKEND, taken);
            flows.remove(flow);
        }
        flows.shared().blocks.owned(flows.worker())
    };
    assert_eq!([churn(&mut tables[0]), churn(&mut tables[1])], [504, 504]);
}

#[test]
fn every_address_of_a_supply_is_used_whatever_numbers_they_have() {
    let addresses = [1, 2, 3, 4].map(|n| Addr::from_v4([198, 51, 100, n]));
    let config = FlowFileConfig {
        flows: 4096,
        services: 4,
        backends: 4,
        affinity_sources: 16,
        snat: addresses.to_vec(),
        ..FlowFileConfig::default()
    };
    for numbers in [vec![0, 1, 2, 3], vec![0, 2, 3], vec![1, 3], vec![3, 0, 2], vec![2]] {
        let entry = |&index: &u16| {
            let address = addresses[usize::from(index)];
            SnatAddress { address, index, first_port: 1024, last_port: 65535, dedicated: true }
        };
        let pool = SnatPool { v4: numbers.iter().map(entry).collect(), ..SnatPool::default() };
        let flows = FlowFile::in_memory(&config).unwrap().tables.pop().unwrap();
        let (mut snat, supply) = (SnatAllocator::new(&flows, [1; 16]), pool.supply(true, false));
        let mut used = HashSet::new();
        for _ in 0..4000 {
            let given = snat.allocate(supply, &flows, (BACKEND, HTTP), Protocol::TCP, |_| false, Tick(0)).unwrap();
            let (address, port) = given.snat;
            assert_eq!(flows.shared().blocks.owner_of(&address, port), Some(WorkerId(0)), "{numbers:?}");
            used.insert(address);
        }
        assert_eq!(used, pool.v4.iter().map(|entry| entry.address).collect(), "{numbers:?}");
    }
}

#[test]
fn each_supply_gives_its_own_addresses_and_goes_on_with_its_own_blocks() {
    const KERNEL: Addr = Addr::from_v4([10, 244, 1, 250]);
    let config = FlowFileConfig {
        flows: 4096,
        services: 4,
        backends: 4,
        affinity_sources: 16,
        snat: vec![SNAT, KERNEL],
        kernel_snat: 1,
        ..FlowFileConfig::default()
    };
    let entry = |address, index| SnatAddress { address, index, first_port: 1024, last_port: 65535, dedicated: true };
    let pool = SnatPool { v4: vec![entry(SNAT, 0)], kernel_v4: vec![entry(KERNEL, 1)], ..SnatPool::default() };
    let mut flows = FlowFile::in_memory(&config).unwrap().tables.pop().unwrap();
    let draw = |flows: &FlowTable, by_kernel, n: usize| {
        let mut snat = SnatAllocator::new(flows, [1; 16]);
        let supply = pool.supply(true, by_kernel);
        let mut one =
            |_| snat.allocate(supply, flows, (BACKEND, HTTP), Protocol::TCP, |_| false, Tick(0)).unwrap().snat;
        (0..n).map(&mut one).collect::<Vec<_>>()
    };
    let (nics, kernel) = (draw(&flows, false, 100), draw(&flows, true, 100));
    assert!(nics.iter().all(|(address, _)| *address == SNAT), "{nics:?}");
    assert!(kernel.iter().all(|(address, _)| *address == KERNEL), "{kernel:?}");
    // A successor takes up what it has of each.
    open(&mut flows, 1, BACKEND, kernel[0]);
    open(&mut flows, 2, BACKEND, nics[0]);
    assert!(draw(&flows, true, 2000).iter().all(|snat| snat.0 == KERNEL && *snat != kernel[0]));
    assert!(draw(&flows, false, 2000).iter().all(|snat| snat.0 == SNAT && *snat != nics[0]));
    // Where NICs have none of their own, the kernel port's do.
    let alone = SnatPool { v4: Vec::new(), ..pool.clone() };
    assert_eq!(alone.supply(true, false).addresses, alone.supply(true, true).addresses);
    assert_eq!(alone.supply(true, false).number, alone.supply(true, true).number);
    assert!(alone.supply(false, true).addresses.is_empty() && alone.get(&KERNEL).is_some());
}
