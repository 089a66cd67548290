//! Case `wire`: Millrace's NAT on veth wires, against others on wires of the same kind in the same run.
//!
//! One core sends, the other forwards. Each contender takes its turn in every run, so that what the machine does
//! otherwise meets all of them. In a turn the offered load is stepped around what it last could do; its peak is the most
//! that was delivered at any step, and under overload twice its peak is offered.

mod bare;
mod lanes;
mod sender;
mod verify;

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use millrace_tests::lab::{Host, Lab};
use millrace_tests::wait::eventually;

use crate::figure::Figure;
use crate::{interrupt, needs};
use lanes::{Contender, Lane, gateway_mac};
use sender::{Load, Outcome, Sender};
use verify::Eye;

/// The Service.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 81, 1, 100);
const VIP_PORT: u16 = 4000;
/// Octets of a frame check sequence, which veth does not have.
const FCS: usize = 4;
/// Octets that an Ethernet frame may have, its check sequence included.
const SIZES: RangeInclusive<usize> = 64..=1518;
/// Packets a second at which flows are opened.
const OPENING_RATE: f64 = 100e3;
/// How long it sends before it counts.
const SETTLE: Duration = Duration::from_millis(15);
/// How long it counts at each step.
const STEP: Duration = Duration::from_millis(50);
/// How long it counts under overload.
const LONG: Duration = Duration::from_millis(150);
/// Offered loads of a turn's steps, as parts of what was offered at the last peak.
const STEPS: [f64; 4] = [0.9, 1.0, 1.1, 1.22];
/// Offered loads of the search, in packets a second.
const SEARCH: [f64; 7] = [100e3, 200e3, 400e3, 700e3, 1200e3, 1800e3, 2500e3];

/// What to run.
#[derive(Args)]
pub struct Wire {
    /// Against whom, a comma list.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bare,nftables,kernel")]
    against: Vec<Contender>,
    /// How many flows, a comma list, fewest first.
    #[arg(long, value_delimiter = ',', default_value = "1024,100000")]
    flows: Vec<usize>,
    /// Octets of a frame, frame check sequence included, a comma list.
    #[arg(long, value_delimiter = ',', default_value = "64,1500")]
    sizes: Vec<usize>,
    /// The sender's core and the forwarder's.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cores: Vec<usize>,
}

/// What a contender did in one run.
struct Turn {
    peak: f64,
    overload: f64,
    offered: f64,
}

impl Wire {
    /// Runs all of it so often and gives each figure to `show`.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn run(&self, runs: usize, mut show: impl FnMut(Figure)) -> Result<(), String> {
        let [sending, forwarding] = self.cores[..] else {
            return Err("--cores: two of them, the sender's and the forwarder's".into());
        };
        needs::root("the wire case makes network namespaces")?;
        needs::programs(&["ip", "nsenter", "sysctl", "ethtool", "curl"])?;
        needs::cores(&self.cores)?;
        if let Some(size) = self.sizes.iter().find(|size| !SIZES.contains(size)) {
            return Err(format!("--sizes {size}: {} to {} octets", SIZES.start(), SIZES.end()));
        }
        needs::millrace()?;
        if self.against.contains(&Contender::Nftables) {
            needs::programs(&["nft"])?;
        }
        let mut lab = Lab::new("wire");
        let (source, sink) = (lab.host("sender"), lab.host("sink"));
        let mut contenders = vec![Contender::Millrace];
        contenders.extend(&self.against);
        let lanes: Vec<Lane> = contenders
            .iter()
            .enumerate()
            .map(|(number, contender)| {
                interrupt::check();
                eprintln!("wire: {} comes up", contender.name());
                Lane::new(&mut lab, &source, &sink, *contender, number, forwarding)
            })
            .collect();
        let mut sender = Sender::start(&source, &sink, sending);
        for &flows in &self.flows {
            for lane in &lanes {
                interrupt::check();
                open(&mut sender, &sink, lane, flows);
            }
            for &size in &self.sizes {
                measure(&mut sender, &lanes, (flows, size), runs).into_iter().for_each(&mut show);
            }
        }
        Ok(())
    }
}

/// Lets the lanes take turns with so many flows and frames of that size.
fn measure(sender: &mut Sender, lanes: &[Lane], (flows, size): (usize, usize), runs: usize) -> Vec<Figure> {
    let mut offer = |lane: &Lane, rate, window| {
        let load = Load { interface: lane.interface, mac: gateway_mac(0), flows, size: size - FCS, rate };
        sender.measure(&load, SETTLE, window, &lane.counted)
    };
    eprintln!("wire: {flows} flows, {size} B: searching for what each can do");
    let mut best: Vec<f64> = lanes.iter().map(|lane| search(|rate| offer(lane, rate, STEP))).collect();
    let mut turns: Vec<Vec<Turn>> = lanes.iter().map(|_| Vec::new()).collect();
    for run in 0..runs {
        eprintln!("wire: {flows} flows, {size} B: run {} of {}", run + 1, runs);
        for (at, lane) in lanes.iter().enumerate() {
            interrupt::check();
            let (turn, rate) = turn(best[at], |rate, window| offer(lane, rate, window));
            best[at] = rate;
            turns[at].push(turn);
        }
    }
    figures(lanes, &turns, flows, size)
}

/// Opens flows at a low rate and sees that they are known and come out as they should.
fn open(sender: &mut Sender, sink: &Host, lane: &Lane, flows: usize) {
    eprintln!("wire: {} opens {flows} flows", lane.contender.name());
    let eye = Eye::open(sink, lane);
    let load = Load { interface: lane.interface, mac: gateway_mac(0), flows, size: 60, rate: OPENING_RATE };
    eventually("all flows are known", Duration::from_secs(30), || {
        let outcome = sender.send(&load, flows as u32, &lane.counted);
        let known = lane.known_flows().unwrap_or(flows);
        let told = format!("{}: {known} of {flows} flows: {outcome:?}", lane.contender.name());
        if known >= flows { Ok(()) } else { Err(told) }
    });
    eye.judge();
}

/// The offered rate at which most is delivered, roughly.
fn search(mut offer: impl FnMut(f64) -> Outcome) -> f64 {
    let mut best = (0.0, SEARCH[0]);
    for rate in SEARCH {
        let delivered = offer(rate).delivered_mpps();
        if delivered > best.0 {
            best = (delivered, rate);
        }
    }
    // Between two steps of the search lies what it can do.
    best.0 * 1e6
}

/// Steps around `rate`, then twice the peak. Also gives the rate to step around next.
fn turn(rate: f64, mut offer: impl FnMut(f64, Duration) -> Outcome) -> (Turn, f64) {
    let mut peak = 0.0f64;
    for step in STEPS {
        let outcome = offer(rate * step, STEP);
        peak = peak.max(outcome.delivered_mpps());
    }
    let over = offer(2e6 * peak, LONG);
    let turn = Turn { peak, overload: over.delivered_mpps(), offered: over.offered_mpps() };
    (turn, peak * 1e6)
}

fn figures(lanes: &[Lane], turns: &[Vec<Turn>], flows: usize, size: usize) -> Vec<Figure> {
    let figure = |contender: Contender, name, unit, values: Vec<f64>| {
        Figure::new("wire", flows, name, unit, values).of(format!("{} {size}B", contender.name()))
    };
    let mut figures = Vec::new();
    for (lane, turns) in lanes.iter().zip(turns) {
        let mut add = |name, of: fn(&Turn) -> f64| {
            figures.push(figure(lane.contender, name, "Mpps", turns.iter().map(of).collect()));
        };
        add("peak", |turn| turn.peak);
        add("overload", |turn| turn.overload);
        add("overload_offered", |turn| turn.offered);
    }
    let own = &turns[0];
    for (lane, turns) in lanes.iter().zip(turns).skip(1) {
        let ratio = |of: fn(&Turn) -> f64| own.iter().zip(turns).map(|(a, b)| of(a) / of(b)).collect();
        figures.push(figure(lane.contender, "millrace_ratio_peak", "", ratio(|turn| turn.peak)));
        figures.push(figure(lane.contender, "millrace_ratio_overload", "", ratio(|turn| turn.overload)));
    }
    figures
}
