//! `millrace status` and `millrace explain` for people.

use std::fmt::Write;

use super::{Format, Shown, Tint, age, structured, table};
use crate::view::{Explanation, PortStatus, Status, WorkerStatus};

/// `millrace status`.
#[must_use]
pub fn status(status: &Status, format: Format, colour: bool) -> Shown {
    let wide = match format {
        Format::Json | Format::Yaml => return structured(status, format),
        Format::Table => false,
        Format::Wide => true,
    };
    let mut parts = vec![summary(status, colour)];
    let ports = status.ports.iter().map(|port| (port_cells(port, wide), Tint::Plain));
    parts.push(table(&port_header(wide), ports, colour));
    let workers = status.workers.iter().map(|worker| (worker_cells(worker, wide), Tint::Plain));
    parts.push(table(&worker_header(wide), workers, colour));
    parts.extend(members(status, wide, colour));
    if !status.drops.is_empty() {
        let drops = status.drops.iter().map(|(reason, count)| (vec![reason.clone(), count.to_string()], Tint::Plain));
        parts.push(table(&["DROPPED", "FRAMES"], drops, colour));
    }
    parts.extend(findings(status, colour));
    Shown { out: parts.join("\n"), note: None }
}

/// `millrace explain`.
#[must_use]
pub fn explanation(explanation: &Explanation, format: Format, colour: bool) -> Shown {
    if matches!(format, Format::Json | Format::Yaml) {
        return structured(explanation, format);
    }
    let steps = explanation.steps.iter();
    let steps = steps.map(|step| (vec![step.rule.clone(), step.outcome.clone(), step.why.clone()], Tint::Plain));
    let mut out = table(&["RULE", "OUTCOME", "WHY"], steps, colour);
    let tint = if explanation.drop_reason.is_some() { Tint::Bad } else { Tint::Header };
    let _ = write!(out, "\n{}", tint.paint(&format!("verdict: {}", explanation.verdict), colour));
    out.push('\n');
    if let Some(endpoint) = explanation.endpoint {
        let _ = writeln!(out, "endpoint: {endpoint}");
    }
    Shown { out, note: None }
}

fn summary(status: &Status, colour: bool) -> String {
    let (ready, tint) = match (status.draining, status.ready) {
        (true, _) => ("draining, takes no new flows", Tint::Warn),
        (false, true) => ("ready", Tint::Plain),
        (false, false) => ("not ready", Tint::Bad),
    };
    let mut lines = vec![
        format!("millrace {}, pid {}, up {}", status.version, status.pid, age(status.uptime_seconds)),
        tint.paint(&format!("{ready}, tables generation {}", status.generation), colour),
        format!(
            "services {}, endpoints {}, flows {} of {}",
            status.services, status.endpoints, status.flows, status.flow_limit
        ),
    ];
    let frames = &status.frames;
    let tint = if frames.lost == 0 { Tint::Plain } else { Tint::Bad };
    lines.push(tint.paint(&format!("frames {}, lost {}", frames.total, frames.lost), colour));
    let handoff = &status.handoff;
    if [handoff.sent, handoff.received, handoff.full, handoff.home] != [0; 4] {
        let (sent, received, full, home) = (handoff.sent, handoff.received, handoff.full, handoff.home);
        lines.push(format!(
            "hand-off: {sent} sent, {received} received, {full} refused by full rings, {home} frames sent home"
        ));
    }
    lines.join("\n") + "\n"
}

/// The nodes that may announce VIPs, and which of them announces which.
fn members(status: &Status, wide: bool, colour: bool) -> Vec<String> {
    if status.members.is_empty() {
        return Vec::new();
    }
    let rows = status.members.iter().map(|member| {
        let heard = member.silent_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms ago"));
        let cells = vec![member.name.clone(), member.standing.clone(), member.owned.to_string(), heard];
        (cells, if member.standing == "member" { Tint::Plain } else { Tint::Warn })
    });
    let mut parts = vec![table(&["NODE", "STANDING", "OWNS", "HEARD"], rows, colour)];
    let shown = status.owners.iter().filter(|(_, owner)| wide || owner.is_none()).map(|(address, owner)| {
        let tint = if owner.is_none() { Tint::Bad } else { Tint::Plain };
        (vec![address.to_string(), owner.clone().unwrap_or_else(|| "nobody".to_owned())], tint)
    });
    let shown: Vec<_> = shown.collect();
    if !shown.is_empty() {
        parts.push(table(&["ADDRESS", "ANNOUNCED-BY"], shown.into_iter(), colour));
    }
    parts
}

/// What is wrong, then what is surprising.
fn findings(status: &Status, colour: bool) -> Option<String> {
    let conflicts = status.conflicts.iter().map(|conflict| {
        let (address, mac, interface) = (conflict.address, &conflict.mac, &conflict.interface);
        (format!("conflict: {address} is also answered for by {mac} on {interface}"), Tint::Bad)
    });
    let errors = status.errors.iter().map(|text| (format!("error: {text}"), Tint::Bad));
    let warnings = status.warnings.iter().map(|text| (format!("warning: {text}"), Tint::Warn));
    let kinds = status.skipped_kinds.iter();
    let skipped = kinds.map(|(kind, count)| (format!("skipped: {count} of kind {kind}"), Tint::Plain));
    let lines: String = conflicts
        .chain(errors)
        .chain(warnings)
        .chain(skipped)
        .map(|(line, tint)| tint.paint(&line, colour) + "\n")
        .collect();
    (!lines.is_empty()).then_some(lines)
}

fn port_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec!["PORT", "MODE", "ZERO-COPY", "QUEUES", "RX", "TX", "KERNEL-DROPS"];
    if wide {
        header.extend(["RX-BYTES", "TX-BYTES", "MAC", "MTU", "RING-FULL", "FILL-EMPTY", "INVALID", "KICK-ERRORS"]);
    }
    header
}

fn port_cells(port: &PortStatus, wide: bool) -> Vec<String> {
    let xdp = &port.xdp;
    let mut cells = vec![
        port.name.clone(),
        port.mode.clone(),
        (if port.zero_copy { "yes" } else { "no" }).to_owned(),
        port.queues.to_string(),
        port.received_packets.to_string(),
        port.sent_packets.to_string(),
        (xdp.rx_dropped + xdp.rx_ring_full + xdp.rx_invalid_descs).to_string(),
    ];
    if wide {
        cells.extend([port.received_bytes, port.sent_bytes].map(|count| count.to_string()));
        cells.extend([port.mac.clone(), port.mtu.to_string()]);
        let invalid = xdp.rx_invalid_descs + xdp.tx_invalid_descs;
        let counts = [xdp.rx_ring_full, xdp.rx_fill_ring_empty_descs, invalid, xdp.kick_errors];
        cells.extend(counts.map(|count| count.to_string()));
    }
    cells
}

fn worker_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec!["WORKER", "CORE", "BUSY", "FLOWS", "RX", "TX", "DROPS"];
    if wide {
        header.extend(["QUEUES", "SLEEPS", "SPARE-FRAMES", "OPENED", "CLOSED"]);
    }
    header
}

fn worker_cells(worker: &WorkerStatus, wide: bool) -> Vec<String> {
    let mut cells = vec![
        worker.id.to_string(),
        worker.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
        format!("{:.0}%", worker.busy_ratio * 100.0),
        worker.flows.to_string(),
        worker.received_packets.to_string(),
        worker.sent_packets.to_string(),
        worker.drops.to_string(),
    ];
    if wide {
        let counted = |name: &str| worker.counters.get(name).copied().unwrap_or(0);
        let (opened, closed) = (counted("flows_opened"), counted("flows_closed"));
        let counts = [worker.queues as u64, worker.sleeps, worker.spare_frames, opened, closed];
        cells.extend(counts.map(|count| count.to_string()));
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{Conflict, Frames, HandOff, Step};

    fn example() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 42,
            ready: true,
            draining: false,
            uptime_seconds: 3725,
            generation: 7,
            services: 2,
            endpoints: 6,
            flows: 10,
            flow_limit: 1000,
            ports: vec![PortStatus {
                name: "eth0".into(),
                mode: "native".into(),
                queues: 2,
                received_packets: 100,
                sent_packets: 90,
                ..PortStatus::default()
            }],
            workers: vec![WorkerStatus { core: Some(3), busy_ratio: 0.256, flows: 10, ..WorkerStatus::default() }],
            drops: [("not_ours".to_owned(), 5)].into(),
            handoff: HandOff { sent: 1, received: 1, full: 0, home: 1 },
            frames: Frames { total: 4096, at_hand: 96, held: 4000, lost: 0 },
            errors: vec!["web.yaml:3: spec: bad".into()],
            warnings: Vec::new(),
            conflicts: vec![Conflict {
                interface: "eth0".into(),
                address: "203.0.113.1".parse().unwrap(),
                mac: "02:00:00:00:00:09".into(),
            }],
            skipped_kinds: [("Ingress".to_owned(), 1)].into(),
            members: Vec::new(),
            owners: BTreeMap::new(),
        }
    }

    #[test]
    fn status_says_what_matters() {
        assert_eq!(
            status(&example(), Format::Table, false).out,
            "\
millrace 0.1.0, pid 42, up 1h2m
ready, tables generation 7
services 2, endpoints 6, flows 10 of 1000
frames 4096, lost 0
hand-off: 1 sent, 1 received, 0 refused by full rings, 1 frames sent home

PORT   MODE     ZERO-COPY   QUEUES   RX    TX   KERNEL-DROPS
eth0   native   no          2        100   90   0

WORKER   CORE   BUSY   FLOWS   RX   TX   DROPS
0        3      26%    10      0    0    0

DROPPED    FRAMES
not_ours   5

conflict: 203.0.113.1 is also answered for by 02:00:00:00:00:09 on eth0
error: web.yaml:3: spec: bad
skipped: 1 of kind Ingress
"
        );
    }

    #[test]
    fn members_are_shown_with_what_they_own_and_addresses_that_nobody_announces() {
        let member = |name: &str, owned, silent_ms| crate::view::MemberView {
            name: name.into(),
            standing: "member".into(),
            owned,
            silent_ms,
        };
        let status = Status {
            members: vec![member("n1", 1, None), member("n2", 0, Some(40))],
            owners: [("192.0.2.1", Some("n1")), ("192.0.2.2", None)]
                .map(|(address, owner)| (address.parse().unwrap(), owner.map(str::to_owned)))
                .into(),
            ..example()
        };
        assert_eq!(
            members(&status, false, false).join("\n"),
            "\
NODE   STANDING   OWNS   HEARD
n1     member     1      -
n2     member     0      40 ms ago

ADDRESS     ANNOUNCED-BY
192.0.2.2   nobody
"
        );
        assert!(members(&status, true, false)[1].contains("192.0.2.1   n1"));
        assert!(members(&example(), true, false).is_empty());
    }

    #[test]
    fn rows_are_as_wide_as_their_header() {
        let example = example();
        for wide in [false, true] {
            assert_eq!(port_header(wide).len(), port_cells(&example.ports[0], wide).len());
            assert_eq!(worker_header(wide).len(), worker_cells(&example.workers[0], wide).len());
        }
    }

    #[test]
    fn status_as_json_has_what_scripts_read() {
        let json: serde_json::Value = serde_json::from_str(&status(&example(), Format::Json, true).out).unwrap();
        assert_eq!((&json["ready"], &json["pid"], &json["generation"]), (&true.into(), &42.into(), &7.into()));
        assert_eq!((&json["frames"]["total"], &json["frames"]["lost"]), (&4096.into(), &0.into()));
        let read: Status = serde_json::from_value(json).unwrap();
        assert_eq!(read, example());
    }

    #[test]
    fn an_explanation_ends_with_its_verdict() {
        let explained = Explanation {
            packet: "198.51.100.1:1 203.0.113.1:80/tcp".into(),
            steps: vec![Step { rule: "address".into(), outcome: "ours".into(), why: "a VIP".into() }],
            verdict: "sent to 10.0.0.5:80".into(),
            endpoint: Some("10.0.0.5:80".parse().unwrap()),
            ..Explanation::default()
        };
        assert_eq!(
            explanation(&explained, Format::Table, false).out,
            "RULE      OUTCOME   WHY\naddress   ours      a VIP\n\nverdict: sent to 10.0.0.5:80\nendpoint: 10.0.0.5:80\n"
        );
    }
}
