//! "Verdicts": source ranges, affinity, balancing and the annotations.

use std::time::Duration;

use lb::model::{Algorithm, Mode};
use millrace_translate::{Context, Defaults, Serve, mode_name};

use super::{endpoints, gateway, noted, run, service};

#[test]
fn source_ranges_are_trimmed_and_kept_as_networks() {
    let cases = [
        ("'10.0.0.0/8'", Some(vec![("10.0.0.0", 8)])),
        ("' 10.1.2.3/8 ', 192.0.2.0/24", Some(vec![("10.0.0.0", 8), ("192.0.2.0", 24)])),
        ("'2001:db8::/32'", Some(vec![("2001:db8::", 32)])),
        ("10.0.0.0", None),
        ("10.0.0.0/33", None),
    ];
    for (ranges, expected) in cases {
        let spec = format!("type: LoadBalancer, loadBalancerSourceRanges: [{ranges}], ports: [{{port: 80}}]");
        let found = run(&service("web", &spec), &gateway());
        let Some(expected) = expected else {
            assert!(found.shown().contains("spec.loadBalancerSourceRanges[0]: `"), "{}", found.shown());
            continue;
        };
        let expected: Vec<_> = expected.into_iter().map(|(ip, len)| (ip.parse().unwrap(), len)).collect();
        assert_eq!(found.clean().only("web").source_ranges[..], expected, "{ranges}");
    }
}

#[test]
fn affinity_lasts_10800_seconds_or_1_to_86400() {
    let config = |seconds: &str| {
        format!("sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}")
    };
    let cases = [
        ("sessionAffinity: None".to_owned(), Some(None)),
        ("sessionAffinity: ClientIP".to_owned(), Some(Some(10800))),
        (config("1"), Some(Some(1))),
        (config("86400"), Some(Some(86400))),
        (config("0"), None),
        (config("86401"), None),
        (config("-1"), None),
        (config("xxx"), None),
        (config("\"10800\""), None),
        ("sessionAffinity: clientip".to_owned(), None),
        ("sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}".to_owned(), None),
    ];
    for (affinity, expected) in cases {
        let found =
            run(&service("web", &format!("{affinity}, clusterIP: 10.96.0.10, ports: [{{port: 80}}]")), &gateway());
        let Some(seconds) = expected else {
            assert_eq!((found.findings.len(), found.ports("web").len()), (1, 0), "{affinity}");
            assert!(found.shown().contains("spec.sessionAffinity"), "{}", found.shown());
            continue;
        };
        assert_eq!(found.clean().only("web").affinity, seconds.map(Duration::from_secs), "{affinity}");
    }
}

#[test]
fn annotations_win_over_the_configurations_defaults() {
    let defaults = Defaults { algorithm: Algorithm::Random, mode: Mode::Preserve, echo: false };
    let context = Context { defaults, ..gateway() };
    let notes = "millrace.dev/algorithm: round-robin, millrace.dev/mode: nat, millrace.dev/drain: 30s, \
                 millrace.dev/udp-timeout: 1m, millrace.dev/table-size: '16381', millrace.dev/weights: '10.0.0.1=7'";
    let subset = "addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}], ports: [{port: 80}]";
    let spec = "clusterIP: 10.96.0.10, ports: [{port: 80}]";
    let found = run(&(noted("web", notes, spec) + &endpoints("web", subset)), &context).clean();
    let port = found.only("web");
    assert_eq!((port.algorithm, port.mode, port.min_table_size), (Algorithm::RoundRobin, Mode::Nat, 16381));
    assert_eq!((port.drain, port.udp_timeout), (Some(Duration::from_secs(30)), Some(Duration::from_secs(60))));
    assert_eq!(port.endpoints.iter().map(|e| e.weight).collect::<Vec<_>>(), [7, 1]);
    let found = run(&(service("web", spec) + &endpoints("web", subset)), &context).clean();
    assert_eq!((found.only("web").algorithm, found.only("web").mode), (Algorithm::Random, Mode::Preserve));
}

#[test]
fn endpoints_that_answer_clients_themselves_must_serve_the_services_own_port() {
    let both = "addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}, {addresses: [{ip: 10.0.0.2}], ports: [{port: 8080}]";
    for (mode, spec, served) in [
        ("dsr-l2", "type: LoadBalancer, ports: [{port: 80}]", "10.0.0.1:80"),
        ("dsr-l2", "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]", "10.0.0.1:80"),
        ("preserve", "type: LoadBalancer, ports: [{port: 80}]", "10.0.0.1:80 10.0.0.2:8080"),
    ] {
        let found =
            run(&(noted("web", &format!("millrace.dev/mode: {mode}"), spec) + &endpoints("web", both)), &gateway());
        assert_eq!(found.usable("web"), served, "{mode} {spec}");
        assert!(found.ports("web").iter().all(|port| mode_name(port.mode) == mode));
        assert_eq!(found.listed("web").mode, mode);
        if served.ends_with(":80") {
            let what = "a.yaml:10: subsets[1].addresses[0].ip: 10.0.0.2:8080 serves another port than 80 of default/web (a.yaml:2): \
                        mode dsr-l2 translates none, expected 80";
            assert_eq!(found.shown(), what);
        } else {
            found.clean();
        }
    }
    // Packets to NodePorts are translated whatever the mode.
    let context = Context { serve: Serve { load_balancer: false, cluster_ip: false, ..gateway().serve }, ..gateway() };
    let text = noted("web", "millrace.dev/mode: dsr-l2", "type: NodePort, ports: [{port: 80, nodePort: 30080}]");
    assert_eq!(run(&(text + &endpoints("web", both)), &context).usable("web"), "10.0.0.1:80 10.0.0.2:8080");
}

#[test]
fn an_unknown_key_or_value_of_ours_is_an_error_that_names_service_and_key() {
    for (key, value) in [
        ("algoritm", "maglev"),
        ("colour", "red"),
        ("algorithm", "fast"),
        ("mode", "dsr-gre"),
        ("weights", "10.0.0.1=-1"),
        ("weights", "x=1"),
        ("health-check", "ping"),
        ("health-check", "tcp;up=0"),
        ("drain", "-1s"),
        ("udp-timeout", "9"),
        ("addresses", "a.example.com"),
        ("share", "a b"),
        ("table-size", "1022"),
        ("topology-keys", "rack"),
    ] {
        let text =
            noted("web", &format!("millrace.dev/{key}: '{value}'"), "clusterIP: 10.96.0.10, ports: [{port: 80}]");
        let found = run(&text, &gateway());
        let start = format!("a.yaml:4: metadata.annotations[millrace.dev/{key}]: Service default/web: ");
        assert!(found.shown().starts_with(&start), "{}", found.shown());
        assert_eq!((found.findings.len(), found.ports("web").len()), (1, 0));
    }
}

#[test]
fn load_balancer_addresses_answer_ping_and_cluster_ips_and_node_addresses_do_not() {
    let text = service(
        "web",
        "type: LoadBalancer, loadBalancerIP: 203.0.113.3, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]",
    );
    for echo in [true, false] {
        let context = Context { defaults: Defaults { echo, ..Defaults::default() }, ..gateway() };
        let found = run(&text, &context).clean();
        let shown: Vec<_> =
            found.result.desired.addresses.iter().map(|a| (a.address.to_string(), a.echo, a.host_owned)).collect();
        let ip = |ip: &str| ip.to_owned();
        let expected =
            [(ip("10.96.0.10"), false, false), (ip("192.0.2.1"), false, true), (ip("203.0.113.3"), echo, false)];
        assert_eq!(shown, expected);
    }
}
