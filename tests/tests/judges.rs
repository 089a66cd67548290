//! Programs that others wrote to find out what stands between them and a peer, asked about Millrace.

use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::{Network, VIP, VIP6};
use millrace_tests::wait::eventually;

/// How long a judge may be asked again: what a busy machine loses or is late with, most of them do not ask for twice.
const SOON: Duration = Duration::from_secs(60);
/// Where STUN is reached; the second is what its server tells as its other address.
const STUN: [&str; 2] = ["10.81.1.104", "10.81.1.105"];

/// A Service of one endpoint with equal ports on both sides.
fn service(name: &str, protocol: &str, addresses: &str, endpoints: &[&str], ports: &[u16]) -> String {
    let family = if endpoints.len() == 2 { "RequireDualStack\n  ipFamilies: [IPv4, IPv6]" } else { "SingleStack" };
    let list = |indent: &str| -> String {
        let port = |port: &u16| format!("{indent}- {{name: p{port}, port: {port}, protocol: {protocol}}}\n");
        ports.iter().map(port).collect()
    };
    let ips: String = endpoints.iter().map(|ip| format!("  - ip: \"{ip}\"\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
         millrace.dev/addresses: \"{addresses}\"\nspec:\n  type: LoadBalancer\n  ipFamilyPolicy: {family}\n  ports:\n{}\
         ---\napiVersion: v1\nkind: Endpoints\nmetadata:\n  name: {name}\nsubsets:\n- addresses:\n{ips}  ports:\n{}",
        list("  "),
        list("  ")
    )
}

/// coturn as a STUN server with two addresses and two ports, which tells the VIPs as its own.
fn stun(backend: &Host, network: &Network) -> Process {
    backend.address("eth0", "10.82.1.31/24");
    let mut command = backend.command("turnserver");
    command.args(["-n", "--stun-only", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--simple-log"]);
    command.args(["--log-file", "stdout", "--allow-loopback-peers", "-p", "3478", "--alt-listening-port", "3479"]);
    for (vip, own) in STUN.iter().zip(["10.82.1.11", "10.82.1.31"]) {
        command.args(["-L", own, "-X", &format!("{vip}/{own}")]);
    }
    let pid = network.lab.dir().join("turnserver.pid");
    command.arg("--pidfile").arg(&pid);
    let process = backend.spawn("turnserver", command, &network.lab.dir().join("turnserver.log"));
    eventually("coturn listens", SOON, || {
        let text = backend.run("ss", ["-Hlun"]);
        let sockets = ["10.82.1.11:3478", "10.82.1.11:3479", "10.82.1.31:3478", "10.82.1.31:3479"];
        if sockets.iter().all(|socket| text.contains(socket)) { Ok(()) } else { Err(text) }
    });
    process
}

#[test]
fn stun_finds_mappings_and_filters_of_a_translator_in_front_of_servers() {
    servers::require(&["turnserver", "turnutils_natdiscovery"]);
    let network = Network::two_nics("stun", 1, 1);
    let _server = stun(&network.backends[0], &network);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    for (n, own) in ["10.82.1.11", "10.82.1.31"].iter().enumerate() {
        let name = format!("stun{n}");
        gateway.manifest(&format!("{name}.yaml"), &service(&name, "UDP", STUN[n], &[own], &[3478, 3479]));
    }
    let _process = gateway.start();
    let text = eventually("each that is asked answers", SOON, || {
        let output = network.client.output("turnutils_natdiscovery", ["-m", "-f", STUN[0]]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Each answer came from the VIP that was asked, and tells which address the endpoint saw.
        for origin in [format!("{}:3478", STUN[0]), format!("{}:3478", STUN[1]), format!("{}:3479", STUN[1])] {
            if !text.contains(&format!("Response origin: : {origin}")) {
                return Err(format!("no answer from {origin}: {output:?}"));
            }
        }
        let seen = text.matches("UDP reflexive addr: 10.82.1.100:").count();
        if output.status.success() && seen >= 4 { Ok(text) } else { Err(format!("{output:?}")) }
    });
    // A port for each Service address and port asked, and nobody but the endpoint asked gets through it.
    assert!(text.contains("NAT with Address and Port Dependent Mapping!"), "{text}");
    assert!(text.contains("NAT with Address and Port Dependent Filtering!"), "{text}");
}

#[test]
fn the_way_to_a_service_has_the_gateway_as_a_hop_and_the_endpoint_as_its_end() {
    servers::require(&["traceroute", "tracepath"]);
    let network = Network::two_nics("trace", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let ports: Vec<u16> = (44444..44474).collect();
    let endpoints = [network.backend_address(1, false).to_string(), network.backend_address(1, true).to_string()];
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let addresses = "10.81.1.106,fd81:1::106";
    gateway.manifest("probes.yaml", &service("probes", "UDP", addresses, &endpoints, &ports));
    let _process = gateway.start();
    for (vip, probes) in [(VIP, "10.81.1.106"), (VIP6, "fd81:1::106")] {
        // The gateway's answers come in the name of the address that was asked.
        let behind: [(&[&str], &str, usize); 3] =
            [(&["-T", "-p", "80"], vip, 2), (&["-U", "-p", "44444"], probes, 2), (&["-I"], vip, 1)];
        for (words, target, hops) in behind {
            eventually("no probe is left without an answer", SOON, || {
                let text = network.client.run("traceroute", words.iter().chain(&["-n", target]));
                let seen: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
                assert!(seen.iter().all(|hop| [target, "*"].contains(hop)), "{words:?}: {text}");
                if seen == vec![target; hops] { Ok(()) } else { Err(format!("{words:?}: {text}")) }
            });
        }
        for (words, target, hops) in [(vec!["-p", "44444"], probes, 2), (vec![], vip, 1)] {
            eventually("the way and its MTU are found", SOON, || {
                let output = network.client.output("tracepath", words.iter().chain(&["-n", target]));
                let found = format!("pmtu 1500 hops {hops} back {hops}");
                let is_found = String::from_utf8_lossy(&output.stdout).contains(&found);
                if is_found { Ok(()) } else { Err(format!("{words:?}: not {found}: {output:?}")) }
            });
        }
    }
}

#[test]
fn every_ping_of_a_vip_is_answered_whatever_its_length() {
    let network = Network::two_nics("ping", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let _process = gateway.start();
    for (vip, longest) in [(VIP, "1472"), (VIP6, "1452")] {
        for len in ["0", "1", "56", longest] {
            let ping = ["-n", "-q", "-c", "20", "-i", "0.002", "-M", "do", "-s", len, vip];
            // So many in a row are more than a machine takes that stands meanwhile.
            eventually("every ping is answered", SOON, || {
                let text = String::from_utf8_lossy(&network.client.output("ping", ping).stdout).into_owned();
                assert!(!text.contains("corrupted") && !text.contains("DUP"), "{len} octets: {text}");
                let all = text.contains("20 packets transmitted, 20 received, 0% packet loss");
                if all { Ok(()) } else { Err(format!("{len} octets: {text}")) }
            });
        }
    }
}
