//! Addresses of Services whose status is the record: who gets which, who keeps what, and why somebody lacks one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, NodeAddress, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use lb::model::Mode;
use millrace_translate::{
    Allocation, Allotment, Context, Defaults, Given, Labels, Located, Objects, Place, Pool, Selector, Serve, Source,
    allocate, read,
};
use proptest::prelude::*;

use super::{gateway, noted, service};

const WEB: &str = "type: LoadBalancer, ports: [{port: 80}]";

fn node() -> Context {
    let pools = vec![
        Pool::new("v4", vec!["203.0.113.0/30".parse().unwrap()]),
        Pool::new("v6", vec!["2001:db8:1::/126".parse().unwrap()]),
    ];
    Context { place: Place::Node, serve: Serve::default(), service_ranges: Vec::new(), pools, ..gateway() }
}

fn status(ips: &str) -> String {
    let entries: Vec<String> = ips.split(' ').map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
    format!("status: {{loadBalancer: {{ingress: [{}]}}}}\n", entries.join(", "))
}

fn objects(text: &str) -> Objects {
    let (objects, findings) = read(&[Source { path: "a.yaml".into(), text: text.into() }], &Given::default());
    assert!(!findings.iter().any(|finding| finding.is_error()), "{findings:?}");
    objects
}

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn selector(key: &str, value: &str) -> Selector {
    Selector::of(&LabelSelector { match_labels: Some(labels(&[(key, value)])), match_expressions: None }).unwrap()
}

fn allot(text: &str, context: &Context) -> Allocation {
    allocate(&objects(text), context, &Arc::default())
}

/// `name: addresses; lacks`.
fn shown(allocation: &Allocation) -> Vec<String> {
    let one = |allotment: &Allotment| {
        let addresses: Vec<String> = allotment.addresses.iter().map(ToString::to_string).collect();
        let lacks: Vec<&str> = allotment.lacks.iter().map(|lack| lack.reason.as_str()).collect();
        format!("{}: {}; {}", allotment.name, addresses.join(" "), lacks.join(" "))
    };
    allocation.allotments.iter().map(one).collect()
}

#[test]
fn what_is_asked_for_comes_first_then_the_record_then_a_free_one() {
    let asks = |ips: &str| noted("web", &format!("millrace.dev/addresses: '{ips}'"), WEB);
    let old = service("web", &format!("{WEB}, loadBalancerIP: 203.0.113.2"));
    for (text, expected) in [
        (service("web", WEB) + &status("203.0.113.3"), "web: 203.0.113.3; "),
        (old.clone(), "web: 203.0.113.2; "),
        (old + &status("203.0.113.3"), "web: 203.0.113.2; "),
        (asks("203.0.113.1"), "web: 203.0.113.1; "),
        (asks("203.0.113.1,203.0.113.0"), "web: 203.0.113.1 203.0.113.0; "),
        (asks("203.0.113.1,203.0.113.0") + &status("203.0.113.0 203.0.113.1"), "web: 203.0.113.1 203.0.113.0; "),
        (asks("198.51.100.1"), "web: ; AddressNotInPools"),
        (asks("198.51.100.1") + &status("203.0.113.3"), "web: 203.0.113.3; AddressNotInPools"),
        (asks("198.51.100.1") + &status("198.51.100.1"), "web: ; AddressNotInPools"),
        (asks("192.0.2.1"), "web: ; AddressNotInPools"),
        // Of a family nobody asked two of, one is enough.
        (service("web", WEB) + &status("203.0.113.3 203.0.113.1"), "web: 203.0.113.3; "),
    ] {
        assert_eq!(shown(&allot(&text, &node())), [expected], "{text}");
    }
    let given = allot(&service("web", WEB), &node());
    assert!(given.allotments[0].addresses.len() == 1 && given.allotments[0].lacks.is_empty());
    let foreign = allot(&(service("web", WEB) + &status("198.51.100.1")), &node());
    assert_eq!(foreign.allotments, given.allotments, "an address of others counts for nothing");
}

#[test]
fn services_of_other_classes_types_and_those_that_go_get_none() {
    let class = |class: &str| service("web", &format!("{WEB}, loadBalancerClass: {class}"));
    assert_eq!(allot(&class("example.com/other"), &node()).allotments, []);
    assert_eq!(allot(&class("millrace.dev/millrace"), &node()).allotments.len(), 1);
    assert_eq!(allot(&service("web", "type: NodePort, ports: [{port: 80}]"), &node()).allotments, []);
    let mut objects = objects(&(service("api", WEB) + &service("web", WEB) + &status("203.0.113.1")));
    let web = Arc::make_mut(&mut Arc::make_mut(&mut objects.services)[1]);
    web.object.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let allocation = allocate(&objects, &node(), &Arc::default());
    assert_eq!(allocation.allotments.len(), 1);
    assert_ne!(allocation.allotments[0].addresses, ["203.0.113.1".parse::<IpAddr>().unwrap()], "it has not gone yet");
}

#[test]
fn families_are_those_of_the_service() {
    let families = |policy: &str, families: &str| {
        service("web", &format!("{WEB}, ipFamilyPolicy: {policy}, ipFamilies: [{families}]"))
    };
    let v4_alone = Context { pools: vec![node().pools[0].clone()], ..node() };
    let dual = "IPv6, IPv4";
    for (text, context, count, lacks) in [
        (families("RequireDualStack", dual), node(), 2, ""),
        (families("SingleStack", "IPv6"), node(), 1, ""),
        (families("PreferDualStack", dual), v4_alone.clone(), 1, ""),
        (families("RequireDualStack", dual), v4_alone.clone(), 1, "NoPool"),
        (families("SingleStack", "IPv6"), v4_alone, 0, "NoPool"),
        (families("SingleStack", "IPv4") + &status("203.0.113.1 2001:db8:1::1"), node(), 1, ""),
    ] {
        let allocation = allot(&text, &context);
        let web = &allocation.allotments[0];
        let found: Vec<&str> = web.lacks.iter().map(|lack| lack.reason.as_str()).collect();
        assert_eq!((web.addresses.len(), found.join(" ").as_str()), (count, lacks), "{text}");
    }
    let both = allot(&families("RequireDualStack", dual), &node());
    assert!(both.allotments[0].addresses[0].is_ipv6(), "the first family in front: {both:?}");
    let asks = noted("web", "millrace.dev/addresses: '2001:db8:1::1'", &format!("{WEB}, ipFamilies: [IPv4]"));
    assert_eq!(shown(&allot(&asks, &node())).len(), 1);
    assert!(shown(&allot(&asks, &node()))[0].ends_with("AddressOfWrongFamily"), "{:?}", shown(&allot(&asks, &node())));
}

#[test]
fn an_address_is_shared_by_those_who_say_so_and_want_different_ports() {
    let shares = |name: &str, key: &str, port: u16| {
        let asks = format!("millrace.dev/share: {key}, millrace.dev/addresses: 203.0.113.1");
        noted(name, &asks, &format!("type: LoadBalancer, ports: [{{port: {port}}}]"))
    };
    let dns = shares("a", "dns", 53);
    assert_eq!(
        shown(&allot(&(dns.clone() + &shares("b", "dns", 80)), &node())),
        ["a: 203.0.113.1; ", "b: 203.0.113.1; "]
    );
    for other in [shares("b", "dns", 53), shares("b", "web", 80)] {
        assert_eq!(shown(&allot(&(dns.clone() + &other), &node())), ["a: 203.0.113.1; ", "b: ; AddressTaken"]);
    }
    let free = |name: &str, port: u16| {
        noted(name, "millrace.dev/share: dns", &format!("type: LoadBalancer, ports: [{{port: {port}}}]"))
    };
    let both = allot(&(free("a", 53) + &free("b", 80)), &node());
    assert_eq!(both.allotments[0].addresses, both.allotments[1].addresses);
}

#[test]
fn a_pool_that_is_empty_says_so_and_what_is_released_goes_to_who_waits() {
    let names = ["a", "b", "c", "d", "e"];
    let all: String = names.iter().map(|name| service(name, WEB)).collect();
    let allocation = allot(&all, &node());
    let lacking: Vec<&Allotment> = allocation.allotments.iter().filter(|one| one.addresses.is_empty()).collect();
    assert_eq!(lacking.len(), 1, "four addresses for five Services");
    assert_eq!(lacking[0].lacks[0].reason.as_str(), "PoolEmpty");
    assert!(lacking[0].lacks[0].message.contains("v4"), "{:?}", lacking[0].lacks);
    let usage: Vec<(u128, u128, u128)> = allocation.usage.iter().map(|u| (u.size, u.given, u.free)).collect();
    assert_eq!(usage, [(4, 4, 0), (4, 0, 4)]);
    let none = Context { pools: vec![Pool { auto_assign: false, ..node().pools[0].clone() }], ..node() };
    assert_eq!(shown(&allot(&service("web", WEB), &none)), ["web: ; NoPool"]);
    let asks = noted("web", "millrace.dev/addresses: 203.0.113.1", WEB);
    assert_eq!(shown(&allot(&asks, &none)), ["web: 203.0.113.1; "], "who asks gets it all the same");
}

#[test]
fn pools_are_tried_by_priority_and_give_to_whom_they_select() {
    let pool = |name: &str, range: &str| Pool::new(name, vec![range.parse().unwrap()]);
    let first = Pool { priority: 1, services: selector("tier", "gold"), ..pool("gold", "198.51.100.8/32") };
    let team = Pool { priority: 2, namespaces: selector("team", "a"), ..pool("team", "198.51.100.9/32") };
    let namespaces = BTreeMap::from([("default".to_owned(), labels(&[("team", "a")]))]);
    let pools = vec![pool("rest", "203.0.113.1/32"), first, team];
    let context = Context { pools, ..node() };
    let with_team = Context { namespaces: Arc::new(namespaces), ..context.clone() };
    let gold = |mut objects: Objects| {
        Arc::make_mut(&mut Arc::make_mut(&mut objects.services)[0]).object.metadata.labels =
            Some(labels(&[("tier", "gold")]));
        objects
    };
    let web = objects(&service("web", WEB));
    for (objects, context, expected) in [
        (web.clone(), &context, "web: 203.0.113.1; "),
        (gold(web.clone()), &context, "web: 198.51.100.8; "),
        (gold(web.clone()), &with_team, "web: 198.51.100.9; "),
        (objects(&(service("web", WEB) + &status("198.51.100.8"))), &context, "web: 198.51.100.8; "),
        (objects(&noted("web", "millrace.dev/addresses: 198.51.100.8", WEB)), &context, "web: ; NoPool"),
        (gold(objects(&noted("web", "millrace.dev/addresses: 198.51.100.8", WEB))), &context, "web: 198.51.100.8; "),
    ] {
        assert_eq!(shown(&allocate(&objects, context, &Arc::default())), [expected]);
    }
}

#[test]
fn addresses_of_nodes_pods_and_cluster_ips_are_not_given() {
    let mut objects = objects(&service("web", &format!("{WEB}, clusterIP: 203.0.113.0, ipFamilies: [IPv4]")));
    let address = NodeAddress { address: "203.0.113.1".into(), type_: "InternalIP".into() };
    let node_object = k8s_openapi::api::core::v1::Node {
        metadata: ObjectMeta { name: Some("n2".into()), ..ObjectMeta::default() },
        spec: Some(NodeSpec { pod_cidrs: Some(vec!["203.0.113.2/32".into()]), ..NodeSpec::default() }),
        status: Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() }),
    };
    Arc::make_mut(&mut objects.nodes).push(Arc::new(Located::of_api(node_object, "Node", None, "n2")));
    let ranges = vec![("203.0.113.3/32".parse().unwrap(), "a ClusterIP's".to_owned())];
    let context = Context { reserved: ranges, ..node() };
    assert_eq!(shown(&allocate(&objects, &context, &Arc::default())), ["web: ; PoolEmpty"]);
    let one_more = Context { reserved: Vec::new(), ..context.clone() };
    assert_eq!(shown(&allocate(&objects, &one_more, &Arc::default())), ["web: 203.0.113.3; "]);
    // One that became a Node's later stays the Service's, and is served by none.
    let ingress = LoadBalancerIngress { ip: Some("203.0.113.1".into()), ..LoadBalancerIngress::default() };
    let web = Arc::make_mut(&mut Arc::make_mut(&mut objects.services)[0]);
    web.object.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus { ingress: Some(vec![ingress]) });
    assert_eq!(shown(&allocate(&objects, &context, &Arc::default())), ["web: 203.0.113.1; AddressReserved"]);
    let translation = millrace_translate::translate(&objects, &context, &Given::default());
    assert_eq!(translation.desired.addresses, []);
    assert!(
        translation.findings.iter().any(|f| f.message.contains("an address of Node n2")),
        "{:?}",
        translation.findings
    );
}

#[test]
fn external_ips_that_are_not_served_take_nothing_from_the_pools() {
    let thief =
        service("thief", "externalIPs: [203.0.113.0, 203.0.113.1, 203.0.113.2, 203.0.113.3], ports: [{port: 1}]");
    let text = thief + &service("web", WEB);
    assert_eq!(allot(&text, &node()).allotments[0].lacks, []);
    let served = Context { external_ip_ranges: Some(vec!["203.0.113.0/30".parse().unwrap()]), ..node() };
    assert_eq!(shown(&allot(&text, &served)), ["web: ; PoolEmpty"]);
}

#[test]
fn of_two_statuses_with_one_address_the_one_that_had_it_keeps_it() {
    let text = service("api", WEB) + &status("203.0.113.1") + &service("web", WEB) + &status("203.0.113.1");
    let before = BTreeMap::from([("default/web".to_owned(), vec!["203.0.113.1".parse().unwrap()])]);
    let allocation = allocate(&objects(&text), &node(), &Arc::new(before));
    assert_eq!(shown(&allocation)[1], "web: 203.0.113.1; ");
    assert!(!shown(&allocation)[0].contains("203.0.113.1;"), "{:?}", shown(&allocation));
}

#[test]
fn the_mode_says_whether_packets_arrive_at_the_address_and_which_ports_cannot_be_served() {
    let spec = "type: LoadBalancer, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 443}]";
    let of =
        |mode: &str| allot(&noted("web", &format!("millrace.dev/mode: {mode}"), spec), &node()).allotments[0].clone();
    for (mode, proxied) in [("nat", true), ("preserve", true), ("dsr-l2", false), ("dsr-gue", false)] {
        let web = of(mode);
        assert_eq!(web.proxied, proxied, "{mode}");
        let errors: Vec<Option<&str>> = web.ports.iter().map(|port| port.error).collect();
        let expected = if proxied { Vec::new() } else { vec![Some("millrace.dev/TargetPortDiffers"), None] };
        assert_eq!(errors, expected, "{mode}");
    }
    let direct = Context { defaults: Defaults { mode: Mode::DsrL2, ..Defaults::default() }, ..node() };
    assert!(!allot(&service("web", WEB), &direct).allotments[0].proxied);
}

#[test]
fn who_lost_its_record_gets_what_it_had_where_that_is_free() {
    let had = |name: &str, ip: &str| BTreeMap::from([(format!("default/{name}"), vec![ip.parse().unwrap()])]);
    for ip in ["203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        let text = service("web", WEB) + &status("198.51.100.1");
        let found = allocate(&objects(&text), &node(), &Arc::new(had("web", ip)));
        assert_eq!(shown(&found), [format!("web: {ip}; ")]);
    }
    let text = service("api", WEB) + &status("203.0.113.1") + &service("web", WEB);
    let found = allocate(&objects(&text), &node(), &Arc::new(had("web", "203.0.113.1")));
    assert_eq!(shown(&found)[1], "web: 203.0.113.1; ");
    assert_ne!(found.allotments[0].addresses, found.allotments[1].addresses);
}

/// (port, share key, asked for, in the status), as numbers that may be none.
type Asked = (u16, u8, u8, u8);

fn asked(at: usize, (port, share, asks, has): Asked) -> String {
    let share = if share < 2 { format!("millrace.dev/share: s{share}, ") } else { String::new() };
    let asks = if asks < 6 { format!("millrace.dev/addresses: 203.0.113.{asks}") } else { String::new() };
    let spec = format!("type: LoadBalancer, ipFamilies: [IPv4], ports: [{{port: {port}}}]");
    let text = noted(&format!("s{at}"), &format!("{share}{asks}"), &spec);
    if has < 6 { text + &status(&format!("203.0.113.{has}")) } else { text }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_is_given_twice_and_what_is_written_stays(all in prop::collection::vec((1_u16..4, 0_u8..4, 0_u8..12, 0_u8..9), 1..8)) {
        let text: String = all.iter().enumerate().map(|(at, one)| asked(at, *one)).collect();
        let mut objects = objects(&text);
        let context = node();
        let mut before: Option<Allocation> = None;
        // Written as the record, and looked at again: after a round that frees what was asked out of, nothing moves.
        for round in 0..4 {
            let allocation = allocate(&objects, &context, &Arc::default());
            let mut holders: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
            for (at, one) in allocation.allotments.iter().enumerate() {
                for ip in &one.addresses {
                    prop_assert!(context.pools[0].contains(*ip));
                    holders.entry(*ip).or_default().push(at);
                }
                let complete = !one.addresses.is_empty() || !one.lacks.is_empty();
                prop_assert!(complete, "{} has nothing and lacks nothing", one.name);
            }
            for of_one in holders.values() {
                for (n, &a) in of_one.iter().enumerate() {
                    for &b in &of_one[n + 1..] {
                        prop_assert!(all[a].0 != all[b].0 && all[a].1 == all[b].1 && all[a].1 < 2);
                    }
                }
            }
            for (service, one) in Arc::make_mut(&mut objects.services).iter_mut().zip(&allocation.allotments) {
                let entry = |ip: &IpAddr| LoadBalancerIngress { ip: Some(ip.to_string()), ..LoadBalancerIngress::default() };
                let ingress = Some(one.addresses.iter().map(entry).collect());
                let status = Arc::make_mut(service).object.status.get_or_insert_default();
                status.load_balancer = Some(LoadBalancerStatus { ingress });
            }
            if round == 3 {
                prop_assert_eq!(before.as_ref(), Some(&allocation));
            }
            before = Some(allocation);
        }
    }
}
