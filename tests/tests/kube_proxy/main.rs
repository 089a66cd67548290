//! kube-proxy as the judge: it and Millrace serve the same Services of one API server, each on a node of its own with pods
//! of its own at the same addresses, and are asked the same questions. Who answers, which address the endpoint saw, what
//! is refused and what is left without an answer must be the same, but for what the table names with a reason.

mod shapes;
mod within;
mod world;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use millrace_tests::kubelab::Kubelab;
use millrace_tests::lab::{Host, Lab, run};
use millrace_tests::millrace::Gateway;
use millrace_tests::servers;
use millrace_tests::wait::eventually;
use millrace_tests::witness::{self, Answer, Heard, Transport};

use shapes::{At, Outcome, Question, Saw, Shape, shapes};
use world::{From, NODE, OTHER, POD_ADDRESSES, PODS, World};

/// How long a change may take to be in force on a busy machine.
const SOON: Duration = Duration::from_secs(240);
/// How often at least who may answer is asked, and how often at most until all did.
const ASKED: (usize, usize) = (24, 80);
/// Answers of a Service that is asked for the first time may come of what was there before it.
const PAUSE: Duration = Duration::from_millis(200);

/// Those of a Service of this place in the table.
fn vips(at: usize, [v4, v6]: [bool; 2]) -> Vec<IpAddr> {
    let v4 = v4.then(|| format!("203.0.113.{}", 10 + at));
    let v6 = v6.then(|| format!("2001:db8::{}", 10 + at));
    [v4, v6].into_iter().flatten().map(|address| address.parse().expect("an address")).collect()
}

/// What the API server gave the Services.
struct Assigned(serde_json::Value);

impl Assigned {
    fn of(kubelab: &Kubelab) -> Self {
        Self(serde_json::from_str(&kubelab.kubectl(&["get", "services", "-o", "json"])).expect("JSON"))
    }

    fn spec(&self, name: &str) -> &serde_json::Value {
        let all = self.0["items"].as_array().expect("a list");
        &all.iter().find(|service| service["metadata"]["name"] == name).expect("the Service")["spec"]
    }

    fn cluster_ips(&self, name: &str) -> Vec<IpAddr> {
        let all = self.spec(name)["clusterIPs"].as_array().expect("a list");
        all.iter().map(|address| address.as_str().expect("text").parse().expect("an address")).collect()
    }

    fn node_port(&self, name: &str, port: u16, transport: Transport) -> u16 {
        let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
        let all = self.spec(name)["ports"].as_array().expect("a list");
        let found = all.iter().find(|one| one["port"] == port && one["protocol"] == protocol).expect("the port");
        u16::try_from(found["nodePort"].as_u64().expect("a NodePort")).expect("a port")
    }

    /// Where a question is asked.
    fn targets(&self, (at, shape): (usize, &Shape), question: &Question) -> Vec<SocketAddr> {
        let on = |addresses: Vec<IpAddr>, port| addresses.into_iter().map(|one| SocketAddr::new(one, port)).collect();
        match question.at {
            At::Vip => on(vips(at, shape.families()), question.port),
            At::Address(address) => on(vec![address.parse().expect("an address")], question.port),
            At::ClusterIp => on(self.cluster_ips(shape.name), question.port),
            At::NodePort => {
                let own = NODE.iter().map(|address| address.parse().expect("an address"));
                on(own.collect(), self.node_port(shape.name, question.port, question.transport))
            }
        }
    }
}

/// Addresses of a Service, as its status has them.
fn given(name: &str, addresses: &[IpAddr]) -> String {
    let entries: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    let status = format!("{{loadBalancer: {{ingress: [{}]}}}}", entries.join(", "));
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nstatus: {status}\n")
}

/// Manifests of Pods.
struct Made {
    manifest: String,
    status: String,
}

impl Made {
    /// Pods with the label `app` that have the address of a pod of [`POD_ADDRESSES`]: an address may have several Pods here, so
    /// that a server can be ready for one Service and not for another.
    fn pods(all: &[(&str, &str, bool)]) -> Self {
        let mut made = Self { manifest: String::new(), status: String::new() };
        for (app, pod, ready) in all {
            let (_, node, [v4, v6]) = POD_ADDRESSES.iter().find(|(name, ..)| name == pod).expect("a pod");
            let head =
                format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {app}-{pod}, labels: {{app: {app}}}}}\n");
            let ports = "[{name: http, containerPort: 8080}, {name: alt, containerPort: 9090}]";
            let spec = format!("spec: {{nodeName: {node}, containers: [{{name: c, image: none, ports: {ports}}}]}}\n");
            let condition = format!("{{type: Ready, status: \"{}\"}}", if *ready { "True" } else { "False" });
            let addresses = format!("podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]");
            made.manifest += &(head.clone() + &spec);
            writeln!(made.status, "{head}status: {{phase: Running, {addresses}, conditions: [{condition}]}}")
                .expect("text");
        }
        made
    }
}

fn populate(kubelab: &Kubelab) {
    let node = |name: &str, zone: &str, cidr: [&str; 2]| {
        let spec = format!("spec: {{podCIDR: {}, podCIDRs: [{}, \"{}\"]}}\n", cidr[0], cidr[0], cidr[1]);
        let labels = format!("{{topology.kubernetes.io/zone: {zone}, kubernetes.io/hostname: {name}}}");
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {labels}}}\n{spec}")
    };
    let pods = Made::pods(&[
        ("web", "l1", true),
        ("web", "r1", true),
        ("far", "r1", true),
        ("far", "r2", true),
        ("unready", "l1", false),
        ("unready", "r1", false),
        ("ending", "l1", true),
        ("ending", "r1", true),
        ("mixed", "l1", true),
        ("mixed", "r1", true),
        ("mixed", "r2", false),
        ("half", "l1", true),
        ("half", "r1", true),
    ]);
    kubelab.create(&format!(
        "{}{}{}",
        node("n1", "a", ["10.244.1.0/24", "fd00:244:1::/64"]),
        node("n2", "b", ["10.244.2.0/24", "fd00:244:2::/64"]),
        pods.manifest
    ));
    kubelab.apply_status(&pods.status);
    for (name, [v4, v6]) in [("n1", NODE), ("n2", OTHER.1)] {
        let address = |address: &str| format!("{{\"type\": \"InternalIP\", \"address\": \"{address}\"}}");
        // A topology is hinted at where the zones' share of CPUs is known.
        let status = format!(
            "{{\"addresses\": [{}, {}], \"allocatable\": {{\"cpu\": \"4\"}}, \
             \"conditions\": [{{\"type\": \"Ready\", \"status\": \"True\"}}]}}",
            address(v4),
            address(v6)
        );
        kubelab.patch_status(&format!("node/{name}"), &status);
    }
    // There is no kubelet that would end them.
    kubelab.kubectl(&["delete", "pod", "--wait=false", "ending-l1", "ending-r1", "mixed-r1", "half-l1"]);
}

/// One of the two that are compared.
struct Side<'w> {
    name: &'static str,
    world: &'w World,
    /// What stands for the node in what endpoints see.
    translated: Vec<IpAddr>,
    /// What the table expects of it.
    expected: fn(&Question) -> Outcome,
}

impl Side<'_> {
    /// Whether what was heard is what is expected.
    fn fits(&self, question: &Question, heard: &Heard) -> bool {
        let (names, saw) = match (self.expected)(question) {
            Outcome::Refused => return heard.is_only(&Answer::Refused),
            Outcome::Silence => return heard.is_only(&Answer::Silence),
            Outcome::All(names, saw) | Outcome::One(names, saw) => (names, saw),
        };
        let names: BTreeSet<String> = names.split(' ').map(str::to_owned).collect();
        let by = match (self.expected)(question) {
            Outcome::One(..) => heard.by.len() == 1 && heard.by.is_subset(&names),
            _ => heard.by == names,
        };
        let own = self.world.asker(question.from).1;
        let seen = |address: &IpAddr| match saw {
            Saw::Itself => own.contains(address),
            Saw::Node => self.translated.contains(address),
            Saw::Either => own.contains(address) || self.translated.contains(address),
        };
        by && heard.all_answered() && heard.saw.iter().all(seen)
    }

    /// Asks until it is heard what is expected, or for long. The last that was heard.
    fn ask(&self, question: &Question, target: SocketAddr, deadline: Instant) -> Heard {
        let (host, _) = self.world.asker(question.from);
        let outcome = (self.expected)(question);
        let transport = question.transport;
        loop {
            let heard = host.within(move || questions(transport, target, outcome)).join().expect("the questions");
            if self.fits(question, &heard) || Instant::now() >= deadline {
                return heard;
            }
            thread::park_timeout(PAUSE);
        }
    }
}

/// So many that whoever may answer did.
fn questions(transport: Transport, target: SocketAddr, outcome: Outcome) -> Heard {
    let wanted = if let Outcome::All(names, _) = outcome { names.split(' ').count() } else { 1 };
    let mut heard = Heard::default();
    for number in 1..=ASKED.1 {
        heard.add(witness::ask(transport, target));
        let enough = if heard.all_answered() { ASKED.0 } else { 2 };
        if number >= enough && (heard.by.len() >= wanted || !heard.all_answered()) {
            break;
        }
    }
    heard
}

/// What the table says of a question, and what was found otherwise.
fn compare(sides: &[Side<'_>; 2], table: &[Shape], assigned: &Assigned) -> (String, Vec<String>) {
    let deadline = Instant::now() + SOON;
    let (mut lines, mut wrong) = (String::new(), Vec::new());
    thread::scope(|scope| {
        let mut asked = Vec::new();
        for (at, shape) in table.iter().enumerate() {
            for question in &shape.questions {
                for target in assigned.targets((at, shape), question) {
                    let of = |side: usize| scope.spawn(move || sides[side].ask(question, target, deadline));
                    asked.push((shape, question, target, [of(0), of(1)]));
                }
            }
        }
        for (shape, question, target, heard) in asked {
            let what = format!("{} from {:?} at {target} by {:?}", shape.name, question.from, question.transport);
            for (side, heard) in sides.iter().zip(heard) {
                let heard = heard.join().expect("the questions");
                if !side.fits(question, &heard) {
                    let expected = (side.expected)(question);
                    wrong.push(format!("{what}: {}: heard {heard}, expected {expected}", side.name));
                }
            }
            let differs = question.differs.map_or_else(String::new, |(outcome, why)| format!(" | {outcome}: {why}"));
            writeln!(lines, "{what} | {}{differs}", question.judge).expect("text");
        }
    });
    (lines, wrong)
}

/// A pod reaches Services by what a kubelet sets in its environment.
fn the_environment_leads_to_services(world: &World, assigned: &Assigned) {
    let (pod, _) = world.asker(From::Pod);
    for name in ["dual-stack", "by-hand"] {
        let variable = format!("{}_SERVICE", name.to_uppercase().replace('-', "_"));
        let script = format!("exec 3<>/dev/tcp/${variable}_HOST/${variable}_PORT && cat <&3");
        let mut command = pod.command("bash");
        command.args(["-c", &script]).env(format!("{variable}_PORT"), "80");
        command.env(format!("{variable}_HOST"), assigned.cluster_ips(name)[0].to_string());
        eventually("the environment's address answers", SOON, || {
            let output = command.output().expect("bash");
            let heard = output.status.success() && output.stdout.contains(&b' ');
            if heard { Ok(()) } else { Err(format!("{name}: {output:?}")) }
        });
    }
}

/// Nothing is to be balanced of these, and neither has a word of them.
const SILENT: &str = "\
apiVersion: v1\nkind: Service\nmetadata: {name: headless}\nspec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}\n---\n\
apiVersion: v1\nkind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: my.database.example.com}\n";

/// As by a provider that leaves its addresses to kube-proxy (`ipMode` VIP): those of Millrace, which are not for kube-proxy,
/// are given by who has this Lease.
fn give_addresses(kubelab: &Kubelab, table: &[Shape]) {
    kubelab.create(&format!(
        "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {{name: millrace-allocator}}\n\
         spec: {{holderIdentity: judge, leaseDurationSeconds: 3600, renewTime: \"{}\"}}\n",
        run("date", ["-u", "+%Y-%m-%dT%H:%M:%S.000000Z"]).trim()
    ));
    let statuses = table.iter().enumerate().map(|(at, shape)| given(shape.name, &vips(at, shape.families())));
    kubelab.apply_status(&statuses.collect::<String>());
}

/// Addresses that stand for the node's in what endpoints see.
const SNAT: [&str; 4] = ["10.82.1.100", "fd82:1::1:100", "10.244.1.250", "fd00:244:1::250"];

fn gateway(lab: &Lab, kubelab: &Kubelab, node: &Host) -> Gateway {
    let [v4, v6, pods_v4, pods_v6] = SNAT;
    let config = format!(
        "interfaces: [eth0, eth1]\nkubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\nnode: {{hostname: n1}}\n\
         serve: [loadBalancer, externalIPs, clusterIP, nodePort]\n\
         pools: [{{name: public, addresses: [203.0.113.0/24, \"2001:db8::/120\"]}}]\nexternalIPs: [198.51.100.0/28]\n\
         snat: {{addresses: [{v4}, \"{v6}\"]}}\nkernelPort: {{snat: [{pods_v4}, \"{pods_v6}\"]}}\n",
        kubelab.kubeconfig().display(),
    );
    Gateway::new(node, lab.dir(), &config)
}

#[test]
fn whoever_asks_a_service_gets_of_millrace_what_kube_proxy_gives() {
    servers::require(&["nft", "bridge", "ip", "nsenter"]);
    let mut lab = Lab::new("kube-proxy");
    let kubelab = Kubelab::start(&mut lab, &[]);
    let theirs = World::new(&mut lab, "k", &kubelab, ("api0", "10.77.0.2"));
    let ours = World::new(&mut lab, "m", &kubelab, ("api1", "10.77.0.3"));
    populate(&kubelab);
    let table = shapes();
    let manifests: Vec<String> = table.iter().map(Shape::manifest).collect();
    kubelab.create(&format!("{}---\n{SILENT}", manifests.join("---\n")));
    give_addresses(&kubelab, &table);
    let _proxy = kubelab.kube_proxy(&theirs.node, "n1", &PODS);
    let mut gateway = gateway(&lab, &kubelab, &ours.node);
    let process = gateway.start();
    let translated =
        |more: &[&str]| -> Vec<IpAddr> { more.iter().map(|address| address.parse().expect("an address")).collect() };
    let sides = [
        Side { name: "kube-proxy", world: &theirs, translated: theirs.translated.clone(), expected: |q| q.judge },
        Side {
            name: "Millrace",
            world: &ours,
            translated: translated(&SNAT),
            expected: |q| q.differs.map_or(q.judge, |(outcome, _)| outcome),
        },
    ];
    eventually("both serve", SOON, || {
        let (question, target) = (&table[0].questions[0], SocketAddr::new(vips(0, [true, true])[0], 80));
        for side in &sides {
            let heard = side.ask(question, target, Instant::now());
            if !side.fits(question, &heard) {
                return Err(format!("{}: {heard}\n{}", side.name, gateway.log_text()));
            }
        }
        Ok(())
    });
    let began = Instant::now();
    let assigned = Assigned::of(&kubelab);
    let (lines, wrong) = compare(&sides, &table, &assigned);
    let took = began.elapsed();
    assert!(wrong.is_empty(), "after {took:?}:\n{}\n{}", wrong.join("\n"), gateway.log_text());
    println!("{lines}asked in {took:?}");
    the_environment_leads_to_services(&ours, &assigned);
    let rules = theirs.node.run("nft", ["list", "ruleset"]);
    assert!(rules.contains("default/dual-stack"), "{rules}");
    for name in ["headless", "alias"] {
        assert!(!rules.contains(&format!("default/{name}")), "{rules}");
        let listed = gateway.json(&["services", "--service", name]);
        assert!(!listed[0]["notServed"].is_null(), "{listed}");
    }
    drop(process);
}
