//! A flood of SYNs from sources that do not exist: who has a connection keeps it, who means it gets one.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use millrace_tests::flood::{self, Flood};
use millrace_tests::lab::Process;
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

/// Most flows of the table.
const FLOWS: u64 = 20_000;
/// Connections that are there before the flood.
const HELD: usize = 40;
const EVERY: Duration = Duration::from_millis(20);
/// Clients that open a connection each.
const NEW: usize = 4;
const NEW_EVERY: Duration = Duration::from_millis(40);
/// Of a flood, where ten tables take longer.
const LONGEST: Duration = Duration::from_secs(20);
/// Where the machine stood for as long, what did not come in time is not the flood's.
const STANDS: Duration = Duration::from_millis(50);
/// How long what nothing is said of may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Ended in this order.
struct Site {
    flood: Flood,
    process: Process,
    gateway: Gateway,
    network: Network,
}

fn site(name: &str, limits: &str) -> Site {
    servers::require(&["nft"]);
    let network = Network::two_nics(name, 2, 1);
    network.backends.iter().for_each(flood::absorb);
    let config = network.config(&format!("limits: {{flows: {FLOWS}, {limits}}}\nworkers: {{cores: [0]}}"));
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let process = gateway.start();
    let mac = network.gateway.mac("eth0");
    let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).expect("a MAC")).collect();
    let SocketAddr::V4(vip) = network.vip(false) else { panic!("IPv4") };
    let target: (Ipv4Addr, u16) = (*vip.ip(), vip.port());
    let flood = flood::begin(&network.client, "eth0", octets.try_into().expect("six octets"), target);
    Site { flood, process, gateway, network }
}

/// What was let through while a flood of some rate went on.
#[derive(Debug)]
struct Seen {
    sent: u64,
    /// Share of the requests that connections which were there had to make.
    kept: f64,
    /// Share of connections that came to something, of those that were opened.
    opened: f64,
    /// SYNs that a client's kernel had to send again, for each connection.
    again: f64,
    /// Frames lost before a worker saw them.
    lost: f64,
    shed: f64,
    limited: f64,
    /// For how long the machine stood.
    stood: Duration,
}

impl Site {
    fn lost(&self) -> f64 {
        let metrics = self.gateway.metrics();
        let counted = |name: &str| metrics.sum("millrace_socket_total", &format!("counter=\"{name}\""));
        counted("rx_dropped") + counted("rx_ring_full") + counted("rx_fill_ring_empty_descs")
    }

    fn drops(&self, reason: &str) -> f64 {
        self.gateway.metric("millrace_drops_total", &format!("reason=\"{reason}\""))
    }

    /// What a flood does to IPv4 and IPv6 connections alike, half of them each.
    fn flooded(&self, rate: u64, during: Duration) -> Seen {
        let client = &self.network.client;
        let again = || client.nstat("TcpExtTCPSynRetrans") as f64;
        let counters = || (self.lost(), self.drops("overload"), self.drops("syn_flood"));
        let pulse = Pulse::begin();
        // They are there before it begins.
        let lead = Duration::from_millis(500);
        let families = [false, true];
        let held = families.map(|v6| load::paced(client, self.network.vip(v6), HELD / 2, EVERY, during + lead, true));
        let begun = Instant::now();
        while begun.elapsed() < lead {
            std::thread::park_timeout(lead - begun.elapsed());
        }
        let (sent, sent_again, before) = (self.flood.sent(), again(), counters());
        self.flood.set_rate(rate);
        let new = families.map(|v6| load::paced(client, self.network.vip(v6), NEW / 2, NEW_EVERY, during, false));
        let held = held.map(|held| held.join().expect("the connections"));
        let new = new.map(|new| new.join().expect("the connections"));
        self.flood.set_rate(0);
        let (after, sent) = (counters(), self.flood.sent() - sent);
        let answered: u64 = held.iter().map(|outcome| outcome.answered).sum();
        let due = HELD as u128 * (during + lead).as_millis().div_ceil(EVERY.as_millis());
        let opened: u64 = new.iter().map(|outcome| outcome.answered).sum();
        let due_new = NEW as u128 * during.as_millis().div_ceil(NEW_EVERY.as_millis());
        Seen {
            sent,
            kept: answered as f64 / due as f64,
            opened: opened as f64 / due_new as f64,
            again: (again() - sent_again) / due_new as f64,
            lost: after.0 - before.0,
            shed: after.1 - before.1,
            limited: after.2 - before.2,
            stood: pulse.longest(),
        }
    }

    /// KiB of memory that the gateway has.
    fn resident(&self) -> u64 {
        self.process.memory("VmRSS") >> 10
    }
}

#[test]
fn a_flood_that_the_rings_carry_stops_neither_who_has_a_connection_nor_who_opens_one() {
    let site = site("flood", "synsPerVip: off");
    // The highest rate that the rings carry: each machine has its own, and what else it does now counts too.
    let mut rates = vec![240_000, 160_000, 120_000, 80_000, 40_000, 20_000, 10_000, 5_000];
    let is_carried = |seen: &Seen| seen.lost == 0.0 && seen.shed == 0.0;
    rates.retain(|rate| is_carried(&site.flooded(*rate, Duration::from_secs(1))));
    let before = site.resident();
    // Nearly all of them with their first SYN.
    let is_kept = |seen: &Seen| seen.kept >= 0.99 && seen.opened >= 0.99 && seen.again <= 0.01;
    let judge = |rate: &u64| {
        let during = Duration::from_secs_f64((10 * FLOWS) as f64 / *rate as f64).clamp(Duration::from_secs(4), LONGEST);
        // What clients miss while the machine stands is not judged: it is tried again.
        let mut tries = (0..3).map(|_| {
            let seen = site.flooded(*rate, during);
            println!("{rate}/s for {during:?}: {seen:?}, {before} KiB and then {}", site.resident());
            seen
        });
        let is_judged = |seen: &Seen| !is_carried(seen) || is_kept(seen) || seen.stood < STANDS;
        tries.find(is_judged).filter(is_carried)
    };
    let judged = rates.iter().find_map(judge);
    let seen = judged.unwrap_or_else(|| panic!("the rings carry nothing here, or the machine stands: {rates:?}"));
    assert!(is_kept(&seen), "{seen:?}");
    assert!(site.resident() < before + 1024, "memory grew from {before} KiB to {}", site.resident());
    assert!(site.gateway.metric("millrace_events_total", "flows_evicted") > FLOWS as f64);
}

#[test]
fn beyond_what_the_rings_carry_a_limit_keeps_connections_going() {
    let site = site("limited", "synsPerVip: 5000/s");
    // What else the machine does is taken from clients, servers and the flood alike: the best of some counts.
    let is_kept = (0..6).any(|_| {
        let seen = site.flooded(10_000_000, Duration::from_secs(4));
        println!("as fast as can be: {seen:?}");
        assert!(seen.limited > seen.sent as f64 / 2.0, "{seen:?}");
        seen.kept >= 0.99
    });
    assert!(is_kept, "connections are not kept");
}

#[test]
fn a_limit_is_set_when_workers_cannot_keep_up_and_taken_back_when_the_flood_is_over() {
    let site = site("auto", "synsPerVip: auto");
    let says = |what: &str| {
        eventually(what, SOON, || {
            let log = site.gateway.log_text();
            if log.contains(what) { Ok(()) } else { Err(log) }
        });
    };
    let held = load::hold(&site.network.client, site.network.vip(false), 10, EVERY);
    held.await_each(SOON);
    site.flood.set_rate(10_000_000);
    says("SYNs to one address are limited");
    eventually("SYNs are dropped before a ring", SOON, || {
        let dropped = site.drops("syn_flood");
        if dropped > 0.0 { Ok(()) } else { Err(dropped.to_string()) }
    });
    site.flood.set_rate(0);
    let calm = || site.gateway.log_text().matches("SYNs are not limited").count();
    eventually("it ends", SOON, || if calm() >= 2 { Ok(()) } else { Err(site.gateway.log_text()) });
    held.await_answers(50, SOON);
    let _ = held.finish();
}
