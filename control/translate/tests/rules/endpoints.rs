//! "Endpoints": joining, conditions, conversion, the usable set, topology, loops.

use std::collections::BTreeSet;

use lb::model::NoEndpoint;
use millrace_translate::{BackendState, Drained};

use super::{at, endpoints, gateway, noted, run, service, slice};

const WEB: &str = "clusterIP: 10.96.0.10, ports: [{port: 80, targetPort: 9999}]";

#[test]
fn slices_join_by_port_name_and_protocol_and_target_port_is_never_consulted() {
    let two = "clusterIP: 10.96.0.10, ports: [{name: a, port: 80, targetPort: 1}, {name: b, port: 81, protocol: UDP}]";
    let cases = [
        (WEB, "{port: 8080}", "10.0.0.1:8080"),
        (WEB, "{name: web, port: 8080}", ""),
        (WEB, "{port: 8080, protocol: UDP}", ""),
        (two, "{name: a, port: 1001}, {name: b, port: 1002}", "10.0.0.1:1001"),
        (two, "{name: a, port: 1001}, {name: b, port: 1002, protocol: UDP}", "10.0.0.1:1001 10.0.0.1:1002"),
        (two, "{name: b, port: 1001}, {name: a, port: 1002, protocol: UDP}", ""),
    ];
    for (spec, ports, expected) in cases {
        let text = service("web", spec) + &slice("web", "IPv4", "{addresses: [10.0.0.1]}", ports);
        assert_eq!(run(&text, &gateway()).clean().usable("web"), expected, "{spec} {ports}");
    }
}

#[test]
fn the_usable_set_is_the_ready_ones_else_those_serving_and_terminating_never_the_non_serving() {
    let cases = [
        ("{}", "{ready: false}", "10.0.0.1:80"),
        ("{ready: false, serving: true, terminating: true}", "{ready: true}", "10.0.0.2:80"),
        ("{ready: false, serving: true, terminating: true}", "{ready: false, serving: false}", "10.0.0.1:80"),
        ("{ready: false, terminating: true}", "{ready: false, serving: true}", "10.0.0.1:80"),
        ("{ready: false, serving: false, terminating: true}", "{ready: false, serving: false}", ""),
        ("{ready: false, serving: true}", "{ready: false, serving: true}", ""),
    ];
    for (one, two, expected) in cases {
        let list =
            format!("{{addresses: [10.0.0.1], conditions: {one}}}, {{addresses: [10.0.0.2], conditions: {two}}}");
        let found = run(&(service("web", WEB) + &slice("web", "IPv4", &list, "{port: 80}")), &gateway()).clean();
        assert_eq!(found.usable("web"), expected, "{one} {two}");
        assert_eq!(found.only("web").no_endpoint, NoEndpoint::Reject);
        let published = service("web", &format!("{WEB}, publishNotReadyAddresses: true"));
        let found = run(&(published + &slice("web", "IPv4", &list, "{port: 80}")), &gateway()).clean();
        assert_eq!(found.usable("web"), "10.0.0.1:80 10.0.0.2:80", "published: {one} {two}");
    }
}

#[test]
fn what_leaves_or_is_drained_keeps_its_flows_and_what_is_not_ready_does_not() {
    let list = "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false, terminating: true}}, \
                {addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: [10.0.0.4]}";
    let drained = Drained { address: "10.0.0.4".parse().unwrap(), port: Some(80) };
    let context = millrace_translate::Context { drained: BTreeSet::from([drained]), ..gateway() };
    let found = run(&(service("web", WEB) + &slice("web", "IPv4", list, "{port: 80}")), &context).clean();
    assert_eq!(found.usable("web"), "10.0.0.1:80");
    assert_eq!(found.in_state("web", lb::model::EndpointState::Draining), "10.0.0.2:80 10.0.0.4:80");
    let states: Vec<_> = found.result.all_backends().map(|b| (b.state, b.reason.as_deref())).collect();
    let expected = [
        (BackendState::Usable, None),
        (BackendState::Draining, Some("terminating")),
        (BackendState::Out, Some("not ready")),
        (BackendState::Draining, Some("drained")),
    ];
    assert_eq!(states, expected);
}

#[test]
fn endpoints_of_sctp_ports_join_by_their_protocol_and_are_not_probed() {
    let text =
        noted("gtp", "millrace.dev/health-check: tcp", "clusterIP: 10.96.0.9, ports: [{port: 38412, protocol: SCTP}]")
            + &slice("gtp", "IPv4", "{addresses: [10.0.0.7]}", "{port: 9, protocol: SCTP}");
    let found = run(&text, &gateway());
    assert_eq!(found.usable("gtp"), "10.0.0.7:9");
    assert!(found.result.probes.is_empty(), "a TCP connection would say nothing of it");
    assert!(found.shown().contains("warning: nothing probes SCTP ports"), "{}", found.shown());
    let other = slice("gtp", "IPv4", "{addresses: [10.0.0.7]}", "{port: 9, protocol: TCP}");
    let spec = "clusterIP: 10.96.0.9, ports: [{port: 38412, protocol: SCTP}]";
    assert_eq!(run(&(service("gtp", spec) + &other), &gateway()).usable("gtp"), "");
}

#[test]
fn a_failing_health_check_takes_out_endpoints_without_a_readiness_of_their_own() {
    let list = "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: true}}, {addresses: [10.0.0.3]}";
    let text = noted("web", "millrace.dev/health-check: tcp", WEB) + &slice("web", "IPv4", list, "{port: 80}");
    let mut context = gateway();
    let probes = run(&text, &context).clean().result.probes;
    assert_eq!(probes.iter().map(|p| p.endpoint.to_string()).collect::<Vec<_>>(), ["10.0.0.1:80", "10.0.0.3:80"]);
    context.health.insert(probes[0].clone(), false);
    let found = run(&text, &context);
    assert_eq!(found.usable("web"), "10.0.0.2:80 10.0.0.3:80");
    assert_eq!(found.result.backends[0][0].reason.as_deref(), Some("health check fails"));
}

#[test]
fn only_the_first_address_counts_and_fqdn_slices_are_skipped_and_counted() {
    let text = service("web", WEB)
        + &slice("web", "IPv4", "{addresses: [10.0.0.1, 10.0.0.2]}", "{port: 80}")
        + &slice("web", "FQDN", "{addresses: [a.example.com]}", "{port: 80}");
    let found = run(&text, &gateway()).clean();
    assert_eq!((found.usable("web").as_str(), found.result.counters.fqdn_slices), ("10.0.0.1:80", 1));
}

#[test]
fn endpoints_are_converted_by_family_with_readiness_and_skip_mirror() {
    let subset =
        "addresses: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], notReadyAddresses: [{ip: 10.0.0.2}], ports: [{port: 9376}]";
    let dual = "ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]";
    let found = run(&(service("web", dual) + &endpoints("web", subset)), &gateway()).clean();
    let by_family: Vec<_> = found.ports("web").iter().map(|p| (p.key.ipv6, p.endpoints.len())).collect();
    assert_eq!(by_family, [(false, 1), (true, 1)]);
    assert_eq!(found.listed("web").endpoints_total, 3);
    let label = "metadata: {name: web, labels: {endpointslice.kubernetes.io/skip-mirror: 'VALUE'}}";
    for (value, expected) in [("true", ""), ("false", "10.0.0.1:9376")] {
        let skipped = endpoints("web", subset).replace("metadata: {name: web}", &label.replace("VALUE", value));
        assert_eq!(run(&(service("web", WEB) + &skipped), &gateway()).clean().usable("web"), expected, "{value}");
    }
}

#[test]
fn addresses_that_no_endpoint_may_have_are_errors_at_their_line_and_any_routable_one_loads() {
    let bad = ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::", "999.1.1.1"];
    for ip in bad {
        let text =
            service("web", WEB) + &endpoints("web", &format!("addresses: [{{ip: '{ip}'}}], ports: [{{port: 1}}]"));
        let found = run(&text, &gateway());
        assert_eq!(found.findings.len(), 1, "{ip}");
        assert!(found.shown().starts_with("a.yaml:10: subsets[0].addresses[0].ip: `"), "{}", found.shown());
        assert_eq!(found.usable("web"), "", "the Service stays");
    }
    for ip in ["1.2.3.4", "192.168.7.7", "8.8.8.8"] {
        let text = service("web", WEB) + &endpoints("web", &format!("addresses: [{{ip: {ip}}}], ports: [{{port: 1}}]"));
        assert_eq!(run(&text, &gateway()).clean().usable("web"), format!("{ip}:1"));
    }
}

#[test]
fn service_and_endpoints_come_in_any_order_and_endpoints_without_a_service_wait_and_are_counted() {
    let (svc, eps) = (service("web", WEB), endpoints("web", "addresses: [{ip: 1.2.3.4}], ports: [{port: 9376}]"));
    let expected = run(&(svc.clone() + &eps), &gateway()).clean().result.desired;
    assert_eq!(run(&(eps.clone() + &svc), &gateway()).clean().result.desired, expected);
    let alone = run(&(eps + &slice("web", "IPv4", "{addresses: [10.0.0.1]}", "{port: 80}")), &gateway()).clean();
    assert_eq!((alone.result.desired.service_ports.len(), alone.result.counters.endpoints_waiting), (0, 2));
}

#[test]
fn an_endpoint_that_is_a_frontend_of_ours_is_refused_as_a_loop_naming_both() {
    let first = service("first", WEB);
    for (ip, port, looped) in [("10.96.0.10", 80, true), ("10.96.0.10", 81, false), ("10.0.0.1", 80, false)] {
        let subset = format!("addresses: [{{ip: {ip}}}], ports: [{{port: {port}}}]");
        let text = first.clone() + &service("second", "ports: [{port: 80}]") + &endpoints("second", &subset);
        let found = run(&text, &gateway());
        assert_eq!(found.result.counters.loops_refused, u64::from(looped), "{ip}:{port}");
        assert_eq!(found.usable("second").is_empty(), looped);
        assert_eq!(
            found.shown().contains("default/second (a.yaml:7) is a frontend of default/first (a.yaml:2)"),
            looped
        );
    }
}

#[test]
fn a_selector_without_endpoints_of_its_name_is_told() {
    let text = service("web", &format!("{WEB}, selector: {{app: web}}"));
    assert!(run(&text, &gateway()).shown().contains("spec.selector: warning: finds no pods here"));
    run(&(text + &slice("web", "IPv4", "{addresses: [10.0.0.1]}", "{port: 80}")), &gateway()).clean();
}

const SPREAD: &str = "{addresses: [10.0.0.1], nodeName: n1, zone: a}, {addresses: [10.0.0.2], nodeName: n2, zone: b}, \
                      {addresses: [10.0.0.3], nodeName: n3}";
const NODES: &str = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r}}\n\
                     ---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/region: r}}\n\
                     ---\napiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {topology.kubernetes.io/zone: c}}\n";

#[test]
fn the_four_lists_of_topology_keys_route_four_ways() {
    let (h, z, r) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region");
    let lists = [h.to_owned(), format!("{h}, '*'"), format!("{z}, {r}"), format!("{h}, {z}, {r}, '*'")];
    let (one, two, three, both, all, none) = ("1", "2", "3", "1 2", "1 2 3", "");
    let boxes = [
        (at("n1", "b", "r"), [one, one, two, one]),
        (at("x", "c", "r"), [none, all, three, three]),
        (at("x", "x", "r"), [none, all, both, both]),
        (at("x", "x", "x"), [none, all, none, all]),
        (at("", "", ""), [none, all, none, all]),
    ];
    for (context, expected) in boxes {
        for (keys, expected) in lists.iter().zip(expected) {
            let field = service("web", &format!("{WEB}, topologyKeys: [{keys}]"));
            let note = noted("web", &format!("millrace.dev/topology-keys: \"{}\"", keys.replace('\'', "")), WEB);
            for manifest in [field, note] {
                let text = manifest + &slice("web", "IPv4", SPREAD, "{port: 80}") + NODES;
                let found = run(&text, &context).clean();
                let usable = found.usable("web").replace("10.0.0.", "").replace(":80", "");
                assert_eq!(usable, expected, "{keys} at {:?}", context.node);
                let verdict = if expected.is_empty() { NoEndpoint::Drop } else { NoEndpoint::Reject };
                assert_eq!(found.only("web").no_endpoint, verdict, "{keys} at {:?}", context.node);
            }
        }
    }
}

#[test]
fn hints_come_before_topology_keys_node_before_zone_and_only_where_every_ready_endpoint_has_one() {
    let hinted = |one: &str, two: &str| {
        format!(
            "{{addresses: [10.0.0.1], nodeName: n1, zone: a{one}}}, {{addresses: [10.0.0.2], nodeName: n2, zone: b{two}}}"
        )
    };
    let zones = hinted(", hints: {forZones: [{name: a}]}", ", hints: {forZones: [{name: b}]}");
    let half = hinted(", hints: {forZones: [{name: a}]}", "");
    let nodes = hinted(", hints: {forNodes: [{name: n1}]}", ", hints: {forNodes: [{name: n2}]}");
    let keys = ", topologyKeys: [kubernetes.io/hostname, '*']";
    let (one, two, both) = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.1:80 10.0.0.2:80");
    let cases = [
        (zones.as_str(), "", at("n2", "a", ""), one),
        (&zones, keys, at("n2", "a", ""), one),
        (&zones, "", at("n2", "x", ""), both),
        (&zones, keys, at("n2", "x", ""), two),
        (&half, "", at("n1", "a", ""), both),
        (&nodes, "", at("n2", "a", ""), two),
        (&hinted("", ""), ", trafficDistribution: PreferClose", at("n2", "a", ""), one),
        (&hinted("", ""), ", trafficDistribution: PreferSameZone", at("n1", "b", ""), two),
        (&hinted("", ""), ", trafficDistribution: PreferSameNode", at("n2", "a", ""), two),
        (&hinted("", ""), ", trafficDistribution: PreferSameNode", at("x", "a", ""), one),
    ];
    for (list, more, context, expected) in cases {
        let text = service("web", &format!("{WEB}{more}")) + &slice("web", "IPv4", list, "{port: 80}");
        assert_eq!(run(&text, &context).clean().usable("web"), expected, "{list} {more} {:?}", context.node);
    }
}
