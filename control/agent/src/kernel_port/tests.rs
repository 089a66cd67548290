use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;

use tokio::sync::watch;

use super::*;
use crate::netlink::Network;
use crate::netlink::lab::{Namespace, eventually};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("millrace-kernel-port-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// Everything of the kernel's that making one may change.
fn state(host: &Namespace) -> String {
    let parts = [
        "ip -d link",
        "ip addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "ip neigh show nud permanent",
        "ip neigh show proxy",
    ];
    let mut state: String = parts.iter().map(|words| host.read(words)).collect();
    let settings = host.read("sysctl -a --pattern ^net.ipv[46].(ip_forward|conf)");
    // Moments: they pass by themselves.
    let settings = settings.lines().filter(|line| !line.contains("stable_secret"));
    state.extend(settings.map(|line| format!("{line}\n")));
    state
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn make_in(host: &Namespace, runtime: &Path, texts: &[&str], queues: u32) -> Result<(), String> {
    let (runtime, addresses) = (runtime.to_owned(), addresses(texts));
    host.block_on(move || async move {
        make(&runtime, &Wanted { addresses: &addresses, queues, mtu: 1500 }).await.map(|back| assert!(back))
    })
}

fn remove_in(host: &Namespace, runtime: &Path) -> Result<(), String> {
    let runtime = runtime.to_owned();
    host.within(move || remove(&runtime))
}

#[test]
fn it_is_made_once_made_again_without_harm_and_removed_without_a_trace() {
    let (host, peer) = (Namespace::new(), Namespace::new());
    host.wire("eth0", &["10.0.0.1/24", "fd00::1/64"], &peer, "p0", &[]);
    let runtime = folder("whole");
    let before = state(&host);
    assert!(remove_in(&host, &runtime).is_ok(), "there is nothing to remove");
    let both = ["10.244.1.250", "10.244.1.251", "fd00:244::250"];
    make_in(&host, &runtime, &both, 2).unwrap();
    let links = host.read("ip -o link");
    let index = |links: &str| links.lines().filter(|l| l.contains("millrace-k")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(index(&links).len(), 2, "{links}");
    make_in(&host, &runtime, &both[1..], 4).unwrap();
    assert_eq!(index(&host.read("ip -o link")), index(&links), "a predecessor may be using it");
    assert!(host.read("ip -d link show millrace-k0").contains("numtxqueues 2 numrxqueues 2"));
    for (words, has) in [
        ("ip route get 10.244.1.250 from 10.0.0.9 iif eth0", "dev millrace-k1"),
        ("ip -6 route get fd00:244::250", "via fe80::6d69:6b30 dev millrace-k1"),
        ("ip -4 addr show dev millrace-k1", "169.254.86.1/30 brd 169.254.86.3 scope link"),
        ("ip neigh show dev millrace-k1", "169.254.86.2 lladdr"),
        ("ip -6 neigh show dev millrace-k1", "PERMANENT"),
        ("sysctl net.ipv4.ip_forward", "= 1"),
        ("sysctl net.ipv6.conf.all.forwarding", "= 1"),
        ("sysctl net.ipv6.conf.eth0.accept_ra", "= 2"),
        ("sysctl net.ipv4.conf.millrace-k1.rp_filter", "= 2"),
        ("ethtool -k millrace-k1", "tx-checksumming: off"),
    ] {
        assert!(host.read(words).contains(has), "{words}: {}", host.read(words));
    }
    // The first of them is a predecessor's, which has ended.
    let rest = addresses(&both[1..]);
    host.block_on(move || async move { settle(&rest).await }).unwrap();
    assert_eq!(host.read("ip route show dev millrace-k1 proto 77").lines().count(), 1);
    assert_eq!(host.read("ip -6 route show dev millrace-k1 proto 77").lines().count(), 1);
    let of_ranges = ["10.96.0.0/16", "2001:db8::1", "203.0.113.2", "203.0.113.3"];
    let mut routed = None;
    for vips in [
        &["2001:db8::1", "203.0.113.1", "203.0.113.2"][..],
        &["2001:db8::1", "203.0.113.2", "203.0.113.3"],
        &of_ranges,
        &of_ranges[1..],
    ] {
        let net = |text: &&str| text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()));
        let wanted: BTreeSet<IpNet> = vips.iter().map(net).collect();
        let (known, then) = (routed.replace(wanted.clone()), wanted);
        // What is known is not read: the second time all is, as a successor does.
        let known = known.filter(|_| vips != of_ranges);
        let route = move || async move { Wire::open().await?.route_inward(known.as_ref(), &then, (true, true)).await };
        host.block_on(route).unwrap();
        let routed = host.read("ip route show table 8686") + &host.read("ip -6 route show table 8686");
        let mut found: Vec<_> = routed.lines().filter_map(|line| line.split(' ').next()).collect();
        found.sort_unstable();
        assert_eq!(found, *vips, "{routed}");
        assert!(host.read("ip route get 203.0.113.2").contains("dev millrace-k1"));
        assert!(host.read("ip -6 route get 2001:db8::1").contains("dev millrace-k1"));
        assert_eq!(host.read("ip rule show table 8686").lines().count(), 1);
    }
    remove_in(&host, &runtime).unwrap();
    let after = state(&host);
    assert_eq!(lines_that_differ(&before, &after), Vec::<String>::new());
    assert!(!is_noted(&runtime).unwrap());
    fs::remove_dir_all(runtime).unwrap();
}

fn lines_that_differ(one: &str, other: &str) -> Vec<String> {
    let missing = |from: &str, text: &str, sign| {
        let has = |line: &&str| !from.lines().any(|known| known == *line);
        text.lines().filter(has).map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
    };
    [missing(other, one, '-'), missing(one, other, '+')].concat()
}

/// A bridge whose subnets the addresses of tests are of.
fn bridge(host: &Namespace) {
    host.run("ip link add cni0 type bridge");
    host.run("sysctl -qw net.ipv6.conf.cni0.keep_addr_on_down=1");
    host.run("ip addr add 10.244.1.1/24 dev cni0");
    host.run("ip addr add fd00:244::1/64 dev cni0");
    host.run("ip link set cni0 up");
}

/// What leads into the port, and what nftables has, in an order of its own.
fn ways(host: &Namespace) -> Vec<String> {
    let parts =
        ["ip -4 route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule", "ip neigh show proxy"];
    let all: String = parts.iter().map(|words| host.read(words)).collect();
    let is_ours = |line: &&str| ["proto 77", "lookup 868", "proxy"].iter().any(|ours| line.contains(ours));
    let mut ways: Vec<String> = all.lines().filter(is_ours).map(str::to_owned).collect();
    ways.extend(host.read("nft list ruleset").lines().map(str::to_owned));
    ways.sort_unstable();
    ways
}

/// Waits until what is there is as it should be. Between looks the runtime, which has one thread, is free.
async fn until(host: &Namespace, what: &str, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
    for _ in 0..400 {
        let there = ways(host);
        if is_so(&there) {
            return there;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: {:#?}", ways(host));
}

#[test]
fn what_somebody_else_takes_away_comes_back() {
    let (host, peer) = (Arc::new(Namespace::new()), Namespace::new());
    host.wire("eth0", &["10.0.0.1/24", "fd00::1/64"], &peer, "p0", &[]);
    bridge(&host);
    let runtime = folder("taken");
    let snat = ["10.244.1.250", "fd00:244::250"];
    make_in(&host, &runtime, &snat, 1).unwrap();
    let (inside, snat, note) = (Arc::clone(&host), addresses(&snat), runtime.clone());
    host.block_on(move || async move {
        let look = Duration::from_millis(20);
        let places = ["10.96.0.0/16", "203.0.113.1/32", "2001:db8::1/128"].map(|text| text.parse::<IpNet>().unwrap());
        let redirected =
            Redirected { addresses: addresses(&["10.0.0.1"]).into_iter().collect(), ports: [(false, 6, 30080)].into() };
        let (places, routed) = watch::channel(BTreeSet::from(places));
        let (ports, directed) = watch::channel(redirected);
        let (network, changes) = Network::start(&[]).await.unwrap();
        let tasks = [
            tokio::spawn(answer(network, changes, note, snat.clone(), Vec::new(), look, || true)),
            tokio::spawn(keep(snat, true, look, || true)),
            tokio::spawn(route(routed, (true, true), look, || true)),
            tokio::spawn(redirect(directed, look, || true)),
        ];
        // Two rules and three routes, the NodePort, and two addresses on the bridge.
        let has = |ways: &[String], what: &str| ways.iter().filter(|line| line.contains(what)).count();
        let all = |ways: &[String]| [("8686", 5), ("30080", 1), ("proxy", 2)].iter().all(|(w, n)| has(ways, w) == *n);
        let whole = until(&inside, "all", all).await;
        for taken in [
            "ip rule del pref 86",
            "ip -6 rule del pref 86",
            "ip rule del pref 87",
            "ip -6 rule del pref 87",
            "ip route del 203.0.113.1 table 8686",
            "ip route flush table 8686",
            "ip -6 route flush table 8686",
            "ip route flush table 8687",
            "ip route del 10.244.1.250",
            "nft flush chain inet millrace own",
            "nft flush chain inet millrace redirect-own",
            "nft flush ruleset",
            "ip neigh del proxy 10.244.1.250 dev cni0",
            "ip neigh del proxy fd00:244::250 dev cni0",
            "ip link set cni0 down",
        ] {
            inside.run(taken);
            assert_ne!(ways(&inside), whole, "{taken}");
            until(&inside, taken, |ways| ways == whole).await;
        }
        drop((places, ports));
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    });
    remove_in(&host, &runtime).unwrap();
    fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn an_address_that_could_not_be_answered_for_at_first_is_answered_for_later() {
    let host = Arc::new(Namespace::new());
    bridge(&host);
    let runtime = folder("answers");
    let note = runtime.join("kernel-port");
    fs::write(&note, "precious\n").unwrap();
    let (inside, folder) = (Arc::clone(&host), runtime.clone());
    host.block_on(move || async move {
        let (network, changes) = Network::start(&[]).await.unwrap();
        let rounds = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&rounds);
        let ours = move || counted.fetch_add(1, Ordering::Relaxed) < u32::MAX;
        let (snat, look) = (addresses(&["10.244.1.250"]), Duration::from_millis(20));
        let task = tokio::spawn(answer(network, changes, folder, snat, Vec::new(), look, ours));
        eventually("a second round", || (rounds.load(Ordering::Relaxed) > 1).then_some(())).await;
        assert_eq!(ways(&inside), Vec::<String>::new(), "somebody else's note is in the way");
        fs::remove_file(note).unwrap();
        until(&inside, "answered for", |ways| ways.iter().any(|line| line.starts_with("10.244.1.250 dev cni0"))).await;
        task.abort();
    });
    remove_in(&host, &runtime).unwrap();
    fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn who_handed_over_puts_nothing_back() {
    let host = Arc::new(Namespace::new());
    let runtime = folder("handed");
    make_in(&host, &runtime, &["10.244.1.250"], 1).unwrap();
    bridge(&host);
    let (inside, snat, note) = (Arc::clone(&host), addresses(&["10.244.1.250"]), runtime.clone());
    host.block_on(move || async move {
        inside.run("ip rule del pref 87");
        let (_places, routed) = watch::channel(BTreeSet::new());
        let (_ports, directed) = watch::channel(Redirected::default());
        let look = Duration::from_millis(1);
        let before = ways(&inside);
        let (network, changes) = Network::start(&[]).await.unwrap();
        answer(network, changes, note, snat.clone(), Vec::new(), look, || false).await;
        keep(snat, true, look, || false).await;
        route(routed, (true, false), look, || false).await;
        redirect(directed, look, || false).await;
        assert_eq!(ways(&inside), before);
    });
    remove_in(&host, &runtime).unwrap();
    fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn one_route_that_is_refused_does_not_keep_the_others_out() {
    let host = Namespace::new();
    let runtime = folder("refused");
    // The kernel's end has no IPv4 address, so the router of that family is not to be reached.
    make_in(&host, &runtime, &["fd00:244::250"], 1).unwrap();
    let wanted: BTreeSet<IpNet> =
        ["203.0.113.1/32", "2001:db8::1/128"].into_iter().map(|text| text.parse().unwrap()).collect();
    let error = host
        .block_on(move || async move { Wire::open().await?.route_inward(None, &wanted, (true, true)).await })
        .unwrap_err();
    assert!(error.contains("203.0.113.1 cannot be routed"), "{error}");
    assert!(host.read("ip -6 route get 2001:db8::1").contains("dev millrace-k1"));
    remove_in(&host, &runtime).unwrap();
    fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn what_the_host_did_before_it_does_after() {
    let host = Namespace::new();
    let runtime = folder("settings");
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_ra=0");
    let before = state(&host);
    make_in(&host, &runtime, &["10.244.1.250", "fd00:244::250"], 1).unwrap();
    // Somebody unplugs it, and it is made anew.
    host.run("ip link del millrace-k0");
    make_in(&host, &runtime, &["10.244.1.250", "fd00:244::250"], 1).unwrap();
    host.run("ip link del millrace-k1");
    remove_in(&host, &runtime).unwrap();
    assert_eq!(lines_that_differ(&before, &state(&host)), Vec::<String>::new());
    // One family alone: the other is left as it is.
    host.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    make_in(&host, &runtime, &["10.244.1.250"], 1).unwrap();
    assert!(host.read("sysctl net.ipv6.conf.all.forwarding").contains("= 0"));
    assert!(host.read("sysctl net.ipv6.conf.millrace-k1.disable_ipv6").contains("= 1"));
    remove_in(&host, &runtime).unwrap();
    assert!(host.read("sysctl net.ipv4.ip_forward").contains("= 0"));
    fs::remove_dir_all(runtime).unwrap();
}

#[test]
fn what_is_somebody_elses_is_refused_and_stays() {
    let (host, peer) = (Namespace::new(), Namespace::new());
    host.wire("eth0", &["10.0.0.1/24"], &peer, "p0", &[]);
    let runtime = folder("foreign");
    host.run("ip route add 10.244.1.7/32 dev eth0");
    for (address, what) in [("10.244.1.7", "10.244.1.7 has a route"), ("10.0.0.1", "10.0.0.1 has a route")] {
        let error = make_in(&host, &runtime, &[address], 1).unwrap_err();
        assert!(error.starts_with("kernelPort.snat: ") && error.contains(what), "{error}");
    }
    for (words, name) in
        [("ip link add millrace-k0 type bridge", OURS), ("ip link add x0 type veth peer name millrace-k1", KERNELS)]
    {
        host.run(words);
        let error = make_in(&host, &runtime, &["10.244.1.250"], 1).unwrap_err();
        assert!(error.contains(&format!("`ip link del {name}`")), "{error}");
        host.run(&format!("ip link del {name}"));
    }
    assert!(!is_noted(&runtime).unwrap(), "nothing was made");
    let note = runtime.join("kernel-port");
    for foreign in ["", "precious\n", "millrace-k0 millrace-k1", "millrace-k0 millrace-k1\n../x 1\n"] {
        fs::write(&note, foreign).unwrap();
        assert!(is_noted(&runtime).unwrap_err().to_string().contains("kernel-port"), "{foreign:?}");
        assert!(remove_in(&host, &runtime).is_err() && make_in(&host, &runtime, &["10.244.1.250"], 1).is_err());
        assert_eq!(fs::read_to_string(&note).unwrap(), foreign);
    }
    fs::remove_dir_all(runtime).unwrap();
}
