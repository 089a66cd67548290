//! A node of a cluster: what the API server and its controllers decide is not decided again.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use lb::model::EndpointState;
use millrace_translate::{
    AddressRange, Context, Drained, Given, HealthCheckNodePort, Located, Objects, Place, Serve, Source,
    judge_annotations, read, translate, translate_after,
};

use super::{endpoints, gateway, noted, run, service, slice};

fn node() -> Context {
    Context { place: Place::Node, serve: Serve::default(), ..gateway() }
}

fn status(ips: &str) -> String {
    let entries: Vec<String> = ips.split(' ').map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
    format!("status: {{loadBalancer: {{ingress: [{}]}}}}\n", entries.join(", "))
}

#[test]
fn only_addresses_of_the_status_that_a_pool_has_are_served() {
    let spec = "type: LoadBalancer, loadBalancerIP: 203.0.113.3, clusterIP: 10.96.0.10, ports: [{port: 80}]";
    let annotated = noted("web", "millrace.dev/addresses: 203.0.113.2", spec);
    let none = "status.loadBalancer.ingress: warning: no address to serve it on";
    let other = "status.loadBalancer.ingress: warning: `198.51.100.1` is not served";
    for (text, served, says) in [
        (annotated.clone(), "", &[none][..]),
        (annotated.clone() + &status("203.0.113.1"), "203.0.113.1:80", &[]),
        (annotated.clone() + &status("198.51.100.1 203.0.113.1"), "203.0.113.1:80", &[other]),
        (annotated + &status("198.51.100.1"), "", &[none, other]),
    ] {
        let found = run(&text, &node());
        assert_eq!(found.frontends("web"), served, "{text}");
        assert_eq!(found.findings.len(), says.len(), "{}", found.shown());
        assert!(says.iter().all(|says| found.shown().contains(says)), "{}", found.shown());
    }
}

#[test]
fn of_two_services_with_one_address_the_one_that_had_it_keeps_it() {
    let both = |first: &str, second: &str| {
        let spec = "type: LoadBalancer, ports: [{port: 80}]";
        service(first, spec) + &status("203.0.113.1") + &service(second, spec) + &status("203.0.113.1")
    };
    let first = run(&(service("web", "type: LoadBalancer, ports: [{port: 80}]") + &status("203.0.113.1")), &node());
    let found = super::run_given(&both("api", "web"), &node(), &first.result.given);
    assert_eq!((found.frontends("web").as_str(), found.frontends("api").as_str()), ("203.0.113.1:80", ""));
}

#[test]
fn what_kube_proxy_serves_is_listed_without_a_finding() {
    let spec = "selector: {app: web}, clusterIP: 10.96.0.10, ports: [{port: 80}]";
    for (kind, says) in [("ClusterIP", "type ClusterIP: kube-proxy's"), ("NodePort", "type NodePort: kube-proxy's")] {
        let found = run(&service("web", &format!("type: {kind}, {spec}")), &node()).clean();
        assert_eq!(found.listed("web").not_served.as_deref(), Some(says));
        assert!(found.result.given.node_ports.is_empty(), "the API server gives NodePorts");
    }
}

#[test]
fn endpoints_count_where_no_controller_made_slices_of_them() {
    let web = service("web", "type: LoadBalancer, ports: [{port: 80}]") + &status("203.0.113.1");
    let hand = endpoints("web", "addresses: [{ip: 10.0.0.9}], ports: [{port: 8080}]");
    let mirrored = slice("web", "IPv4", "{addresses: [10.0.0.1]}", "{port: 8080}").replace(
        "kubernetes.io/service-name: web",
        "kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io",
    );
    assert_eq!(run(&(web.clone() + &hand), &node()).in_state("web", EndpointState::Usable), "10.0.0.9:8080");
    assert_eq!(run(&(web + &hand + &mirrored), &node()).in_state("web", EndpointState::Usable), "10.0.0.1:8080");
}

#[test]
fn a_health_check_node_port_counts_the_ready_endpoints_of_this_node() {
    let context = Context { node: super::at("n1", "", "").node, ..node() };
    let here =
        |ip: &str, conditions: &str| format!("{{addresses: [\"{ip}\"], nodeName: n1, conditions: {{{conditions}}}}}");
    let all = [
        here("10.0.0.1", ""),
        here("10.0.0.2", "ready: true"),
        here("10.0.0.3", "ready: false, serving: true, terminating: true"),
        "{addresses: [10.0.0.4], nodeName: n2}".to_owned(),
        "{addresses: [10.0.0.5]}".to_owned(),
    ];
    let many = slice("web", "IPv4", &all.join(", "), "{name: a, port: 80}, {name: b, port: 81}")
        + &slice("web", "IPv6", &here("2001:db8::1", ""), "{name: a, port: 80}");
    let leaving = slice("web", "IPv4", &all[2], "{name: a, port: 80}");
    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32001, clusterIP: 10.96.0.10, \
                ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack, \
                ports: [{name: a, port: 80}, {name: b, port: 81}]";
    let other = format!("{spec}, loadBalancerClass: example.com/other");
    let cluster = spec.replace("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster");
    let not_ready = format!("{spec}, publishNotReadyAddresses: true");
    let takes_all = Context { serve: Serve { node_port: true, ..Serve::default() }, ..context.clone() };
    let gateway = Context { place: Place::Gateway, ..context.clone() };
    for (spec, endpoints, context, found) in [
        (spec, &many, &context, Some(2)),
        (spec, &leaving, &context, Some(0)),
        (spec, &String::new(), &context, Some(0)),
        (&not_ready, &many, &context, Some(3)),
        (&cluster, &many, &context, None),
        (&other, &many, &context, None),
        (&other, &many, &takes_all, Some(2)),
        (spec, &many, &gateway, None),
    ] {
        let result = run(&(service("web", spec) + &status("203.0.113.1") + endpoints), context).result;
        let expected = found.map(|endpoints| HealthCheckNodePort {
            namespace: "default".into(),
            name: "web".into(),
            port: 32001,
            endpoints,
        });
        assert_eq!(result.health_check_node_ports, Vec::from_iter(expected), "{spec}\n{endpoints}");
    }
    let labelled = service("web", &other)
        .replace("{name: web", "{name: web, labels: {service.kubernetes.io/service-proxy-name: x}");
    let result = run(&(labelled + &status("203.0.113.1") + &many), &takes_all).result;
    assert_eq!(result.health_check_node_ports, [], "another load balancer's and another proxy's");
    let drained = [Drained { address: "10.0.0.1".parse().unwrap(), port: None }].into();
    let result = run(&(service("web", spec) + &many), &Context { drained, ..context }).result;
    assert_eq!(result.health_check_node_ports[0].endpoints, 1, "what gets no new flows by order is none");
}

#[test]
fn an_external_ip_that_is_somethings_own_is_refused_but_not_that_of_a_node() {
    let n2 = serde_json::json!({
        "metadata": {"name": "n2"},
        "spec": {"podCIDRs": ["10.244.2.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
    });
    let n2 = Located::of_api(serde_json::from_value::<Node>(n2).unwrap(), "Node", None, "n2");
    let reserved = [("198.51.100.7", "`snat`"), ("192.0.2.2", "`tunnel`"), ("10.96.0.0/16", "the range of ClusterIPs")];
    let reserved = reserved.map(|(range, what)| (range.parse::<AddressRange>().unwrap(), format!("of {what}")));
    let external_ip_ranges = Some(vec!["0.0.0.0/0".parse().unwrap()]);
    let context = Context { pools: Vec::new(), reserved: reserved.to_vec(), external_ip_ranges, ..node() };
    let ips = "198.51.100.1, 198.51.100.7, 192.0.2.2, 10.96.0.7, 10.244.2.9";
    let text = service("web", &format!("externalIPs: [{ips}], ports: [{{port: 80}}]"));
    let (mut objects, found) = read(&[Source { path: "a.yaml".into(), text: text.into() }], &Given::default());
    assert_eq!(found, []);
    Arc::make_mut(&mut objects.nodes).push(Arc::new(n2));
    let translation = translate(&objects, &context, &Given::default());
    let served = translation.desired.addresses.iter().map(|one| one.address.to_string());
    assert_eq!(served.collect::<Vec<_>>(), ["192.0.2.2", "198.51.100.1"]);
    let said = translation.findings.iter().map(|found| format!("{}: {}", found.field, found.message));
    let refused = |at: u8, ip: &str, what: &str| {
        format!("spec.externalIPs[{at}]: `{ip}` of default/web is {what}, expected another address")
    };
    let expected = [
        refused(1, "198.51.100.7", "of `snat`"),
        refused(3, "10.96.0.7", "of the range of ClusterIPs"),
        refused(4, "10.244.2.9", "of the Pods' range of Node n2"),
    ];
    assert_eq!(said.collect::<Vec<_>>(), expected);
    let gateway = Context { place: Place::Gateway, ..context };
    assert_eq!(translate(&objects, &gateway, &Given::default()).desired.addresses.len(), 5);
}

#[test]
fn an_object_of_an_api_server_is_named_by_kind_and_name() {
    let annotations = [("millrace.dev/algorithm".to_owned(), "fastest".to_owned())].into();
    let mut web = Service::default();
    (web.metadata.namespace, web.metadata.name) = (Some("shop".to_owned()), Some("web".to_owned()));
    web.metadata.annotations = Some(annotations);
    let web = Arc::new(Located::of_api(web, "Service", Some("shop"), "web"));
    let found: Vec<String> = judge_annotations(&web).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("Service shop/web: metadata.annotations[millrace.dev/algorithm]: "), "{found:?}");
    let objects = Objects { services: Arc::new(vec![web]), ..Objects::default() };
    let (translation, former) = translate_after(None, &objects, &node(), &Default::default());
    assert_eq!(translation.services[0].source, "Service shop/web");
    assert!(translation.given.objects.is_empty(), "an API server has each once: nothing to keep");
    let (again, _) = translate_after(Some(&former), &objects, &node(), &translation.given);
    assert_eq!(again, translate(&objects, &node(), &translation.given));
}

/// A node without kube-proxy, whose own packets to NodePorts are sent elsewhere.
fn whole_node() -> Context {
    let node_port_addresses = Some(vec!["192.0.2.1".parse().unwrap(), WAY.parse().unwrap()]);
    let serve = Serve { cluster_ip: true, node_port: true, ..Serve::default() };
    let node_addresses = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    let here = millrace_translate::Node { hostname: Some("n1".to_owned()), ..Default::default() };
    Context { serve, node_port_addresses, node_addresses, node: here, ..node() }
}

const WAY: &str = "169.254.86.5";

#[test]
fn a_node_without_kube_proxy_serves_cluster_ips_and_node_ports_and_announces_neither() {
    let spec = "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]";
    let found = run(
        &(service("web", spec) + &endpoints("web", "addresses: [{ip: 10.0.0.1}], ports: [{port: 8080}]")),
        &whole_node(),
    )
    .clean();
    assert_eq!(found.frontends("web"), "10.96.0.10:80 169.254.86.5:30080 192.0.2.1:30080");
    let shown: Vec<_> =
        found.result.desired.addresses.iter().map(|a| (a.address.to_string(), a.is_announced())).collect();
    assert_eq!(shown, ["10.96.0.10", WAY, "192.0.2.1"].map(|ip| (ip.to_owned(), false)));
    let balanced = format!("type: LoadBalancer, {}", &spec["type: NodePort, ".len()..]);
    let found = run(&(service("web", &balanced) + &status("203.0.113.1")), &whole_node()).clean();
    let announced = found.result.desired.addresses.iter().filter(|a| a.is_announced()).map(|a| a.address.to_string());
    assert_eq!(announced.collect::<Vec<_>>(), ["203.0.113.1"]);
    let labelled =
        service("web", spec).replace("{name: web", "{name: web, labels: {service.kubernetes.io/service-proxy-name: x}");
    let found = run(&labelled, &whole_node()).clean();
    assert_eq!(found.frontends("web"), "");
    assert_eq!(found.listed("web").not_served.as_deref(), Some("its label service-proxy-name names another proxy"));
}

#[test]
fn policy_local_is_for_clients_outside_and_what_the_node_sends_itself_goes_to_all() {
    let ports = "clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]";
    let far = slice("web", "IPv4", "{addresses: [10.0.0.1], nodeName: n2}", "{port: 8080}");
    for (internal, from_within) in [("Cluster", "10.0.0.1:8080"), ("Local", "")] {
        let spec = format!("type: NodePort, externalTrafficPolicy: Local, internalTrafficPolicy: {internal}, {ports}");
        let found = run(&(service("web", &spec) + &far), &whole_node()).clean();
        let at = |address: &str| {
            let is_at =
                |port: &&&lb::model::ServicePort| port.frontends.iter().any(|f| f.address.to_string() == address);
            let ports = found.ports("web");
            let port = ports.iter().find(is_at).expect(address);
            let usable = port.endpoints.iter().filter(|e| e.state == EndpointState::Usable);
            usable.map(|e| format!("{}:{}", e.address, e.port)).collect::<String>()
        };
        assert_eq!(at("192.0.2.1"), "", "{internal}");
        assert_eq!((at("10.96.0.10").as_str(), at(WAY).as_str()), (from_within, from_within), "{internal}");
    }
}
