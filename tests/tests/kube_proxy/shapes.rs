//! The table: shapes of Services, what is asked of each, and what must come of it. Where Millrace differs from kube-proxy on
//! purpose, the reason stands beside it.

use std::fmt;

use millrace_tests::witness::Transport::{self, Tcp, Udp};

use super::within;
use super::world::From::{self, Chosen, Client, Node, Pod};

/// What an endpoint sees as its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saw {
    /// The address that who asked has itself.
    Itself,
    /// One that the node put in its place.
    Node,
    /// The one or the other.
    Either,
}

/// What comes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of these answer, and no other.
    All(&'static str, Saw),
    /// One of these answers, always the same.
    One(&'static str, Saw),
    /// A reset or an ICMP error.
    Refused,
    /// Silence.
    Silence,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, names, saw) = match self {
            Self::All(names, saw) => ("", names, saw),
            Self::One(names, saw) => ("one of ", names, saw),
            Self::Refused => return f.write_str("refused"),
            Self::Silence => return f.write_str("silence"),
        };
        let whose = match saw {
            Saw::Itself => "its own",
            Saw::Node => "the node's",
            Saw::Either => "its own or the node's",
        };
        write!(f, "{before}{names}, {whose}")
    }
}

/// Where a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// At its addresses of a pool.
    Vip,
    /// There.
    Address(&'static str),
    /// At its ClusterIPs.
    ClusterIp,
    /// At the NodePort of the port, on the Node's addresses.
    NodePort,
}

/// A question, and what must come of it.
pub struct Question {
    pub from: From,
    pub at: At,
    pub port: u16,
    pub transport: Transport,
    /// With kube-proxy.
    pub judge: Outcome,
    /// With Millrace, where that is not the same, and why.
    pub differs: Option<(Outcome, &'static str)>,
}

/// A Service, and what is asked of it.
pub struct Shape {
    /// Its name, and what the table calls it.
    pub name: &'static str,
    /// What is in its `spec`, in YAML's flow style.
    pub spec: &'static str,
    /// Further documents.
    pub more: &'static str,
    pub questions: Vec<Question>,
}

impl Question {
    /// Of something else than port 80 by TCP.
    pub const fn by(mut self, transport: Transport, port: u16) -> Self {
        self.transport = transport;
        self.port = port;
        self
    }

    const fn at(mut self, address: &'static str) -> Self {
        self.at = At::Address(address);
        self
    }

    pub const fn but(mut self, outcome: Outcome, why: &'static str) -> Self {
        self.differs = Some((outcome, why));
        self
    }
}

/// By TCP at port 80 of its addresses of a pool.
pub const fn asked(from: From, judge: Outcome) -> Question {
    Question { from, at: At::Vip, port: 80, transport: Tcp, judge, differs: None }
}

fn shape<const N: usize>(name: &'static str, spec: &'static str, questions: [Question; N]) -> Shape {
    Shape { name, spec, more: "", questions: questions.into() }
}

fn shape_with<const N: usize>(
    name: &'static str,
    spec: &'static str,
    more: &'static str,
    questions: [Question; N],
) -> Shape {
    Shape { name, spec, more, questions: questions.into() }
}

const BOTH: Outcome = Outcome::All("l1 r1", Saw::Node);
const HTTP: &str = "ports: [{port: 80, targetPort: 8080}]";

/// Why policy Local is another thing to who asks on the node.
const INSIDE_LOCAL: &str = "policy Local is the node's own share for clients on it too, and they are translated";

/// All of them.
pub fn shapes() -> Vec<Shape> {
    let parts = [addresses_and_ports(), endpoints(), policies(), by_hand(), not_ours()];
    let mut all: Vec<Shape> = parts.into_iter().flatten().collect();
    for (name, questions) in within::questions() {
        all.iter_mut().find(|shape| shape.name == name).expect("a shape").questions.extend(questions);
    }
    all
}

fn addresses_and_ports() -> Vec<Shape> {
    vec![
        shape(
            "dual-stack",
            "selector: {app: web}, PORTS",
            [
                asked(Client, BOTH),
                asked(Pod, BOTH),
                asked(Chosen, BOTH),
                asked(Node, BOTH),
                asked(Client, Outcome::Silence)
                    .by(Tcp, 81)
                    .but(Outcome::Refused, "a VIP is Millrace's alone, so nobody else has the port"),
            ],
        ),
        shape(
            "ipv4",
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], selector: {app: web}, PORTS",
            [asked(Client, BOTH)],
        ),
        shape(
            "ipv6",
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], selector: {app: web}, PORTS",
            [asked(Client, BOTH)],
        ),
        shape(
            "dns",
            "selector: {app: web}, ports: [{name: dns, port: 53, protocol: UDP, targetPort: 8053}, \
             {name: dns-tcp, port: 53, targetPort: 8053}, {name: metrics, port: 9153, targetPort: alt}]",
            [
                asked(Client, BOTH).by(Udp, 53),
                asked(Client, BOTH).by(Tcp, 53),
                asked(Client, BOTH).by(Tcp, 9153),
                asked(Pod, BOTH).by(Udp, 53),
                asked(Node, BOTH).by(Udp, 53),
            ],
        ),
        shape(
            "no-node-port",
            "allocateLoadBalancerNodePorts: false, selector: {app: web}, PORTS",
            [asked(Client, BOTH)],
        ),
        shape(
            "external-ip",
            "externalIPs: [198.51.100.1], selector: {app: web}, PORTS",
            [asked(Client, BOTH).at("198.51.100.1")],
        ),
        shape(
            "external-ip-of-others",
            "externalIPs: [198.51.100.99], selector: {app: web}, PORTS",
            [asked(Client, BOTH)
                .at("198.51.100.99")
                .but(Outcome::Silence, "only ranges of `externalIPs:` are served (CVE-2020-8554)")],
        ),
    ]
}

fn endpoints() -> Vec<Shape> {
    let here = Outcome::All("l1", Saw::Node);
    vec![
        shape(
            "no-pods",
            "selector: {app: nobody}, ports: [{name: t, port: 80}, {name: u, port: 80, protocol: UDP}]",
            [
                asked(Client, Outcome::Refused),
                asked(Client, Outcome::Refused).by(Udp, 80),
                asked(Pod, Outcome::Refused),
                asked(Node, Outcome::Refused),
            ],
        ),
        shape("unready", "selector: {app: unready}, PORTS", [asked(Client, Outcome::Refused)]),
        shape(
            "unready-published",
            "publishNotReadyAddresses: true, selector: {app: unready}, PORTS",
            [asked(Client, BOTH)],
        ),
        shape("terminating", "selector: {app: ending}, PORTS", [asked(Client, BOTH)]),
        shape("ready-and-others", "selector: {app: mixed}, PORTS", [asked(Client, here)]),
        shape(
            "hints",
            "trafficDistribution: PreferClose, selector: {app: web}, PORTS",
            [asked(Client, here), asked(Pod, here)],
        ),
        shape(
            "hints-of-another-zone",
            "trafficDistribution: PreferClose, selector: {app: far}, PORTS",
            [asked(Client, Outcome::All("r1 r2", Saw::Node))],
        ),
        shape("same-node", "trafficDistribution: PreferSameNode, selector: {app: web}, PORTS", [asked(Client, here)]),
        shape(
            "sticky",
            "sessionAffinity: ClientIP, selector: {app: web}, PORTS",
            [asked(Client, Outcome::One("l1 r1", Saw::Node))],
        ),
    ]
}

fn policies() -> Vec<Shape> {
    let at_home_translated = Outcome::All("l1", Saw::Node);
    let client_at_home = Outcome::All("l1", Saw::Itself);
    vec![
        shape(
            "local",
            "externalTrafficPolicy: Local, selector: {app: web}, PORTS",
            [
                asked(Client, client_at_home),
                asked(Pod, Outcome::All("l1 r1", Saw::Itself)).but(at_home_translated, INSIDE_LOCAL),
                asked(Node, BOTH).but(at_home_translated, INSIDE_LOCAL),
            ],
        ),
        shape(
            "local-none-here",
            "externalTrafficPolicy: Local, selector: {app: far}, PORTS",
            [
                asked(Client, Outcome::Silence),
                asked(Pod, Outcome::All("r1 r2", Saw::Itself))
                    .but(Outcome::Silence, "it leaves for a node that announces the address; there is none here"),
            ],
        ),
        shape(
            "local-none-at-all",
            "externalTrafficPolicy: Local, selector: {app: nobody}, PORTS",
            [asked(Client, Outcome::Refused)],
        ),
        shape(
            "local-terminating",
            "externalTrafficPolicy: Local, selector: {app: half}, PORTS",
            [asked(Client, client_at_home)],
        ),
        shape(
            "cluster-terminating-here",
            "selector: {app: half}, PORTS",
            [asked(Client, Outcome::All("r1", Saw::Node))],
        ),
        shape(
            "internal-local",
            "internalTrafficPolicy: Local, selector: {app: far}, PORTS",
            [asked(Client, Outcome::All("r1 r2", Saw::Node))],
        ),
        shape(
            "ranges-inside",
            "loadBalancerSourceRanges: [\" 10.81.1.0/24\", \"fd81:1::/64 \"], selector: {app: web}, PORTS",
            [asked(Client, BOTH), asked(Pod, Outcome::Silence)],
        ),
        shape(
            "ranges-outside",
            "loadBalancerSourceRanges: [10.80.0.0/16, \"fd80::/16\"], selector: {app: web}, PORTS",
            [asked(Client, Outcome::Silence)],
        ),
    ]
}

fn by_hand() -> Vec<Shape> {
    let other = Outcome::All("other", Saw::Node);
    vec![
        shape_with(
            "by-hand",
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], ports: [{port: 80, targetPort: 8080}]",
            "apiVersion: v1\nkind: Endpoints\nmetadata: {name: by-hand}\n\
             subsets: [{addresses: [{ip: 10.82.1.21}], ports: [{port: 9090}]}]\n",
            [asked(Client, other)],
        ),
        shape_with(
            "by-hand-hints",
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], ports: [{port: 80, targetPort: 8080}]",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: by-hand-hints-1\n  \
             labels: {kubernetes.io/service-name: by-hand-hints}\naddressType: IPv4\nports: [{port: 9090}]\nendpoints:\n\
             - {addresses: [10.82.1.21], conditions: {ready: true}, hints: {forZones: [{name: a}]}}\n\
             - {addresses: [10.244.2.5], conditions: {ready: true}, hints: {forZones: [{name: b}]}}\n",
            [asked(Client, other)],
        ),
    ]
}

fn not_ours() -> Vec<Shape> {
    vec![shape(
        "another-class",
        "loadBalancerClass: example.com/other, selector: {app: web}, PORTS",
        [asked(Client, BOTH).but(Outcome::Silence, "what another provider gives is another provider's to serve")],
    )]
}

impl Shape {
    /// Its manifests.
    pub fn manifest(&self) -> String {
        let Self { name, more, .. } = self;
        let families = if self.spec.contains("ipFamilies") {
            ""
        } else {
            "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], "
        };
        let spec = self.spec.replace("PORTS", HTTP);
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n\
             spec: {{type: LoadBalancer, {families}{spec}}}\n"
        );
        if more.is_empty() { service } else { format!("{service}---\n{more}") }
    }

    /// Whether it has addresses of IPv4, and of IPv6.
    pub fn families(&self) -> [bool; 2] {
        let only = |family: &str| self.spec.contains(&format!("ipFamilies: [{family}]"));
        [!only("IPv6"), !only("IPv4")]
    }
}
