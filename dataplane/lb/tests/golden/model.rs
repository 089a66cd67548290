//! The whole NAT against a slow and obvious model: a list of conversations and what is known of each.
//!
//! Two workers get the packets of eight clients and of the endpoints that answer them, as it comes; endpoints come and go,
//! modes change, time passes. The model says for every packet who gets it and what it looks like there.

use std::net::SocketAddr;
use std::time::Duration;

use lb::model::Mode;
use lb::{Now, PortId, Verdict, WorkerId};
use proptest::prelude::*;
use wire::TcpFlags;

use crate::packet::{ACK, FIN_ACK, RST, SYN, SYN_ACK, Segment, Tcp};
use crate::rig::{INSIDE, INSIDE_MAC, KINDS, Kind, OUTSIDE, Outcome, Rig, service_port};

const WORKERS: u8 = 2;
const CLIENTS: u8 = 8;
/// How near to its end the model does not say whether a flow is there: idle flows are looked for now and then.
const VAGUE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Step {
    /// A client opens a connection or sends a datagram, which the endpoint answers or (UDP) not.
    Open {
        client: u8,
        answered: bool,
    },
    /// One side sends something, ends its half of a TCP connection, or resets it.
    Send {
        client: u8,
        from_client: bool,
        what: What,
    },
    Wait {
        seconds: u64,
    },
    /// The endpoints that serve from now on, a bit each, and how flows that open are sent on.
    Serve {
        endpoints: u8,
        preserve: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum What {
    Data,
    Fin,
    Reset,
}

fn step() -> impl Strategy<Value = (Step, bool)> {
    let what = prop_oneof![4 => Just(What::Data), 2 => Just(What::Fin), 1 => Just(What::Reset)];
    let seconds = prop_oneof![Just(1u64), Just(8), Just(50), Just(110), Just(200), Just(290), Just(7000)];
    let step = prop_oneof![
        4 => (0..CLIENTS, any::<bool>()).prop_map(|(client, answered)| Step::Open { client, answered }),
        8 => (0..CLIENTS, any::<bool>(), what)
            .prop_map(|(client, from_client, what)| Step::Send { client, from_client, what }),
        2 => seconds.prop_map(|seconds| Step::Wait { seconds }),
        1 => (1u8..8, any::<bool>()).prop_map(|(endpoints, preserve)| Step::Serve { endpoints, preserve }),
    ];
    (step, any::<bool>())
}

/// What is known of a flow.
#[derive(Clone, Debug)]
struct Flow {
    endpoint: SocketAddr,
    /// Who the endpoint takes for the client.
    seen_as: SocketAddr,
    last: Now,
    /// By side, the client first: whether it sent FIN.
    fins: [bool; 2],
    reset: bool,
    /// By the client, and the endpoint may not have believed it.
    by_client: bool,
    /// UDP: whether the endpoint answered.
    answered: bool,
    /// Whether its endpoint served no more at some time.
    left: bool,
}

impl Flow {
    /// RFC 5382 REQ-5, RFC 4787 REQ-5.
    fn limit(&self, tcp: bool) -> Duration {
        Duration::from_secs(match (tcp, self.fins) {
            (false, _) => [120, 300][usize::from(self.answered)],
            (true, [true, true]) => 10,
            (true, _) if self.reset => 10,
            (true, [false, false]) => 7440,
            (true, _) => 240,
        })
    }

    fn is_over(&self) -> bool {
        self.reset || self.fins == [true, true]
    }
}

struct World {
    rig: Rig,
    /// By client.
    flows: Vec<Option<Flow>>,
    /// The endpoints that serve.
    serving: Vec<u8>,
    preserve: bool,
    /// Which worker gets the next packet.
    worker: u8,
}

impl World {
    fn new() -> Self {
        Self {
            rig: Rig::with(usize::from(WORKERS), 1024),
            flows: vec![None; usize::from(CLIENTS)],
            serving: vec![1, 2, 3],
            preserve: false,
            worker: 0,
        }
    }

    fn kind(client: u8) -> Kind {
        KINDS[usize::from(client) % KINDS.len()]
    }

    fn is_tcp(client: u8) -> bool {
        Self::kind(client).opening(1).tcp.is_some()
    }

    /// The flow, if it is there. UDP leaves an endpoint that serves no more.
    fn live(&mut self, client: u8) -> Option<&mut Flow> {
        let tcp = Self::is_tcp(client);
        let kind = Self::kind(client);
        let (now, serving) = (self.rig.now, &self.serving);
        self.flows[usize::from(client)].as_mut().filter(|flow| {
            let idle = Duration::from_nanos(now.0 - flow.last.0);
            let serves = serving.iter().any(|&n| kind.backend(n) == flow.endpoint);
            idle < flow.limit(tcp) && (tcp || serves)
        })
    }

    /// A client's segment; each has its own port.
    fn from_client(client: u8, flags: TcpFlags) -> Segment {
        let sent = Self::kind(client).opening_of(client + 1, 2000 + u16::from(client));
        let (seq, ack, payload) = if flags == SYN { (1000, 0, vec![]) } else { (1001, 5001, vec![client; 3]) };
        Segment { tcp: sent.tcp.map(|_| Tcp { flags, seq, ack }), payload, ..sent }
    }

    /// The same flow's segment of the endpoint.
    fn from_endpoint(client: u8, flow: &Flow, flags: TcpFlags) -> Segment {
        let got = Segment { src: flow.seen_as, dst: flow.endpoint, ..Self::from_client(client, flags) };
        let (seq, payload) = if flags == SYN_ACK { (5000, vec![]) } else { (5001, vec![client; 5]) };
        Segment { tcp: got.tcp.map(|_| Tcp { flags, seq, ack: 1001 }), payload, dst_mac: INSIDE_MAC, ..got.back() }
    }

    fn deliver(&mut self, port: PortId, segment: &Segment) -> Outcome {
        let first = self.rig.process(self.worker, port, false, &segment.bytes());
        let Verdict::HandOff(WorkerId(owner)) = first.verdict else { return first };
        assert_ne!(owner, self.worker);
        let second = self.rig.process(owner, port, true, &first.frame);
        assert!(!matches!(second.verdict, Verdict::HandOff(_)), "handed on");
        second
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Open { client, answered } => self.open(client, answered),
            Step::Send { client, from_client, what } => {
                let what = if Self::is_tcp(client) { what } else { What::Data };
                if from_client { self.client_sends(client, what) } else { self.endpoint_sends(client, what) }
            }
            Step::Wait { seconds } => self.wait(seconds),
            Step::Serve { endpoints, preserve } => self.serve(endpoints, preserve),
        }
    }

    fn open(&mut self, client: u8, answered: bool) {
        if self.live(client).is_some_and(|flow| !flow.is_over()) {
            return self.client_sends(client, What::Data);
        }
        if self.live(client).is_some() && !Self::is_tcp(client) {
            return;
        }
        let now = self.rig.now;
        if let Some(flow) = self.live(client)
            && flow.by_client
            && now == flow.last
        {
            if flow.left {
                // Whether its endpoint is the same as before depends on what else came.
                return;
            }
            // Its endpoint judges that.
            (flow.reset, flow.by_client, flow.fins) = (false, false, [false; 2]);
            self.passes(client, SYN);
            self.passes_back(client, SYN_ACK);
            return self.passes(client, ACK);
        }
        self.flows[usize::from(client)] = None;
        self.opens(client, &Self::from_client(client, SYN));
        if answered || Self::is_tcp(client) {
            self.passes_back(client, SYN_ACK);
        }
        if Self::is_tcp(client) {
            self.passes(client, ACK);
        }
    }

    /// A packet that opens a flow: to an endpoint that serves, as a client that no other flow there has.
    fn opens(&mut self, client: u8, sent: &Segment) {
        let got = self.deliver(OUTSIDE, sent).sent(INSIDE);
        let kind = Self::kind(client);
        assert!(self.serving.iter().any(|&n| kind.backend(n) == got.dst), "{} serves no more", got.dst);
        if self.preserve {
            assert_eq!(got.src, sent.src);
        } else {
            assert_eq!(got.src.ip(), kind.snat());
        }
        assert_eq!((got.ttl, &got.payload, got.tcp), (sent.ttl - 1, &sent.payload, sent.tcp));
        let (endpoint, seen_as) = (got.dst, got.src);
        for other in (0..CLIENTS).filter(|&other| other != client && Self::kind(other) == kind) {
            let taken = self.live(other).is_some_and(|flow| (flow.endpoint, flow.seen_as) == (endpoint, seen_as));
            assert!(!taken, "{seen_as} has two clients at {endpoint}");
        }
        let last = self.rig.now;
        let flow = Flow {
            endpoint,
            seen_as,
            last,
            fins: [false; 2],
            reset: false,
            by_client: false,
            answered: false,
            left: false,
        };
        self.flows[usize::from(client)] = Some(flow);
    }

    /// A client's packet of a flow that is there reaches its endpoint.
    fn passes(&mut self, client: u8, flags: TcpFlags) {
        let now = self.rig.now;
        let sent = Self::from_client(client, flags);
        let flow = self.live(client).expect("a flow");
        flow.last = now;
        let expected = Segment { src: flow.seen_as, dst: flow.endpoint, ttl: sent.ttl - 1, ..sent.clone() };
        let got = self.deliver(OUTSIDE, &sent).sent(INSIDE);
        assert_eq!((got.src, got.dst, got.ttl), (expected.src, expected.dst, expected.ttl));
        assert_eq!((got.tcp, got.payload), (expected.tcp, expected.payload));
    }

    /// An endpoint's packet of a flow that is there reaches its client.
    fn passes_back(&mut self, client: u8, flags: TcpFlags) {
        let now = self.rig.now;
        if let Some(flow) = self.live(client) {
            (flow.last, flow.answered) = (now, true);
        }
        let flow = self.flows[usize::from(client)].clone().expect("a flow");
        let reply = Self::from_endpoint(client, &flow, flags);
        let got = self.deliver(INSIDE, &reply).sent(OUTSIDE);
        let asked = Self::from_client(client, flags);
        assert_eq!((got.src, got.dst, got.ttl), (asked.dst, asked.src, reply.ttl - 1));
        assert_eq!((got.tcp, got.payload), (reply.tcp, reply.payload));
    }

    fn client_sends(&mut self, client: u8, what: What) {
        let flags = Self::flags(what);
        if self.is_left(client) {
            return;
        }
        if let Some(flow) = self.live(client) {
            // What follows a reset is the endpoints' business.
            if flow.reset {
                return;
            }
            self.passes(client, flags);
            return self.note(client, 0, what);
        }
        let sent = Self::from_client(client, flags);
        if !Self::is_tcp(client) {
            return self.opens(client, &sent);
        }
        let outcome = self.deliver(OUTSIDE, &sent);
        if what == What::Reset {
            return assert!(matches!(outcome.verdict, Verdict::Drop(_)), "a reset is answered: {:?}", outcome.verdict);
        }
        let answer = outcome.sent(OUTSIDE);
        assert_eq!((answer.src, answer.dst), (sent.dst, sent.src));
        assert!(answer.tcp.is_some_and(|tcp| tcp.flags.contains(RST)));
    }

    fn endpoint_sends(&mut self, client: u8, what: What) {
        let flags = Self::flags(what);
        if self.is_left(client) {
            return;
        }
        let Some(flow) = self.flows[usize::from(client)].clone() else { return };
        if Duration::from_nanos(self.rig.now.0 - flow.last.0) >= flow.limit(Self::is_tcp(client)) {
            let outcome = self.deliver(INSIDE, &Self::from_endpoint(client, &flow, flags));
            return assert!(matches!(outcome.verdict, Verdict::Drop(_)), "without a flow: {:?}", outcome.verdict);
        }
        // What follows a reset is the endpoints' business. Who serves no more may finish what it says,
        // which does not keep a flow of UDP.
        if !flow.reset {
            self.passes_back(client, flags);
            self.note(client, 1, what);
        }
    }

    /// Whether the connection is over and its endpoint served no more at times, so that it may be forgotten.
    fn is_left(&mut self, client: u8) -> bool {
        self.live(client).is_some_and(|flow| flow.is_over() && flow.left)
    }

    fn flags(what: What) -> TcpFlags {
        match what {
            What::Data => ACK,
            What::Fin => FIN_ACK,
            What::Reset => RST.union(ACK),
        }
    }

    /// What a packet says about its connection; the last FIN is acknowledged at once.
    fn note(&mut self, client: u8, side: usize, what: What) {
        let Some(flow) = self.live(client) else { return };
        match what {
            What::Data => {}
            What::Reset if !flow.is_over() => (flow.reset, flow.by_client) = (true, side == 0),
            What::Reset => {}
            What::Fin => {
                flow.fins[side] = true;
                if flow.is_over() {
                    if side == 0 { self.passes_back(client, ACK) } else { self.passes(client, ACK) }
                }
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.rig.wait(Duration::from_secs(seconds));
        // Until it is clear which flows are there.
        while (0..CLIENTS).any(|client| self.is_vague(client)) {
            self.rig.wait(VAGUE);
        }
        let now = self.rig.now;
        for worker in &mut self.rig.workers {
            while worker.housekeep(now, &self.rig.tables) {}
        }
    }

    fn is_vague(&self, client: u8) -> bool {
        self.flows[usize::from(client)].as_ref().is_some_and(|flow| {
            let idle = Duration::from_nanos(self.rig.now.0 - flow.last.0);
            idle.abs_diff(flow.limit(Self::is_tcp(client))) < VAGUE
        })
    }

    fn serve(&mut self, endpoints: u8, preserve: bool) {
        // A flow that would have to leave its endpoint does so with its next packet from the client.
        self.serving = (1..=3).filter(|n| endpoints >> (n - 1) & 1 != 0).collect();
        self.preserve = preserve;
        for client in 0..CLIENTS {
            let serving = self.serving.iter().map(|&n| Self::kind(client).backend(n)).collect::<Vec<_>>();
            if let Some(flow) = &mut self.flows[usize::from(client)] {
                flow.left |= !serving.contains(&flow.endpoint);
            }
        }
        self.rig.desired.service_ports = KINDS
            .map(|kind| {
                let mut port = service_port(kind, "web", &self.serving);
                port.mode = if preserve { Mode::Preserve } else { Mode::Nat };
                port.into()
            })
            .into();
        self.rig.rebuild();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_goes_where_a_list_of_conversations_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for (step, second) in &steps {
            world.worker = u8::from(*second);
            world.step(step);
        }
    }
}
