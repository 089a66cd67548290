//! The process dies, ends, or is followed by another; established connections go on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use millrace_tests::lab::{Process, run};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);

/// One way to follow an instance by another, under load; `workers` are before and after.
fn scenario(name: &str, workers: [&str; 2], follow: impl Fn(&mut Gateway, Process) -> Process) {
    let network = Network::two_nics(name, 3, 2);
    let config = |cores: &str| network.config(&format!("workers: {{cores: {cores}}}"));
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config(workers[0]));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[]));
    let mut process = gateway.start();
    for ipv6 in [false, true] {
        let held = load::hold(&network.client, network.vip(ipv6), 40, Duration::from_millis(5));
        held.await_answers(400, END);
        let next = if ipv6 { workers[0] } else { workers[1] };
        gateway.configure(&config(next));
        process = follow(&mut gateway, process);
        held.await_answers(400, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "{name}: established connections broke: {:?}", outcome.failures);
        let fresh = load::requests(&network.client, network.vip(ipv6), 200, 10);
        assert!(fresh.failures.is_empty(), "{name}: new connections fail: {:?}", fresh.failures);
        println!("{name}, ipv6 {ipv6}, workers now {next}: {} answers on 40 connections", outcome.answered);
    }
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some(), "stop did not end the instance");
    network_is_clean(&network);
}

/// After `stop` nothing of Millrace is on the interfaces.
fn network_is_clean(network: &Network) {
    for interface in &network.interfaces {
        let text = network.gateway.run("ip", ["-d", "link", "show", "dev", interface]);
        assert!(!text.contains("xdp"), "an XDP program is left on {interface}: {text}");
    }
}

fn killed(gateway: &mut Gateway, mut process: Process) -> Process {
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
    gateway.start()
}

fn terminated(gateway: &mut Gateway, mut process: Process) -> Process {
    process.signal(Signal::SIGTERM);
    assert!(process.wait(END).is_some_and(|s| s.success()), "SIGTERM did not end it cleanly: {}", gateway.log_text());
    gateway.start()
}

fn upgraded(gateway: &mut Gateway, mut process: Process) -> Process {
    let successor = gateway.start();
    assert!(process.wait(END).is_some_and(|s| s.success()), "the predecessor did not end: {}", gateway.log_text());
    successor
}

#[test]
fn kill_9_under_load_and_a_start_right_after_keep_established_connections() {
    scenario("kill", ["[0]", "[0]"], killed);
}

#[test]
fn kill_9_and_a_start_with_another_number_of_workers_keep_established_connections() {
    scenario("kill-workers", ["[0]", "[0, 1]"], killed);
}

#[test]
fn short_connections_meet_no_time_wait_of_earlier_ones_before_and_after_kill_9() {
    let network = Network::two_nics("time-wait", 1, 1);
    // Flows that are over are forgotten at once; their servers remember them for a minute.
    let mut gateway =
        Gateway::new(&network.gateway, network.lab.dir(), &network.config("timeouts: {tcpClosed: 100ms}"));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let mut process = gateway.start();
    for round in 0..3 {
        for ipv6 in [false, true] {
            let outcome = load::requests(&network.client, network.vip(ipv6), 5_000, 8);
            assert_eq!((outcome.answered, outcome.failures.len()), (5_000, 0), "round {round}: {outcome:?}");
        }
        process = killed(&mut gateway, process);
    }
    let met: u64 = ["TcpExtPAWSTimewait", "TcpExtTWRecycled"].iter().map(|c| network.backends[0].nstat(c)).sum();
    assert_eq!(met, 0, "SYNs met connections in TIME_WAIT");
}

#[test]
fn sigterm_and_a_successor_keep_established_connections() {
    scenario("term", ["[0]", "[0]"], terminated);
}

#[test]
fn sigterm_and_a_successor_with_another_number_of_workers_keep_established_connections() {
    scenario("term-workers", ["[0, 1]", "[0]"], terminated);
}

#[test]
fn an_upgrade_keeps_established_connections() {
    scenario("upgrade", ["[0]", "[0]"], upgraded);
}

#[test]
fn an_upgrade_with_another_number_of_workers_keeps_established_connections() {
    scenario("upgrade-workers", ["[0]", "[0, 1]"], upgraded);
}

/// An instance with held connections, and successors that cannot run.
struct Stays {
    process: Process,
    gateway: Gateway,
    /// Owns the folder of the instance's log: dropped last.
    network: Network,
}

impl Stays {
    /// `before` prepares the gateway's folder; `more` is of the configuration.
    fn new(name: &str, more: &str, before: impl Fn(&Path)) -> Self {
        let network = Network::two_nics(name, 2, 1);
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(more));
        before(&gateway.dir);
        gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
        let process = gateway.start();
        Self { process, gateway, network }
    }

    /// Starts a successor with what `change` makes of the configuration, which must end with `error`, and holds the
    /// instance to go on with every connection. `handed`: the successor had the queues by then.
    fn survives(&mut self, change: impl Fn(String) -> String, error: &[&str], handed: bool) {
        let text = fs::read_to_string(self.gateway.config()).expect("the configuration");
        let held = load::hold(&self.network.client, self.network.vip(false), 20, Duration::from_millis(5));
        held.await_answers(200, END);
        let logged = self.gateway.log_text().len();
        fs::write(self.gateway.config(), change(text.clone())).expect("the configuration");
        let mut successor = self.gateway.launch();
        let status = successor.wait(END);
        fs::write(self.gateway.config(), text).expect("the configuration");
        let log = self.gateway.log_text()[logged..].to_owned();
        assert!(status.is_some_and(|status| !status.success()), "the successor runs: {log}");
        for words in error {
            assert!(log.contains(words), "the error does not say `{words}`: {log}");
        }
        self.gateway.await_ready(&mut self.process);
        held.await_answers(200, END);
        let outcome = held.finish();
        assert!(outcome.failures.is_empty(), "established connections broke: {:?}\n{log}", outcome.failures);
        let fresh = load::requests(&self.network.client, self.network.vip(true), 50, 5);
        assert_eq!((fresh.answered, fresh.failures.len()), (50, 0), "{fresh:?}");
        let log = self.gateway.log_text()[logged..].to_owned();
        assert_eq!(log.contains("takes up service again"), handed, "{log}");
        println!("{}: {} answers on 20 connections, none broke", error[0], outcome.answered);
    }

    /// A sound successor is not in the way of what its failed ones left.
    fn end_with_a_sound_one(mut self) {
        let mut successor = self.gateway.start();
        assert!(self.process.wait(END).is_some_and(|s| s.success()), "it did not end: {}", self.gateway.log_text());
        let fresh = load::requests(&self.network.client, self.network.vip(false), 50, 5);
        assert_eq!((fresh.answered, fresh.failures.len()), (50, 0), "{fresh:?}");
        assert!(self.gateway.admin(&["stop"]).status.success(), "stop: {}", self.gateway.log_text());
        assert!(successor.wait(END).is_some_and(|s| s.success()));
    }
}

#[test]
fn a_successor_without_zero_copy_fails_after_the_hand_over_and_the_predecessor_goes_on() {
    let mut stays = Stays::new("zero-copy", "", |_| {});
    let zero_copy = |text: String| {
        text.replace("interfaces: [eth0, eth1]", "interfaces: [{name: eth0, mode: zero-copy}, {name: eth1}]")
    };
    // Twice: what took up service again can hand over and come back once more.
    stays.survives(zero_copy, &["the driver has no zero-copy mode"], true);
    stays.survives(zero_copy, &["the driver has no zero-copy mode"], true);
    stays.end_with_a_sound_one();
}

#[test]
fn a_successor_that_dies_between_hand_over_and_service_leaves_the_predecessor_serving() {
    let mut stays = Stays::new("dies-between", "", |_| {});
    let held = load::hold(&stays.network.client, stays.network.vip(false), 20, Duration::from_millis(5));
    held.await_answers(200, END);
    // All that the predecessor sees of one that is killed: it asked, was answered, and the connection ended.
    let mut asking = UnixStream::connect(stays.gateway.dir.join("run/admin.sock")).expect("the admin socket");
    asking.write_all(b"{\"do\":\"hand-over\",\"confirms\":true}\n").expect("a request");
    let mut answer = String::new();
    BufReader::new(&asking).read_line(&mut answer).expect("an answer");
    assert_eq!(answer, "{\"ok\":{\"owned\":[]}}\n", "of VIPs that nodes share, it has none");
    drop(asking);
    stays.gateway.await_ready(&mut stays.process);
    held.await_answers(200, END);
    let outcome = held.finish();
    assert!(outcome.failures.is_empty(), "established connections broke: {:?}", outcome.failures);
    let log = stays.gateway.log_text();
    assert!(log.contains("takes up service again"), "{log}");
    stays.end_with_a_sound_one();
}

#[test]
fn a_successor_that_cannot_run_is_refused_before_the_hand_over() {
    let mut stays = Stays::new("refused", "", |_| {});
    let dir = stays.gateway.dir.clone();
    let somebody = stays.network.gateway.within(|| std::net::TcpListener::bind("127.0.0.1:9499"));
    let _somebody = somebody.join().expect("a thread").expect("a listener");
    let metrics = |text: String| text.replace("127.0.0.1:9477", "127.0.0.1:9499");
    stays.survives(metrics, &["metrics: 127.0.0.1:9499", "choose another address"], false);
    // A file where a folder should be: root may write anywhere else.
    fs::write(dir.join("file"), "").expect("a file");
    let state = |text: String| text.replace("/state\n", "/file/state\n");
    stays.survives(state, &["file/state: Not a directory"], false);
    let gone = |text: String| text.replace("interfaces: [eth0, eth1]", "interfaces: [eth0, eth1, eth7]");
    stays.survives(gone, &["eth7"], false);
    let taken = stays
        .network
        .gateway
        .within(|| UnixListener::bind_addr(&SocketAddr::from_abstract_name("millrace/spare").expect("a name")));
    let _taken = taken.join().expect("a thread").expect("a lock");
    stays.network.gateway.run("ip", ["link", "add", "spare", "type", "veth", "peer", "name", "spare-end"]);
    let foreign = |text: String| text.replace("interfaces: [eth0, eth1]", "interfaces: [eth0, eth1, spare]");
    stays.survives(foreign, &["spare is in use by another instance, which does not say whose it is"], false);
    stays.end_with_a_sound_one();
}

#[test]
fn a_successor_whose_flow_file_finds_no_room_says_what_to_do_and_the_predecessor_goes_on() {
    let mut stays = Stays::new("no-room", "limits: {flows: 20000}\nworkers: {cores: [0]}", |dir| {
        let runtime = dir.join("run");
        fs::create_dir_all(&runtime).expect("the runtime folder");
        let size = "size=64m";
        run(
            "mount",
            ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "tmpfs".as_ref(), runtime.as_os_str()],
        );
    });
    let more = |text: String| text.replace("flows: 20000", "flows: 4000000");
    let words = ["no room for the flow file of", "4000000 flows", "mount -o remount,size=", "limits.flows"];
    stays.survives(more, &words, false);
    // Now the file system is full: nothing is left for the flow file to take, which has its room already.
    let left = stays.gateway.dir.join("run/filler");
    let filled = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", &format!("of={}", left.display())])
        .output()
        .expect("dd");
    assert!(String::from_utf8_lossy(&filled.stderr).contains("No space left"), "{filled:?}");
    let fresh = load::requests(&stays.network.client, stays.network.vip(false), 5000, 20);
    assert_eq!((fresh.answered, fresh.failures.len()), (5000, 0), "{fresh:?}");
    assert!(stays.process.is_running(), "{}", stays.gateway.log_text());
    fs::remove_file(left).expect("the filler");
    stays.end_with_a_sound_one();
}

#[test]
fn a_failing_successor_leaves_the_predecessors_reserved_ports() {
    let network = Network::two_nics("reserved", 1, 1);
    let own = |range: &str| {
        let dedicated = "addresses: [10.82.1.100, \"fd82:1::1:100\"]";
        network.config("").replace(dedicated, &format!("addresses: [10.82.1.1, \"fd82:1::1\"], ports: {range}"))
    };
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &own("61000-62000"));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let reserved = || network.gateway.run("cat", ["/proc/sys/net/ipv4/ip_local_reserved_ports"]).trim().to_owned();
    let mut process = gateway.start();
    assert_eq!(reserved(), "61000-62000");
    let bad = own("63000-64000").replace("[eth0, eth1]", "[{name: eth0, mode: zero-copy}, {name: eth1}]");
    gateway.configure(&bad);
    let mut failing = gateway.launch();
    assert!(failing.wait(END).is_some_and(|status| !status.success()), "{}", gateway.log_text());
    gateway.await_ready(&mut process);
    assert_eq!(reserved(), "61000-62000", "the ports of who serves, and they alone");
    gateway.configure(&own("63000-64000"));
    let mut process = upgraded(&mut gateway, process);
    millrace_tests::wait::eventually("the predecessor's ports are given back", END, || {
        let now = reserved();
        if now == "63000-64000" { Ok(()) } else { Err(now) }
    });
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some());
    assert_eq!(reserved(), "");
}

#[test]
fn a_nic_that_is_made_anew_ends_the_instance_and_the_next_one_serves_it() {
    let network = Network::two_nics("anew", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let mut process = gateway.start();
    let serves = || {
        let outcomes = [false, true].map(|ipv6| load::requests(&network.client, network.vip(ipv6), 20, 2));
        assert!(outcomes.iter().all(|outcome| outcome.failures.is_empty()), "{outcomes:?}");
    };
    serves();
    network.replace_client_nic(1);
    let status = process.wait(END).expect("it ends, for it cannot serve");
    let log = gateway.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("eth0 was taken away and made anew"), "{log}");
    // As a supervisor does.
    let _process = gateway.start();
    serves();
}
