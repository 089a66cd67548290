//! "Without an API server" and "Errors": what a manifest may say, each finding with its line.

use super::{endpoints, gateway, run, service};

/// A Service that is sound, to stand beside one that is not.
const GOOD: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: good}\nspec: {ports: [{port: 80}]}\n";

#[test]
fn what_cannot_be_is_an_error_at_its_field_and_takes_no_other_service_down() {
    let cases = [
        ("ports: [{poret: 80}]", "spec.ports[0].poret: unknown field, did you mean `port`?"),
        ("ports: [{port: 80}], selektor: {a: b}", "spec.selektor: unknown field, did you mean `selector`?"),
        ("ports: [{port: 80}, {port: 81}]", "spec.ports[0].name: missing"),
        ("ports: [{name: a, port: 80}, {name: a, port: 81}]", "spec.ports[1].name: `a` a second time"),
        ("ports: [{name: a, port: 80}, {name: b, port: 80}]", "spec.ports[1].port: 80/TCP a second time"),
        ("ports: [{name: A, port: 80}]", "spec.ports[0].name: `A`"),
        ("ports: [{port: 0}]", "spec.ports[0].port: the number `0`, expected a number from 1 to 65535"),
        ("ports: [{port: '80'}]", "spec.ports[0].port: the text `80`"),
        ("ports: [{port: 80, protocol: tcp}]", "spec.ports[0].protocol: the text `tcp`"),
        ("ports: [{port: 80, targetPort: 0}]", "spec.ports[0].targetPort: `0`"),
        ("ports: [{port: 80, nodePort: 30080}]", "spec.ports[0].nodePort: `30080`, expected none with type ClusterIP"),
        ("ports: []", "spec.ports: missing"),
        ("type: Nodeport, ports: [{port: 80}]", "spec.type: the text `Nodeport`"),
        ("clusterIP: 10.96.0, ports: [{port: 80}]", "spec.clusterIP: `10.96.0`"),
        ("clusterIP: None, type: NodePort, ports: [{port: 80}]", "spec.clusterIP: `None`"),
        ("type: ExternalName", "spec.externalName: ``, expected a DNS name"),
        ("type: ExternalName, externalName: a.b, clusterIP: None", "spec.clusterIP: `None`"),
        ("externalTrafficPolicy: Local, ports: [{port: 80}]", "spec.externalTrafficPolicy: set"),
        ("healthCheckNodePort: 30000, ports: [{port: 80}]", "spec.healthCheckNodePort: set"),
        ("loadBalancerClass: a.b/c, ports: [{port: 80}]", "spec.loadBalancerClass: set"),
        ("loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]", "spec.loadBalancerSourceRanges: set"),
        ("externalIPs: [127.0.0.1], ports: [{port: 80}]", "spec.externalIPs[0]: `127.0.0.1`"),
        ("ipFamilies: [IPv4, IPv4], ports: [{port: 80}]", "spec.ipFamilies: too many"),
        ("topologyKeys: [rack], ports: [{port: 80}]", "spec.topologyKeys: Service default/web: `rack`"),
    ];
    for (spec, expected) in cases {
        let found = run(&(service("web", spec) + GOOD), &gateway());
        assert!(found.shown().contains(&format!(": {expected}")), "{spec}: {}", found.shown());
        assert!(found.findings.iter().all(|finding| finding.line == 5 && finding.is_error()), "{}", found.shown());
        assert_eq!((found.ports("web").len(), found.ports("good").len()), (0, 1), "{spec}");
    }
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let found =
        run("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n", &gateway()).clean();
    let (listed, port) = (found.listed("web"), found.only("web"));
    assert_eq!((listed.namespace.as_str(), listed.kind.as_str()), ("default", "ClusterIP"));
    assert_eq!((listed.ports[0].protocol.as_str(), port.affinity), ("TCP", None));
}

#[test]
fn names_and_endpoints_follow_the_apis_rules() {
    let bad = |text: String, expected: &str| {
        let shown = run(&text, &gateway()).shown();
        assert!(shown.contains(expected), "{shown}");
    };
    for name in ["Web", "1web", "web-", "web.x"] {
        bad(service(name, "ports: [{port: 80}]"), "a.yaml:4: metadata.name: `");
    }
    bad(service("web, namespace: A", "ports: [{port: 80}]"), "metadata.namespace: `A`");
    bad(endpoints("web", "ports: [{port: 80}]"), "subsets[0]: no address");
    bad(
        endpoints("web", "addresses: [{ip: 1.2.3.4}], ports: [{port: 1}, {port: 2}]"),
        "subsets[0].ports[0].name: missing",
    );
    bad(
        endpoints("web", "addresses: [{IP: 1.2.3.4}]"),
        "subsets[0].addresses[0].IP: unknown field, did you mean `ip`?",
    );
}

#[test]
fn lists_and_json_are_read_like_documents() {
    let item = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"ports":[{"port":80}]}}"#;
    let list = format!("{{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{item}\n\t]\n}}\n");
    let yaml = format!(
        "apiVersion: v1\nkind: ServiceList\nitems:\n- {}\n",
        item.replace(r#""apiVersion":"v1","kind":"Service","#, "")
    );
    let expected = run(item, &gateway()).clean().result.desired;
    for text in [list.clone(), yaml] {
        assert_eq!(run(&text, &gateway()).clean().result.desired, expected, "{text}");
    }
    let shown = run(&list.replace("\"port\":80", "\"poret\":80"), &gateway()).shown();
    assert!(shown.starts_with("a.yaml:5: spec.ports[0].poret"), "{shown}");
}

#[test]
fn kinds_that_are_not_ours_are_counted_and_near_misses_and_tabs_are_errors() {
    let of = |kind: &str, version: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n---\n");
    let others = ["Deployment", "ConfigMap", "Ingress", "Pod", "Secret", "PodList", "Deployment"];
    let text: String = others.iter().map(|kind| of(kind, "apps/v1")).collect();
    let counted = run(&text, &gateway()).clean().result.counters.skipped_kinds;
    assert_eq!((counted.len(), counted["Deployment"]), (6, 2));
    for (kind, version, line, field) in [
        ("Service // mine", "v1", 2, "kind"),
        ("service", "v1", 2, "kind"),
        ("Endpoint", "v1", 2, "kind"),
        ("Service", "V1", 1, "apiVersion"),
        ("EndpointSlice", "discovery.k8s.io/v1beta1", 1, "apiVersion"),
        ("Service", "1", 1, "apiVersion"),
    ] {
        let found = run(&(of(kind, version) + GOOD), &gateway());
        assert!(found.shown().starts_with(&format!("a.yaml:{line}: {field}: ")), "{}", found.shown());
        assert_eq!((found.findings.len(), found.ports("good").len()), (1, 1), "{kind} {version}");
    }
    for kind in ["Service", "ConfigMap", "Secret", "Pod", "Deployment", "Ingress"] {
        let found = run(&(of(kind, "v1").replace("{name: x}", "\n\tname: x") + GOOD), &gateway());
        assert!(
            found.shown().starts_with("a.yaml:4: yaml: a tab in the indentation, expected spaces"),
            "{}",
            found.shown()
        );
        assert_eq!(found.ports("good").len(), 1);
    }
}

#[test]
fn a_name_twice_is_an_error_naming_both_places_in_one_namespace_and_kind() {
    let again = run(&(GOOD.to_owned() + GOOD), &gateway());
    assert!(again.shown().contains("first at a.yaml:2, again at a.yaml:7"), "{}", again.shown());
    assert_eq!(again.ports("good").len(), 1);
    let elsewhere = GOOD.replace("{name: good}", "{name: good, namespace: other}");
    let same_name = endpoints("good", "addresses: [{ip: 1.2.3.4}], ports: [{port: 80}]");
    run(&(GOOD.to_owned() + &elsewhere + &same_name), &gateway()).clean();
}

#[test]
fn sixty_thousand_ports_and_a_hundred_thousand_wrong_fields_are_judged_in_seconds() {
    let begun = std::time::Instant::now();
    let ports: String = (1..=60_000).map(|n| format!("{{name: p{n}, port: {n}}}, ")).collect();
    let many = run(&service("web", &format!("ports: [{ports}]")), &gateway());
    println!("60,000 ports: {:?}", begun.elapsed());
    assert!(!many.shown().contains("second time"), "{}", &many.shown()[..1000]);
    let begun_2 = std::time::Instant::now();
    let fields: String = (0..100_000).map(|n| format!("externalName{n}: 1, ")).collect();
    let wrong = run(&service("web", &format!("{fields}ports: [{{port: 80}}]")), &gateway());
    println!("100,000 unknown keys: {:?}", begun_2.elapsed());
    assert!(wrong.shown().contains("spec.externalName9: unknown field, did you mean `externalName`?"));
    assert!(begun.elapsed() < std::time::Duration::from_secs(45), "{:?}", begun.elapsed());
}
