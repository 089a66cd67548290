//! `make demo`: a client, a gateway and three backends in network namespaces; Millrace run as a user would; real
//! requests by curl and dig. `STAY=1` leaves it up until Enter or Ctrl-C.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_tests::lab::{Host, Process};
use millrace_tests::millrace::{Gateway, binary};
use millrace_tests::topology::{MY_SERVICE, Network, VIP, VIP6};
use millrace_tests::{servers, wait::eventually};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

const DNS_VIP: &str = "10.81.1.101";

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("demo: needs root for network namespaces and AF_XDP: run 'sudo make demo'");
        std::process::exit(1);
    }
    catch_interrupts();
    say("A client, a gateway with two NICs, three backends: network namespaces joined by veth");
    let network = Network::two_nics("demo", 3, 1);
    let _servers = more_servers(&network);
    let mut gateway = Gateway::new(
        &network.gateway,
        network.lab.dir(),
        &network.config("serve: [loadBalancer, externalIPs, clusterIP]\nserviceRange: [10.96.0.0/16]"),
    );
    write_manifests(&network, &gateway, &[1, 2, 3]);
    network.client.route("10.96.0.0/16 via 10.81.1.1");

    say(&format!("millrace run --config {}", gateway.config().display()));
    let mut process = gateway.start();
    print_admin(&gateway, &["services"]);
    requests(&network, &gateway);
    take_away_and_bring_back(&network, &gateway);
    print_admin(&gateway, &["backends"]);
    print_admin(&gateway, &["status"]);
    if std::env::var("STAY").is_ok_and(|v| !v.is_empty()) {
        stay(&network, &gateway);
    }
    say("millrace stop");
    let output = gateway.admin(&["stop"]);
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "millrace stop failed");
    assert!(process.wait(Duration::from_secs(30)).is_some(), "millrace did not end after stop");
    println!("\nAll of it worked. `make demo STAY=1` leaves it up to play with; README.md says where to read on.");
}

/// Whether Ctrl-C was pressed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is looked at between steps, so that everything is taken down again. What is started inherits that
/// it does not end by Ctrl-C; the lab ends it.
fn catch_interrupts() {
    let signals = SigSet::from(Signal::SIGINT);
    signals.thread_block().expect("SIGINT can be blocked");
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
}

fn say(text: &str) {
    if INTERRUPTED.load(Ordering::Relaxed) {
        eprintln!("demo: interrupted, taking everything down");
        // Unwinds, so that the lab is dropped.
        std::panic::resume_unwind(Box::new(()));
    }
    println!("\n\u{25b6} {text}");
}

/// A DNS server on the first two backends, and the machine 1.2.3.4 behind the third.
fn more_servers(network: &Network) -> Vec<Process> {
    servers::require(&["dnsmasq", "dig", "curl"]);
    let dir = network.lab.dir();
    let mut processes: Vec<Process> = [1, 2]
        .iter()
        .map(|&n| {
            let address = network.backend_address(n, false).to_string();
            servers::dns(&network.backends[n - 1], dir, &format!("b{n}"), &address, "192.0.2.53")
        })
        .collect();
    let far = &network.backends[2];
    far.address("lo", "1.2.3.4/32");
    network.gateway.route("1.2.3.4/32 via 10.82.1.13");
    processes.push(servers::nginx(far, dir, "machine-1.2.3.4", &["1.2.3.4:9376"]));
    processes
}

fn write_manifests(network: &Network, gateway: &Gateway, backends: &[usize]) {
    gateway.manifest("web.yaml", &network.manifest(backends, &[]));
    gateway.manifest("dns.yaml", &network.dns_manifest(DNS_VIP));
    gateway.manifest("my-service.yaml", MY_SERVICE);
}

fn requests(network: &Network, gateway: &Gateway) {
    say(&format!("60 requests to http://{VIP}/ and 60 to http://[{VIP6}]/: who answered"));
    println!("  IPv4: {}", shares(&ask(&network.client, VIP, 60)));
    println!("  IPv6: {}", shares(&ask(&network.client, &format!("[{VIP6}]"), 60)));
    say(&format!("dig @{DNS_VIP}, over UDP and over TCP"));
    for tcp in ["+notcp", "+tcp"] {
        let mut count = BTreeMap::new();
        for _ in 0..10 {
            let server = format!("@{DNS_VIP}");
            let args = [&server, tcp, "+short", "+time=2", "+tries=5", "who.test", "TXT"];
            let answer = network.client.run("dig", args);
            let name = answer.trim().trim_matches('"').to_owned();
            assert!(name == "b1" || name == "b2", "dig {tcp}: {answer:?}");
            *count.entry(name).or_insert(0) += 1;
        }
        println!("  {tcp}: {}", shares(&count));
    }
    let cluster_ip = find_cluster_ip(gateway);
    say(&format!("my-service got the ClusterIP {cluster_ip}; its only endpoint is 1.2.3.4:9376, behind a router"));
    println!("  {}", shares(&ask(&network.client, &cluster_ip, 5)));
}

fn ask(client: &Host, host: &str, times: usize) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    let url = format!("http://{host}/");
    for _ in 0..times {
        let answer = client.run("curl", ["-gsS", "--max-time", "20", &url]);
        *count.entry(answer.split(' ').next().unwrap_or("").to_owned()).or_insert(0) += 1;
    }
    count
}

fn shares(count: &BTreeMap<String, usize>) -> String {
    count.iter().map(|(name, n)| format!("{name} {n} times")).collect::<Vec<_>>().join(", ")
}

/// The ClusterIP that Millrace gave to `my-service`.
fn find_cluster_ip(gateway: &Gateway) -> String {
    let text = gateway.json(&["services", "--service", "default/my-service"]).to_string();
    let start = text.find("10.96.").unwrap_or_else(|| panic!("no ClusterIP in {text}"));
    text[start..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

fn take_away_and_bring_back(network: &Network, gateway: &Gateway) {
    say("Editing web.yaml: b2 taken away");
    write_manifests(network, gateway, &[1, 3]);
    await_backend(network, gateway, false);
    let seen = ask(&network.client, VIP, 40);
    println!("  {}", shares(&seen));
    assert!(!seen.contains_key("b2"), "b2 still answers");
    say("Editing web.yaml: b2 back");
    write_manifests(network, gateway, &[1, 2, 3]);
    await_backend(network, gateway, true);
    let seen = ask(&network.client, VIP, 60);
    println!("  {}", shares(&seen));
    assert!(seen.contains_key("b2"), "b2 does not answer again");
}

/// Waits until b2 is in force as a backend of `web`, or is none any more.
fn await_backend(network: &Network, gateway: &Gateway, is_one: bool) {
    let b2 = network.backend_address(2, false).to_string();
    eventually("the change is in force", Duration::from_secs(30), || {
        let rows = gateway.json(&["backends", "--service", "default/web"]);
        let found = rows.as_array().is_some_and(|rows| rows.iter().any(|row| row["address"] == b2));
        if found == is_one { Ok(()) } else { Err(rows.to_string()) }
    });
}

fn print_admin(gateway: &Gateway, words: &[&str]) {
    say(&format!("millrace {}", words.join(" ")));
    let output = gateway.admin(words);
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn stay(network: &Network, gateway: &Gateway) {
    let enter = |host: &Host| format!("nsenter --net=/run/netns/{}", host.netns);
    let admin = gateway.dir.join("run/admin.sock");
    say("It stays up. In another terminal, as root:");
    println!("  {} curl http://{VIP}/", enter(&network.client));
    println!("  {} curl -g 'http://[{VIP6}]/'", enter(&network.client));
    println!("  {} dig @{DNS_VIP} who.test TXT", enter(&network.client));
    println!("  {} flows --admin {}", show(&binary()), admin.display());
    println!("  {} explain 10.81.1.2:40000 {VIP}:80/tcp --admin {}", show(&binary()), admin.display());
    println!("  $EDITOR {}", gateway.dir.join("manifests/web.yaml").display());
    println!("Enter, Ctrl-C or the end of input takes it down.");
    let stdin = std::io::stdin();
    let mut entered = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    while !INTERRUPTED.swap(false, Ordering::Relaxed) {
        if poll(&mut entered, PollTimeout::from(200_u8)).is_ok_and(|ready| ready > 0) {
            break;
        }
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
