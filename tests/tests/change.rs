//! Manifests that change under load, and manifests that are wrong.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

/// How long what nothing is said of may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn await_generation(gateway: &Gateway, more_than: u64) {
    eventually("a change is in force", SOON, || {
        let now = gateway.json(&["status"])["generation"].as_u64().unwrap_or(0);
        if now > more_than { Ok(()) } else { Err(format!("generation {now}")) }
    });
}

fn generation(gateway: &Gateway) -> u64 {
    gateway.json(&["status"])["generation"].as_u64().expect("a generation")
}

#[test]
fn two_hundred_changes_under_load_break_no_connection_and_fail_no_request() {
    let network = Network::two_nics("change", 3, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[]));
    let _process = gateway.start();
    let families = [false, true];
    let held = families.map(|ipv6| load::hold(&network.client, network.vip(ipv6), 15, Duration::from_millis(20)));
    held.iter().for_each(|held| held.await_each(SOON));
    let requests = families.map(|ipv6| load::steady(&network.client, network.vip(ipv6), 5));
    // b3 comes and goes, weights move; b1 and b2 stay. b3's server stays up, as a pod being drained does. A busy
    // machine may let changes be made faster than requests: then there are more.
    let enough = |turn: usize| turn >= 200 && requests.iter().all(|requests| requests.answered() >= 3_000);
    for turn in (0..2_000_usize).take_while(|turn| !enough(*turn)) {
        let before = generation(&gateway);
        let numbers: &[usize] = if turn % 2 == 0 { &[1, 2] } else { &[1, 2, 3] };
        let weights = format!("millrace.dev/weights: \"{}={}\"", network.backend_address(1, false), 1 + turn % 7);
        gateway.manifest("web.yaml", &network.manifest(numbers, &[&weights]));
        await_generation(&gateway, before);
    }
    for ((held, requests), ipv6) in held.into_iter().zip(requests).zip(families) {
        let over = requests.answered();
        held.await_answers(100, SOON);
        let held = held.finish();
        assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
        let requests = requests.finish();
        assert!(requests.failures.is_empty(), "requests failed: {:?}", requests.failures);
        assert!(over >= 3_000, "only {over} requests while 2,000 changes were made, ipv6 {ipv6}");
        println!("ipv6 {ipv6}: held {} answers, requests {over} answers over the changes", held.answered);
    }
}

/// Where the machine let this thread stand for as long, another one may have missed the 50 ms that a change waits for
/// next hops.
const STANDS: Duration = Duration::from_millis(10);

#[test]
fn the_first_packets_to_new_endpoints_find_their_next_hops() {
    let network = Network::two_nics("next-hops", 6, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let _process = gateway.start();
    let requests = [false, true].map(|ipv6| load::steady(&network.client, network.vip(ipv6), 2));
    let answered = || requests.iter().for_each(|requests| requests.await_answers(20, SOON));
    let dropped = || gateway.metric("millrace_drops_total", "next_hop_unresolved");
    answered();
    let mut lossy = Vec::new();
    // The only endpoint makes way for one that the gateway has never talked to.
    for number in 2..=6 {
        let (before, pulse) = (dropped(), Pulse::begin());
        gateway.manifest("web.yaml", &network.manifest(&[number], &[]));
        let address = network.backend_address(number, false).to_string();
        eventually("a change is in force", SOON, || {
            let backends = gateway.json(&["backends"]).to_string();
            if backends.contains(&address) { Ok(()) } else { Err(backends) }
        });
        answered();
        let (more, stood) = (dropped() - before, pulse.longest());
        println!("b{number}: {more} packets dropped; the machine stood for {stood:?}");
        lossy.extend((more > 0.0).then_some(stood));
    }
    for requests in requests {
        let outcome = requests.finish();
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }
    let excused = lossy.len() < 5 && lossy.iter().all(|stood| *stood >= STANDS);
    assert!(excused, "first packets were lost; meanwhile the machine stood for {lossy:?}\n{}", gateway.log_text());
}

#[test]
fn a_bad_manifest_is_named_by_file_line_and_field_and_the_old_state_keeps_serving() {
    let network = Network::two_nics("bad", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let good = network.manifest(&[1], &[]);
    gateway.manifest("web.yaml", &good);
    let _process = gateway.start();
    let clash = "apiVersion: v1\nkind: Service\nmetadata:\n  name: clash\n  annotations:\n    \
         millrace.dev/addresses: 10.81.1.100\nspec:\n  type: LoadBalancer\n  ports:\n  - port: 80\n";
    let cases = [
        ("broken YAML", "web.yaml", "apiVersion: v1\nkind: [Service\n".to_owned(), "web.yaml:"),
        (
            "an unknown annotation",
            "web.yaml",
            network.manifest(&[1], &["millrace.dev/colour: red"]),
            "millrace.dev/colour",
        ),
        (
            "an impossible Endpoints address",
            "web.yaml",
            good.replace(&format!("\"{}\"", network.backend_address(1, false)), "\"127.0.0.1\""),
            "127.0.0.1",
        ),
        ("a port clash", "zz-clash.yaml", clash.to_owned(), "10.81.1.100"),
    ];
    for (what, file, text, names) in cases {
        gateway.manifest(file, &text);
        let output = gateway
            .host
            .command(millrace_tests::millrace::binary())
            .args(["check", "--config"])
            .arg(gateway.config())
            .output()
            .expect("millrace check");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: check says {said}");
        let line = said.lines().find(|l| l.contains(names)).unwrap_or_else(|| panic!("{what}: {said}"));
        let place = line.split(file).nth(1).and_then(|rest| rest.strip_prefix(':')).unwrap_or("");
        assert!(place.starts_with(|c: char| c.is_ascii_digit()), "{what}: no file and line in {line:?}");
        eventually("the running instance says it too", SOON, || {
            let log = gateway.log_text();
            if log.contains(names) { Ok(()) } else { Err(log) }
        });
        let outcome = load::requests(&network.client, network.vip(false), 20, 4);
        assert_eq!((outcome.answered, outcome.failures.len()), (20, 0), "{what}: no longer served: {outcome:?}");
        println!("{what}: {line}");
        gateway.manifest("web.yaml", &good);
        let _ = fs::remove_file(gateway.dir.join("manifests/zz-clash.yaml"));
    }
}

/// The generation in force, asked without a process of its own.
fn generation_at(socket: &Path) -> u64 {
    let mut stream = UnixStream::connect(socket).expect("the admin socket");
    stream.write_all(b"{\"do\":\"status\"}\n").expect("a question");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    let answer: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    answer.as_object().and_then(|a| a.values().next()).map_or(0, |v| v["generation"].as_u64().unwrap_or(0))
}

#[test]
fn an_atomic_change_is_in_force_at_once() {
    let network = Network::two_nics("quick", 2, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let _process = gateway.start();
    let socket = gateway.dir.join("run/admin.sock");
    let mut times = Vec::new();
    for turn in 0..40_usize {
        let before = generation_at(&socket);
        assert!(before > 0);
        let (begun, pulse) = (Instant::now(), Pulse::begin());
        gateway.manifest("web.yaml", &network.manifest(if turn % 2 == 0 { &[1] } else { &[1, 2] }, &[]));
        while generation_at(&socket) <= before {
            assert!(begun.elapsed() < SOON, "{}", gateway.log_text());
        }
        let took = begun.elapsed();
        times.push(took.saturating_sub(pulse.longest()));
    }
    times.sort();
    println!("change to in force while the machine ran: median {:?}, at most {:?}", times[20], times[39]);
    assert!(times[20] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn files_written_in_place_emptied_or_spoilt_fail_no_request() {
    let network = Network::two_nics("inplace", 2, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let _process = gateway.start();
    let manifests = gateway.dir.join("manifests");
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(20));
    held.await_answers(50, SOON);
    let (client, target) = (network.client.clone(), network.vip(false));
    let requests = std::thread::spawn(move || load::requests(&client, target, 3_000, 4));
    // Truncated, then in chunks, at whose ends there may be whole objects.
    let pulse = Pulse::begin();
    for turn in 0..3_usize {
        let before = generation(&gateway);
        let text = network.manifest(if turn % 2 == 0 { &[1] } else { &[1, 2] }, &[]);
        let mut file = File::create(manifests.join("web.yaml")).expect("the manifest");
        for part in text.as_bytes().chunks(text.len().div_ceil(10)) {
            std::thread::park_timeout(Duration::from_millis(50));
            file.write_all(part).expect("the manifest");
        }
        drop(file);
        await_generation(&gateway, before);
    }
    // What a writer lets rest for a second counts as it is: so does what a machine that stands lets rest.
    let (log, stood) = (gateway.log_text(), pulse.longest());
    let rested = stood >= Duration::from_millis(500);
    assert!(rested || !log.contains("ERROR"), "{log}");
    let whole = network.manifest(&[1], &[]);
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 3] = [
        ("emptied", |m| fs::write(m.join("web.yaml"), "").expect("the manifest"), "delete the file to remove"),
        ("Latin-1", |m| fs::write(m.join("web.yaml"), b"# caf\xe9\n").expect("the manifest"), "0xe9 is no UTF-8"),
        ("the folder gone", |m| fs::rename(m, m.with_extension("away")).expect("the folder"), "cannot be read"),
    ];
    for (what, spoil, says) in cases {
        spoil(&manifests);
        eventually(what, SOON, || {
            let log = gateway.log_text();
            if log.contains(says) { Ok(()) } else { Err(log) }
        });
        let outcome = load::requests(&network.client, network.vip(false), 20, 4);
        assert_eq!((outcome.answered, outcome.failures.len()), (20, 0), "{what}: no longer served: {outcome:?}");
        let _ = fs::rename(manifests.with_extension("away"), &manifests);
        gateway.manifest("web.yaml", &whole);
    }
    let requests = requests.join().expect("the requests");
    let failed = !requests.failures.is_empty();
    assert!(rested || !failed, "requests failed: {:?}; the machine stood for {stood:?}", requests.failures);
    let held = held.finish();
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
    // Deleted for good.
    fs::remove_file(manifests.join("web.yaml")).expect("the manifest");
    eventually("it is gone", SOON, || {
        let services = gateway.json(&["services"]);
        if services.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(services.to_string()) }
    });
}

#[test]
fn a_manifests_path_that_is_not_there_is_refused_before_a_hand_over_and_by_a_reload() {
    let network = Network::two_nics("nopath", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let mut process = gateway.start();
    let good = fs::read_to_string(gateway.config()).expect("the configuration");
    let typo = good.replace("/manifests]", "/manifest]").replace("interfaces: [eth0, eth1]", "interfaces: [eth0]");
    assert_ne!(good, typo);
    fs::write(gateway.config(), &typo).expect("the configuration");
    let mut successor = gateway.launch();
    let status = successor.wait(SOON).unwrap_or_else(|| panic!("it runs: {}", gateway.log_text()));
    assert_eq!(status.code(), Some(2), "{}", gateway.log_text());
    process.signal(nix::sys::signal::Signal::SIGHUP);
    let says = |what: &'static str| {
        eventually(what, SOON, || {
            let log = gateway.log_text();
            if log.contains(what) { Ok(()) } else { Err(log) }
        });
    };
    says("the old configuration goes on");
    // What only a successor can change is named, and status tells what is so.
    fs::write(gateway.config(), good.replace("127.0.0.1:9477", "127.0.0.1:9478")).expect("the configuration");
    process.signal(nix::sys::signal::Signal::SIGHUP);
    says("setting=\"metrics\"");
    assert!(process.is_running());
    assert_eq!(load::requests(&network.client, network.vip(false), 20, 4).answered, 20);
    assert!(gateway.metric("millrace_tables_generation", "") > 0.0);
}

#[test]
fn a_newcomer_that_claims_what_a_service_in_force_has_changes_nothing_for_it() {
    let network = Network::two_nics("claims", 2, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let good = network.manifest(&[1, 2], &[]);
    gateway.manifest("web.yaml", &good);
    let _process = gateway.start();
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(20));
    held.await_answers(50, SOON);
    let served = || {
        let services = gateway.json(&["services"]).as_array().cloned().unwrap_or_default();
        services.into_iter().find(|service| service["name"] == "web").map(|web| web["addresses"].clone())
    };
    let before = served().expect("web");
    let backends = [network.backend_address(1, false), network.backend_address(2, false)];
    let external = |ips: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: aa}}\n\
             spec: {{externalIPs: [{ips}], ports: [{{port: {port}}}]}}\n"
        )
    };
    let endpoints = format!("{}, {}", backends[0], backends[1]);
    let cases = [
        ("a faulty one of its name", good.replace("- port: 80\n", "- poret: 80\n"), "a second time"),
        ("a sound one of its name", good.replace("- port: 80\n", "- port: 81\n"), "a second time"),
        ("its address and port", external(&network.vip(false).ip().to_string(), 80), "is the address of default/web"),
        ("its endpoints", external(&endpoints, 8080), "at an endpoint of default/web"),
        ("its endpoints' addresses", external(&endpoints, 80), "at an endpoint of default/web"),
    ];
    for (at, (what, text, says)) in cases.into_iter().enumerate() {
        let (client, target) = (network.client.clone(), network.vip(false));
        let requests = std::thread::spawn(move || load::requests(&client, target, 500, 4));
        // A finding is told once, so each has a file of its own.
        let file = format!("aa{at}.yaml");
        gateway.manifest(&file, &text);
        eventually(what, SOON, || {
            let log = gateway.log_text();
            let told = log.lines().any(|line| line.contains(says) && line.contains(&format!("{file}:")));
            if told { Ok(()) } else { Err(log) }
        });
        held.await_answers(50, SOON);
        let requests = requests.join().expect("the requests");
        assert!(requests.failures.is_empty(), "{what}: requests failed: {:?}", requests.failures);
        let after = load::requests(&network.client, network.vip(false), 50, 4);
        assert_eq!((after.answered, after.failures.len()), (50, 0), "{what}: {after:?}");
        assert_eq!(served().as_ref(), Some(&before), "{what}");
        fs::remove_file(gateway.dir.join("manifests").join(&file)).expect("the newcomer");
        eventually("the newcomer is gone", SOON, || {
            let services = gateway.json(&["services"]);
            if services.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(services.to_string()) }
        });
    }
    let held = held.finish();
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
}
