use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::kinds::Kind;
use super::last_good::LastGood;
use super::store::{Store, Stores};
use super::this_node;

fn service(name: &str, version: u64, port: u16) -> Service {
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string(), "uid": "u",
            "annotations": {"millrace.dev/algorithm": "random", "other": "x"},
            "managedFields": [{"manager": "m"}]},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port}]},
        "status": {"conditions": [], "loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    });
    serde_json::from_value(object).unwrap()
}

fn ports(store: &Store<Service>) -> Vec<(String, i32)> {
    let objects = store.objects();
    let port = |service: &Service| service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port;
    objects.iter().map(|located| (located.object.metadata.name.clone().unwrap(), port(&located.object))).collect()
}

fn said(store: &Store<Service>) -> String {
    ports(store).iter().map(|(name, port)| format!("{name}:{port}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_event_counts_at_once_and_one_that_changes_nothing_of_use_does_not() {
    let mut store = Store::<Service>::default();
    assert!(store.put(service("a", 1, 80)));
    let before = store.objects();
    let mut same = service("a", 2, 80);
    same.metadata.labels = Some([("x".to_owned(), "y".to_owned())].into());
    assert!(!store.put(same));
    assert!(Arc::ptr_eq(&before[0], &store.objects()[0]), "what did not change is shared");
    assert!(store.put(service("a", 3, 81)));
    assert!(store.remove(&service("a", 4, 81)) && !store.remove(&service("a", 4, 81)));
    assert!(store.objects().is_empty());
}

#[test]
fn the_first_list_counts_as_it_is() {
    let mut store = Store::<Service>::default();
    assert!(!store.listed());
    assert_eq!(store.take_list(vec![service("b", 2, 80), service("a", 1, 80)]), (true, 0));
    assert!(store.listed());
    assert_eq!(said(&store), "a:80 b:80");
}

#[test]
fn an_empty_list_removes_nothing_until_another_one_is_empty_too() {
    let mut store = Store::<Service>::default();
    store.take_list(vec![service("a", 1, 80), service("b", 2, 80)]);
    assert_eq!(store.take_list(Vec::new()), (false, 2));
    assert_eq!(said(&store), "a:80 b:80");
    assert_eq!(store.take_list(vec![service("b", 2, 80)]), (true, 0), "what is there again stays");
    assert_eq!(said(&store), "b:80");
    assert_eq!(store.take_list(Vec::new()).1, 1);
    assert_eq!(store.take_list(Vec::new()), (true, 0));
    assert_eq!(said(&store), "");
}

#[test]
fn what_a_list_has_more_or_newer_counts_at_once_and_what_it_has_older_when_another_one_has_it_too() {
    let mut store = Store::<Service>::default();
    store.take_list(vec![service("a", 10, 80), service("b", 11, 80)]);
    let stale = || vec![service("a", 5, 79), service("b", 12, 81), service("c", 6, 80)];
    assert_eq!(store.take_list(stale()), (true, 1));
    assert_eq!(said(&store), "a:80 b:81 c:80");
    assert_eq!(store.take_list(stale()), (true, 0));
    assert_eq!(said(&store), "a:79 b:81 c:80");
    assert_eq!(store.take_list(stale()), (false, 0), "it is the state now");
}

#[test]
fn an_event_ends_the_doubt_about_its_object() {
    let mut store = Store::<Service>::default();
    store.take_list(vec![service("a", 1, 80)]);
    assert_eq!(store.take_list(Vec::new()).1, 1);
    store.put(service("a", 2, 80));
    assert_eq!(store.take_list(Vec::new()), (false, 1), "it is in doubt anew");
    assert_eq!(said(&store), "a:80");
}

#[test]
fn what_is_kept_comes_back_in_its_version_and_rubbish_does_not_stop_a_start() {
    let folder = std::env::temp_dir().join(format!("millrace-objects-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kept = LastGood::in_folder(&folder);
    assert!(kept.read().is_none());
    let mut stores = Stores::default();
    stores.services.take_list(vec![service("a", 10, 80)]);
    let slice = json!({"metadata": {"name": "a-1", "namespace": "default", "resourceVersion": "7",
            "labels": {"kubernetes.io/service-name": "a", "endpointslice.kubernetes.io/managed-by": "x", "z": "z"}},
        "addressType": "IPv4", "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n",
            "targetRef": {"kind": "Pod", "name": "p", "namespace": "default", "uid": "u"}}]});
    stores.slices.put(serde_json::from_value::<EndpointSlice>(slice).unwrap());
    kept.write(&stores);
    let mut back = kept.read().unwrap();
    assert_eq!(back.objects(), stores.objects());
    assert!(!back.all_listed());
    assert_eq!(back.services.take_list(vec![service("a", 9, 79)]), (false, 1), "it knows how new it was");
    std::fs::write(folder.join("objects.json"), "{").unwrap();
    assert!(kept.read().is_none());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn of_an_object_only_what_is_of_use_is_kept() {
    let slim = service("a", 1, 80).slimmed();
    let annotations = slim.metadata.annotations.unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["millrace.dev/algorithm"]);
    assert!(slim.metadata.managed_fields.is_none() && slim.metadata.uid.is_none());
    assert!(slim.status.unwrap().load_balancer.unwrap().ingress.is_some());
}

#[test]
fn a_node_is_where_its_object_says_unless_the_configuration_says_otherwise() {
    let node = json!({"metadata": {"name": "n1", "labels": {
        "topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1", "more": "x"}}});
    let mut store = Store::<Node>::default();
    store.put(serde_json::from_value(node).unwrap());
    let configured = |hostname: &str, zone: Option<&str>| translate::Node {
        hostname: Some(hostname.to_owned()),
        zone: zone.map(str::to_owned),
        region: None,
    };
    let here = this_node(&configured("n1", None), &store.objects());
    assert_eq!((here.zone.as_deref(), here.region.as_deref()), (Some("z1"), Some("r1")));
    assert_eq!(this_node(&configured("n1", Some("own")), &store.objects()).zone.as_deref(), Some("own"));
    assert_eq!(this_node(&configured("n2", None), &store.objects()).zone, None);
    assert!(this_node(&translate::Node::default(), &[]).hostname.is_some(), "a host has a name");
}
