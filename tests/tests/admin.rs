//! What people ask a running instance, and what it leaves behind.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use millrace_tests::lab::Process;
use millrace_tests::load;
use millrace_tests::millrace::{Gateway, binary};
use millrace_tests::topology::{Network, VIP};
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

fn started(network: &Network, backends: &[usize]) -> (Gateway, Process) {
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(backends, &[]));
    let process = gateway.start();
    (gateway, process)
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_drained_backend_gets_no_new_flows_keeps_its_old_ones_and_comes_back() {
    let network = Network::two_nics("drain", 3, 1);
    let (gateway, _process) = started(&network, &[1, 2, 3]);
    let held = load::hold(&network.client, network.vip(false), 30, Duration::from_millis(10));
    held.await_answers(100, SOON);
    let backend = SocketAddr::new(network.backend_address(2, false), 8080).to_string();
    let output = gateway.admin(&["drain", &backend]);
    assert!(output.status.success(), "{}", said(&output));
    let before = gateway.json(&["flows", "--backend", &backend, "--service", "default/web"]);
    assert!(!rows(&before).is_empty(), "none of the held connections is b2's");
    let row = gateway.json(&["backends", "--backend", &backend])[0].clone();
    assert!(row["state"] == "draining" && row["drained"] == true, "{row}");
    let drained = load::requests(&network.client, network.vip(false), 300, 10);
    assert_eq!((drained.answered, drained.by_server.get("b2")), (300, None), "{drained:?}");
    held.await_answers(300, SOON);
    let output = gateway.admin(&["undrain", &backend]);
    assert!(output.status.success(), "{}", said(&output));
    let again = load::requests(&network.client, network.vip(false), 300, 10);
    assert!(again.failures.is_empty() && again.by_server.contains_key("b2"), "{again:?}");
    let held = held.finish();
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
    assert!(held.by_server.contains_key("b2"), "{:?}", held.by_server);
    println!("drained {:?}, again {:?}", drained.by_server, again.by_server);
}

#[test]
fn flows_are_listed_and_filtered_by_service_backend_and_source() {
    /// So many that both backends get some of them.
    const HELD: usize = 24;
    let network = Network::two_nics("flows", 2, 1);
    let (gateway, _process) = started(&network, &[1, 2]);
    let held = load::hold(&network.client, network.vip(false), HELD, Duration::from_millis(20));
    held.await_each(SOON);
    let all = gateway.json(&["flows"]);
    assert_eq!(rows(&all).len(), HELD, "{all}");
    for flow in rows(&all) {
        assert_eq!(flow["vip"], format!("{VIP}:80"), "{flow}");
        assert_eq!((&flow["service"], &flow["state"]), (&"default/web".into(), &"established".into()), "{flow}");
        assert_eq!((&flow["protocol"], &flow["mode"]), (&"tcp".into(), &"nat".into()), "{flow}");
    }
    let count = |words: &[&str]| rows(&gateway.json(&[&["flows"], words].concat())).len();
    let of = [1, 2].map(|n| count(&["--backend", &network.backend_address(n, false).to_string()]));
    assert_eq!(of[0] + of[1], HELD, "by backend: {of:?}");
    assert_eq!((count(&["--source", "10.81.1.2"]), count(&["--source", "10.81.1.3"])), (HELD, 0));
    assert_eq!((count(&["--service", "default/web"]), count(&["--service", "web"])), (HELD, HELD));
    assert_eq!(count(&["--limit", "5"]), 5);
    let limited = gateway.admin(&["backends", "--limit", "1", "-o", "json"]);
    assert!(said(&limited).contains("--limit gives more"), "{}", said(&limited));
    for listing in ["services", "backends", "flows"] {
        let output = gateway.admin(&[listing, "--service", "default/other"]);
        assert_eq!(output.status.code(), Some(1), "{listing}: {}", said(&output));
        assert!(output.stdout.is_empty() && said(&output).contains("no such Service: default/other"), "{listing}");
    }
    // With a client only what has flows of it is listed.
    let of = |listing, client| rows(&gateway.json(&[listing, "--source", client])).len();
    assert_eq!((of("services", "10.81.1.2"), of("services", "10.81.1.3")), (1, 0));
    assert_eq!((of("backends", "10.81.1.2"), of("backends", "10.81.1.3")), (2, 0));
    assert!(held.finish().failures.is_empty());
}

#[test]
fn explain_names_the_endpoint_that_the_real_connection_then_gets() {
    let network = Network::two_nics("explain", 3, 1);
    let (gateway, _process) = started(&network, &[1, 2, 3]);
    // Of an endpoint that a machine let stand for long another one takes the connection over.
    let retried = || gateway.metric("millrace_connect_retries_total", "result=\"sent\"") > 0.0;
    let mut seen = std::collections::BTreeSet::new();
    for ipv6 in [false, true] {
        let client: IpAddr = if ipv6 { "fd81:1::2" } else { "10.81.1.2" }.parse().expect("an address");
        // Ports of their own for each family: those just used cannot be bound again at once.
        let first = if ipv6 { 42_000 } else { 41_000 };
        for port in first..first + 12 {
            let target = network.vip(ipv6);
            let answer =
                gateway.json(&["explain", &SocketAddr::new(client, port).to_string(), &format!("{target}/tcp")]);
            let endpoint: SocketAddr = serde_json::from_value(answer["endpoint"].clone())
                .unwrap_or_else(|e| panic!("no endpoint: {e}: {answer}"));
            let named = (1..=3).find(|n| network.backend_address(*n, ipv6) == endpoint.ip()).expect("one of ours");
            let (url, local) = (format!("http://{target}/"), port.to_string());
            let body = network.client.run("curl", ["-gsS", "--max-time", "20", "--local-port", &local, &url]);
            let fits = body.starts_with(&format!("b{named} ")) || retried();
            assert!(fits, "port {port}: explained b{named}, answered {body}");
            seen.insert(named);
        }
    }
    assert!(seen.len() > 1, "24 ports and only {seen:?} was named");
    let answer = gateway.json(&["explain", "10.81.1.2:4000", &format!("{VIP}:81/tcp")]);
    assert!(answer["verdict"].as_str().is_some_and(|v| v.contains("RST")), "{answer}");
}

#[test]
fn status_says_what_runs_and_the_admin_socket_is_roots_alone() {
    let network = Network::two_nics("status", 2, 2);
    let (gateway, process) = started(&network, &[1, 2]);
    // What queues hold is known as it was a while ago.
    let status = eventually("all frames are where they should be", SOON, || {
        let status = gateway.json(&["status"]);
        if status["frames"]["lost"] == 0 { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["pid"], process.pid(), "{status}");
    assert_eq!((&status["services"], &status["endpoints"]), (&1.into(), &4.into()), "{status}");
    let ports: Vec<&str> = rows(&status["ports"]).iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(ports, ["eth0", "eth1"], "{status}");
    assert!(rows(&status["ports"]).iter().all(|port| port["mode"] == "native" && port["queues"] == 2), "{status}");
    assert_eq!(status["errors"], Value::Array(Vec::new()), "{status}");
    let mode = fs::metadata(gateway.dir.join("run/admin.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for path in ["/healthz", "/readyz"] {
        let url = format!("http://127.0.0.1:9477{path}");
        gateway.host.run("curl", ["-fsS", "--max-time", "20", &url]);
    }
}

#[test]
fn exit_codes_tell_bad_input_from_nobody_there() {
    let network = Network::two_nics("codes", 1, 1);
    let gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let backend = network.backend_address(1, false).to_string();
    let nobody: [&[&str]; 7] = [
        &["status"],
        &["services"],
        &["backends"],
        &["flows"],
        &["explain", "10.81.1.2:4000", "10.81.1.100:80/tcp"],
        &["drain", &backend],
        &["stop"],
    ];
    for words in nobody {
        let output = gateway.admin(words);
        assert_eq!(output.status.code(), Some(3), "{words:?}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{words:?}: data without an instance");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{words:?}: {}", said(&output));
    }
    let bad: [&[&str]; 4] =
        [&["explain", "nowhere", "10.81.1.100:80/tcp"], &["drain", "b2"], &["flows", "--source", "b2"], &["statsu"]];
    for words in bad {
        assert_eq!(gateway.admin(words).status.code(), Some(2), "{words:?}");
    }
    fs::write(gateway.config(), "interfces: [eth0]\n").expect("the configuration");
    for verb in ["run", "check"] {
        let output = gateway.host.command(binary()).arg(verb).arg("--config").arg(gateway.config()).output();
        let output = output.expect("millrace");
        assert_eq!(output.status.code(), Some(2), "{verb}: {}", said(&output));
        assert!(said(&output).contains("interfaces"), "{verb}: no hint: {}", said(&output));
    }
}

#[test]
fn a_hang_up_reloads_the_configuration_and_breaks_nothing() {
    let network = Network::two_nics("reload", 1, 1);
    let (gateway, process) = started(&network, &[1]);
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(10));
    held.await_answers(50, SOON);
    let second = network.manifest(&[1], &[]).replace("name: web", "name: more").replace(VIP, "10.81.1.103");
    let second = second.replace("fd81:1::100", "fd81:1::103");
    // The folder is in force only with the new configuration.
    let more = gateway.dir.join("more");
    fs::create_dir_all(&more).expect("a folder");
    fs::write(more.join("more.yaml"), second).expect("a manifest");
    let text = fs::read_to_string(gateway.config()).expect("the configuration");
    let folders = format!("manifests: [{}, ", more.display());
    fs::write(gateway.config(), text.replace("manifests: [", &folders)).expect("the configuration");
    process.signal(Signal::SIGHUP);
    eventually("the new folder's Service is served", SOON, || {
        let listed = gateway.json(&["services"]);
        if rows(&listed).iter().any(|service| service["name"] == "more") {
            Ok(())
        } else {
            Err(format!("{listed}\n{}", gateway.log_text()))
        }
    });
    let target = SocketAddr::new("10.81.1.103".parse().expect("an address"), 80);
    let outcome = load::requests(&network.client, target, 20, 4);
    assert_eq!((outcome.answered, outcome.failures.len()), (20, 0), "{outcome:?}");
    held.await_answers(50, SOON);
    assert!(held.finish().failures.is_empty());
}

#[test]
fn stop_removes_all_that_was_made_and_a_second_stop_finds_nothing() {
    let network = Network::two_nics("stop", 1, 1);
    // SNAT by the host's own address, for its ports get reserved.
    let own = network.config("").replace(
        "addresses: [10.82.1.100, \"fd82:1::1:100\"]",
        "addresses: [10.82.1.1, \"fd82:1::1\"], ports: 61000-64000",
    );
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &own);
    gateway.manifest("web.yaml", &network.manifest(&[1], &[]));
    let reserved =
        |gateway: &Gateway| gateway.host.run("cat", ["/proc/sys/net/ipv4/ip_local_reserved_ports"]).trim().to_owned();
    gateway.host.sysctl("net.ipv4.ip_local_reserved_ports", "9999");
    let mut process = gateway.start();
    assert_eq!(load::requests(&network.client, network.vip(false), 20, 4).answered, 20);
    let runtime = gateway.dir.join("run");
    let mounted = || {
        let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
        mounts.lines().any(|line| line.contains(&*runtime.to_string_lossy()))
    };
    assert!(mounted() && runtime.join("flows").exists());
    assert!(fs::read_dir(runtime.join("bpf")).is_ok_and(|mut pins| pins.next().is_some()), "nothing is pinned");
    assert_eq!(reserved(&gateway), "9999,61000-64000");
    let output = gateway.admin(&["stop"]);
    assert!(output.status.success(), "{}\n{}", said(&output), gateway.log_text());
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{}", gateway.log_text());
    assert!(!mounted(), "bpffs is left mounted");
    assert!(!runtime.exists(), "left: {:?}", fs::read_dir(&runtime).map(|files| files.flatten().collect::<Vec<_>>()));
    assert_eq!(reserved(&gateway), "9999");
    for interface in &network.interfaces {
        let text = gateway.host.run("ip", ["-d", "link", "show", "dev", interface]);
        assert!(!text.contains("xdp"), "an XDP program is left on {interface}: {text}");
    }
    let output = gateway.admin(&["stop"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
}

#[test]
fn stop_cleans_up_after_a_killed_instance() {
    let network = Network::two_nics("stop-dead", 1, 1);
    let (gateway, mut process) = started(&network, &[1]);
    process.signal(Signal::SIGKILL);
    assert!(process.wait(SOON).is_some());
    let output = gateway.admin(&["stop"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!gateway.dir.join("run").exists(), "the runtime folder is left");
    for interface in &network.interfaces {
        let text = gateway.host.run("ip", ["-d", "link", "show", "dev", interface]);
        assert!(!text.contains("xdp"), "an XDP program is left on {interface}: {text}");
    }
    assert_eq!(gateway.admin(&["stop"]).status.code(), Some(3));
}

#[test]
fn stop_removes_nothing_where_a_name_of_ours_is_somebody_elses() {
    let network = Network::two_nics("foreign", 1, 1);
    let (gateway, mut process) = started(&network, &[1]);
    let precious = network.lab.dir().join("important");
    fs::write(&precious, "precious").expect("a file");
    let other = network.lab.dir().join("other");
    fs::create_dir_all(other.join("bpf")).expect("a folder");
    for name in ["flows", "bpf/pin", "reserved-ports"] {
        fs::write(other.join(name), "precious").expect("a file");
    }
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let none = text(&network.lab.dir().join("none.sock"));
    for words in [vec!["stop", "--admin", &text(&precious)], vec!["stop", "--admin", &none, "--runtime", &text(&other)]]
    {
        let output = gateway.host.command(binary()).args(&words).output().expect("millrace");
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(words[words.len() - 1]), "{words:?} names no path: {}", said(&output));
    }
    // Nor what belongs to an instance that runs, whose socket was not named.
    let mut stop = gateway.host.command(binary());
    stop.args(["stop", "--admin", &none]);
    let output = stop.arg("--runtime").arg(gateway.dir.join("run")).output().expect("millrace");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("in use by an instance"), "{}", said(&output));
    assert_eq!(load::requests(&network.client, network.vip(false), 20, 4).answered, 20);
    // Something of somebody else's in its folder: it says so and goes on.
    let foreign = gateway.dir.join("run/reserved-ports");
    fs::write(&foreign, "precious").expect("a file");
    let output = gateway.admin(&["stop"]);
    assert!(output.status.code() == Some(1) && said(&output).contains(&*text(&foreign)), "{}", said(&output));
    assert_eq!(load::requests(&network.client, network.vip(false), 20, 4).answered, 20);
    fs::remove_file(&foreign).expect("the file");
    let output = gateway.admin(&["stop"]);
    assert!(output.status.success() && said(&output).contains("stopped with "), "{}", said(&output));
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{}", gateway.log_text());
    assert!(!gateway.dir.join("run").exists());
    for path in [precious, other.join("flows"), other.join("bpf/pin"), other.join("reserved-ports")] {
        assert_eq!(fs::read(&path).ok().as_deref(), Some(&b"precious"[..]), "{}", path.display());
    }
}

#[test]
fn run_refuses_names_that_are_somebody_elses_and_the_running_instance_goes_on() {
    let network = Network::two_nics("refuse", 1, 1);
    let (mut gateway, process) = started(&network, &[1]);
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(10));
    held.await_answers(50, SOON);
    let whole = fs::read_to_string(gateway.config()).expect("the configuration");
    let precious = network.lab.dir().join("important");
    let unfinished = gateway.dir.join("run/flows.new");
    for path in [&precious, &unfinished] {
        fs::write(path, "precious").expect("a file");
    }
    let elsewhere = whole.replace(&*gateway.dir.join("run/admin.sock").to_string_lossy(), &precious.to_string_lossy());
    for (text, said_of, why) in
        [(&elsewhere, &precious, "is not a socket"), (&whole, &unfinished, "is not a flow file")]
    {
        fs::write(gateway.config(), text).expect("the configuration");
        for verb in ["run", "check"] {
            let output = gateway.host.command(binary()).arg(verb).arg("--config").arg(gateway.config()).output();
            let output = output.expect("millrace");
            assert_eq!(output.status.code(), Some(2), "{verb}: {}", said(&output));
            let named = said(&output).contains(&*said_of.to_string_lossy());
            assert!(named && said(&output).contains(why), "{verb}: {}", said(&output));
        }
    }
    for path in [precious, unfinished] {
        assert_eq!(fs::read(&path).ok().as_deref(), Some(&b"precious"[..]), "{}", path.display());
        fs::remove_file(path).expect("the file");
    }
    // The same folder and another admin socket is an upgrade all the same; a crashed successor left its socket.
    let left = gateway.dir.join("run/second.sock.4711");
    drop(std::os::unix::net::UnixListener::bind(&left).expect("a socket"));
    fs::write(gateway.config(), whole.replace("run/admin.sock", "run/second.sock")).expect("the configuration");
    let mut successor = gateway.launch();
    eventually("the successor is ready", Duration::from_secs(60), || {
        assert!(successor.is_running(), "{}", gateway.log_text());
        let mut status = gateway.host.command(binary());
        status.args(["status", "-o", "json", "--admin"]);
        let output = status.arg(gateway.dir.join("run/second.sock")).output().expect("millrace");
        if said(&output).contains("\"ready\": true") { Ok(()) } else { Err(said(&output)) }
    });
    let mut process = process;
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{}", gateway.log_text());
    assert!(!left.exists() && !gateway.dir.join("run/admin.sock").exists(), "a socket is left");
    held.await_answers(50, SOON);
    assert!(held.finish().failures.is_empty());
}

#[test]
fn stop_drains_connections_of_removed_endpoints_too_and_says_how_many_are_left() {
    let network = Network::two_nics("drain-removed", 2, 1);
    let (gateway, mut process) = started(&network, &[1, 2]);
    let held = load::hold(&network.client, network.vip(false), 12, Duration::from_millis(10));
    held.await_answers(50, SOON);
    // All its endpoints are removed, and its connections stay open.
    gateway.manifest("web.yaml", &network.manifest(&[], &[]));
    eventually("the endpoints are removed", SOON, || {
        let listed = gateway.json(&["backends"]);
        if rows(&listed).is_empty() { Ok(()) } else { Err(listed.to_string()) }
    });
    assert_eq!(rows(&gateway.json(&["flows"])).len(), 12);
    let begun = std::time::Instant::now();
    let output = gateway.admin(&["stop", "--drain", "3s"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(begun.elapsed() >= Duration::from_secs(3), "it did not wait: {}", said(&output));
    assert!(said(&output).contains("draining: 12 connections open, 3 s left"), "{}", said(&output));
    assert!(said(&output).contains("stopped with 12 connections open"), "{}", said(&output));
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{}", gateway.log_text());
    drop(held);
}

#[test]
fn stop_ends_as_soon_as_the_last_connection_has() {
    let network = Network::two_nics("drain-ends", 1, 1);
    let (gateway, mut process) = started(&network, &[1]);
    let held = load::hold(&network.client, network.vip(false), 4, Duration::from_millis(10));
    held.await_answers(20, SOON);
    let mut stop = gateway.host.command(binary());
    stop.args(["stop", "--drain", "1h", "--admin"]).arg(gateway.dir.join("run/admin.sock"));
    let log = gateway.dir.join("stop.log");
    let mut stop = gateway.host.spawn("stop", stop, &log);
    eventually("it tells what it waits for", SOON, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.contains("draining: 4 connections open") { Ok(()) } else { Err(text) }
    });
    // Seen from everywhere: who asks whether it is ready, people, and listings.
    let (code, ..) = http(&gateway, &["http://127.0.0.1:9477/readyz"]);
    assert_eq!(code, "503", "readyz while draining");
    let status = gateway.json(&["status"]);
    assert_eq!((&status["draining"], &status["ready"]), (&true.into(), &false.into()), "{status}");
    assert!(said(&gateway.admin(&["status"])).contains("draining, takes no new flows"));
    assert_eq!(gateway.json(&["backends"])[0]["state"], "draining");
    assert!(held.finish().failures.is_empty(), "draining broke a connection");
    assert!(stop.wait(Duration::from_secs(60)).is_some_and(|status| status.success()), "{}", gateway.log_text());
    assert!(fs::read_to_string(&log).is_ok_and(|text| text.ends_with("stopped with no connection open\n")));
    assert!(process.wait(SOON).is_some_and(|status| status.success()));
}

/// Status, content type and body of an HTTP request.
fn http(gateway: &Gateway, words: &[&str]) -> (String, String, String) {
    let format = "\n%{http_code} %{content_type}";
    let output = gateway.host.run("curl", ["-sS", "--max-time", "20", "-w", format].iter().chain(words));
    let (body, rest) = output.rsplit_once('\n').expect("curl's line");
    let (code, kind) = rest.split_once(' ').expect("a code and a type");
    (code.to_owned(), kind.to_owned(), body.to_owned())
}

#[test]
fn a_scrape_has_every_metric_of_the_contract_and_other_paths_are_not_found() {
    let network = Network::two_nics("http", 2, 2);
    let (gateway, process) = started(&network, &[1, 2]);
    assert_eq!(load::requests(&network.client, network.vip(false), 40, 4).answered, 40);
    let base = "http://127.0.0.1:9477";
    let (code, kind, body) = http(&gateway, &[&format!("{base}/metrics")]);
    assert_eq!((code.as_str(), kind.as_str()), ("200", "application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(body.ends_with("# EOF\n") || body.ends_with("# EOF"), "it is cut short");
    let histogram = |name: &str| ["_bucket{le=", "_sum ", "_count "].map(|end| format!("{name}{end}"));
    let mut wanted = vec![
        "millrace_packets_total{port=\"eth0\",direction=\"rx\"} ".to_owned(),
        "millrace_packets_total{port=\"eth1\",direction=\"tx\"} ".to_owned(),
        "millrace_bytes_total{port=\"eth0\",direction=\"tx\"} ".to_owned(),
        "millrace_drops_total{reason=".to_owned(),
        "millrace_flows{worker=\"0\"} ".to_owned(),
        "millrace_flows_opened_total{service=\"default/web\"} 40".to_owned(),
        "millrace_backend_connections{service=\"default/web\",backend=\"10.82.1.11:8080\"} ".to_owned(),
        "millrace_tables_generation ".to_owned(),
        "millrace_worker_busy_ratio{worker=\"0\"} ".to_owned(),
        "millrace_handoff_total{result=".to_owned(),
        "millrace_control_heartbeat_age_seconds ".to_owned(),
    ];
    for name in ["millrace_backend_handshake_seconds", "millrace_residence_seconds", "millrace_update_seconds"] {
        wanted.extend(histogram(name));
    }
    for line in wanted {
        assert!(body.lines().any(|found| found.starts_with(&line)), "{line} is not in\n{body}");
    }
    let text = "text/plain; charset=utf-8";
    for (path, code, body) in [("/healthz", "200", "ok"), ("/readyz", "200", "ready"), ("/metric", "404", "there are ")]
    {
        let answer = http(&gateway, &[&format!("{base}{path}")]);
        assert_eq!((answer.0.as_str(), answer.1.as_str()), (code, text), "{path}: {answer:?}");
        assert!(answer.2.starts_with(body), "{path}: {answer:?}");
    }
    assert_eq!(http(&gateway, &["-X", "POST", "-d", "x", &format!("{base}/metrics")]).0, "405");
    assert_eq!(http(&gateway, &["--head", &format!("{base}/metrics")]).0, "200");
    drop(process);
}
