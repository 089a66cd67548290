//! ICMP errors that scapy makes, sound ones and others, about datagrams through the gateway.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::lab::Host;
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7008;
/// What nobody is to be told of.
const UNSOUND: [&str; 4] = ["wrong-checksum", "of-nobody", "truncated", "lying-header"];

/// A host that says errors to the gateway over its `eth0`.
struct Router<'h> {
    host: &'h Host,
    address: IpAddr,
    gateway_mac: String,
}

impl Router<'_> {
    /// Says them about the datagram from `from` to `to`.
    fn says(&self, from: SocketAddr, to: SocketAddr, cases: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scapy/errors.py");
        let ends = [from.ip().to_string(), from.port().to_string(), to.ip().to_string(), to.port().to_string()];
        let address = self.address.to_string();
        let mut words = vec![script.to_str().expect("a path"), "eth0", &self.gateway_mac, &address];
        words.extend(ends.iter().map(String::as_str).chain(cases.iter().copied()));
        self.host.run("/usr/bin/python3", words);
    }
}

/// A socket of the client's that asked the Service and was answered.
fn asked(client: &Host, target: SocketAddr) -> UdpSocket {
    let made = client.within(move || {
        let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(target).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        eventually("the Service answers", SOON, || ask(&socket).map_err(|error| error.to_string()));
        socket
    });
    made.join().expect("a socket")
}

fn ask(socket: &UdpSocket) -> std::io::Result<()> {
    socket.send(b"question?")?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// Asks until it is answered, which on a busy machine takes longer than a socket waits; it must hear of nothing else.
fn is_answered(socket: &UdpSocket, gateway: &Gateway, when: &str) {
    let heard = eventually(when, SOON, || match ask(socket) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error.to_string()),
        heard => Ok(heard),
    });
    heard.unwrap_or_else(|error| panic!("{when}: it heard of something: {error}, {}", gateway.log_text()));
}

/// The error that it hears of, be there answers before.
fn heard(socket: &UdpSocket) -> ErrorKind {
    eventually("it hears of an error", SOON, || match socket.recv(&mut [0; 64]) {
        Ok(_) => Err("an answer".to_owned()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error.to_string()),
        Err(error) => Ok(error.kind()),
    })
}

#[test]
fn errors_made_by_scapy_are_told_to_who_sent_what_they_quote_and_unsound_ones_to_nobody() {
    servers::require(&["scapy3"]);
    let network = Network::two_nics("errors", 1, 1);
    let (client, backend) = (&network.client, &network.backends[0]);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let echo = network.manifest(&[1], &[]).replace("port: 8080", &format!("{{port: {PORT}, protocol: UDP}}"));
    let ports = format!("- {{port: {PORT}, protocol: UDP}}");
    gateway.manifest("echo.yaml", &echo.replace("- port: 80\n    targetPort: 8080", &ports));
    let mut process = gateway.start();
    for ipv6 in [false, true] {
        datagrams::echo(backend, SocketAddr::new(network.backend_address(1, ipv6), PORT));
        let target = SocketAddr::new(network.vip(ipv6).ip(), PORT);
        let socket = asked(client, target);
        let own = socket.local_addr().expect("its address");
        let flows = gateway.json(&["flows"]);
        let of_socket = |flow: &&serde_json::Value| flow["client"] == own.to_string();
        let flow = flows.as_array().expect("a list").iter().find(of_socket).expect("the flow").clone();
        let end = |name: &str| -> SocketAddr { flow[name].as_str().expect("an end").parse().expect("an end") };
        let (snat, endpoint) = (end("snat"), end("backend"));
        let inside = Router { host: backend, address: endpoint.ip(), gateway_mac: network.gateway.mac("eth1") };
        let outside = Router { host: client, address: own.ip(), gateway_mac: network.gateway.mac("eth0") };
        inside.says(snat, endpoint, &UNSOUND);
        outside.says(target, own, &UNSOUND);
        for _ in 0..3 {
            is_answered(&socket, &gateway, "after unsound errors");
        }
        // The client hears that nobody listens there.
        for case in ["unreachable", "unreachable-short"] {
            inside.says(snat, endpoint, &[case]);
            assert_eq!(heard(&socket), ErrorKind::ConnectionRefused, "IPv6 {ipv6}, {case}");
            is_answered(&socket, &gateway, "the flow goes on");
        }
        // The endpoint hears that its answers are too big.
        outside.says(target, own, &["too-big"]);
        eventually("the endpoint knows the path's MTU", SOON, || {
            let route = backend.run("ip", ["route", "get", &snat.ip().to_string()]);
            if route.contains("mtu 1300") { Ok(()) } else { Err(route) }
        });
        is_answered(&socket, &gateway, "the flow goes on");
    }
    assert!(process.is_running(), "{}", gateway.log_text());
    assert!(gateway.metric("millrace_drops_total", "reason=\"truncated\"") > 0.0);
}
