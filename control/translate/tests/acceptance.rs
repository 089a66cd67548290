//! Every manifest of `tests/manifests` gives exactly the outcome that stands beside it (`.expect`): how it is served,
//! how it is listed, which finding stands at which line. `BLESS=1` writes the outcomes anew, to be read before they
//! are committed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_translate::{Context, Given, Node, Pool, Serve, Source, read, translate};

fn context() -> Context {
    Context {
        serve: Serve { load_balancer: true, external_ips: true, cluster_ip: true, node_port: true },
        pools: vec![Pool::new("public", vec!["203.0.113.0/28".parse().unwrap()])],
        service_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        node: Node { hostname: Some("gw1".into()), zone: Some("a".into()), region: Some("north".into()) },
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        ..Context::default()
    }
}

fn outcome(sources: &[Source]) -> String {
    let (objects, mut findings) = read(sources, &Given::default());
    let result = translate(&objects, &context(), &Given::default());
    findings.extend(result.findings.iter().cloned());
    findings.sort();
    let mut text = String::new();
    for finding in findings {
        writeln!(text, "finding {finding}").unwrap();
    }
    for (kind, count) in &result.counters.skipped_kinds {
        writeln!(text, "skipped {kind} {count}").unwrap();
    }
    for service in result.services.iter() {
        let ports: Vec<String> = service.ports.iter().map(|p| format!("{}:{:?}", p.port, p.node_port)).collect();
        let (ns, name, kind) = (&service.namespace, &service.name, service.kind);
        let (ready, total, why) = (service.endpoints_ready, service.endpoints_total, &service.not_served);
        writeln!(text, "service {ns}/{name} {kind} ports {ports:?} endpoints {ready}/{total} not served {why:?}")
            .unwrap();
    }
    for port in result.desired.service_ports.iter() {
        let frontends: Vec<String> = port.frontends.iter().map(|f| format!("{}:{}", f.address, f.port)).collect();
        let endpoints: Vec<String> =
            port.endpoints.iter().map(|e| format!("{}:{} {:?}", e.address, e.port, e.state)).collect();
        let (key, mode, none, affinity) = (&port.key, port.mode, port.no_endpoint, port.affinity);
        let route = format!("{} {:?} {:?}", key.name, key.protocol, key.scope);
        writeln!(text, "route {route} {frontends:?} to {endpoints:?} {mode:?} {none:?} {affinity:?}").unwrap();
    }
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/manifests")
}

fn manifests() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    paths
}

fn source(path: &Path) -> Source {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    Source { path: name.into(), text: fs::read_to_string(path).unwrap().into() }
}

#[test]
fn every_manifest_that_people_write_comes_to_what_stands_beside_it() {
    assert!(manifests().len() >= 20);
    for path in manifests() {
        let actual = outcome(&[source(&path)]);
        let expected = path.with_extension("expect");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &actual).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(actual, wanted, "{}", path.display());
    }
}

#[test]
fn the_order_of_files_and_a_kept_state_change_nothing() {
    let mut sources: Vec<Source> = manifests().iter().map(|path| source(path)).collect();
    let (objects, findings) = read(&sources, &Given::default());
    let first = translate(&objects, &context(), &Given::default());
    sources.reverse();
    let (reversed, same) = read(&sources, &Given::default());
    assert_eq!((objects, findings), (reversed.clone(), same));
    assert_eq!(translate(&reversed, &context(), &Given::default()), first);
    let again = translate(&reversed, &context(), &first.given);
    assert_eq!((again.given, again.desired), (first.given, first.desired));
}

/// Hostname, zone and region of a gateway, `-` for unset, and the endpoints that each list leaves there: `1` to `3`
/// stand on n1 (zone a, region north), n2 (b, north) and n3 (c, south); `drop` where none is left.
const POSITIONS: [([&str; 3], [&str; 4]); 8] = [
    (["n2", "b", "north"], ["2", "2", "2", "2"]),
    (["gw1", "a", "north"], ["drop", "123", "1", "1"]),
    (["gw1", "x", "north"], ["drop", "123", "12", "12"]),
    (["gw1", "x", "south"], ["drop", "123", "3", "3"]),
    (["gw1", "x", "west"], ["drop", "123", "drop", "123"]),
    (["-", "-", "-"], ["drop", "123", "drop", "123"]),
    (["n3", "a", "north"], ["3", "3", "1", "3"]),
    (["gw1", "-", "south"], ["drop", "123", "3", "3"]),
];

#[test]
fn the_four_lists_of_topology_keys_route_as_they_say_from_every_position() {
    let lists = ["topology-hostname", "topology-hostname-any", "topology-zone-region", "topology-all"];
    for (place, routes) in POSITIONS {
        let [hostname, zone, region] = place.map(|name| (name != "-").then(|| name.to_owned()));
        let context = Context { node: Node { hostname, zone, region }, ..context() };
        for (list, route) in lists.iter().zip(routes) {
            let (objects, _) = read(&[source(&folder().join(format!("{list}.yaml")))], &Given::default());
            let desired = translate(&objects, &context, &Given::default()).desired;
            let port = &desired.service_ports[0];
            let usable = port.endpoints.iter().filter(|endpoint| format!("{:?}", endpoint.state) == "Usable");
            let mut usable: Vec<char> = usable.filter_map(|e| e.address.to_string().chars().last()).collect();
            usable.sort_unstable();
            let left: String = usable.into_iter().collect();
            let expected = if route == "drop" { "" } else { route };
            assert_eq!(left, expected, "{list} at {place:?}");
            let none = if route == "drop" { "Drop" } else { "Reject" };
            assert_eq!(format!("{:?}", port.no_endpoint), none, "{list} at {place:?}");
        }
    }
}
