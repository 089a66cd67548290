//! What is taken from a former result: the same comes out as from scratch, whatever changes, and what did not change is
//! the same by pointer.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_translate::{Context, Drained, Given, Node, Place, Source, read, read_after, translate, translate_after};
use proptest::prelude::*;

use super::{gateway, service, slice};

/// A node of a cluster, where external IPs are served at addresses of endpoints too, but for one that is reserved.
fn node() -> Context {
    let ranges = vec!["203.0.113.0/24".parse().unwrap(), "10.0.0.0/24".parse().unwrap()];
    Context {
        place: Place::Node,
        external_ip_ranges: Some(ranges),
        reserved: vec![("10.0.0.3".parse().unwrap(), "of `snat` of Node node-1".to_owned())],
        node: Node { hostname: Some("node-0".to_owned()), ..Node::default() },
        ..gateway()
    }
}

/// What a status says, which is where a node has addresses of load balancers from.
fn status(n: u8) -> String {
    match n % 4 {
        0 => String::new(),
        n => format!("status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.{n}}}, {{ip: \"2001:db8:1::{n}\"}}]}}}}\n"),
    }
}

/// Names of Services, in two namespaces; each has a file of its own, one more has Nodes, and some files have what is
/// another's.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What a Service says; few addresses and ports, so that they clash often.
fn spec(kind: u8, n: u8) -> String {
    match kind % 24 {
        0 => "type: LoadBalancer, ports: [{port: 80}]".to_owned(),
        1 => format!("type: LoadBalancer, loadBalancerIP: 203.0.113.{}, ports: [{{port: 80}}]", n % 3),
        2 => format!("type: NodePort, ports: [{{port: 80, nodePort: {}}}]", 30000 + u32::from(n % 2)),
        3 => format!("externalIPs: [203.0.113.{}], ports: [{{port: 80}}]", n % 4),
        4 => format!("clusterIP: 10.96.0.{}, ports: [{{port: 80}}]", 10 + n % 3),
        5 => "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]".to_owned(),
        6 => "type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{name: x, port: 80}, {name: y, port: 81}]"
            .to_owned(),
        7 => "clusterIP: None, ports: [{port: 80}]".to_owned(),
        8 => "type: ExternalName, externalName: example.org".to_owned(),
        9 => "selector: {app: web}, ports: [{port: 80, protocol: SCTP}]".to_owned(),
        10 => "type: LoadBalancer, poret: 80".to_owned(),
        11 => "type: LoadBalancer, internalTrafficPolicy: Local, publishNotReadyAddresses: true, ports: [{port: 80}]"
            .to_owned(),
        12 => format!("externalIPs: [10.0.0.{}, 192.0.2.1], ports: [{{port: {}, protocol: UDP}}]", n % 4, 80 + n % 2),
        13 => "type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], sessionAffinity: ClientIP, \
               ports: [{port: 80}, {name: x, port: 80, protocol: UDP}]"
            .replace("[{port: 80}", "[{name: y, port: 80}"),
        14 => "type: LoadBalancer, loadBalancerClass: other, selector: {app: web}, ports: [{port: 80}]".to_owned(),
        15 => "type: NodePort, ports: [{port: 80}]".to_owned(),
        16 => "ipFamilies: [IPv6], type: LoadBalancer, ports: [{port: 80}]".to_owned(),
        17 => "trafficDistribution: PreferSameZone, ports: [{port: 80}]".to_owned(),
        18..=20 => format!("externalIPs: [10.0.0.{}], ports: [{{port: 8080}}]", n % 4),
        _ => "type: LoadBalancer, ports: [{port: 80}]".to_owned(),
    }
}

fn notes(n: u8) -> &'static str {
    match n % 14 {
        0 | 1 => "millrace.dev/share: dns",
        2 => "millrace.dev/health-check: tcp",
        3 => "millrace.dev/weights: 10.0.0.1=3",
        4 => "millrace.dev/mode: preserve",
        5 => "millrace.dev/table-size: \"16381\"",
        6 => "millrace.dev/topology-keys: kubernetes.io/hostname",
        7 => "millrace.dev/addresses: 203.0.113.2",
        8 => "millrace.dev/colour: red",
        _ => "",
    }
}

/// A Service of this name, in a namespace that goes by it.
fn written(of: usize, notes: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: {}, annotations: {{{notes}}}}}\n\
         spec: {{{spec}}}\n",
        NAMES[of],
        namespace(of)
    )
}

fn namespace(of: usize) -> &'static str {
    if of.is_multiple_of(2) { "even" } else { "odd" }
}

/// One step: which file, and what it says from now on or which rule changes.
#[derive(Clone, Debug)]
enum Step {
    Service {
        file: usize,
        of: usize,
        kind: u8,
        n: u8,
        endpoints: Vec<u8>,
    },
    Endpoints {
        file: usize,
        endpoints: Vec<u8>,
    },
    /// One of a file's slices is another Service's from now on, so many Services further in its namespace.
    Relabel {
        file: usize,
        further: usize,
    },
    Nothing(usize),
    Text(usize, &'static str),
    Nodes(u8),
    Drain(u8),
    Health(u8),
    Host(bool),
    /// Which kinds of frontend are served, and whether there is a pool of IPv6.
    Rules(u8),
    /// What was given some steps ago, as it is after a restart.
    Back(usize),
    /// Table sizes as another box, or nobody, reached them.
    Sizes(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..NAMES.len();
    let some = || prop::collection::vec(any::<u8>(), 0..14);
    let texts = prop::sample::select(vec!["kind: [", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"]);
    // Mostly a file speaks of its own Service.
    let of = which.clone().prop_flat_map(|file| (Just(file), prop_oneof![5 => Just(file), 1 => 0..NAMES.len()]));
    prop_oneof![
        3 => (of, any::<u8>(), any::<u8>(), some())
            .prop_map(|((file, of), kind, n, endpoints)| Step::Service { file, of, kind, n, endpoints }),
        8 => (which.clone(), some()).prop_map(|(file, endpoints)| Step::Endpoints { file, endpoints }),
        2 => (which.clone(), 0..3usize).prop_map(|(file, further)| Step::Relabel { file, further }),
        1 => which.clone().prop_map(Step::Nothing),
        1 => (which, texts).prop_map(|(file, text)| Step::Text(file, text)),
        1 => any::<u8>().prop_map(Step::Nodes),
        1 => any::<u8>().prop_map(Step::Drain),
        2 => any::<u8>().prop_map(Step::Health),
        1 => any::<bool>().prop_map(Step::Host),
        1 => any::<u8>().prop_map(Step::Rules),
        1 => (0..4usize).prop_map(Step::Back),
        1 => any::<bool>().prop_map(Step::Sizes),
    ]
}

/// What is there at a time.
#[derive(Clone, Default)]
struct World {
    /// Of each file its Service's text and its endpoints'.
    files: BTreeMap<usize, (usize, String, String)>,
    nodes: String,
    context: Context,
}

impl World {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Service { file, of, kind, n, endpoints } => {
                let text = written(*of, notes(*n), &spec(*kind, n / 16)) + &status(n / 2);
                self.files.insert(*file, (*of, text, named(*of, endpoints)));
            }
            Step::Endpoints { file, endpoints } => {
                let plain = || (*file, written(*file, "", &spec(0, 0)), String::new());
                let entry = self.files.entry(*file).or_insert_with(plain);
                entry.2 = named(entry.0, endpoints);
            }
            Step::Relabel { file, further } => {
                if let Some((of, _, slices)) = self.files.get_mut(file) {
                    let to = format!("kubernetes.io/service-name: {},", NAMES[(*of + 2 * *further) % NAMES.len()]);
                    for name in NAMES {
                        *slices = slices.replacen(&format!("kubernetes.io/service-name: {name},"), &to, 1);
                    }
                }
            }
            Step::Nothing(file) => drop(self.files.remove(file)),
            Step::Text(file, text) => drop(self.files.insert(*file, (*file, String::new(), (*text).to_owned()))),
            Step::Nodes(n) => {
                let zone = format!("topology.kubernetes.io/zone: z{}", n % 2);
                self.nodes = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node-0, labels: {{{zone}}}}}\n");
            }
            Step::Drain(n) => {
                let drained = Drained { address: format!("10.0.0.{}", n % 4).parse().unwrap(), port: None };
                if !self.context.drained.remove(&drained) {
                    self.context.drained.insert(drained);
                }
            }
            Step::Health(n) => {
                let given = translate(&self.objects(), &self.context, &Given::default());
                for probe in given.probes.into_iter().skip(usize::from(n % 4)).take(2) {
                    let healthy = self.context.health.entry(probe).or_insert(true);
                    *healthy = !*healthy;
                }
            }
            Step::Host(other) => {
                let address = if *other { "203.0.113.1" } else { "192.0.2.1" };
                self.context.node_addresses = vec![address.parse().unwrap()];
            }
            Step::Rules(n) => {
                let serve = &mut self.context.serve;
                (serve.cluster_ip, serve.node_port, serve.external_ips) = (n & 1 == 0, n & 2 == 0, n & 4 == 0);
                self.context.pools.truncate(1);
                if n & 8 == 0 {
                    self.context.pools.extend(gateway().pools.into_iter().skip(1));
                }
            }
            Step::Back(_) | Step::Sizes(_) => {}
        }
    }

    fn objects(&self) -> millrace_translate::Objects {
        read(&self.sources(), &Given::default()).0
    }

    fn sources(&self) -> Vec<Source> {
        let file = |(file, (_, service, endpoints)): (&usize, &(usize, String, String))| Source {
            path: format!("{file}.yaml").into(),
            text: format!("{service}{endpoints}").into(),
        };
        let nodes = Source { path: "nodes.yaml".into(), text: self.nodes.as_str().into() };
        self.files.iter().map(file).chain([nodes]).collect()
    }
}

/// Slices or Endpoints of a Service, some at addresses that are asked for as frontends.
fn named(of: usize, seeds: &[u8]) -> String {
    let Some((first, rest)) = seeds.split_first() else { return String::new() };
    let (name, namespace) = (NAMES[of], namespace(of));
    if first % 4 == 0 {
        let mut all: Vec<String> = rest.iter().map(|seed| format!("{{ip: 10.0.0.{}}}", seed % 5 + 1)).collect();
        all.sort();
        all.dedup();
        let labels = if first % 16 == 4 { "endpointslice.kubernetes.io/skip-mirror: \"true\"" } else { "" };
        return format!(
            "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, namespace: {namespace}, \
             labels: {{{labels}}}}}\nsubsets: [{{addresses: [{}], ports: [{{port: 8080}}]}}]\n",
            all.join(", ")
        );
    }
    let entry = |ipv6: bool| {
        move |seed: &u8| {
            let ready = if seed & 1 == 0 { "ready: true" } else { "" };
            let ready = if seed & 6 == 6 { "ready: false" } else { ready };
            let leaving = if seed & 24 == 24 { "serving: true, terminating: true" } else { ready };
            let address = if ipv6 { format!("\"fd00::{}\"", seed % 5) } else { format!("10.0.0.{}", seed % 5) };
            format!("{{addresses: [{address}], conditions: {{{leaving}}}, nodeName: node-{}}}", seed % 2)
        }
    };
    let family = if first % 16 == 1 { "FQDN" } else { "IPv4" };
    let by = if first % 16 == 2 { "endpointslice-controller.k8s.io" } else { "hand" };
    let one = |suffix: &str, family: &str, ports: &str, seeds: &[u8]| {
        let list: Vec<String> = seeds.iter().map(entry(family == "IPv6")).collect();
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\nmetadata: {{\
             name: {name}-{suffix}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}, \
             endpointslice.kubernetes.io/managed-by: {by}}}}}\nendpoints: [{}]\nports: [{ports}]\n",
            list.join(", ")
        )
    };
    let (here, there) = rest.split_at(rest.len() / 2);
    let mut text = one("1", family, "{port: 8080}", here);
    match first % 5 {
        0 => text += &one("2", "IPv4", "{port: 8080}, {name: x, port: 8081}", there),
        1 => text += &one("2", "IPv6", "{port: 8080}, {name: y, port: 53, protocol: UDP}", there),
        2 => text += &one("2", "IPv4", "{port: 53, protocol: UDP}", there),
        _ => {}
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_translated_after_another_is_what_it_is_from_scratch(
        on_node in any::<bool>(),
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let context = if on_node { node() } else { gateway() };
        let mut world = World { context, ..World::default() };
        let (mut former_read, mut former, mut given) = (None, None, vec![Given::default()]);
        for (turn, step) in steps.iter().enumerate() {
            world.take(step);
            let before = match step {
                // Given is read from a file then, so that nothing is the same by pointer.
                Step::Back(steps) => {
                    let text = serde_json::to_string(&given[given.len().saturating_sub(1 + steps)]).unwrap();
                    serde_json::from_str(&text).unwrap()
                }
                Step::Sizes(large) => {
                    let mut given = given[given.len() - 1].clone();
                    let sizes = Arc::make_mut(&mut given.table_sizes);
                    if *large {
                        sizes.values_mut().for_each(|size| *size = 65537);
                    } else {
                        sizes.clear();
                    }
                    given
                }
                _ => given[given.len() - 1].clone(),
            };
            let mut sources = world.sources();
            if turn % 3 == 0 {
                sources.reverse();
            }
            let now = read_after(former_read.as_ref(), &sources, &before);
            let (objects, findings) = read(&sources, &before);
            prop_assert_eq!(&now.objects, &objects);
            prop_assert_eq!(&now.findings, &findings);
            let (after, next) = translate_after(former.as_ref(), &now.objects, &world.context, &before);
            prop_assert_eq!(&after, &translate(&objects, &world.context, &before), "after {:?}", step);
            let written = serde_json::to_string(&after.given).unwrap();
            prop_assert_eq!(&after.given, &serde_json::from_str::<Given>(&written).unwrap());
            (former_read, former) = (Some(now), Some(next));
            given.push(after.given);
        }
    }
}

#[test]
fn only_the_service_whose_endpoints_changed_is_made_anew() {
    let file = |name: &str, endpoint: &str| {
        let list = format!("{{addresses: [{endpoint}]}}");
        let text =
            service(name, "type: LoadBalancer, ports: [{port: 80}]") + &slice(name, "IPv4", &list, "{port: 8080}");
        Source { path: format!("{name}.yaml").into(), text: text.into() }
    };
    let context = gateway();
    let mut sources = vec![file("a", "10.0.0.1"), file("b", "10.0.0.2"), file("c", "10.0.0.3")];
    let mut now = read_after(None, &sources, &Given::default());
    let (mut translation, mut former) = translate_after(None, &now.objects, &context, &Given::default());
    // Who has what is settled by the first one and seen to be settled by the second.
    for endpoint in ["10.0.0.4", "10.0.0.5", "10.0.0.6"] {
        sources[1] = file("b", endpoint);
        now = read_after(Some(&now), &sources, &translation.given);
        let before = translation;
        (translation, former) = translate_after(Some(&former), &now.objects, &context, &before.given);
        let pairs = before.desired.service_ports.iter().zip(translation.desired.service_ports.iter());
        for (old, new) in pairs {
            assert_eq!(Arc::ptr_eq(old, new), old.key.name != "b", "{}", old.key.name);
        }
    }
}
