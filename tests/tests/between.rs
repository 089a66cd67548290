//! Between two instances the kernel stays silent: it answers nothing that is for an address or port of a Service.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use millrace_tests::datagrams;
use millrace_tests::lab::{Host, Process};
use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::{Network, VIP, VIP6};
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;

const END: Duration = Duration::from_secs(30);
/// What the client counts when it is answered by a reset or an ICMP error.
const REFUSALS: [&str; 4] = ["TcpAttemptFails", "TcpEstabResets", "IcmpInDestUnreachs", "Icmp6InDestUnreachs"];
/// Addresses of the Service: its own, and the gateway's, for whose ports the kernel would answer itself.
const TARGETS: [(&str, u16, u16); 4] =
    [(VIP, 80, 81), (VIP6, 80, 81), ("10.81.1.1", 30080, 30081), ("fd81:1::1", 30080, 30081)];

fn refusals(client: &Host) -> [u64; 4] {
    REFUSALS.map(|counter| client.nstat(counter))
}

fn targets() -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    TARGETS.iter().map(|(address, tcp, udp)| {
        let address: IpAddr = address.parse().expect("an address");
        (SocketAddr::new(address, *tcp), SocketAddr::new(address, *udp))
    })
}

/// TCP and UDP by the Service's addresses and by NodePorts, of both families.
fn manifest(network: &Network) -> String {
    let service = "  - {name: web, port: 80, targetPort: 8080, nodePort: 30080}\n  \
        - {name: echo, port: 81, protocol: UDP, targetPort: 7777, nodePort: 30081}\n";
    let endpoints = "  - {name: web, port: 8080}\n  - {name: echo, port: 7777, protocol: UDP}\n";
    let text = network.manifest(&[1, 2], &[]).replace("  - port: 80\n    targetPort: 8080\n", service);
    text.replace("  - port: 8080\n", endpoints)
}

/// Waits until the client sent much of what nobody answered.
fn await_silence_met(client: &Host) {
    let before = client.nstat("TcpRetransSegs");
    eventually("the client sends again what was not answered", END, || {
        let now = client.nstat("TcpRetransSegs");
        if now >= before + 60 { Ok(()) } else { Err(format!("{} segments", now - before)) }
    });
}

/// Follows an instance by another under load on all targets; nobody may be told that there is no one.
fn nobody_is_refused(name: &str, follow: impl Fn(&mut Gateway, Process, &Host) -> Process) {
    let network = Network::two_nics(name, 2, 1);
    let config = network.config("serve: [loadBalancer, nodePort]");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    gateway.manifest("web.yaml", &manifest(&network));
    for (number, backend) in (1..).zip(&network.backends) {
        for ipv6 in [false, true] {
            datagrams::echo(backend, SocketAddr::new(network.backend_address(number, ipv6), 7777));
        }
    }
    let client = &network.client;
    let mut process = gateway.start();
    let held: Vec<_> = targets().map(|(tcp, _)| load::hold(client, tcp, 5, Duration::from_millis(5))).collect();
    let asking: Vec<_> = targets().map(|(_, udp)| datagrams::ask(client, udp, 3)).collect();
    let fresh: Vec<_> = targets().map(|(tcp, _)| load::steady(client, tcp, 1)).collect();
    let all_answered = || {
        held.iter().for_each(|held| held.await_each(END));
        held.iter().for_each(|held| held.await_answers(50, END));
        asking.iter().for_each(|asking| asking.await_answers(50, END));
        fresh.iter().for_each(|fresh| fresh.await_answers(20, END));
    };
    all_answered();
    let before = refusals(client);
    process = follow(&mut gateway, process, client);
    all_answered();
    let after = refusals(client);
    for ((held, asking), (fresh, target)) in held.into_iter().zip(asking).zip(fresh.into_iter().zip(TARGETS)) {
        let (held, asking, fresh) = (held.finish(), asking.finish(), fresh.finish());
        assert!(held.failures.is_empty(), "{name}: {target:?}: connections broke: {:?}", held.failures);
        assert!(fresh.failures.is_empty(), "{name}: {target:?}: requests failed: {:?}", fresh.failures);
        assert_eq!(asking.1, 0, "{name}: {target:?}: datagrams were refused");
        println!("{name}: {target:?}: {} held, {} fresh, {} datagrams", held.answered, fresh.answered, asking.0);
    }
    assert_eq!(before, after, "{name}: {REFUSALS:?} of the client");
    // And it would be seen: when nothing is steered any more, the kernel does refuse.
    assert!(gateway.admin(&["stop"]).status.success(), "stop: {}", gateway.log_text());
    assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
    for (tcp, udp) in targets().skip(2) {
        assert_eq!(load::requests(client, tcp, 1, 1).failures.len(), 1, "{tcp} after stop");
        let asking = datagrams::ask(client, udp, 1);
        eventually("the kernel refuses datagrams", END, || {
            let now = refusals(client)[if udp.is_ipv6() { 3 } else { 2 }];
            if now > 0 { Ok(()) } else { Err(format!("{now}")) }
        });
        // Its kernel counts it before the socket that asked is told.
        asking.await_refusal(END);
        let _ = asking.finish();
    }
    assert!(refusals(client)[0] >= before[0] + 2, "{REFUSALS:?}: {:?}", refusals(client));
}

#[test]
fn nobody_is_refused_between_kill_9_and_a_start() {
    nobody_is_refused("between-kill", |gateway, mut process, client| {
        process.signal(Signal::SIGKILL);
        assert!(process.wait(END).is_some());
        await_silence_met(client);
        gateway.start()
    });
}

#[test]
fn nobody_is_refused_between_sigterm_and_a_start() {
    nobody_is_refused("between-term", |gateway, mut process, client| {
        process.signal(Signal::SIGTERM);
        assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
        await_silence_met(client);
        gateway.start()
    });
}

#[test]
fn nobody_is_refused_during_an_upgrade() {
    nobody_is_refused("between-up", |gateway, mut process, _| {
        let successor = gateway.start();
        assert!(process.wait(END).is_some_and(|status| status.success()), "{}", gateway.log_text());
        successor
    });
}
