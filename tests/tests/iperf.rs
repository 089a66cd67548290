//! Long transfers by iperf3: TCP both ways and UDP at a fixed rate.

use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use millrace_tests::unruly::{Manners, Unruly};
use millrace_tests::wait::eventually;

/// How long a change may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// How often datagrams are sent until a turn goes well: machines that run tests are shared, and a sender, a receiver or a
/// wire that gets no core for a while loses some.
const TURNS: usize = 6;
/// Counters of checksum errors; none may move on either end.
const ERRORS: [&str; 5] =
    ["TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors", "IcmpInCsumErrors", "Icmp6InCsumErrors"];

fn manifest(address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: iperf\n  annotations:\n    \
         millrace.dev/addresses: \"10.81.1.102,fd81:1::102\"\nspec:\n  type: LoadBalancer\n  \
         ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  ports:\n  \
         - {{name: tcp, port: 5201}}\n  - {{name: udp, port: 5201, protocol: UDP}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: iperf\nsubsets:\n- addresses:\n{address}  ports:\n  \
         - {{name: tcp, port: 5201}}\n  - {{name: udp, port: 5201, protocol: UDP}}\n"
    )
}

fn iperf(client: &Host, words: &str) -> serde_json::Value {
    try_iperf(client, words).unwrap_or_else(|error| panic!("{error}"))
}

/// What it says, or what went wrong. Its server is for one client at a time, and listens anew after each: for a moment it is
/// busy, refuses, or resets who was in its queue.
fn try_iperf(client: &Host, words: &str) -> Result<serde_json::Value, String> {
    let not_yet = ["busy", "unable to connect", "control message: Connection reset"];
    eventually("the server is free", SOON, || match iperf_once(client, words) {
        Err(error) if not_yet.iter().any(|said| error.contains(said)) => Err(error),
        other => Ok(other),
    })
}

fn iperf_once(client: &Host, words: &str) -> Result<serde_json::Value, String> {
    let output = client.output("iperf3", words.split(' ').chain(["--json", "--connect-timeout", "10000"]));
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("iperf3 {words}: {e}: {output:?}"));
    let sound = output.status.success() && json["error"].is_null();
    if sound { Ok(json) } else { Err(format!("iperf3 {words}: {}, {}", json["error"], output.status)) }
}

fn server(host: &Host, network: &Network) -> Process {
    let mut command = host.command("iperf3");
    command.args(["-s"]);
    let process = host.spawn("iperf3", command, &network.lab.dir().join("iperf3.log"));
    eventually("iperf3 listens", SOON, || {
        let text = host.run("ss", ["-Hltn"]);
        if text.contains(":5201") { Ok(()) } else { Err(text) }
    });
    process
}

/// Percent of the datagrams lost at 50 Mbit/s in up to so many turns, 100 where too few could be sent; the last is the best,
/// if one is good.
fn udp_loss(client: &Host, vip: &str) -> Vec<f64> {
    let mut lost = Vec::new();
    while lost.len() < TURNS && !lost.last().is_some_and(|last| *last < 1.0) {
        let json = iperf(client, &format!("-c {vip} -u -b 50M -l 1200 -t 10"));
        let sum = &json["end"]["sum"];
        println!("udp {vip}: {sum}");
        let percent = sum["lost_percent"].as_f64().expect("iperf3 says how many were lost");
        lost.push(if sum["packets"].as_u64() > Some(40_000) { percent } else { 100.0 });
    }
    lost
}

#[test]
fn tcp_both_ways_and_udp_at_a_fixed_rate_have_no_checksum_error_no_reset_and_lose_no_frame() {
    servers::require(&["iperf3"]);
    let network = Network::two_nics("iperf", 1, 1);
    let backend = &network.backends[0];
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let addresses: String =
        [false, true].iter().map(|v6| format!("  - ip: \"{}\"\n", network.backend_address(1, *v6))).collect();
    gateway.manifest("iperf.yaml", &manifest(&addresses));
    let mut process = gateway.start();
    let _server = server(backend, &network);
    let before: Vec<u64> = ERRORS.iter().flat_map(|c| [network.client.nstat(c), backend.nstat(c)]).collect();
    for vip in ["10.81.1.102", "fd81:1::102"] {
        for direction in ["", " -R"] {
            let seconds = 10;
            let json = iperf(&network.client, &format!("-c {vip} -t {seconds}{direction}"));
            let bits = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
            assert!(bits > 50e6, "{vip}{direction}: only {bits} bit/s");
            println!("tcp {vip}{direction}: {:.2} Gbit/s", bits / 1e9);
        }
        let lost = udp_loss(&network.client, vip);
        println!("udp {vip}: {lost:?} % lost at 50 Mbit/s");
        assert!(lost.iter().any(|lost| *lost < 1.0), "{vip}: {lost:?} % of the datagrams lost at 50 Mbit/s");
    }
    let after: Vec<u64> = ERRORS.iter().flat_map(|c| [network.client.nstat(c), backend.nstat(c)]).collect();
    assert_eq!(before, after, "checksum errors of {ERRORS:?} on client and backend");
    // iperf3 itself ends its data connections with unread data, hence with resets; none may be Millrace's.
    assert_eq!(gateway.metric("millrace_events_total", "resets"), 0.0, "Millrace sent resets");
    // What queues hold is told by who holds it, now and then.
    eventually("no frame leaked", SOON, || {
        let frames = gateway.json(&["status"])["frames"].clone();
        assert!(frames["total"].as_u64() > Some(0), "status has no frames: {frames}");
        if frames["lost"] == 0 { Ok(()) } else { Err(frames.to_string()) }
    });
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(SOON).is_some_and(|s| s.success()), "{}", gateway.log_text());
    assert!(gateway.log_text().contains("lost=0"), "{}", gateway.log_text());
}

/// What a bad link does: 2 to 3 ms, so that frames overtake each other, and some come twice, damaged or never.
const BAD: Manners = Manners {
    delay: Duration::from_millis(2),
    jitter: Duration::from_millis(1),
    duplicated: 10_000,
    damaged: 1000,
    lost: 1000,
};

#[test]
fn transfers_over_a_wire_that_reorders_duplicates_damages_and_loses_frames_end_whole() {
    servers::require(&["iperf3", "curl", "ethtool"]);
    let network = Network::with_middle("unruly", 1);
    let middle = network.middle.as_ref().expect("a middle");
    let wire = Unruly::between(middle, ["m0", "m1"], BAD);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let addresses: String =
        [false, true].iter().map(|v6| format!("  - ip: \"{}\"\n", network.backend_address(1, *v6))).collect();
    gateway.manifest("iperf.yaml", &manifest(&addresses));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let _process = gateway.start();
    let _server = server(&network.backends[0], &network);
    for vip in ["10.81.1.102", "fd81:1::102"] {
        for direction in ["", " -R"] {
            let json = iperf(&network.client, &format!("-c {vip} -t 8{direction}"));
            let bits = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
            println!("unruly tcp {vip}{direction}: {:.1} Mbit/s", bits / 1e6);
            assert!(bits > 2e6, "{vip}{direction}: only {bits} bit/s");
        }
        // A stream of datagrams is opened by one datagram and its answer, which iperf3 does not send again.
        let turns = (0..TURNS).map(|_| try_iperf(&network.client, &format!("-c {vip} -u -b 10M -l 1200 -t 5")));
        let mut turns = turns.map(|turn| {
            let sum = turn.map(|json| json["end"]["sum"].clone());
            println!("unruly udp {vip}: {sum:?}");
            sum.map(|sum| sum["lost_percent"].as_f64().expect("iperf3 says how many were lost"))
        });
        let few = turns.find_map(|lost| lost.ok().filter(|lost| *lost < 2.0));
        assert!(few.is_some(), "{vip}: 2 % of the datagrams were lost in each of {TURNS} turns, or none opened");
    }
    for url in ["http://10.81.1.100/big", "http://[fd81:1::100]/big"] {
        for _ in 0..5 {
            let output = network.client.output("curl", ["-sS", "--max-time", "60", url]);
            let (body, said) = (output.stdout, String::from_utf8_lossy(&output.stderr));
            assert_eq!(body.len(), 1 << 20, "{url} ended early: {}, {said}", output.status);
            assert!(body.iter().all(|octet| *octet == b'x'), "{url} came damaged");
        }
    }
    println!("{:?}", wire.seen);
    let [overtaken, duplicated, damaged] = [&wire.seen.overtaken, &wire.seen.duplicated, &wire.seen.damaged]
        .map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    assert!(overtaken > 1000 && duplicated > 100 && damaged > 10, "the wire behaves: {:?}", wire.seen);
    // Damage is carried through the translation, so that the ends see it; nobody's checksum is made right.
    let noticed = network.client.nstat("TcpInCsumErrors") + network.backends[0].nstat("TcpInCsumErrors");
    assert!(noticed > 0, "no end noticed any of {damaged} damaged frames");
    assert_eq!(gateway.metric("millrace_events_total", "resets"), 0.0, "Millrace sent resets");
}
