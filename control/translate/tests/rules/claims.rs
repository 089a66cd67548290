//! Clashes: who had the thing before keeps it, and the newcomer gets the error naming both; `aa` comes before `web`.

use millrace_translate::{Context, Given, Serve, Source, read, translate};

use super::{Outcome, endpoints, gateway, noted, run, run_given, service};

const BACKEND: &str = "addresses: [{ip: 10.0.0.1}], ports: [{port: 8080}]";

fn web(spec: &str) -> String {
    service("web", spec) + &endpoints("web", BACKEND)
}

/// What `web` is served at and with.
fn in_force(found: &Outcome) -> (String, String) {
    (found.frontends("web"), found.usable("web"))
}

#[test]
fn a_newcomer_takes_no_frontend_address_or_endpoint_of_a_service_in_force() {
    let balanced = "type: LoadBalancer, ports: [{port: 80}]";
    let ip = |ip: &str, port: u16| format!("externalIPs: [{ip}], ports: [{{port: {port}}}]");
    let shared = "type: LoadBalancer, loadBalancerIP: VIP, ports: [{port: 81}]";
    let node_port = "type: NodePort, ports: [{port: 80, nodePort: NODE}]";
    let cases = [
        (balanced, ip("VIP", 80), "`VIP` of default/aa is the address of default/web"),
        (balanced, ip("VIP", 81), "`VIP` of default/aa is the address of default/web"),
        (balanced, shared.into(), "`VIP` of default/aa is taken by default/web"),
        (balanced, "clusterIP: VIP, ports: [{port: 80}]".into(), "is the ClusterIP of default/web"),
        (balanced, "clusterIP: CLUSTER, ports: [{port: 80}]".into(), "is the ClusterIP of default/web"),
        (balanced, node_port.into(), "NODE/TCP of default/aa is the nodePort of default/web"),
        (balanced, ip("10.0.0.1", 8080), "10.0.0.1:8080/TCP of default/aa is at an endpoint of default/web (a.yaml:"),
        (balanced, ip("10.0.0.1", 80), "10.0.0.1:80/TCP of default/aa is at an endpoint of default/web (a.yaml:"),
        ("externalIPs: [VIP], ports: [{port: 80}]", ip("VIP", 80), "VIP:80/TCP of default/aa is a frontend of"),
        ("externalIPs: [VIP], ports: [{port: 80}]", shared.into(), "`VIP` of default/aa is taken by default/web"),
    ];
    for (holder, newcomer, expected) in cases {
        let holder = web(&holder.replace("VIP", "203.0.113.3"));
        let first = run(&holder, &gateway()).clean();
        let given = &first.result.given;
        let vip = first.frontends("web").split(' ').map(str::to_owned).find(|f| f.starts_with("203.")).unwrap();
        let node = first.listed("web").ports[0].node_port.unwrap_or_default().to_string();
        let cluster = first.listed("web").cluster_ips[0].to_string();
        let fill = |text: &str| {
            text.replace("VIP", vip.split(':').next().unwrap()).replace("NODE", &node).replace("CLUSTER", &cluster)
        };
        let second = run_given(&(service("aa", &fill(&newcomer)) + &holder), &gateway(), given);
        assert_eq!(in_force(&second), in_force(&first), "{newcomer}: {}", second.shown());
        assert!(second.shown().contains(&fill(expected)), "{newcomer}: {}", second.shown());
        let errors: Vec<_> = second.findings.iter().filter(|f| f.is_error()).collect();
        assert!(!errors.is_empty() && errors.iter().all(|f| f.line == 5), "the newcomer's: {}", second.shown());
        let third = run_given(&(service("aa", &fill(&newcomer)) + &holder), &gateway(), &second.result.given);
        assert_eq!((in_force(&third), third.shown()), (in_force(&first), second.shown()), "it stays so");
        let alone = run_given(&service("aa", &fill(&newcomer)), &gateway(), &second.result.given);
        assert!(alone.findings.iter().all(|f| !f.is_error()), "free once the holder is gone: {}", alone.shown());
    }
}

#[test]
fn of_two_that_share_an_address_the_one_that_had_the_port_keeps_it() {
    let of = |name: &str, port: u16| {
        let spec = format!("type: LoadBalancer, loadBalancerIP: 203.0.113.3, ports: [{{port: {port}}}]");
        noted(name, "millrace.dev/share: k", &spec)
    };
    let context = Context { serve: Serve::default(), ..gateway() };
    let first = run(&(of("aa", 81) + &of("web", 80)), &context).clean();
    let second = run_given(&(of("aa", 80) + &of("web", 80)), &context, &first.result.given);
    assert_eq!((second.frontends("aa").as_str(), second.frontends("web").as_str()), ("", "203.0.113.3:80"));
    assert!(second.shown().contains("of default/aa is taken by default/web"), "{}", second.shown());
}

#[test]
fn a_new_endpoint_at_a_frontend_in_force_is_the_loop_and_without_history_too() {
    let frontend = service("web", "externalIPs: [10.0.0.1], ports: [{port: 8080}]");
    let looped = service("aa", "clusterIP: 10.96.0.9, ports: [{port: 80}]") + &endpoints("aa", BACKEND);
    let first = run(&frontend, &gateway());
    for given in [&Given::default(), &first.result.given] {
        let found = run_given(&(looped.clone() + &frontend), &gateway(), given);
        assert_eq!((found.usable("aa"), found.result.counters.loops_refused), (String::new(), 1));
        assert!(found.frontends("web").contains("10.0.0.1:8080"), "{}", found.shown());
    }
}

#[test]
fn of_sound_objects_of_one_name_the_file_that_had_it_keeps_it() {
    let file = |path: &str, port: u16| Source {
        path: path.into(),
        text: service("web", &format!("ports: [{{port: {port}}}]")).into(),
    };
    for (held, other) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        let (objects, _) = read(&[file(held, 80)], &Given::default());
        let given = translate(&objects, &gateway(), &Given::default()).given;
        let (objects, findings) = read(&[file(other, 81), file(held, 80)], &given);
        assert_eq!((objects.services.len(), objects.services[0].file.as_str()), (1, held));
        assert!(findings.len() == 1 && findings[0].file == other, "{findings:?}");
    }
}

#[test]
fn what_the_host_has_for_a_while_is_not_served_and_does_not_move() {
    let text = service("web", "type: LoadBalancer, ports: [{port: 80}]");
    let context = Context { serve: Serve { cluster_ip: true, ..Serve::default() }, ..gateway() };
    let first = run(&text, &context).clean();
    let listed = first.listed("web").addresses.clone();
    for address in listed {
        let node_addresses = vec![address];
        let meanwhile = run_given(&text, &Context { node_addresses, ..context.clone() }, &first.result.given);
        assert!(!meanwhile.frontends("web").contains(&address.to_string()), "{address}");
        assert!(meanwhile.shown().contains("is not served while this host has it"), "{}", meanwhile.shown());
        let after = run_given(&text, &context, &meanwhile.result.given).clean();
        assert_eq!(after.frontends("web"), first.frontends("web"));
    }
}

#[test]
fn no_service_is_at_an_address_that_is_no_hosts() {
    for ip in ["255.255.255.255", "224.0.0.1", "127.0.0.1", "0.0.0.0", "ff02::1", "::1", "::", "::ffff:127.0.0.1"] {
        let external = service("web", &format!("externalIPs: ['{ip}'], ports: [{{port: 80}}]"));
        let field = service("web", &format!("type: LoadBalancer, loadBalancerIP: '{ip}', ports: [{{port: 80}}]"));
        let note = format!("millrace.dev/addresses: '{ip}'");
        let note = noted("web", &note, "type: LoadBalancer, ports: [{port: 80}]");
        for text in [external, field, note] {
            let found = run(&text, &gateway());
            assert!(found.shown().contains(&format!("`{ip}`, expected an address that can be")), "{}", found.shown());
            assert_eq!(found.frontends("web"), "", "{text}");
        }
    }
}

#[test]
fn pools_give_no_network_or_broadcast_address_of_a_subnet_of_the_host() {
    let text: String = (0..8).map(|n| service(&format!("s{n}"), "type: LoadBalancer, ports: [{port: 80}]")).collect();
    let broadcasts = vec!["203.0.113.0".parse().unwrap(), "203.0.113.7".parse().unwrap()];
    let context = Context { serve: Serve::default(), broadcasts, ..gateway() };
    let found = run(&text, &context);
    let given: Vec<String> = (0..8).map(|n| found.frontends(&format!("s{n}"))).collect();
    assert_eq!(given.iter().filter(|f| !f.is_empty()).count(), 6, "{given:?}");
    assert!(given.iter().all(|f| f != "203.0.113.0:80" && f != "203.0.113.7:80"), "{given:?}");
}
