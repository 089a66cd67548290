//! What the running instance says of itself: the answers to `status`, `services`, `backends`, `flows`, `explain`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb::flow::FlowRecord;
use lb::health::Standing;
use lb::model::{Mode, ServicePortKey};
use lb::tables::{BackendRow, HopState, TunnelSources};
use lb::{BackendId, DropReason, PortId, Tick};
use serde::Serialize;
use worker::Snapshot;

use crate::admin::{Hello, Request, Response};
use crate::explain::{Known, explain};
use crate::instance::{Instance, View};
use crate::owners::Owners;
use crate::view::{
    BackendView, Conflict, Filters, FlowView, Frames, MemberView, PortStatus, SET_ASIDE, ServiceView, Status,
    WorkerStatus, XdpStatistics,
};

/// How long to look for frames that seem lost: one that crosses between workers is nowhere for a moment, and what
/// queues hold is read about once a second.
const FRAME_PATIENCE: Duration = Duration::from_millis(2500);

/// Answers what only reads.
#[must_use]
pub fn answer(request: &Request, instance: &Instance) -> Response {
    match request {
        Request::Hello => respond(&hello(instance)),
        Request::Status => respond(&status(instance)),
        Request::Services(filters) => listing(instance, filters, |filters| Ok(services(instance, filters))),
        Request::Backends(filters) => listing(instance, filters, |filters| Ok(backends(instance, filters))),
        Request::Flows { filters, limit } => listing(instance, filters, |filters| {
            flows(instance, filters, *limit).ok_or_else(|| "no workers run; see `millrace status`".to_owned())
        }),
        Request::Explain(question) => {
            let mut reader = instance.tables.reader();
            let tables = reader.pin();
            let view = instance.view();
            let plane = instance.plane();
            let shared = plane.as_ref().map(|plane| (&*plane.shared, now()));
            respond(&explain(question, &Known { tables: &tables, names: &view.names(), shared }))
        }
        other => Response::Error(format!("{other:?} is answered elsewhere")),
    }
}

/// Who this is.
#[must_use]
pub fn hello(instance: &Instance) -> Hello {
    let config = instance.config();
    Hello {
        pid: std::process::id(),
        runtime: config.runtime.clone(),
        interfaces: config.interface_names(),
        metrics: config.metrics,
        // Whoever asks may be in another folder.
        admin: std::path::absolute(&config.admin).unwrap_or_else(|_| config.admin.clone()),
    }
}

fn respond<T: Serialize>(value: &T) -> Response {
    serde_json::to_value(value).map_or_else(|e| Response::Error(e.to_string()), Response::Ok)
}

/// A listing with filters whose Service there is.
fn listing<T: Serialize>(
    instance: &Instance,
    filters: &Filters,
    list: impl FnOnce(&Filters) -> Result<T, String>,
) -> Response {
    let services = &instance.view().translation.services;
    let names = services.iter().map(|service| format!("{}/{}", service.namespace, service.name)).collect();
    match filters.resolve(&names).and_then(|filters| list(&filters)) {
        Ok(rows) => respond(&rows),
        Err(error) => Response::Error(error),
    }
}

/// The flows of the client that is asked for; `None` if none is.
fn of_source(instance: &Instance, filters: &Filters) -> Option<Vec<FlowView>> {
    let wanted = Filters { source: Some(filters.source?), ..Filters::default() };
    Some(flows(instance, &wanted, usize::MAX).unwrap_or_default())
}

/// The tick of `CLOCK_MONOTONIC`, which flows are stamped with.
pub(crate) fn now() -> Tick {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    lb::Now(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).tick()
}

fn status(instance: &Instance) -> Status {
    let view = instance.view();
    let frames = frames(instance);
    let plane = instance.plane();
    let snapshot = plane.as_ref().map(|plane| plane.dataplane.snapshot());
    let by_workers = |reason: DropReason| snapshot.as_ref().map_or(0, |s| s.drops(reason));
    let count = |reason: DropReason| match reason {
        DropReason::SynFlood => instance.syn_flood_dropped(),
        _ => by_workers(reason),
    };
    let drops = DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), count(reason)));
    let (errors, mut warnings): (Vec<_>, Vec<_>) = view.findings.iter().partition(|f| f.is_error());
    warnings.retain(|f| !f.is_error());
    let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    errors.extend(view.trouble.clone());
    let (far, tunnels) = (too_far(instance), Arc::clone(&instance.tables.reader().pin().tunnels));
    let far = view.translation.all_backends().filter_map(|listed| {
        let why = unreached(&far, &tunnels, listed)?;
        Some(format!("{}: {}: {}: {why}", listed.source, listed.service, listed.address))
    });
    let kept = view.kept.iter().map(|file| format!("{file}: has errors; what it said when it was last sound goes on"));
    let conflicts = instance.announcer.conflicts().into_iter().map(|c| Conflict {
        interface: c.interface,
        address: c.address,
        mac: c.mac.to_string(),
    });
    let owners = instance.owners.as_ref().map(Owners::standing).unwrap_or_default();
    let member = |member: crate::owners::Member| MemberView {
        name: member.name,
        standing: member.standing.to_owned(),
        owned: member.owned,
        silent_ms: member.silent_ms,
    };
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        ready: instance.moves(plane.as_ref()) && !view.draining,
        draining: view.draining,
        uptime_seconds: instance.started.elapsed().as_secs(),
        generation: view.generation,
        services: view.translation.services.iter().filter(|s| !s.addresses.is_empty()).count(),
        endpoints: view.translation.services.iter().map(|s| s.endpoints_ready).sum(),
        flows: plane.as_ref().map_or(0, |plane| plane.shared.flows()),
        flow_limit: plane.as_ref().map_or(0, |plane| plane.shared.flow_limit()),
        ports: ports(instance, snapshot.as_ref()),
        workers: snapshot.iter().flat_map(|s| &s.workers).map(WorkerStatus::of).collect(),
        drops: drops.filter(|(_, count)| *count > 0).collect(),
        handoff: snapshot.as_ref().map(|s| s.hand_off().into()).unwrap_or_default(),
        frames,
        errors,
        warnings: warnings.iter().map(ToString::to_string).chain(far).chain(kept).collect(),
        conflicts: conflicts.collect(),
        skipped_kinds: view.translation.counters.skipped_kinds.clone(),
        members: owners.members.into_iter().map(member).collect(),
        owners: owners.owners,
    }
}

fn ports(instance: &Instance, snapshot: Option<&Snapshot>) -> Vec<PortStatus> {
    let traffic = snapshot.map(Snapshot::ports).unwrap_or_default();
    let links = instance.network.links();
    let row = |(id, port): (usize, crate::instance::PortInfo)| {
        let number = PortId(u8::try_from(id).unwrap_or(u8::MAX));
        let one = traffic.get(&number).copied().unwrap_or_default();
        let mut xdp = XdpStatistics::default();
        let queues = snapshot.iter().flat_map(|s| &s.workers).flat_map(|w| &w.queues);
        queues.filter(|queue| queue.port == number).for_each(|queue| xdp.add(&queue.statistics));
        PortStatus {
            name: port.name,
            mode: if port.mode == xsk::AttachMode::Generic { "generic" } else { "native" }.to_owned(),
            zero_copy: port.zero_copy,
            queues: port.queues as usize,
            mac: links.get(id).map(|link| link.mac.to_string()).unwrap_or_default(),
            mtu: u16::try_from(port.mtu).unwrap_or(u16::MAX),
            received_packets: one.received.packets,
            received_bytes: one.received.bytes,
            sent_packets: one.sent.packets,
            sent_bytes: one.sent.bytes,
            xdp,
        }
    };
    instance.ports().into_iter().enumerate().map(row).collect()
}

/// Frames in all, and how many are nowhere. Looks again while some seem to be.
fn frames(instance: &Instance) -> Frames {
    let ends = Instant::now() + FRAME_PATIENCE;
    loop {
        let Some(frames) = count_frames(instance) else { return Frames::default() };
        if frames.lost == 0 || Instant::now() >= ends {
            return frames;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn count_frames(instance: &Instance) -> Option<Frames> {
    let snapshot = instance.plane().as_ref()?.dataplane.snapshot();
    let at_hand = snapshot.workers.iter().map(|w| w.spare_frames).sum();
    let held = snapshot.workers.iter().flat_map(|w| &w.queues).map(|q| q.held).sum();
    let per_queue = u64::from(crate::run::FRAMES_PER_QUEUE);
    let least = u64::from(crate::run::FRAMES_WITHOUT_QUEUE);
    let total: u64 = snapshot.workers.iter().map(|w| (w.queues.len() as u64 * per_queue).max(least)).sum();
    Some(Frames { total, at_hand, held, lost: total.saturating_sub(at_hand + held) })
}

fn services(instance: &Instance, filters: &Filters) -> Vec<ServiceView> {
    let backends = backends(instance, &Filters::default());
    let view = instance.view();
    let all = view.translation.services.iter().map(|listing| ServiceView::from(&**listing));
    let flows = of_source(instance, filters);
    let has_flow = |service: &ServiceView| {
        let name = format!("{}/{}", service.namespace, service.name);
        flows.as_ref().is_none_or(|flows| flows.iter().any(|flow| flow.service == name))
    };
    all.filter(|service| filters.service(service, &backends) && has_flow(service)).collect()
}

fn backends(instance: &Instance, filters: &Filters) -> Vec<BackendView> {
    // Before the plane is held: this asks for it too.
    let flows = of_source(instance, filters);
    let view = instance.view();
    let health = instance.health.state();
    let plane = instance.plane();
    let (far, tunnels) = (too_far(instance), Arc::clone(&instance.tables.reader().pin().tunnels));
    let row = |backend: &translate::BackendListing| {
        let ids = ids_of(&view, backend);
        let connections = plane
            .as_ref()
            .map_or(0, |plane| ids.iter().map(|id| u64::from(plane.shared.backend_connections(*id))).sum());
        let is_aside =
            |id: &BackendId| plane.as_ref().is_some_and(|p| p.shared.health.standing(*id, now()) != Standing::Well);
        let aside = !ids.is_empty() && ids.iter().all(is_aside);
        let endpoint = std::net::SocketAddr::new(backend.address, backend.port);
        let probe =
            health.iter().find(|(p, _)| p.endpoint == endpoint && Some(&p.check) == backend.health_check.as_ref());
        let drained =
            view.drained.iter().any(|d| d.address == backend.address && d.port.is_none_or(|p| p == backend.port));
        let mut row = BackendView::new(backend, connections, drained, probe.map(|(_, state)| state.last.clone()));
        row.healthy = probe.map(|(_, state)| state.healthy).or(row.healthy);
        row.reason = row.reason.or_else(|| unreached(&far, &tunnels, backend).map(str::to_owned));
        if aside && row.state == translate::BackendState::Usable.as_str() {
            row.state = SET_ASIDE.to_owned();
            row.reason = Some("it failed connections, and is tried again soon".to_owned());
        }
        row
    };
    let has_flow = |row: &BackendView| {
        let socket = std::net::SocketAddr::new(row.address, row.port);
        let is_its = |flow: &FlowView| flow.service == row.service && flow.backend == socket;
        flows.as_ref().is_none_or(|flows| flows.iter().any(is_its))
    };
    let all = view.translation.all_backends().map(row);
    all.filter(|backend| filters.backend(backend) && has_flow(backend)).collect()
}

/// The ids that an endpoint has in its Service port's scopes.
fn ids_of(view: &View, backend: &translate::BackendListing) -> Vec<BackendId> {
    let name = backend.service.split_once('/').unwrap_or_default();
    let from = view.ids.partition_point(|origin| name_of(&origin.port.key) < name);
    let of_service = view.ids.iter_from(from).take_while(|origin| name_of(&origin.port.key) == name);
    let of_port = of_service.filter(|origin| {
        let key = &origin.port.key;
        key.port_name == backend.port_name && key.protocol.to_string().eq_ignore_ascii_case(&backend.protocol)
    });
    let ids = of_port.flat_map(|origin| origin.port.endpoints.iter().zip(origin.backends.iter()));
    let here = ids.filter(|(endpoint, _)| (endpoint.address, endpoint.port) == (backend.address, backend.port));
    here.filter_map(|(_, id)| *id).collect()
}

fn flows(instance: &Instance, filters: &Filters, limit: usize) -> Option<Vec<FlowView>> {
    let view = instance.view();
    let plane = instance.plane();
    let now = now();
    let names = view.names();
    let name = |service| names.get(&service).map(|key| format!("{}/{}", key.namespace, key.name)).unwrap_or_default();
    // Where endpoints answer past us, a record does not know their addresses.
    let rows = Arc::clone(&instance.tables.reader().pin().backends);
    let located = |flow: &FlowRecord| {
        let row = rows.get(flow.backend_id.index()).filter(|row| row.id == flow.backend_id);
        FlowRecord { backend: row.map_or(flow.backend, |row| (row.address, row.port)), ..*flow }
    };
    let shown = |flow: &FlowRecord| FlowView::new(flow, now, &name(flow.service));
    let mut wanted = |flow: &FlowRecord| {
        let flow = located(flow);
        filters.record(&flow) && filters.flow(&shown(&flow))
    };
    let flows = plane.as_ref()?.dataplane.export_flows(limit, &mut wanted);
    Some(flows.iter().map(|flow| shown(&located(flow))).collect())
}

/// What is said of an endpoint that is not on a link of ours though its Service's mode needs it.
const TOO_FAR: &str = "behind a router; mode dsr-l2 needs it on a link of the gateway, expected another mode";

/// The same where tunnels have nowhere to start.
const NO_SOURCE: &str = "no address of its family for tunnels to start at, expected one in `tunnel` or `snat`";

/// Why nothing reaches an endpoint in its Service's mode.
fn unreached(far: &[BackendRow], tunnels: &TunnelSources, listed: &translate::BackendListing) -> Option<&'static str> {
    let sourceless = listed.mode.wrapping().is_some() && tunnels.towards(&listed.address.into(), 0).is_none();
    match () {
        () if sourceless => Some(NO_SOURCE),
        () if far.iter().any(|row| is_row_of(row, listed)) => Some(TOO_FAR),
        () => None,
    }
}

/// The endpoints that nothing reaches for that reason.
fn too_far(instance: &Instance) -> Vec<BackendRow> {
    let rows = Arc::clone(&instance.tables.reader().pin().backends);
    let is_far = |row: &&BackendRow| row.near && row.hop.state == HopState::Resolved && !row.hop.on_link;
    rows.iter().filter(is_far).copied().collect()
}

/// Whether a row is a listed endpoint's, as far as that can be told without its Service.
fn is_row_of(row: &BackendRow, listed: &translate::BackendListing) -> bool {
    listed.mode == Mode::DsrL2 && row.address == listed.address.into() && row.port.number() == listed.port
}

fn name_of(key: &ServicePortKey) -> (&str, &str) {
    (&key.namespace, &key.name)
}
