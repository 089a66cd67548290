//! A node of a cluster: what the API server and its controllers decide is not decided again.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use lb::model::EndpointState;
use millrace_translate::{Context, Located, Objects, Place, Serve, judge_annotations, translate, translate_after};

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
fn an_object_of_an_api_server_is_named_by_kind_and_name() {
    let annotations = [("millrace.dev/algorithm".to_owned(), "fastest".to_owned())].into();
    let mut web = Service::default();
    (web.metadata.namespace, web.metadata.name) = (Some("shop".to_owned()), Some("web".to_owned()));
    web.metadata.annotations = Some(annotations);
    let web = Arc::new(Located::of_api(web, "Service", Some("shop"), "web"));
    let found: Vec<String> = judge_annotations(&web).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("Service shop/web: metadata.annotations[millrace.dev/algorithm]: "), "{found:?}");
    let objects = Objects { services: vec![web], ..Objects::default() };
    let (translation, former) = translate_after(None, &objects, &node(), &Default::default());
    assert_eq!(translation.services[0].source, "Service shop/web");
    assert!(translation.given.objects.is_empty(), "an API server has each once: nothing to keep");
    let (again, _) = translate_after(Some(&former), &objects, &node(), &translation.given);
    assert_eq!(again, translate(&objects, &node(), &translation.given));
}
