//! Case `latency`: how much later packets arrive through Millrace than directly, at low load, and what it costs to wait.
//!
//! The same probe measures both ways in turns: UDP datagrams from a client to a server, each with the time when it was
//! sent; the kernel stamps it when the server's interface receives it, by the same clock, so that waking the server is in
//! neither. The client, the server and the kernel's half of AF_XDP's receiving are on one core, Millrace's worker on the
//! other.

mod probe;
mod site;

use std::time::Duration;

use clap::Args;

use crate::figure::Figure;
use crate::{interrupt, needs};
use probe::{Delays, probe};
use site::{Instance, Site, Waiting};

/// How long an instance is left alone before its idle time is looked at.
const REST: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Args)]
pub struct Latency {
    /// Probes a second.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Milliseconds of each turn.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    time: u64,
    /// Seconds for which an instance without packets is watched.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    idle: u64,
    /// The core of client and server, and Millrace's.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cores: Vec<usize>,
}

impl Latency {
    /// Runs all of it, so many turns each, and gives each figure to `show`.
    ///
    /// # Errors
    /// What is missing, and what to do about it; probes that did not arrive.
    pub fn run(&self, runs: usize, mut show: impl FnMut(Figure)) -> Result<(), String> {
        let [load, forwarding] = self.cores[..] else {
            return Err("--cores: two of them, that of client and server and Millrace's".into());
        };
        needs::root("the latency case makes network namespaces")?;
        needs::programs(&["ip", "nsenter", "sysctl", "curl"])?;
        needs::cores(&self.cores)?;
        needs::millrace()?;
        let site = Site::new();
        for waiting in [Waiting::Adaptive, Waiting::Busy] {
            interrupt::check();
            eprintln!("latency: Millrace comes up, {} idling", waiting.name());
            let instance = site.start(waiting, forwarding);
            if waiting == Waiting::Adaptive {
                show(self.idle(&instance));
            }
            self.turns(&site, &instance, load, runs)?.into_iter().for_each(&mut show);
        }
        Ok(())
    }

    /// What an instance without packets takes of a core.
    fn idle(&self, instance: &Instance) -> Figure {
        eprintln!("latency: an idle instance, {} s", self.idle);
        std::thread::sleep(REST);
        let before = instance.processor_time();
        let window = Duration::from_secs(self.idle);
        std::thread::sleep(window);
        let used = instance.processor_time() - before;
        let percent = 100.0 * used.as_secs_f64() / window.as_secs_f64();
        Figure::new("latency", 0, "idle_cpu", "% of a core", vec![percent]).of(instance.waiting.name())
    }

    fn turns(&self, site: &Site, instance: &Instance, load: usize, runs: usize) -> Result<Vec<Figure>, String> {
        let (mut direct, mut through, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..runs {
            interrupt::check();
            eprintln!("latency: {} idling, run {} of {runs}", instance.waiting.name(), run + 1);
            let turn = |to| probe(site, to, load, self.rate, Duration::from_millis(self.time));
            direct.push(turn(site.direct())?);
            let before = instance.processor_time();
            through.push(turn(site.through(instance.waiting))?);
            let share = (instance.processor_time() - before).as_secs_f64() / (self.time as f64 / 1e3);
            used.push(100.0 * share);
        }
        let name = instance.waiting.name();
        let figure = |variant: &str, name, unit, values| Figure::new("latency", 1, name, unit, values).of(variant);
        let of = |all: &[Delays], part: fn(&Delays) -> f64| all.iter().map(part).collect::<Vec<f64>>();
        let added = |part: fn(&Delays) -> f64| {
            through.iter().zip(&direct).map(|(a, b)| part(a) - part(b)).collect::<Vec<f64>>()
        };
        Ok(vec![
            figure("direct", "one_way_p50", "us", of(&direct, |d| d.p50_us)),
            figure("direct", "one_way_p999", "us", of(&direct, |d| d.p999_us)),
            figure(name, "one_way_p50", "us", of(&through, |d| d.p50_us)),
            figure(name, "one_way_p999", "us", of(&through, |d| d.p999_us)),
            figure(name, "added_p50", "us", added(|d| d.p50_us)),
            figure(name, "added_p999", "us", added(|d| d.p999_us)),
            figure(name, "cpu_at_low_load", "% of a core", used),
        ])
    }
}
