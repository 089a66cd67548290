//! "Flows and change" and what a box gives: table sizes, addresses and numbers that stay.

use std::sync::Arc;

use millrace_translate::{Context, Given};

use super::{gateway, run, run_given, service, slice};

#[test]
fn the_table_is_the_smallest_of_the_ladder_for_its_endpoints_and_the_size_reached_is_kept() {
    let text = |count: usize| {
        let list: Vec<String> =
            (0..count).map(|n| format!("{{addresses: [10.1.{}.{}]}}", n / 200, n % 200 + 1)).collect();
        service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]")
            + &slice("web", "IPv4", &list.join(", "), "{port: 80}")
    };
    for (count, size) in [(0, 1021), (10, 1021), (11, 16381), (163, 16381), (164, 65537), (700, 65537)] {
        assert_eq!(run(&text(count), &gateway()).clean().only("web").min_table_size, size, "{count}");
    }
    let grown = run(&text(11), &gateway()).result.given;
    assert_eq!(run_given(&text(3), &gateway(), &grown).only("web").min_table_size, 16381);
}

const SPEC: &str = "type: LoadBalancer, ports: [{port: 80}]";

#[test]
fn what_is_given_is_kept_agreed_on_and_independent_of_order_and_of_later_neighbours() {
    let (a, b, c) = (service("a", SPEC), service("b", SPEC), service("c", SPEC));
    let first = run(&(b.clone() + &c), &gateway()).clean();
    assert_eq!(run(&(c.clone() + &b), &gateway()).clean().result.given, first.result.given);
    assert_eq!(first.result.given.cluster_ips.len(), 2);
    assert_eq!(first.result.given.node_ports.len(), 2);
    let later = run_given(&(a + &b + &c), &gateway(), &first.result.given).clean();
    for name in ["b", "c"] {
        assert_eq!(later.frontends(name), first.frontends(name));
    }
    let gone = run_given(&b, &gateway(), &later.result.given).clean().result.given;
    assert_eq!(gone.addresses.len() + gone.cluster_ips.len() + gone.node_ports.len(), 3);
}

#[test]
fn what_was_given_yields_to_no_newcomer_that_writes_it_but_to_a_changed_range() {
    let given = Given {
        addresses: Arc::new([("default/a".to_owned(), vec!["203.0.113.5".parse().unwrap()])].into()),
        cluster_ips: Arc::new([("default/a".to_owned(), vec!["10.96.0.10".parse().unwrap()])].into()),
        node_ports: Arc::new([("default/a/TCP/".to_owned(), 30080)].into()),
        ..Given::default()
    };
    let kept = "10.96.0.10:80 192.0.2.1:30080 203.0.113.5:80";
    assert_eq!(run_given(&service("a", SPEC), &gateway(), &given).clean().frontends("a"), kept);
    let written =
        "type: LoadBalancer, loadBalancerIP: 203.0.113.5, clusterIP: 10.96.0.10, ports: [{port: 81, nodePort: 30080}]";
    let clash = run_given(&(service("a", SPEC) + &service("b", written)), &gateway(), &given);
    assert_eq!(clash.frontends("a"), kept);
    assert!(kept.split(' ').all(|frontend| !clash.frontends("b").contains(frontend)), "{}", clash.frontends("b"));
    for what in [
        "spec.loadBalancerIP: `203.0.113.5` of default/b is taken by default/a (a.yaml:2)",
        "spec.clusterIP: `10.96.0.10` of default/b (a.yaml:7) is the ClusterIP of default/a (a.yaml:2)",
        "spec.ports[0].nodePort: 30080/TCP of default/b is the nodePort of default/a (a.yaml:2)",
    ] {
        assert!(clash.shown().contains(what), "{}", clash.shown());
    }
    let context = Context { node_port_range: 31000..=31000, ..gateway() };
    assert_eq!(run_given(&service("a", SPEC), &context, &given).listed("a").ports[0].node_port, Some(31000));
}

#[test]
fn a_full_range_or_pool_is_a_finding_and_a_written_number_outside_is_served_with_a_warning() {
    let context = Context {
        node_port_range: 31000..=31000,
        service_ranges: vec!["10.96.0.0/30".parse().unwrap()],
        pools: vec![],
        ..gateway()
    };
    let node_port = "type: NodePort, ports: [{port: 80}]";
    let text = service("a", node_port) + &service("b", node_port) + &service("c", node_port);
    let shown = run(&text, &context).shown();
    assert!(shown.contains("spec.ports[0].nodePort: none is free in nodePortRange"), "{shown}");
    assert!(shown.contains("spec.clusterIP: none is free in serviceRange 10.96.0.0/30"), "{shown}");
    let outside = service("a", "type: NodePort, clusterIP: 172.16.0.1, ports: [{port: 80, nodePort: 8080}]");
    let found = run(&outside, &gateway());
    assert_eq!(found.frontends("a"), "172.16.0.1:80 192.0.2.1:8080");
    assert_eq!(found.findings.len(), 2);
    assert!(found.findings.iter().all(|f| !f.is_error()) && found.shown().contains("`8080` is outside nodePortRange"));
}

#[test]
fn a_service_without_an_address_is_a_finding_that_says_what_to_set() {
    let plain = Context { serve: millrace_translate::Serve::default(), ..gateway() };
    let bare = Context { service_ranges: vec![], pools: vec![], ..plain.clone() };
    for (spec, context, expected) in [
        ("ports: [{port: 80}]", &bare, "spec.clusterIP: warning: no address to serve it on, expected `serviceRange`"),
        (
            "ports: [{port: 80}]",
            &plain,
            "spec.type: warning: no address to serve it on, expected `clusterIP` in `serve`",
        ),
        ("type: NodePort, ports: [{port: 80}]", &plain, "expected `nodePort` in `serve`"),
        (SPEC, &bare, "expected a free address of its family in `pools`"),
    ] {
        let found = run(&service("web", spec), context);
        assert!(found.shown().contains(expected), "{}", found.shown());
        assert!(found.listed("web").not_served.as_deref().is_some_and(|why| why.starts_with("no address: set ")));
    }
}
