//! Endpoints that terminate, are drained or go: which of their flows go on, and who gets the others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_tests::lab::{Host, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);
const MODES: [&str; 2] = ["nat", "preserve"];
/// The UDP Service's ports: one is followed as DNS, the other is not.
const PORTS: [u16; 2] = [53, 7777];
const NAMES: [&str; 2] = ["10.81.1.101", "fd81:1::101"];

/// Two NICs, and backends whose route to the client is the gateway, as mode `preserve` needs it.
fn network(name: &str) -> Network {
    let network = Network::two_nics(name, 2, 1);
    network.route_backends_by_gateway();
    network
}

/// Answers every datagram with a name, until the test's process ends.
fn named(host: &Host, address: SocketAddr, name: &'static str) {
    let (ready, wait) = mpsc::channel();
    host.within(move || {
        let socket = UdpSocket::bind(address).expect("a socket");
        ready.send(()).expect("the test waits");
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    wait.recv_timeout(END).expect("the server is there");
}

/// Sockets that ask on and on, a round after the other; each knows who answered it last.
struct Asking {
    stop: Arc<AtomicBool>,
    said: Arc<Mutex<Said>>,
    thread: JoinHandle<()>,
}

#[derive(Default, Debug, Clone)]
struct Said {
    rounds: u64,
    /// Of the last round, by socket.
    by: Vec<Option<String>>,
    /// Datagrams that nobody answered; an answer that came late is counted with the next round.
    lost: u64,
}

fn ask(client: &Host, sockets: usize) -> Asking {
    let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Said::default())));
    let (stop_in, said_in) = (Arc::clone(&stop), Arc::clone(&said));
    let thread = client.within(move || {
        let targets =
            NAMES.iter().flat_map(|ip| PORTS.map(|port| SocketAddr::new(ip.parse().expect("an address"), port)));
        let open = |target: SocketAddr| {
            let socket = UdpSocket::bind(if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
            socket.connect(target).expect("a route");
            socket
        };
        let sockets: Vec<UdpSocket> = targets.flat_map(|target| (0..sockets).map(move |_| open(target))).collect();
        while !stop_in.load(Ordering::Relaxed) {
            let mut late = 0;
            let answer = |socket: &UdpSocket| {
                // Answers to earlier datagrams, which a busy machine brings late, say nothing of this round.
                late += late_answers(socket);
                let mut name = [0; 64];
                socket.send(b"who?").ok()?;
                let length = socket.recv(&mut name).ok()?;
                Some(String::from_utf8_lossy(&name[..length]).into_owned())
            };
            let by: Vec<Option<String>> = sockets.iter().map(answer).collect();
            let mut said = said_in.lock().expect("nobody panics with it");
            said.lost = said.lost.saturating_sub(late) + by.iter().filter(|by| by.is_none()).count() as u64;
            (said.rounds, said.by) = (said.rounds + 1, by);
        }
    });
    Asking { stop, said, thread }
}

/// Takes in what has come already, and says how many that were.
fn late_answers(socket: &UdpSocket) -> u64 {
    socket.set_nonblocking(true).expect("a socket");
    let count = std::iter::repeat_with(|| socket.recv(&mut [0; 64])).take_while(Result::is_ok).count();
    socket.set_nonblocking(false).expect("a socket");
    count as u64
}

impl Asking {
    /// A round that began from now on.
    fn next(&self) -> Said {
        let now = || self.said.lock().expect("nobody panics with it").clone();
        let begun = now().rounds;
        let mut said = now();
        eventually("a round of datagrams", END, || {
            said = now();
            if said.rounds >= begun + 2 { Ok(()) } else { Err(format!("{said:?}")) }
        });
        said
    }

    /// Whether every datagram of a round is answered by one of these. Of a round in which a busy machine brought
    /// answers late only those count that came; another one follows.
    fn are_answered_by(&self, names: &[&str], when: &str) {
        let said = self.next_whole(when, |by| assert!(names.contains(&by), "{when}: {by} answers"));
        let by: BTreeSet<&str> = said.by.iter().flatten().map(String::as_str).collect();
        assert_eq!(by, names.iter().copied().collect(), "{when}: {said:?}");
    }

    /// A round that began from now on in which each datagram is answered; whoever answered before is `judged`.
    fn next_whole(&self, when: &str, judged: impl Fn(&str)) -> Said {
        eventually(&format!("each datagram of a round is answered, {when}"), END, || {
            let said = self.next();
            said.by.iter().flatten().for_each(|by| judged(by));
            if said.by.iter().all(Option::is_some) { Ok(said) } else { Err(format!("{said:?}")) }
        })
    }

    /// Waits until each datagram so far is answered, be it late.
    fn lose_none(&self, what: impl Fn() -> String) {
        eventually("no datagram is lost", END, || match self.lost() {
            0 => Ok(()),
            lost => Err(format!("{lost}: {}", what())),
        });
    }

    fn lost(&self) -> u64 {
        self.said.lock().expect("nobody panics with it").lost
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client");
    }
}

/// The UDP Service with these backends.
fn names(network: &Network, mode: &str, numbers: &[usize]) -> String {
    let addresses: String = [false, true]
        .iter()
        .flat_map(|v6| numbers.iter().map(|n| format!("  - ip: \"{}\"\n", network.backend_address(*n, *v6))))
        .collect();
    let [dns, other] = PORTS;
    let ports =
        format!("  - {{name: dns, port: {dns}, protocol: UDP}}\n  - {{name: other, port: {other}, protocol: UDP}}\n");
    let subsets = match numbers {
        [] => "subsets: []\n".to_owned(),
        _ => format!("subsets:\n- addresses:\n{addresses}  ports:\n{ports}"),
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: names\n  annotations:\n    \
         millrace.dev/addresses: \"{}\"\n    millrace.dev/mode: {mode}\nspec:\n  type: LoadBalancer\n  \
         ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  ports:\n{ports}---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: names\n{subsets}",
        NAMES.join(",")
    )
}

/// Writes a manifest and waits until it is in force: until these backends, which were others or otherwise before, are
/// listed so. Tables alone may be published for other reasons.
fn change(gateway: &Gateway, network: &Network, (file, text): (&str, &str), listed: &[(usize, &str)]) {
    let row = |(number, state): &(usize, &str)| {
        [false, true].map(|ipv6| (network.backend_address(*number, ipv6).to_string(), (*state).to_owned()))
    };
    let expected: BTreeSet<(String, String)> = listed.iter().flat_map(row).collect();
    gateway.manifest(file, text);
    eventually("a change is in force", END, || {
        let rows = gateway.json(&["backends"]);
        let text =
            |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().replace("set-aside", "usable");
        let found = rows.as_array().into_iter().flatten().map(|row| (text(row, "address"), text(row, "state")));
        if found.collect::<BTreeSet<_>>() == expected { Ok(()) } else { Err(rows.to_string()) }
    });
}

fn killed(process: &mut Process) {
    process.signal(Signal::SIGKILL);
    assert!(process.wait(END).is_some());
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn datagrams_go_to_who_serves_from_the_next_one_on_also_over_a_restart_and_in_a_successor() {
    for mode in MODES {
        let network = network(&format!("udp-{mode}"));
        for (number, name) in [(1, "b1"), (2, "b2")] {
            for (ipv6, port) in [(false, PORTS[0]), (false, PORTS[1]), (true, PORTS[0]), (true, PORTS[1])] {
                named(
                    &network.backends[number - 1],
                    SocketAddr::new(network.backend_address(number, ipv6), port),
                    name,
                );
            }
        }
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
        gateway.manifest("names.yaml", &names(&network, mode, &[1, 2]));
        let mut process = gateway.start();
        let asking = ask(&network.client, 8);
        asking.are_answered_by(&["b1", "b2"], "both serve");
        let both = asking.next_whole("both serve", |_| {}).by;
        // Drained, an endpoint keeps the flows that it has.
        let drain = |verb: &str| {
            for ipv6 in [false, true] {
                let output = gateway.admin(&[verb, &network.backend_address(1, ipv6).to_string()]);
                assert!(output.status.success(), "{}", said(&output));
            }
        };
        drain("drain");
        let drained = asking.next_whole("one is drained", |_| {}).by;
        assert_eq!(drained, both, "{mode}: a drained endpoint keeps its flows");
        let fresh = ask(&network.client, 8);
        fresh.are_answered_by(&["b2"], "one is drained");
        fresh.finish();
        drain("undrain");
        let fresh = ask(&network.client, 8);
        fresh.are_answered_by(&["b1", "b2"], "it is not any more");
        fresh.finish();
        // Removed, it loses them to the other one, whose own stay.
        let change_to = |gateway: &Gateway, numbers: &[usize]| {
            let listed: Vec<_> = numbers.iter().map(|number| (*number, "usable")).collect();
            change(gateway, &network, ("names.yaml", &names(&network, mode, numbers)), &listed);
        };
        change_to(&gateway, &[2]);
        asking.are_answered_by(&["b2"], "one is gone");
        change_to(&gateway, &[]);
        asking.are_answered_by(&["b2"], "nobody else serves");
        asking.lose_none(|| format!("{mode}: {}", gateway.log_text()));
        killed(&mut process);
        gateway.manifest("names.yaml", &names(&network, mode, &[1]));
        process = gateway.start();
        asking.are_answered_by(&["b1"], "another serves since the restart");
        let lost = asking.lost();
        let mut successor = gateway.start();
        assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
        change_to(&gateway, &[2]);
        asking.are_answered_by(&["b2"], "in a successor");
        println!("{mode}: {} lost in the hand-over and the change after it", asking.lost().saturating_sub(lost));
        asking.finish();
        gateway.await_metric("millrace_events_total", "flows_moved", 32.0);
        assert!(gateway.admin(&["stop"]).status.success());
        assert!(successor.wait(END).is_some());
    }
}

/// `default/web` with the endpoints by slices: number, ready, serving, terminating.
fn sliced(network: &Network, mode: &str, endpoints: &[(usize, bool, bool, bool)]) -> String {
    let all = network.manifest(&[], &[&format!("millrace.dev/mode: {mode}")]);
    let (service, _) = all.split_once("---\n").expect("a Service and its Endpoints");
    let slice = |ipv6: bool| {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let rows: String = endpoints
            .iter()
            .map(|(number, ready, serving, terminating)| {
                let address = network.backend_address(*number, ipv6);
                format!(
                    "- addresses: [\"{address}\"]\n  conditions: {{ready: {ready}, serving: {serving}, terminating: \
                     {terminating}}}\n"
                )
            })
            .collect();
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{}\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: {family}\nports:\n- port: 8080\nendpoints:\n{rows}",
            family.to_lowercase()
        )
    };
    format!("{service}{}{}", slice(false), slice(true))
}

#[test]
fn terminating_endpoints_keep_their_connections_and_get_new_ones_only_where_no_other_is_ready() {
    for mode in MODES {
        let network = network(&format!("terminating-{mode}"));
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
        let (ready, terminating) = ((true, true, false), (false, true, true));
        let manifest = |states: &[(usize, (bool, bool, bool))]| {
            let rows: Vec<_> = states.iter().map(|&(number, (r, s, t))| (number, r, s, t)).collect();
            sliced(&network, mode, &rows)
        };
        gateway.manifest("web.yaml", &manifest(&[(1, ready), (2, ready)]));
        let mut process = gateway.start();
        let held = [false, true].map(|v6| load::hold(&network.client, network.vip(v6), 20, Duration::from_millis(10)));
        let all_answered = || held.iter().for_each(|held| held.await_answers(100, END));
        let fresh = |expected: &[&str], when: &str| {
            for ipv6 in [false, true] {
                let outcome = load::requests(&network.client, network.vip(ipv6), 100, 5);
                let servers: Vec<&str> = outcome.by_server.keys().map(String::as_str).collect();
                assert_eq!((&servers[..], outcome.answered), (expected, 100), "{mode}, {when}: {outcome:?}");
            }
        };
        all_answered();
        fresh(&["b1", "b2"], "both are ready");
        let change_to = |gateway: &Gateway, states: &[(usize, (bool, bool, bool))], listed: &[(usize, &str)]| {
            change(gateway, &network, ("web.yaml", &manifest(states)), listed);
        };
        change_to(&gateway, &[(1, terminating), (2, ready)], &[(1, "draining"), (2, "usable")]);
        fresh(&["b2"], "one terminates");
        all_answered();
        killed(&mut process);
        process = gateway.start();
        fresh(&["b2"], "after a restart");
        all_answered();
        let silent = (false, false, true);
        change_to(&gateway, &[(1, terminating), (2, silent)], &[(1, "usable"), (2, "draining")]);
        fresh(&["b1"], "the other one serves no more");
        all_answered();
        // Gone from the slices, with their servers still up.
        change_to(&gateway, &[(2, ready)], &[(2, "usable")]);
        fresh(&["b2"], "one is gone");
        all_answered();
        let mut successor = gateway.start();
        assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
        all_answered();
        for held in held {
            let outcome = held.finish();
            assert!(outcome.failures.is_empty(), "{mode}: established connections broke: {:?}", outcome.failures);
            assert_eq!(outcome.by_server.len(), 2, "{mode}: {outcome:?}");
        }
        assert!(gateway.admin(&["stop"]).status.success());
        assert!(successor.wait(END).is_some());
    }
}

/// Connections that say nothing until they are asked to.
fn silent(client: &Host, targets: [SocketAddr; 2], each: usize) -> (mpsc::Sender<()>, JoinHandle<Vec<Option<String>>>) {
    let (speak, wait) = mpsc::channel();
    let (opened, all_opened) = mpsc::channel();
    let thread = client.within(move || {
        let connect = |target| TcpStream::connect_timeout(&target, END).expect("a connection");
        let streams: Vec<TcpStream> =
            targets.iter().flat_map(|target| (0..each).map(move |_| connect(*target))).collect();
        opened.send(()).expect("the test waits");
        let _ = wait.recv();
        let answer = |mut stream: TcpStream| {
            stream.set_read_timeout(Some(END)).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text.split("\r\n\r\n").nth(1)?.split_whitespace().next()?.to_owned())
        };
        streams.into_iter().map(answer).collect()
    });
    all_opened.recv_timeout(END).expect("the connections are open");
    (speak, thread)
}

#[test]
fn connections_of_a_removed_endpoint_end_when_its_drain_does_silent_ones_too_and_over_a_restart() {
    const DRAIN: Duration = Duration::from_secs(4);
    for mode in MODES {
        let network = network(&format!("drain-{mode}"));
        let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
        let notes = [format!("millrace.dev/mode: {mode}"), "millrace.dev/drain: 4s".to_owned()];
        let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
        gateway.manifest("web.yaml", &network.manifest(&[1, 2], &notes));
        let mut process = gateway.start();
        let (speak, silent) = silent(&network.client, [network.vip(false), network.vip(true)], 20);
        let flows = |gateway: &Gateway, address: IpAddr| {
            let rows = gateway.json(&["flows", "--backend", &address.to_string()]);
            rows.as_array().map_or(0, Vec::len)
        };
        let count = |gateway: &Gateway, number: usize| {
            [false, true].map(|ipv6| flows(gateway, network.backend_address(number, ipv6)))
        };
        let (first, second) = (count(&gateway, 1), count(&gateway, 2));
        assert!(first.iter().chain(&second).all(|count| *count > 0), "{first:?} {second:?}");
        let removed = Instant::now();
        change(&gateway, &network, ("web.yaml", &network.manifest(&[2], &notes)), &[(2, "usable")]);
        // A busy machine may take that long for a question.
        let still_drains = |gateway: &Gateway, when: &str| {
            let now = count(gateway, 1);
            assert!(now == first || removed.elapsed() >= DRAIN, "{mode}, {when}: {now:?}, expected {first:?}");
        };
        still_drains(&gateway, "it drains");
        killed(&mut process);
        process = gateway.start();
        still_drains(&gateway, "it still drains");
        eventually("silent connections end", END, || {
            let now = count(&gateway, 1);
            if now == [0, 0] { Ok(()) } else { Err(format!("{now:?} after {:?}", removed.elapsed())) }
        });
        let ended = removed.elapsed();
        assert!(ended >= DRAIN, "{mode}: {ended:?}");
        assert_eq!(count(&gateway, 2), second, "{mode}: others are untouched");
        speak.send(()).expect("the connections are open");
        let answers = silent.join().expect("the connections");
        let by_second = answers.iter().filter(|answer| answer.as_deref() == Some("b2")).count();
        let ended_ones = answers.iter().filter(|answer| answer.is_none()).count();
        let expected = (second.iter().sum::<usize>(), first.iter().sum::<usize>());
        assert_eq!((by_second, ended_ones), expected, "{mode}: {answers:?}");
        println!("{mode}: {ended_ones} connections ended {ended:?} after their endpoint was removed");
        assert!(gateway.admin(&["stop"]).status.success());
        assert!(process.wait(END).is_some());
    }
}
