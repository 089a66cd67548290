//! "Frontends": which field is served where, addresses and who may share them, dual-stack.

use std::collections::BTreeSet;

use millrace_translate::{Context, Place, Serve};
use wire::Protocol;

use super::{gateway, noted, run, service};

#[test]
fn each_field_is_served_where_serve_and_the_configuration_have_it() {
    let none = Serve { load_balancer: false, external_ips: false, cluster_ip: false, node_port: false };
    let spec = "type: LoadBalancer, loadBalancerIP: 203.0.113.2, clusterIP: 10.96.0.10, externalIPs: [198.51.100.1], \
                ports: [{port: 80, nodePort: 30080}]";
    let cases = [
        (Serve { load_balancer: true, ..none }, "203.0.113.2:80"),
        (Serve { external_ips: true, ..none }, "198.51.100.1:80"),
        (Serve { cluster_ip: true, ..none }, "10.96.0.10:80"),
        (Serve { node_port: true, ..none }, "192.0.2.1:30080"),
        (none, ""),
    ];
    for (serve, expected) in cases {
        let found = run(&service("web", spec), &Context { serve, ..gateway() });
        assert_eq!(found.frontends("web"), expected, "{serve:?}");
    }
    for (place, ranges, served) in [
        (Place::Gateway, None, true),
        (Place::Node, None, false),
        (Place::Node, Some(vec!["198.51.100.0/24".parse().unwrap()]), true),
        (Place::Gateway, Some(vec!["192.0.2.0/24".parse().unwrap()]), false),
    ] {
        let context = Context { place, external_ip_ranges: ranges, ..gateway() };
        let found = run(&service("web", spec), &context);
        assert_eq!(found.frontends("web").contains("198.51.100.1"), served, "{place:?}");
        assert_eq!(found.shown().contains("spec.externalIPs[0]: warning"), !served);
    }
}

#[test]
fn headless_and_external_name_are_listed_without_a_frontend_and_without_a_finding() {
    for (spec, kind) in [
        ("clusterIP: None, ports: [{port: 80}]", "headless"),
        ("clusterIP: None", "headless"),
        ("type: ExternalName, externalName: a.example.com", "ExternalName"),
        ("type: ExternalName, externalName: a.example.com., ports: [{port: 80}]", "ExternalName"),
    ] {
        let found = run(&service("web", spec), &gateway()).clean();
        assert_eq!((found.listed("web").kind.as_str(), found.frontends("web").as_str()), (kind, ""), "{spec}");
        assert!(found.listed("web").not_served.is_some());
    }
}

#[test]
fn one_number_on_tcp_udp_and_sctp_is_three_frontends() {
    let ports = "{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: s, port: 53, protocol: SCTP}";
    let found = run(&service("dns", &format!("clusterIP: 10.96.0.10, ports: [{ports}]")), &gateway()).clean();
    assert_eq!(found.frontends("dns"), "10.96.0.10:53 10.96.0.10:53 10.96.0.10:53");
    let protocols: BTreeSet<_> = found.ports("dns").iter().map(|port| port.key.protocol).collect();
    assert_eq!(protocols, [Protocol::TCP, Protocol::UDP, Protocol::SCTP].into());
}

#[test]
fn a_load_balancers_address_is_its_status_then_the_annotation_then_the_field_then_a_pools() {
    let spec = "type: LoadBalancer, loadBalancerIP: 203.0.113.3, ports: [{port: 80}]";
    let status = |ip: &str| format!("status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}\n");
    let annotated = noted("web", "millrace.dev/addresses: 203.0.113.2", spec);
    let cases = [
        (annotated.clone() + &status("203.0.113.1"), "203.0.113.1"),
        (annotated.clone() + &status("198.51.100.1"), "203.0.113.2"),
        (annotated, "203.0.113.2"),
        (service("web", spec), "203.0.113.3"),
    ];
    let context = Context { serve: Serve::default(), ..gateway() };
    for (text, expected) in cases {
        assert_eq!(run(&text, &context).clean().frontends("web"), format!("{expected}:80"));
    }
    let found = run(&service("web", "type: LoadBalancer, ports: [{port: 80}]"), &context).clean();
    assert!(found.frontends("web").starts_with("203.0.113."));
    let other = "type: LoadBalancer, loadBalancerClass: example.com/lb, ports: [{port: 80}]";
    let found = run(&service("web", other), &context).clean();
    assert_eq!(found.listed("web").not_served.as_deref(), Some("its loadBalancerClass is another's"));
}

#[test]
fn two_services_share_an_address_when_ports_differ_and_both_carry_the_key_else_both_are_named() {
    let of = |name: &str, share: &str, port: u16| {
        let note = if share.is_empty() { String::new() } else { format!("millrace.dev/share: {share}") };
        noted(name, &note, &format!("type: LoadBalancer, loadBalancerIP: 203.0.113.3, ports: [{{port: {port}}}]"))
    };
    let context = Context { serve: Serve::default(), ..gateway() };
    for (one, two, port, shared) in
        [("k", "k", 81, true), ("k", "k", 80, false), ("k", "l", 81, false), ("k", "", 81, false), ("", "", 81, false)]
    {
        let found = run(&(of("a", one, 80) + &of("b", two, port)), &context);
        assert_eq!(found.frontends("a"), "203.0.113.3:80", "one bad Service takes no other down");
        assert_eq!(!found.frontends("b").is_empty(), shared, "{one} {two} {port}");
        let clash = "a.yaml:10: spec.loadBalancerIP: `203.0.113.3` of default/b is taken by default/a (a.yaml:2)";
        assert_eq!(found.shown().contains(clash), !shared, "{}", found.shown());
    }
}

#[test]
fn a_clash_of_ports_or_cluster_ips_names_both_services_and_where_they_stand() {
    let cases = [
        (
            "type: NodePort, ports: [{port: 80, nodePort: 30080}]",
            "spec.ports[0].nodePort: 192.0.2.1:30080/TCP of default/b",
        ),
        ("externalIPs: [198.51.100.1], ports: [{port: 80}]", "spec.ports[0].port: 198.51.100.1:80/TCP of default/b"),
        ("clusterIP: 10.96.0.10, ports: [{port: 80}]", "spec.clusterIP: `10.96.0.10` of default/b"),
    ];
    for (spec, expected) in cases {
        let shown = run(&(service("a", spec) + &service("b", spec)), &gateway()).shown();
        assert!(shown.contains(expected) && shown.contains("default/a (a.yaml:2)"), "{shown}");
        assert!(shown.starts_with("a.yaml:10"), "{shown}");
    }
}

#[test]
fn families_follow_ip_families_and_the_policy() {
    let v4_only = Context {
        pools: vec![gateway().pools[0].clone()],
        service_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        ..gateway()
    };
    let cases = [
        ("", gateway(), "4", ""),
        (", ipFamilies: [IPv6]", gateway(), "6", ""),
        (", ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack", gateway(), "46", ""),
        (", ipFamilyPolicy: PreferDualStack", gateway(), "46", ""),
        (", ipFamilyPolicy: PreferDualStack", v4_only.clone(), "4", ""),
        (", ipFamilyPolicy: RequireDualStack", v4_only.clone(), "4", "spec.ipFamilyPolicy: warning: no IPv6 address"),
        (", ipFamilies: [IPv6]", v4_only, "", "no address to serve it on"),
        (", ipFamilies: [IPv4, IPv6], ipFamilyPolicy: SingleStack", gateway(), "", "`SingleStack`, expected"),
        (", loadBalancerIP: '2001:db8:1::7'", gateway(), "6", ""),
    ];
    for (more, context, expected, finding) in cases {
        let text = service("web", &format!("type: LoadBalancer{more}, ports: [{{port: 80}}]"));
        let context = Context { serve: Serve::default(), ..context };
        let found = run(&text, &context);
        let families: String = found.ports("web").iter().map(|p| if p.key.ipv6 { '6' } else { '4' }).collect();
        let served = found.ports("web").iter().filter(|p| !p.frontends.is_empty()).count();
        assert_eq!((families.as_str(), served), (expected, expected.len()), "{more} {}", found.shown());
        assert!(
            found.shown().contains(finding) && found.findings.is_empty() == finding.is_empty(),
            "{}",
            found.shown()
        );
    }
}
