use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::kinds::Kind;
use super::last_good::{Keeping, LastGood, locked};
use super::store::{Seen, Store, Stores};
use super::this_node;

fn service(name: &str, version: u64, port: u16) -> Service {
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string(), "uid": "u",
            "annotations": {"millrace.dev/algorithm": "random", "other": "x"},
            "labels": {"app": "web"}, "finalizers": ["others.example.com/x", "service.kubernetes.io/load-balancer-cleanup"],
            "managedFields": [{"manager": "m"}, {"manager": "millrace", "operation": "Apply", "fieldsV1": {"f:x": {}}}]},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port}]},
        "status": {"conditions": [{"type": "others.example.com/x", "status": "True", "reason": "X", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}], "loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    });
    serde_json::from_value(object).unwrap()
}

fn seen<const N: usize>(list: [Service; N]) -> Vec<Seen<Service>> {
    list.map(Seen::from).into()
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
    same.metadata.annotations.as_mut().unwrap().insert("more".to_owned(), "y".to_owned());
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
    assert_eq!(store.take_list(seen([service("b", 2, 80), service("a", 1, 80)])), (true, 0));
    assert!(store.listed());
    assert_eq!(said(&store), "a:80 b:80");
}

#[test]
fn an_empty_list_removes_nothing_until_another_one_is_empty_too() {
    let mut store = Store::<Service>::default();
    store.take_list(seen([service("a", 1, 80), service("b", 2, 80)]));
    assert_eq!(store.take_list(Vec::new()), (false, 2));
    assert_eq!(said(&store), "a:80 b:80");
    assert_eq!(store.take_list(seen([service("b", 2, 80)])), (true, 0), "what is there again stays");
    assert_eq!(said(&store), "b:80");
    assert_eq!(store.take_list(Vec::new()).1, 1);
    assert_eq!(store.take_list(Vec::new()), (true, 0));
    assert_eq!(said(&store), "");
}

#[test]
fn what_a_list_has_more_or_newer_counts_at_once_and_what_it_has_older_when_another_one_has_it_too() {
    let mut store = Store::<Service>::default();
    store.take_list(seen([service("a", 10, 80), service("b", 11, 80)]));
    let stale = || seen([service("a", 5, 79), service("b", 12, 81), service("c", 6, 80)]);
    assert_eq!(store.take_list(stale()), (true, 1));
    assert_eq!(said(&store), "a:80 b:81 c:80");
    assert_eq!(store.take_list(stale()), (true, 0));
    assert_eq!(said(&store), "a:79 b:81 c:80");
    assert_eq!(store.take_list(stale()), (false, 0), "it is the state now");
}

#[test]
fn an_event_ends_the_doubt_about_its_object() {
    let mut store = Store::<Service>::default();
    store.take_list(seen([service("a", 1, 80)]));
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
    stores.services.take_list(seen([service("a", 10, 80)]));
    let slice = json!({"metadata": {"name": "a-1", "namespace": "default", "resourceVersion": "7",
            "labels": {"kubernetes.io/service-name": "a", "endpointslice.kubernetes.io/managed-by": "x", "z": "z"}},
        "addressType": "IPv4", "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n",
            "targetRef": {"kind": "Pod", "name": "p", "namespace": "default", "uid": "u"}}]});
    stores.slices.put(serde_json::from_value::<EndpointSlice>(slice).unwrap());
    assert!(kept.write(&Keeping::of(&stores)));
    let mut back = kept.read().unwrap();
    assert_eq!(back.objects(), stores.objects());
    assert!(!back.all_listed());
    assert_eq!(back.services.take_list(seen([service("a", 9, 79)])), (false, 1), "it knows how new it was");
    std::fs::write(folder.join("objects.json"), "{").unwrap();
    assert!(kept.read().is_none());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn of_two_that_write_at_once_each_leaves_a_whole_file() {
    let folder = std::env::temp_dir().join(format!("millrace-objects-at-once-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (few, many) = [1, 300]
        .map(|count| {
            let mut stores = Stores::default();
            stores.services.take_list((0..count).map(|number| service(&format!("s{number}"), 10, 80).into()).collect());
            stores
        })
        .into();
    std::thread::scope(|scope| {
        for stores in [&few, &many] {
            let kept = LastGood::in_folder(&folder);
            scope.spawn(move || {
                for _ in 0..50 {
                    let _ = kept.write(&Keeping::of(stores));
                }
            });
        }
    });
    let back = LastGood::in_folder(&folder).read().expect("a whole file").objects();
    assert!(back == few.objects() || back == many.objects());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_lock_that_another_holds_is_waited_for_and_not_for_ever() {
    let path = std::env::temp_dir().join(format!("millrace-objects-lock-{}", std::process::id()));
    let others = locked(&path, Duration::ZERO).unwrap();
    let error = locked(&path, Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().starts_with("another instance holds the lock file"), "{error}");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| locked(&path, Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(50));
        drop(others);
        waits.join().unwrap().unwrap();
    });
    std::fs::remove_file(path).unwrap();
}

#[test]
fn of_an_object_only_what_is_of_use_is_kept() {
    let slim = service("a", 1, 80).slimmed();
    let annotations = slim.metadata.annotations.unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["millrace.dev/algorithm"]);
    assert_eq!(slim.metadata.labels.unwrap().len(), 1, "pools select by them");
    assert_eq!(slim.metadata.finalizers.unwrap(), ["service.kubernetes.io/load-balancer-cleanup"]);
    let fields = slim.metadata.managed_fields.unwrap();
    assert!(fields.len() == 1 && fields[0].manager.as_deref() == Some("millrace") && fields[0].fields_v1.is_none());
    let status = slim.status.unwrap();
    assert!(status.load_balancer.unwrap().ingress.is_some() && status.conditions.is_none());
    let node = json!({"metadata": {"name": "n1", "labels": {"more": "x"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"], "providerID": "x"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "capacity": {"cpu": "1"}}});
    let slim = serde_json::from_value::<Node>(node).unwrap().slimmed();
    assert!(slim.metadata.labels.is_none());
    let (spec, status) = (slim.spec.unwrap(), slim.status.unwrap());
    assert_eq!((spec.pod_cidrs.unwrap().len(), status.addresses.unwrap().len()), (1, 1));
    assert!(spec.provider_id.is_none() && status.capacity.is_none());
}

#[test]
fn what_was_written_is_stored_at_once_and_older_events_of_it_say_nothing_new() {
    let mut store = Store::<Service>::default();
    store.take_list(seen([service("a", 1, 80)]));
    assert!(store.put_newer(service("a", 5, 85)) && !store.put_newer(service("a", 4, 84)));
    assert!(!store.put_newer(service("b", 5, 80)), "it is gone, or was never seen");
    assert!(!store.put_event(service("a", 3, 83)) && !store.put_event(service("a", 5, 85)));
    assert_eq!(said(&store), "a:85");
    assert!(store.put_event(service("a", 6, 86)) && store.put_event(service("b", 2, 80)));
    assert_eq!(said(&store), "a:86 b:80");
}

#[test]
fn a_node_is_where_its_object_says_unless_the_configuration_says_otherwise() {
    let node = json!({"metadata": {"name": "n1", "labels": {
        "topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1", "more": "x"}}});
    let mut store = Store::<Node>::default();
    store.put(serde_json::from_value::<Node>(node).unwrap());
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
