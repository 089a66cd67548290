//! Prometheus metrics, `/healthz` and `/readyz`.
//!
//! A scrape reads what the workers and the control thread publish anyway; between scrapes nothing is counted twice.

mod pieces;
mod services;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::instance::Instance;
use crate::kubernetes;
use crate::owners;
use crate::view::XdpStatistics;
use pieces::Pieces;

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Levels = Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>;

/// How long changes took, as a histogram in seconds.
#[derive(Clone, Debug)]
pub struct Durations(Histogram);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]))
    }
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// How long the control thread may not go round before `/healthz` says so: building the largest tables takes seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a peer may take to ask, and to ask again.
const HEADERS: Duration = Duration::from_secs(30);
/// Bounds of the residence histogram, seconds.
const RESIDENCE: [f64; 12] = [1e-6, 2e-6, 4e-6, 8e-6, 16e-6, 32e-6, 64e-6, 128e-6, 256e-6, 512e-6, 1e-3, 10e-3];

/// From RX ring to TX ring, of the workers' own histogram.
#[derive(Debug)]
struct Residence {
    sum: f64,
    count: u64,
    buckets: Vec<(f64, u64)>,
}

impl Residence {
    fn of(histogram: &hdrhistogram::Histogram<u64>) -> Self {
        let mut buckets = Vec::new();
        let mut below = 0;
        for bound in RESIDENCE {
            let up_to = histogram.count_between(0, (bound * 1e9) as u64);
            buckets.push((bound, up_to.saturating_sub(below)));
            below = up_to;
        }
        buckets.push((f64::INFINITY, histogram.len().saturating_sub(below)));
        let sum = histogram.mean() * histogram.len() as f64 / 1e9;
        Self { sum, count: histogram.len(), buckets }
    }
}

impl Collector for Residence {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Time of a frame from RX ring to TX ring";
        let mut metric = encoder.encode_descriptor("millrace_residence_seconds", help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }
}

/// From a flow's opening to its endpoint's first SYN-ACK, of the workers' own counts.
#[derive(Debug)]
struct HandshakeTimes(lb::handshake::Handshakes);

impl Collector for HandshakeTimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Time from a connection's opening to the first SYN-ACK of its endpoint";
        let name = "millrace_backend_handshake_seconds";
        let bounds = lb::handshake::BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(self.0.sum_us as f64 / 1e6, self.0.count(), &buckets, None)
    }
}

/// The whole text of a scrape.
fn scrape(instance: &Instance) -> Pieces {
    let mut registry = Registry::default();
    let view = instance.view();
    let generation: Gauge = Gauge::default();
    generation.set(i64::try_from(view.generation).unwrap_or(i64::MAX));
    registry.register("millrace_tables_generation", "Publications of tables", generation);
    registry.register("millrace_update_seconds", "From a change seen to tables in force", instance.updates.0.clone());
    let restarts = Counter::<u64>::default();
    restarts.inc_by(instance.restarts.load(Ordering::Relaxed));
    registry.register("millrace_control_restarts", "Times that the control thread started over", restarts);
    let heartbeat = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    heartbeat.set(instance.silent_for().as_secs_f64());
    registry.register("millrace_control_heartbeat_age_seconds", "Since the control thread went round", heartbeat);
    let (findings, skipped, conflicts) = (Levels::default(), Levels::default(), Gauge::<i64>::default());
    let errors = view.findings.iter().filter(|finding| finding.is_error()).count();
    for (severity, count) in [("error", errors), ("warning", view.findings.len() - errors)] {
        findings.get_or_create(&vec![("severity", severity.to_owned())]).set(count as f64);
    }
    registry.register("millrace_findings", "Findings in manifests as they are", findings);
    for (kind, count) in &view.translation.counters.skipped_kinds {
        skipped.get_or_create(&vec![("kind", kind.clone())]).set(*count as f64);
    }
    registry.register("millrace_manifests_skipped", "Documents of kinds that are not handled", skipped);
    conflicts.set(i64::try_from(instance.announcer.conflicts().len()).unwrap_or(i64::MAX));
    registry.register("millrace_address_conflicts", "Addresses that other machines answer for too", conflicts);
    if let Some(cluster) = &instance.cluster {
        synced(cluster, &mut registry);
        pools(&cluster.allocator(), &mut registry);
    }
    if let Some(owners) = &instance.owners {
        members(&owners.standing(), &mut registry);
    }
    dataplane(instance, &mut registry);
    if let Some(services) = services_of(instance) {
        registry.register_collector(Box::new(services));
    }
    let mut text = Pieces::default();
    // Writing to memory does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// How following the API server goes.
fn synced(cluster: &kubernetes::Cluster, registry: &mut Registry) {
    let kinds = Levels::default();
    for (kind, is) in cluster.synced() {
        kinds.get_or_create(&vec![("kind", kind.to_owned())]).set(f64::from(u8::from(is)));
    }
    registry.register("millrace_kubernetes_synced", "Whether a kind was listed whole and can be followed", kinds);
}

/// Only who gives addresses says how many there are, so that a sum over nodes is right.
fn pools(report: &kubernetes::Report, registry: &mut Registry) {
    let leads = Gauge::<i64>::default();
    leads.set(i64::from(report.leads));
    registry.register("millrace_allocator_leads", "Whether this node gives Services their addresses", leads);
    if !report.leads {
        return;
    }
    let [size, given, free] = [Levels::default(), Levels::default(), Levels::default()];
    for usage in &report.usage {
        let labels = vec![("pool", usage.pool.clone())];
        for (level, count) in [(&size, usage.size), (&given, usage.given), (&free, usage.free)] {
            level.get_or_create(&labels).set(count as f64);
        }
    }
    registry.register("millrace_pool_addresses", "Addresses of a pool", size);
    registry.register("millrace_pool_addresses_given", "Addresses of a pool that Services have", given);
    registry.register("millrace_pool_addresses_free", "Addresses of a pool that nothing has", free);
    let lacking = Gauge::<i64>::default();
    lacking.set(i64::try_from(report.lacking).unwrap_or(i64::MAX));
    registry.register(
        "millrace_services_lacking_addresses",
        "Services that lack an address that they ask for",
        lacking,
    );
}

/// What nodes settle between them.
fn members(standing: &owners::Standing, registry: &mut Registry) {
    let (members, heartbeats) = (Levels::default(), Counters::default());
    for word in ["joining", "member", "draining", "excluded", "handing-over"] {
        members.get_or_create(&vec![("standing", word.to_owned())]).set(0.0);
    }
    for member in &standing.members {
        members.get_or_create(&vec![("standing", member.standing.to_owned())]).inc();
    }
    registry.register("millrace_members", "Nodes that are heard and may announce VIPs, this one included", members);
    let count = |count: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        gauge
    };
    let owned = standing.members.first().map_or(0, |own| own.owned);
    registry.register("millrace_owned_addresses", "VIPs that this node announces", count(owned));
    let nobodys = standing.owners.values().filter(|owner| owner.is_none()).count();
    registry.register("millrace_unowned_addresses", "VIPs that no node announces, as this one sees it", count(nobodys));
    let takeovers = Counter::<u64>::default();
    takeovers.inc_by(standing.counts.takeovers);
    registry.register("millrace_takeovers", "VIPs that this node began to announce", takeovers);
    for result in owners::RESULTS {
        let number = standing.counts.heartbeats.get(result).copied().unwrap_or_default();
        heartbeats.get_or_create(&vec![("result", result.to_owned())]).inc_by(number);
    }
    registry.register("millrace_heartbeats", "Datagrams between nodes by what became of them", heartbeats);
}

fn dataplane(instance: &Instance, registry: &mut Registry) {
    let plane = instance.plane();
    let Some(plane) = plane.as_ref() else { return };
    let snapshot = plane.dataplane.snapshot();
    let names: Vec<String> = instance.ports().into_iter().map(|port| port.name).collect();
    workers(&snapshot, &names, instance.syn_flood_dropped(), registry);
    sockets(&snapshot, &names, registry);
    steering(instance, registry);
}

fn port_name(names: &[String], port: lb::PortId) -> String {
    names.get(usize::from(port.0)).cloned().unwrap_or_else(|| port.0.to_string())
}

/// What workers count, and what was dropped before them.
fn workers(snapshot: &worker::Snapshot, names: &[String], syn_flood: u64, registry: &mut Registry) {
    let (packets, bytes) = (Counters::default(), Counters::default());
    for (port, traffic) in snapshot.ports() {
        let name = port_name(names, port);
        for (direction, one) in [("rx", traffic.received), ("tx", traffic.sent)] {
            let labels = vec![("port", name.clone()), ("direction", direction.to_owned())];
            packets.get_or_create(&labels).inc_by(one.packets);
            bytes.get_or_create(&labels).inc_by(one.bytes);
        }
    }
    registry.register("millrace_packets", "Packets", packets);
    registry.register("millrace_bytes", "Octets, Ethernet headers included", bytes);
    let drops = Counters::default();
    for &reason in lb::DropReason::ALL {
        let labels = vec![("reason", reason.label().to_owned())];
        let before = if reason == lb::DropReason::SynFlood { syn_flood } else { 0 };
        drops.get_or_create(&labels).inc_by(snapshot.drops(reason) + before);
    }
    registry.register("millrace_drops", "Packets dropped", drops);
    let (flows, busy, events) = (Levels::default(), Levels::default(), Counters::default());
    for worker in &snapshot.workers {
        let labels = vec![("worker", worker.id.0.to_string())];
        flows.get_or_create(&labels).set(worker.flows as f64);
        busy.get_or_create(&labels).set(worker.busy_ratio);
        for (name, count) in &worker.counters {
            events.get_or_create(&vec![("event", (*name).to_owned())]).inc_by(*count);
        }
    }
    registry.register("millrace_flows", "Flows", flows);
    registry.register("millrace_worker_busy_ratio", "Share of the last second with work", busy);
    registry.register("millrace_events", "What workers did beside forwarding", events);
    registry.register(
        "millrace_connect_retries",
        "Opening connections that went on to another endpoint",
        retries(snapshot),
    );
    let hand_off = Counters::default();
    let sums = snapshot.hand_off();
    let results = [("sent", sums.sent), ("received", sums.received), ("full", sums.full), ("home", sums.home)];
    for (result, count) in results {
        hand_off.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
    }
    registry.register("millrace_handoff", "Frames that crossed between workers", hand_off);
    registry.register_collector(Box::new(Residence::of(&snapshot.residence_ns)));
    registry.register_collector(Box::new(HandshakeTimes(snapshot.handshakes)));
}

/// Of SYNs that an endpoint refused or left unanswered: sent on to another endpoint, answered there; not sent on for the
/// budget, or for want of another endpoint.
fn retries(snapshot: &worker::Snapshot) -> Counters {
    let retries = Counters::default();
    let results = [
        ("sent", "connects_retried"),
        ("answered", "connects_rescued"),
        ("over_budget", "retries_over_budget"),
        ("no_endpoint", "retries_exhausted"),
    ];
    for (result, event) in results {
        let counts = snapshot.workers.iter().flat_map(|worker| &worker.counters);
        let sum = counts.filter(|(name, _)| *name == event).map(|(_, count)| count).sum();
        retries.get_or_create(&vec![("result", result.to_owned())]).inc_by(sum);
    }
    retries
}

/// What the kernel counts of sockets.
fn sockets(snapshot: &worker::Snapshot, names: &[String], registry: &mut Registry) {
    let socket = Counters::default();
    for queue in snapshot.workers.iter().flat_map(|worker| &worker.queues) {
        let port = port_name(names, queue.port);
        let mut statistics = XdpStatistics::default();
        statistics.add(&queue.statistics);
        for (counter, count) in statistics.named() {
            socket.get_or_create(&vec![("port", port.clone()), ("counter", counter.to_owned())]).inc_by(count);
        }
    }
    registry.register("millrace_socket", "XDP_STATISTICS of the sockets", socket);
}

/// What the steering programs count.
fn steering(instance: &Instance, registry: &mut Registry) {
    let steered = Counters::default();
    for steering in instance.steering().iter() {
        let counts = steering.counters();
        let by = [
            ("redirected", counts.redirected),
            ("no_socket", counts.no_socket_dropped),
            ("passed", counts.passed),
            ("syn_flood", counts.syn_flood_dropped),
        ];
        for (result, count) in by {
            let labels = vec![("port", steering.interface().to_owned()), ("result", result.to_owned())];
            steered.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register("millrace_steered", "Packets by what the steering program did with them", steered);
}

fn services_of(instance: &Instance) -> Option<services::Services<services::Now>> {
    let shared = Arc::clone(&instance.plane().as_ref()?.shared);
    let counts = services::Now { shared, tick: crate::report::now() };
    Some(services::Services { origins: instance.view().ids.clone(), counts })
}

fn answer(instance: &Instance, request: &Request<Incoming>) -> Response<Pieces> {
    let text = "text/plain; charset=utf-8";
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, body) = match request.uri().path() {
        _ if !read => (StatusCode::METHOD_NOT_ALLOWED, text, "there is nothing but to GET\n".to_owned().into()),
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", scrape(instance)),
        "/healthz" => match unhealthy(instance.silent_for()) {
            None => (StatusCode::OK, text, "ok\n".to_owned().into()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, text, why.into()),
        },
        "/readyz" if instance.ready() => (StatusCode::OK, text, "ready\n".to_owned().into()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, text, "not ready\n".to_owned().into()),
        _ => (StatusCode::NOT_FOUND, text, "there are /metrics, /healthz and /readyz\n".to_owned().into()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// What is wrong with a control thread that has not gone round for so long; forwarding may go on all the same.
pub(crate) fn unhealthy(silent_for: Duration) -> Option<String> {
    let seconds = silent_for.as_secs();
    (silent_for >= SILENCE).then(|| format!("the control thread has not gone round for {seconds} s\n"))
}

/// Serves until it is dropped, at `bound` if that could be had. Else a predecessor may hold the address for a moment, so
/// binding is tried again.
pub async fn serve(instance: Arc<Instance>, address: SocketAddr, bound: Option<std::net::TcpListener>) {
    let mut said = false;
    let bound = bound.and_then(|bound| bound.set_nonblocking(true).and_then(|()| TcpListener::from_std(bound)).ok());
    let listener = loop {
        if let Some(bound) = bound {
            break bound;
        }
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !said {
                    tracing::warn!(%address, %error, "cannot serve metrics yet, trying again");
                    said = true;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let instance = Arc::clone(&instance);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let response = answer(&instance, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            // A peer that goes away is its own affair.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use lb::{DropReason, PortId, WorkerId};
    use worker::{HandOffCounters, QueueSnapshot, Snapshot, Traffic, WorkerSnapshot};

    use super::*;

    fn text(fill: impl FnOnce(&mut Registry)) -> String {
        let mut registry = Registry::default();
        fill(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn snapshot() -> Snapshot {
        let queue = QueueSnapshot {
            port: PortId(0),
            zero_copy: false,
            received: Traffic { packets: 5, bytes: 500 },
            sent: Traffic { packets: 4, bytes: 400 },
            statistics: xsk::QueueStatistics { rx_ring_full: 3, ..xsk::QueueStatistics::default() },
            held: 0,
            in_flight: 0,
        };
        let worker = WorkerSnapshot {
            id: WorkerId(1),
            core: None,
            queues: vec![queue, queue],
            drops: DropReason::ALL.iter().map(|&reason| (reason, u64::from(reason == DropReason::NotOurs))).collect(),
            hand_off: HandOffCounters { sent: 1, received: 2, full: 3, home: 4 },
            flows: 7,
            counters: vec![("flows_opened", 9)],
            busy_ratio: 0.25,
            busy_ns: 0,
            sleeps: 0,
            woken: 0,
            spare_frames: 0,
        };
        let mut residence_ns = hdrhistogram::Histogram::new(2).unwrap();
        residence_ns.record(1_500).unwrap();
        residence_ns.record(5_000_000_000).unwrap();
        let mut handshakes = lb::handshake::Handshakes::default();
        handshakes.record(700);
        handshakes.record(20_000_000);
        Snapshot { workers: vec![worker], residence_ns, handshakes }
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_and_labels_are_those_of_the_contract() {
        let names = ["eth0".to_owned()];
        let text = text(|registry| {
            workers(&snapshot(), &names, 5, registry);
            sockets(&snapshot(), &names, registry);
        });
        has(
            &text,
            &[
                "# TYPE millrace_packets counter",
                r#"millrace_packets_total{port="eth0",direction="rx"} 10"#,
                r#"millrace_bytes_total{port="eth0",direction="tx"} 800"#,
                r#"millrace_drops_total{reason="not_ours"} 1"#,
                r#"millrace_drops_total{reason="truncated"} 0"#,
                r#"millrace_drops_total{reason="syn_flood"} 5"#,
                r#"millrace_flows{worker="1"} 7.0"#,
                r#"millrace_worker_busy_ratio{worker="1"} 0.25"#,
                r#"millrace_handoff_total{result="sent"} 1"#,
                r#"millrace_handoff_total{result="received"} 2"#,
                r#"millrace_handoff_total{result="full"} 3"#,
                r#"millrace_handoff_total{result="home"} 4"#,
                r#"millrace_socket_total{port="eth0",counter="rx_ring_full"} 6"#,
                "millrace_residence_seconds_count 2",
                r#"millrace_residence_seconds_bucket{le="0.000001"} 0"#,
                r#"millrace_residence_seconds_bucket{le="0.000002"} 1"#,
                r#"millrace_residence_seconds_bucket{le="+Inf"} 2"#,
                "# TYPE millrace_backend_handshake_seconds histogram",
                "millrace_backend_handshake_seconds_sum 20.0007",
                "millrace_backend_handshake_seconds_count 2",
                r#"millrace_backend_handshake_seconds_bucket{le="0.0005"} 0"#,
                r#"millrace_backend_handshake_seconds_bucket{le="0.001"} 1"#,
                r#"millrace_backend_handshake_seconds_bucket{le="10.0"} 1"#,
                r#"millrace_backend_handshake_seconds_bucket{le="+Inf"} 2"#,
                "# EOF",
            ],
        );
    }

    #[test]
    fn members_and_what_they_settle_are_counted() {
        let member = |standing, owned| owners::Member { name: "n".into(), standing, owned, silent_ms: None };
        let standing = owners::Standing {
            members: vec![member("member", 3), member("joining", 0), member("member", 1)],
            owners: [("192.0.2.1".parse().unwrap(), None)].into(),
            counts: owners::Counts { heartbeats: [("sent", 5)].into(), takeovers: 4 },
        };
        let text = text(|registry| members(&standing, registry));
        has(
            &text,
            &[
                r#"millrace_members{standing="member"} 2.0"#,
                r#"millrace_members{standing="joining"} 1.0"#,
                r#"millrace_members{standing="draining"} 0.0"#,
                "millrace_owned_addresses 3",
                "millrace_unowned_addresses 1",
                "millrace_takeovers_total 4",
                r#"millrace_heartbeats_total{result="sent"} 5"#,
                r#"millrace_heartbeats_total{result="replayed"} 0"#,
            ],
        );
    }

    #[test]
    fn a_control_thread_that_does_not_go_round_is_unhealthy() {
        assert_eq!(unhealthy(Duration::from_secs(29)), None);
        assert_eq!(unhealthy(SILENCE).unwrap(), "the control thread has not gone round for 30 s\n");
    }

    #[test]
    fn updates_are_a_histogram_in_seconds() {
        let updates = Durations::default();
        updates.observe(Duration::from_millis(3));
        let text = text(|registry| registry.register("millrace_update_seconds", "Updates", updates.0.clone()));
        has(
            &text,
            &[
                "# TYPE millrace_update_seconds histogram",
                r#"millrace_update_seconds_bucket{le="0.0025"} 0"#,
                r#"millrace_update_seconds_bucket{le="0.005"} 1"#,
                r#"millrace_update_seconds_bucket{le="+Inf"} 1"#,
            ],
        );
    }
}
