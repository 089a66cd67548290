//! SCTP Services with real stacks at both ends: associations through the gateway, their ports translated, endpoints that do
//! not answer, and Millrace's own end.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use millrace_tests::lab::Process;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::sctp::{Peer, Question};
use millrace_tests::servers;
use millrace_tests::topology::{Network, VIP, VIP6};
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);
/// Where the Service is, and where its endpoints are.
const PORT: u16 = 38412;
const TARGET_PORT: u16 = 9899;

/// Two NICs, and backends that answer SCTP.
struct Site {
    network: Network,
    peer: Peer,
    _servers: Vec<Process>,
}

impl Site {
    fn new(name: &str, queues: u32) -> Self {
        servers::require(&["clang", "nft", "timeout"]);
        let network = Network::two_nics(name, 2, queues);
        network.route_backends_by_gateway();
        let peer = Peer::build(network.lab.dir());
        let mut servers = Vec::new();
        for (number, backend) in (1..).zip(&network.backends) {
            let addresses = [false, true].map(|ipv6| network.backend_address(number, ipv6));
            servers.push(peer.serve(backend, network.lab.dir(), &format!("b{number}"), TARGET_PORT, &addresses));
        }
        Self { network, peer, _servers: servers }
    }

    /// A Service of SCTP in this mode; `more` is added to the configuration.
    fn gateway(&self, mode: &str, more: &str) -> (Gateway, Process) {
        let network = &self.network;
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(more));
        let manifest = network
            .manifest(&[1, 2], &[&format!("millrace.dev/mode: {mode}")])
            .replace("name: web", "name: ngap")
            .replace("port: 8080", &format!("{{port: {TARGET_PORT}, protocol: SCTP}}"))
            .replace(
                "port: 80\n    targetPort: 8080",
                &format!("{{port: {PORT}, targetPort: {TARGET_PORT}, protocol: SCTP}}"),
            );
        gateway.manifest("ngap.yaml", &manifest);
        let process = gateway.start();
        (gateway, process)
    }

    fn question(&self, ipv6: bool, messages: u32, octets: u32) -> Question {
        let [from, to] = if ipv6 { ["fd81:1::2", VIP6] } else { ["10.81.1.2", VIP] };
        let [from, to] = [from, to].map(|text| text.parse::<IpAddr>().expect("an address"));
        Question { from, to: SocketAddr::new(to, PORT), messages, octets, pause: Duration::ZERO }
    }
}

/// A flow of a client of the Service that is in this state.
fn try_flow(gateway: &Gateway, state: &str) -> Result<serde_json::Value, String> {
    let flows = gateway.json(&["flows", "--service", "ngap"]);
    let found = flows.as_array().and_then(|rows| rows.iter().find(|row| row["state"] == state)).cloned();
    found.ok_or_else(|| flows.to_string())
}

/// The same, once there is one.
fn flow(gateway: &Gateway, state: &str) -> serde_json::Value {
    eventually("a flow is shown", END, || try_flow(gateway, state))
}

/// An association that stays for a while is shown, and explained as it is while it does.
fn is_explained(site: &Site, gateway: &Gateway, question: &Question) {
    let client = &site.network.client;
    eventually("an association stays while it is asked about", 2 * END, || {
        let stays = site.peer.command(client, question);
        let _stays = client.spawn("an association", stays, &site.network.lab.dir().join("stays.log"));
        let shown = flow(gateway, "associated");
        assert_eq!(shown["protocol"], "sctp", "{shown}");
        let text = |name: &str| shown[name].as_str().expect("a text").to_owned();
        let backend: SocketAddr = text("backend").parse().expect("an endpoint");
        assert_eq!(backend.port(), TARGET_PORT, "{shown}");
        let explained = gateway.json(&["explain", &text("client"), &format!("{}/sctp", text("vip"))]);
        if try_flow(gateway, "associated")?["client"] != shown["client"] {
            return Err(format!("{shown} ended"));
        }
        assert_eq!(explained["endpoint"], text("backend"), "{explained}");
        Ok(())
    });
}

#[test]
fn associations_carry_messages_in_both_families_and_are_shown_until_they_end() {
    for (mode, workers, queues) in [("nat", "[0]", 1), ("nat", "[0, 1]", 4), ("preserve", "[0, 1]", 4)] {
        let site = Site::new(&format!("sctp-{mode}-{queues}"), queues);
        // What an end that stood sends again is of its flow still.
        let more = format!("workers: {{cores: {workers}}}\ntimeouts: {{sctpClosed: 5s}}");
        let (gateway, _process) = site.gateway(mode, &more);
        let client = &site.network.client;
        for ipv6 in [false, true] {
            let mut names = BTreeSet::new();
            for octets in [1, 100, 1_400, 20_000, 65_000].into_iter().cycle().take(20) {
                let answered = site.peer.ask(client, &site.question(ipv6, 4, octets));
                names.insert(answered.unwrap_or_else(|error| panic!("{mode} {octets}: {error}")).by);
            }
            assert_eq!(names, ["b1".to_owned(), "b2".to_owned()].into(), "both are chosen");
            let pause = Duration::from_millis(100);
            is_explained(&site, &gateway, &Question { pause, ..site.question(ipv6, 30, 100) });
        }
        let opened = gateway.metric("millrace_flows_opened_total", "service=\"default/ngap\"");
        assert!(opened >= 42.0, "{opened} flows");
        for reason in ["bad_header", "bad_checksum", "no_flow", "unknown_protocol"] {
            assert_eq!(gateway.metric("millrace_drops_total", &format!("reason=\"{reason}\"")), 0.0, "{reason}");
        }
        assert!(queues == 1 || gateway.metric("millrace_handoff_total", "") > 0.0);
    }
}

#[test]
fn what_ended_leaves_nothing_and_what_nobody_serves_is_refused_at_once() {
    let site = Site::new("sctp-ends", 1);
    let (gateway, _process) = site.gateway("nat", "timeouts: {sctpClosed: 500ms}");
    for ipv6 in [false, true] {
        let question = site.question(ipv6, 3, 500);
        // It is forgotten soon.
        eventually("what ended is shown", END, || {
            site.peer.ask(&site.network.client, &question).expect("an answer");
            try_flow(&gateway, "ended")
        });
        let (before, pulse) = (Instant::now(), Pulse::begin());
        let nobodys = Question { to: SocketAddr::new(question.to.ip(), PORT + 1), ..question };
        let refused = site.peer.ask(&site.network.client, &nobodys).unwrap_err();
        assert!(refused.contains("Connection refused"), "{refused}");
        let (took, stood) = (before.elapsed(), pulse.longest());
        assert!(took < Duration::from_secs(2) + stood, "{took:?}, and the machine stood for {stood:?}");
    }
    eventually("no flow is left", END, || {
        let flows = gateway.json(&["flows", "--service", "ngap"]);
        if flows.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(flows.to_string()) }
    });
    let aborts = gateway.metric("millrace_events_total", "event=\"aborts_sent\"");
    assert_eq!(aborts, 2.0, "one a family");
}

#[test]
fn with_a_silent_endpoint_every_association_opens_by_the_second_init() {
    let site = Site::new("sctp-silent", 1);
    let (gateway, _process) = site.gateway("nat", "");
    let rules = "add table inet dead; add chain inet dead input { type filter hook input priority 0; }; \
                 add rule inet dead input meta l4proto 132 drop";
    site.network.backends[0].run("nft", [rules]);
    let retried = || gateway.metric("millrace_connect_retries_total", "result=\"sent\"");
    // Which of them meet the silent endpoint is chance.
    for number in 0..60 {
        let pulse = Pulse::begin();
        let answered = site.peer.ask(&site.network.client, &site.question(number % 2 == 1, 1, 10)).expect("an answer");
        let stood = pulse.longest();
        assert_eq!(answered.by, "b2");
        // The client's own timer of three seconds, and some more.
        assert!(answered.took < Duration::from_secs(6) + stood, "{answered:?}, and the machine stood for {stood:?}");
        if number >= 4 && retried() >= 2.0 {
            return;
        }
    }
    panic!("{} of sixty met the silent endpoint", retried());
}

#[test]
fn an_association_outlives_a_killed_millrace() {
    let site = Site::new("sctp-killed", 1);
    let (mut gateway, mut process) = site.gateway("nat", "");
    for ipv6 in [false, true] {
        let pause = Duration::from_millis(50);
        let mut stays = site.peer.command(&site.network.client, &Question { pause, ..site.question(ipv6, 80, 1_000) });
        let stays = stays.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a client");
        let before = flow(&gateway, "associated");
        process.signal(Signal::SIGKILL);
        assert!(process.wait(END).is_some());
        process = gateway.start();
        let after = flow(&gateway, "associated");
        assert_eq!((&after["client"], &after["backend"]), (&before["client"], &before["backend"]));
        let output = stays.wait_with_output().expect("the client ends");
        assert!(output.status.success(), "{output:?}");
        flow(&gateway, "ended");
    }
}
