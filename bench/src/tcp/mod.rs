//! Case `tcp`: real TCP through real gateways, on veth between network namespaces.
//!
//! A client opens connections, each asks nginx for one small page and reads to the end of the connection. Between them
//! stands Millrace, HAProxy in TCP mode, the kernel's NAT with rules as kube-proxy writes them, plain forwarding, or
//! nothing, each on wires of its own, and one after another in the same run: first with so many connections at once, then at
//! a rate that is the same for all.
//!
//! **Whose CPU it is.** Client and server, their TCP and their receiving run on one core; the gateway's process, its TCP and
//! its receiving on another ([`site`] tells how). The gateway's CPU time is all that its core did not idle
//! ([`crate::cores`]), so softirqs are in it for every contender. What leaks: sending runs in the sender's context up to the
//! interrupt that tells the receiver, as on a NIC up to its doorbell (idle cores wait awake, so that it costs little);
//! and whatever else the machine does on the gateway's core is counted to the gateway, which `direct` shows, for which the gateway's core has nothing to do.
//!
//! Frames have no wire time and there is no hardware offload; kernel contenders keep the offloads that veth has
//! (checksums are not computed at all), while Millrace computes them in full.

mod contender;
mod load;
mod site;

use std::time::Duration;

use crate::figure::Figure;
use crate::{cores, interrupt, needs};

pub use contender::Contender;
use load::{Load, Outcome, Pace};
use site::{Site, Way};

/// Before what counts.
const WARM_UP: Duration = Duration::from_millis(300);
/// Of a hundred connections so many may fail.
const MOST_FAILED_PERCENT: u64 = 1;

/// Which core does what.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Client and server.
    pub load: usize,
    /// Whoever forwards.
    pub gateway: usize,
}

/// What to run.
pub struct Tcp {
    /// Beside Millrace.
    pub against: Vec<Contender>,
    /// How long one run counts.
    pub time: Duration,
    /// Connections at once in the closed loop.
    pub connections: usize,
    /// Connections a second of the run at equal rate.
    pub rate: u32,
    /// Which core does what.
    pub cores: Cores,
    /// Turns.
    pub runs: usize,
}

/// What a contender did, a value for each turn.
struct Record {
    contender: Contender,
    closed: Vec<Run>,
    paced: Vec<Run>,
}

/// What one run tells.
#[derive(Clone, Copy)]
struct Run {
    per_second: f64,
    busy_percent: f64,
    /// Connections per second that the gateway's core was busy.
    per_busy_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Tcp {
    /// Figures of all contenders, and what Millrace is to each.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn run(&self) -> Result<Vec<Figure>, String> {
        let mut contenders = vec![Contender::Millrace];
        for contender in &self.against {
            if !contenders.contains(contender) {
                contenders.push(*contender);
            }
        }
        let mut programs = vec!["nginx", "ip", "nsenter", "ss", "sysctl", "tc"];
        contenders.iter().for_each(|c| programs.extend(c.programs()));
        needs::root("network namespaces and AF_XDP need root")?;
        needs::programs(&programs)?;
        needs::millrace()?;
        needs::cores(&[self.cores.load, self.cores.gateway])?;
        let mut site = Site::new();
        let ways: Vec<Way> =
            contenders.iter().map(|c| site.way(c.name(), *c == Contender::Direct, self.cores)).collect();
        site.serve(&ways, self.cores.load);
        let awake = cores::Awake::keep();
        if let Err(error) = &awake {
            eprintln!(
                "tcp: idle cores go to sleep (/dev/cpu_dma_latency: {error}), which makes what wakes them expensive"
            );
        }
        let mut records: Vec<Record> =
            contenders.iter().map(|c| Record { contender: *c, closed: Vec::new(), paced: Vec::new() }).collect();
        for turn in 0..self.runs {
            // Each comes first once.
            for n in 0..records.len() {
                let n = (n + turn) % records.len();
                interrupt::check();
                self.turn(&site, &ways[n], &mut records[n])?;
            }
        }
        Ok(self.figures(&records))
    }

    /// One contender's part of a turn.
    fn turn(&self, site: &Site, way: &Way, record: &mut Record) -> Result<(), String> {
        let contender = record.contender;
        let process = contender.start(way, site.lab.dir(), self.cores.gateway);
        for pace in [Pace::AtOnce(self.connections), Pace::Rate(self.rate)] {
            let load = Load {
                targets: contender.targets(way),
                pace,
                warm_up: WARM_UP,
                counted: self.time,
                core: self.cores.load,
                watched: self.cores.gateway,
            };
            let outcome = site.client.within(move || load.run()).join().expect("the load");
            let run = judge(contender, &outcome)?;
            eprintln!(
                "tcp: {}: {pace:?}: {:.0} connections/s, gateway's core busy {:.0} %, p50 {:.0} us, p99 {:.0} us",
                contender.name(),
                run.per_second,
                run.busy_percent,
                run.p50_us,
                run.p99_us
            );
            match pace {
                Pace::AtOnce(_) => record.closed.push(run),
                Pace::Rate(_) => record.paced.push(run),
            }
            interrupt::check();
        }
        drop(process);
        Ok(())
    }

    fn figures(&self, records: &[Record]) -> Vec<Figure> {
        let mut figures = Vec::new();
        for record in records {
            let contender = record.contender.name();
            let mut add = |flows, name, unit, runs: &[Run], value: fn(&Run) -> f64| {
                figures.push(Figure::new("tcp", flows, name, unit, runs.iter().map(value).collect()).of(contender));
            };
            let at_once = self.connections;
            add(at_once, "connections_per_s", "1/s", &record.closed, |r| r.per_second);
            add(at_once, "gateway_busy", "%", &record.closed, |r| r.busy_percent);
            if record.contender != Contender::Direct {
                add(at_once, "connections_per_cpu_s", "1/s", &record.closed, |r| r.per_busy_second);
            }
            add(at_once, "request_p50", "us", &record.closed, |r| r.p50_us);
            add(at_once, "request_p99", "us", &record.closed, |r| r.p99_us);
            add(0, "rate_connections_per_s", "1/s", &record.paced, |r| r.per_second);
            add(0, "rate_gateway_busy", "%", &record.paced, |r| r.busy_percent);
            if record.contender != Contender::Direct {
                add(0, "rate_connections_per_cpu_s", "1/s", &record.paced, |r| r.per_busy_second);
            }
            add(0, "rate_request_p50", "us", &record.paced, |r| r.p50_us);
            add(0, "rate_request_p99", "us", &record.paced, |r| r.p99_us);
        }
        let (ours, others) = records.split_first().expect("Millrace is the first");
        for other in others.iter().filter(|other| other.contender != Contender::Direct) {
            let of = format!("millrace/{}", other.contender.name());
            let mut add = |flows, name, a: &[Run], b: &[Run], value: fn(&Run) -> f64| {
                let ratios = a.iter().zip(b).map(|(a, b)| value(a) / value(b)).collect();
                figures.push(Figure::new("tcp", flows, name, "", ratios).of(of.clone()));
            };
            let at_once = self.connections;
            add(at_once, "ratio_connections_per_cpu_s", &ours.closed, &other.closed, |r| r.per_busy_second);
            add(at_once, "ratio_request_p99", &ours.closed, &other.closed, |r| r.p99_us);
            add(0, "rate_ratio_connections_per_cpu_s", &ours.paced, &other.paced, |r| r.per_busy_second);
            add(0, "rate_ratio_request_p99", &ours.paced, &other.paced, |r| r.p99_us);
        }
        figures
    }
}

/// What a run tells, unless too much of it failed.
fn judge(contender: Contender, outcome: &Outcome) -> Result<Run, String> {
    let Outcome { answered, failed, failure, elapsed, busy, latency } = outcome;
    if *answered == 0 || failed * 100 > answered * MOST_FAILED_PERCENT {
        let how = failure.as_deref().unwrap_or("none was answered");
        return Err(format!(
            "tcp: through {}: {failed} connections failed and {answered} were answered; the first failure: {how}. Try \
             fewer --connections or a lower --rate",
            contender.name()
        ));
    }
    let us = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Run {
        per_second: *answered as f64 / elapsed.as_secs_f64(),
        busy_percent: 100.0 * busy.as_secs_f64() / elapsed.as_secs_f64(),
        per_busy_second: *answered as f64 / busy.as_secs_f64().max(0.001),
        p50_us: us(0.5),
        p99_us: us(0.99),
    })
}
