//! Who announces a VIP: three nodes of a cluster on one segment, a client there, a real API server, real TCP.
//!
//! ```text
//! client ── switch ── n1, n2, n3 (eth0)   b1        all in 10.81.1.0/24
//! kube ── n1, n2, n3 (api1 …)                       10.77.0.0/24
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_tests::kubelab::{Kubelab, Pod, WEB};
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::servers;
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

const VIPS: [&str; 2] = ["10.81.1.100", "fd81:1::100"];
/// How long a change may take on a busy machine, where nothing is said of time.
const SOON: Duration = Duration::from_secs(30);
/// Where the machine stands for about that long, nodes may be taken for dead, and what they own is another's from then on.
const LONG: Duration = Duration::from_millis(500);
const NODES: usize = 3;

struct Segment {
    // Dropped in this order.
    processes: Vec<Option<Process>>,
    nodes: Vec<Gateway>,
    kubelab: Kubelab,
    _servers: Vec<Process>,
    client: Host,
    switch: Host,
    lab: Lab,
}

fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

impl Segment {
    fn new(title: &str) -> Self {
        servers::require(&["nginx", "ip", "nsenter", "curl", "nft"]);
        let mut lab = Lab::new(title);
        let [client, switch, backend] = ["client", "switch", "b1"].map(|name| lab.host(name));
        let hosts: Vec<Host> = (0..NODES).map(|node| lab.host(&name(node))).collect();
        switch.run("ip", ["link", "add", "br0", "type", "bridge"]);
        switch.run("ip", ["link", "set", "br0", "up"]);
        let plug = |host: &Host, port: &str, last: usize| {
            lab.wire((host, "eth0"), (&switch, port), 1);
            switch.run("ip", ["link", "set", port, "master", "br0"]);
            host.address("eth0", &format!("10.81.1.{last}/24"));
            host.address("eth0", &format!("fd81:1::{last}/64"));
        };
        plug(&client, "client", 2);
        plug(&backend, "b1", 11);
        let server = servers::nginx(&backend, lab.dir(), "b1", &["10.81.1.11:8080", "[fd81:1::11]:8080"]);
        for (node, host) in hosts.iter().enumerate() {
            plug(host, &name(node), 21 + node);
        }
        let kubelab = Kubelab::start(&mut lab, &[]);
        fs::write(lab.dir().join("key"), "the key of these heartbeats\n").expect("the key");
        let mut nodes = Vec::new();
        for (node, host) in hosts.iter().enumerate() {
            kubelab.wire(&lab, host, &format!("api{}", node + 1), &format!("10.77.0.{}", node + 2));
            kubelab.node(&name(node), "a");
            let address =
                format!("{{\"addresses\": [{{\"type\": \"InternalIP\", \"address\": \"10.81.1.{}\"}}]}}", 21 + node);
            kubelab.patch_status(&format!("node/{}", name(node)), &address);
            let config = format!(
                "interfaces: [eth0]\npools: [{{name: public, addresses: [10.81.1.96/28, \"fd81:1::100/124\"]}}]\n\
                 snat: {{addresses: [10.81.1.{0}, \"fd81:1::1:{0}\"]}}\nannounce: [{{mode: l2}}]\n\
                 kubernetes: {{kubeconfig: {1}, heartbeat: {{key: {2}/key}}}}\nnode: {{hostname: {3}}}\n",
                201 + node,
                kubelab.kubeconfig().display(),
                lab.dir().display(),
                name(node),
            );
            nodes.push(Gateway::new(host, &lab.dir().join(name(node)), &config));
        }
        kubelab.apply(WEB);
        kubelab.pod(&Pod { name: "p1", app: "web", node: "n1", addresses: &["10.81.1.11", "fd81:1::11"] });
        kubelab.assign("web", &VIPS);
        let processes = (0..NODES).map(|_| None).collect();
        Self { processes, nodes, kubelab, _servers: vec![server], client, switch, lab }
    }

    fn start(&mut self, node: usize) {
        let process = self.nodes[node].start();
        self.processes[node] = Some(process);
    }

    /// How many VIPs each running node announces.
    fn owned(&self) -> Vec<usize> {
        let running = (0..NODES).filter(|node| self.processes[*node].is_some());
        running.map(|node| self.nodes[node].metric("millrace_owned_addresses", "") as usize).collect()
    }

    /// Who announces each VIP, as all running nodes see it, once they agree that each is announced by one.
    fn owners(&self) -> BTreeMap<IpAddr, usize> {
        eventually("all nodes know one owner of each VIP", SOON, || {
            let running: Vec<usize> = (0..NODES).filter(|node| self.processes[*node].is_some()).collect();
            let mut all = BTreeSet::new();
            for node in &running {
                let status = self.nodes[*node].json(&["status"]);
                let owners = status["owners"].as_object().ok_or("no owners")?.clone();
                let owner = |owner: &serde_json::Value| (0..NODES).find(|node| *owner == *name(*node));
                let owners: Option<BTreeMap<IpAddr, usize>> =
                    owners.iter().map(|(vip, who)| Some((vip.parse().ok()?, owner(who)?))).collect();
                all.insert(
                    owners.filter(|owners| owners.len() == VIPS.len()).ok_or_else(|| status["owners"].to_string())?,
                );
            }
            let owned = self.owned();
            match all.pop_first() {
                Some(owners) if all.is_empty() && owned.iter().sum::<usize>() == VIPS.len() => Ok(owners),
                first => Err(format!("{first:?} and {all:?}; they own {owned:?}")),
            }
        })
    }

    /// Who announces each VIP, which must be who did `before`, unless the machine stood meanwhile.
    fn owners_as(&self, before: &BTreeMap<IpAddr, usize>, what: &str, meanwhile: Pulse) -> BTreeMap<IpAddr, usize> {
        let (owners, stood) = (self.owners(), meanwhile.longest());
        let same = owners == *before || stood >= LONG;
        assert!(same, "{what}: {owners:?}, not {before:?}; the machine stood for {stood:?}");
        owners
    }

    fn await_members(&self, count: usize) {
        for node in (0..NODES).filter(|node| self.processes[*node].is_some()) {
            eventually("all nodes hear each other", SOON, || {
                let status = self.nodes[node].json(&["status"]);
                let members = status["members"].as_array().expect("a list");
                let now = members.iter().filter(|member| member["standing"] == "member").count();
                if now == count { Ok(()) } else { Err(format!("{}: {}", name(node), status["members"])) }
            });
        }
    }

    fn answered(&self) {
        for vip in VIPS {
            let target = SocketAddr::new(vip.parse().expect("an address"), 80);
            let outcome = load::requests(&self.client, target, 20, 2);
            assert!(outcome.failures.is_empty(), "{vip}: {outcome:?}");
        }
    }

    /// Who a client that asks now is told to have an address.
    fn told(&self, vip: IpAddr) -> Option<usize> {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        self.client.run("ip", [family, "neigh", "flush", "all"]);
        let _ = load::requests(&self.client, SocketAddr::new(vip, 80), 1, 1);
        let known = self.client.run("ip", ["neigh", "show", &vip.to_string()]);
        (0..NODES).find(|node| {
            let link = self.nodes[*node].host.run("ip", ["-o", "link", "show", "eth0"]);
            let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC");
            known.contains(mac)
        })
    }

    /// How long a VIP does not answer when `happens`, at most; both families' worst.
    fn gap(&self, most: Duration, what: &str, happens: impl FnOnce()) {
        let pulse = Pulse::begin();
        let asks: Vec<Asks> = VIPS.iter().map(|vip| Asks::begin(&self.client, vip)).collect();
        for ask in &asks {
            eventually("the VIP answers before", SOON, || match ask.count() {
                21.. => Ok(()),
                few => Err(format!("{few} answers")),
            });
        }
        let begun = Instant::now();
        happens();
        let done = begun.elapsed();
        // Whoever is late was not seen by then.
        let seen: Vec<usize> = asks.iter().map(Asks::count).collect();
        eventually("the VIP answers after", SOON, || {
            let ends = Instant::now() > begun + done + most + Duration::from_millis(500);
            let enough = asks.iter().zip(&seen).all(|(ask, seen)| ask.count() > seen + 20);
            let now: Vec<usize> = asks.iter().map(Asks::count).collect();
            if ends && enough { Ok(()) } else { Err(format!("{seen:?} answers, and now {now:?}")) }
        });
        let worst: Vec<Duration> = asks.into_iter().map(|ask| ask.longest_gap(begun)).collect();
        let stood = pulse.longest();
        println!("{what}: a VIP did not answer for {worst:?}, at most {most:?}; the machine stood for {stood:?}");
        assert!(
            worst.iter().all(|gap| *gap <= most + stood),
            "{what}: {worst:?}, expected {most:?} and {stood:?} at most"
        );
    }

    /// How long it takes until each VIP has one owner.
    fn settles_in(&self, most: Duration, what: &str) {
        let (begun, pulse) = (Instant::now(), Pulse::begin());
        eventually(what, SOON, || {
            let owned = self.owned();
            if owned.iter().sum::<usize>() == VIPS.len() { Ok(()) } else { Err(format!("they own {owned:?}")) }
        });
        let took = begun.elapsed();
        let stood = pulse.longest();
        println!("{what}: {took:?}, at most {most:?}; the machine stood for {stood:?}");
        assert!(took <= most + stood, "{what}: {took:?}, expected {most:?} and {stood:?} at most");
    }

    fn port(&self, node: usize, up: bool) {
        self.switch.run("ip", ["link", "set", &name(node), if up { "up" } else { "down" }]);
    }
}

/// A client that asks one VIP all the time, each time on a connection of its own.
struct Asks {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Instant>>>,
    thread: JoinHandle<()>,
}

impl Asks {
    fn begin(client: &Host, vip: &str) -> Self {
        let target = SocketAddr::new(vip.parse().expect("an address"), 80);
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ends, found) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = client.within(move || {
            while !ends.load(Ordering::Relaxed) {
                if ask(target).is_ok() {
                    found.lock().expect("the answers").push(Instant::now());
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        Self { stop, answers, thread }
    }

    fn count(&self) -> usize {
        self.answers.lock().expect("the answers").len()
    }

    /// The longest that it had no answer, of what ended since then.
    fn longest_gap(self, since: Instant) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client");
        let answers = self.answers.lock().expect("the answers");
        answers.windows(2).filter(|pair| pair[1] >= since).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// One request, by a client that does not wait long: another comes at once.
fn ask(target: SocketAddr) -> std::io::Result<()> {
    let patience = Duration::from_millis(40);
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = [0; 12];
    stream.read_exact(&mut text)
}

#[test]
fn one_node_announces_a_vip_and_another_does_when_it_ends() {
    let mut segment = Segment::new("owners");
    for node in 0..NODES {
        let process = segment.nodes[node].launch();
        segment.processes[node] = Some(process);
    }
    for node in 0..NODES {
        let Segment { nodes, processes, .. } = &mut segment;
        nodes[node].await_ready(processes[node].as_mut().expect("it was started"));
    }
    segment.await_members(NODES);
    let owners = segment.owners();
    segment.answered();
    for vip in owners.keys() {
        eventually("a client is told who announces a VIP", SOON, || {
            let (told, owner) = (segment.told(*vip), segment.owners()[vip]);
            if told == Some(owner) { Ok(()) } else { Err(format!("{vip}: {told:?}, not {owner}")) }
        });
    }
    let took = |node: &usize| segment.nodes[*node].metric("millrace_takeovers_total", "");
    for node in (0..NODES).filter(|node| took(node) == 0.0) {
        let replies = segment.nodes[node].metric("millrace_events_total", "event=\"neighbor_replies_sent\"");
        assert_eq!(replies, 0.0, "{} owned nothing and answers for nothing", name(node));
    }
    who_owns_nothing_serves_all_the_same(&segment, &owners);
    strangers_are_not_heard(&segment);
    leases_record_it(&segment);

    // Killed: another takes over, and keeps it.
    let vip: IpAddr = VIPS[0].parse().expect("an address");
    let killed = owners[&vip];
    let process = segment.processes[killed].take().expect("it runs");
    segment.gap(Duration::from_secs(2), "kill -9", || process.signal(Signal::SIGKILL));
    drop(process);
    let after = segment.owners();
    assert!(after.values().all(|owner| *owner != killed), "{after:?}");
    let pulse = Pulse::begin();
    segment.start(killed);
    segment.await_members(NODES);
    let after = segment.owners_as(&after, "who comes back takes nothing away", pulse);

    // Stopped, and ended by a signal.
    let stopped = after[&vip];
    let gateway = &segment.nodes[stopped];
    segment.gap(Duration::from_millis(300), "millrace stop", || {
        assert!(gateway.admin(&["stop"]).status.success(), "{}", gateway.log_text());
    });
    segment.processes[stopped] = None;
    let after = segment.owners();
    let pulse = Pulse::begin();
    segment.start(stopped);
    segment.await_members(NODES);
    let after = segment.owners_as(&after, "who is started again takes nothing away", pulse);
    let ended = after[&vip];
    let mut process = segment.processes[ended].take().expect("it runs");
    segment.gap(Duration::from_millis(300), "SIGTERM", || process.signal(Signal::SIGTERM));
    let status = process.wait(SOON);
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", segment.nodes[ended].log_text());
    segment.start(ended);
    segment.await_members(NODES);

    // An upgrade keeps what the node announces.
    let owners = segment.owners();
    let owner = owners[&vip];
    let pulse = Pulse::begin();
    let successor = segment.nodes[owner].start();
    let mut former = segment.processes[owner].replace(successor).expect("it runs");
    let ended = former.wait(SOON);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", segment.nodes[owner].log_text());
    segment.await_members(NODES);
    segment.owners_as(&owners, "a successor goes on with what its predecessor announced", pulse);
    segment.answered();
    excluded_nodes_give_up(&segment, vip);
    who_has_endpoints_announces_local_services(&segment);
}

/// A packet that comes to a node that does not announce its VIP is served there.
fn who_owns_nothing_serves_all_the_same(segment: &Segment, owners: &BTreeMap<IpAddr, usize>) {
    let vip: IpAddr = VIPS[0].parse().expect("an address");
    let other = (0..NODES).find(|node| *node != owners[&vip]).expect("another");
    let route = format!("{vip}/32 via 10.81.1.{}", 21 + other);
    segment.client.route(&route);
    let before = segment.nodes[other].metric("millrace_flows_opened_total", "service=\"default/web\"");
    let outcome = load::requests(&segment.client, SocketAddr::new(vip, 80), 20, 2);
    assert!(outcome.failures.is_empty(), "{outcome:?}");
    let opened = segment.nodes[other].metric("millrace_flows_opened_total", "service=\"default/web\"") - before;
    assert_eq!(opened, 20.0);
    segment.client.run("ip", ["route", "del", &format!("{vip}/32")]);
}

/// What has no tag of the key is counted and dropped.
fn strangers_are_not_heard(segment: &Segment) {
    let sent = segment.client.within(|| {
        let socket = UdpSocket::bind("10.81.1.2:0").expect("a socket");
        let mut forged = b"MRH\x01".to_vec();
        forged.resize(200, 7);
        for octets in [&forged[..], b"hello"] {
            socket.send_to(octets, "10.81.1.21:9478").expect("to send");
        }
    });
    sent.join().expect("the stranger");
    for result in ["unauthenticated", "malformed"] {
        eventually("it is counted, once", SOON, || {
            let counted = segment.nodes[0].metric("millrace_heartbeats_total", &format!("result=\"{result}\""));
            if counted == 1.0 { Ok(()) } else { Err(format!("{result}: {counted}")) }
        });
    }
}

/// Each node has a Lease that says whom it hears and what it announces.
fn leases_record_it(segment: &Segment) {
    for node in 0..NODES {
        eventually("the Lease says it", SOON * 2, || {
            let owners = segment.owners();
            let announces: Vec<String> =
                owners.iter().filter(|(_, owner)| **owner == node).map(|(vip, _)| vip.to_string()).collect();
            let lease = segment.kubelab.kubectl(&["get", "leases", "--ignore-not-found", "-o", "json"]);
            let leases: serde_json::Value = serde_json::from_str(&lease).map_err(|error| error.to_string())?;
            let named =
                |lease: &&serde_json::Value| lease["metadata"]["name"] == format!("millrace-node-{}", name(node));
            let lease = leases["items"].as_array().and_then(|all| all.iter().find(named)).ok_or("there is none")?;
            let notes = &lease["metadata"]["annotations"];
            let hears = notes["millrace.dev/hears"].as_str().map_or(0, |names| names.split(',').count());
            let said = notes["millrace.dev/announces"] == announces.join(",");
            if said && hears == NODES { Ok(()) } else { Err(lease.to_string()) }
        });
    }
}

/// A node that is labelled to get no traffic of load balancers gives up what it has, and takes nothing back.
fn excluded_nodes_give_up(segment: &Segment, vip: IpAddr) {
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    let owner = segment.owners()[&vip];
    segment.gap(Duration::from_millis(300), "a node that is excluded", || {
        segment.kubelab.kubectl(&["label", "node", &name(owner), &format!("{label}=")]);
        eventually("it gives up", SOON, || {
            let owned = segment.nodes[owner].metric("millrace_owned_addresses", "");
            if owned == 0.0 { Ok(()) } else { Err(format!("{owned}")) }
        });
    });
    let (after, pulse) = (segment.owners(), Pulse::begin());
    assert!(after.values().all(|other| *other != owner), "{after:?}");
    segment.kubelab.kubectl(&["label", "node", &name(owner), &format!("{label}-")]);
    segment.await_members(NODES);
    segment.owners_as(&after, "who may announce again takes nothing back", pulse);
}

/// Of a Service of policy Local a node with a ready endpoint announces the addresses.
fn who_has_endpoints_announces_local_services(segment: &Segment) {
    let owner = segment.owners()[&VIPS[0].parse().expect("an address")];
    let other = (owner + 1) % NODES;
    let pod = Pod { name: "p2", app: "web", node: &name(other), addresses: &["10.81.1.12", "fd81:1::12"] };
    segment.kubelab.pod(&pod);
    segment.kubelab.ready("p1", false);
    let policy = "{\"spec\": {\"externalTrafficPolicy\": \"Local\"}}";
    segment.kubelab.kubectl(&["patch", "service", "web", "-p", policy]);
    eventually("who has an endpoint announces", SOON, || {
        let owners = segment.owners();
        if owners.values().all(|owner| *owner == other) { Ok(()) } else { Err(format!("{owners:?}")) }
    });
}

#[test]
fn two_owners_of_a_partition_settle_within_a_second_and_a_node_that_is_cut_off_gives_up() {
    let mut segment = Segment::new("partitions");
    for node in 0..NODES {
        segment.start(node);
    }
    segment.await_members(NODES);
    let vip: IpAddr = VIPS[0].parse().expect("an address");

    // One segment, and no heartbeats: they find each other by ARP and neighbour advertisements.
    let owner = segment.owners()[&vip];
    let rules = "table inet cut {\n chain in {\n type filter hook input priority 0\n udp dport 9478 drop\n }\n \
                 chain out {\n type filter hook output priority 0\n udp dport 9478 drop\n }\n}\n";
    let path = segment.lab.dir().join("cut.nft");
    fs::write(&path, rules).expect("the rules");
    segment.nodes[owner].host.run("nft", ["-f", path.to_str().expect("a path")]);
    let others: Vec<usize> = (0..NODES).filter(|node| *node != owner).collect();
    let took = |node: &usize| segment.nodes[*node].metric("millrace_takeovers_total", "");
    let before: f64 = others.iter().map(took).sum();
    eventually("the others take over", SOON, || {
        if others.iter().map(took).sum::<f64>() > before { Ok(()) } else { Err("they do not".to_owned()) }
    });
    segment.settles_in(Duration::from_secs(1), "two owners that hear each other's ARP alone");
    segment.answered();
    segment.nodes[owner].host.run("nft", ["delete", "table", "inet", "cut"]);
    segment.await_members(NODES);
    segment.settles_in(Duration::from_secs(1), "after heartbeats pass again");

    // A link that is away: both sides have an owner, for each has the API server.
    let owner = segment.owners()[&vip];
    segment.port(owner, false);
    eventually("both sides have an owner", SOON, || {
        let owned = segment.owned();
        if owned.iter().sum::<usize>() > VIPS.len() { Ok(()) } else { Err(format!("they own {owned:?}")) }
    });
    segment.port(owner, true);
    segment.settles_in(Duration::from_secs(1), "two owners that hear each other again");
    segment.await_members(NODES);
    let _ = segment.owners();
    segment.answered();

    // Without the API server too, it gives up.
    let owner = segment.owners()[&vip];
    let link = format!("api{}", owner + 1);
    segment.nodes[owner].host.run("ip", ["link", "set", &link, "down"]);
    segment.port(owner, false);
    eventually("who is cut off gives up", SOON, || {
        let owned = segment.nodes[owner].metric("millrace_owned_addresses", "");
        if owned == 0.0 { Ok(()) } else { Err(format!("{owned}")) }
    });
    eventually("the others have all", SOON, || {
        let owned = segment.owned();
        if owned.iter().sum::<usize>() == VIPS.len() { Ok(()) } else { Err(format!("they own {owned:?}")) }
    });
    segment.answered();
    segment.port(owner, true);
    segment.nodes[owner].host.run("ip", ["link", "set", &link, "up"]);
    segment.await_members(NODES);
    let _ = segment.owners();
    segment.answered();
}
