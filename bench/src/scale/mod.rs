//! Case `scale`: what a second worker brings, what a packet costs that comes in at the wrong one, what a flow takes.
//!
//! Real workers run on pinned threads, each with a queue in memory as in case `core`, and do their rounds together. Each
//! worker has as many flows as the one that it is compared with, so that its caches do not help it. A turn runs one worker
//! on each core in turn, then two of one gateway, then two of gateways that share nothing, which is as far as this machine
//! scales; last two of one gateway with packets that come in at the worker that does not own their flow.

mod gateway;
mod memory;

use clap::Args;
use lb::flow::Pages;

use crate::figure::Figure;
use crate::needs;
use crate::rings::Together;
use gateway::{Gateway, Orders, Outcome};

/// What to run.
#[derive(Args)]
pub struct Scale {
    /// Flows of each worker, a comma list.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000")]
    flows: Vec<usize>,
    /// Packets of each worker in a run.
    #[arg(long, default_value_t = 1_000_000)]
    packets: usize,
    /// How many packets in a hundred come in at the wrong worker, a comma list.
    #[arg(long, value_delimiter = ',', default_value = "25,100", value_parser = clap::value_parser!(u32).range(1..=100))]
    wrong: Vec<u32>,
    /// Most flows of the tables whose memory is shown; 0 shows none.
    #[arg(long, default_value_t = 500_000)]
    limit: usize,
    /// The two workers' cores.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cores: Vec<usize>,
}

/// What one turn measured.
struct Turn {
    /// A worker alone, on either core.
    one: [Outcome; 2],
    two: Outcome,
    apart: Outcome,
    /// For each share of packets at the wrong worker.
    wrong: Vec<Outcome>,
}

impl Scale {
    /// Runs all of it, so many turns each, and gives each figure to `show`.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn run(&self, runs: usize, mut show: impl FnMut(Figure)) -> Result<(), String> {
        match self.cores[..] {
            [one, other] if one != other => needs::cores(&self.cores)?,
            _ => return Err("--cores: two different ones, a worker's each".into()),
        }
        for &flows in &self.flows {
            eprintln!("scale: {flows} flows of each worker, {runs} runs of {} packets each", self.packets);
            self.turns(flows.max(1), runs).into_iter().for_each(&mut show);
        }
        if self.limit > 0 {
            for workers in [1, 2] {
                memory::octets(self.limit.max(1000), workers, Pages::Base, runs.min(3))?
                    .into_iter()
                    .for_each(&mut show);
            }
        }
        Ok(())
    }

    fn turns(&self, flows: usize, runs: usize) -> Vec<Figure> {
        let mut pair = Gateway::open(2, flows, Pages::Base);
        let mut apart = [(); 2].map(|()| Gateway::open(1, flows, Pages::Base));
        // The first turn warms up.
        let turns: Vec<Turn> = (0..=runs).map(|n| self.turn(&mut pair, &mut apart, n as u64 + 1)).skip(1).collect();
        self.figures(flows, &turns)
    }

    fn turn(&self, pair: &mut Gateway, apart: &mut [Gateway; 2], seed: u64) -> Turn {
        let orders = |wrong| Orders { cores: &self.cores, packets: self.packets, wrong, seed };
        let alone = |pair: &mut Gateway, core| alone(pair, &Orders { cores: &[core], ..orders(0) });
        let first = alone(pair, self.cores[0]);
        let two = self::alone(pair, &orders(0));
        let apart = side_by_side(apart, &orders(0));
        let second = alone(pair, self.cores[1]);
        let wrong = self.wrong.iter().map(|wrong| self::alone(pair, &orders(*wrong))).collect();
        Turn { one: [first, second], two, apart, wrong }
    }

    fn figures(&self, flows: usize, turns: &[Turn]) -> Vec<Figure> {
        let figure = |of: &str, name, unit, value: &dyn Fn(&Turn) -> f64| {
            Figure::new("scale", flows, name, unit, turns.iter().map(value).collect()).of(of)
        };
        let mut figures = vec![
            figure("1 worker", "packets_per_second", "M/s", &|turn| turn.one(Outcome::rate)),
            figure("2 workers", "packets_per_second", "M/s", &|turn| turn.two.rate()),
            figure("2 apart", "packets_per_second", "M/s", &|turn| turn.apart.rate()),
            figure("1 worker", "ns_per_packet", "ns", &|turn| turn.one(Outcome::ns_a_packet)),
            figure("2 workers", "ns_per_packet", "ns", &|turn| turn.two.ns_a_packet()),
            figure("2 workers", "speedup", "", &|turn| turn.two.rate() / turn.one(Outcome::rate)),
            figure("2 apart", "speedup", "", &|turn| turn.apart.rate() / turn.one(Outcome::rate)),
            figure("2 workers", "speedup_by_cpu", "", &|t| t.two.rate_by_cpu() / t.one(Outcome::rate_by_cpu)),
            figure("2 apart", "speedup_by_cpu", "", &|t| t.apart.rate_by_cpu() / t.one(Outcome::rate_by_cpu)),
        ];
        for (at, wrong) in self.wrong.iter().enumerate() {
            let of = format!("{wrong}% wrong");
            figures.push(figure(&of, "ns_per_packet", "ns", &|turn| turn.wrong[at].ns_a_packet()));
            figures.push(figure(&of, "hand_off_ns", "ns", &|turn| turn.hand_off_ns(at)));
        }
        figures
    }
}

impl Turn {
    /// Of one worker, the mean of both cores.
    fn one(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        (value(&self.one[0]) + value(&self.one[1])) / 2.0
    }

    /// Processor time of both workers for a packet that was handed over, beyond what it takes at the right one.
    fn hand_off_ns(&self, at: usize) -> f64 {
        let wrong = &self.wrong[at];
        let handed = wrong.hand_off.sent as f64 / wrong.packets() as f64;
        (wrong.ns_a_packet() - self.two.ns_a_packet()) / handed
    }
}

/// One gateway with nothing else beside it.
fn alone(gateway: &mut Gateway, orders: &Orders<'_>) -> Outcome {
    let running = gateway.start(orders, &Together::new(orders.cores.len()));
    gateway.end(running)
}

/// Two gateways of one worker each, on a core each.
fn side_by_side([first, second]: &mut [Gateway; 2], orders: &Orders<'_>) -> Outcome {
    let together = Together::new(2);
    let one = first.start(&Orders { cores: &orders.cores[..1], ..*orders }, &together);
    let other = second.start(&Orders { cores: &orders.cores[1..], ..*orders }, &together);
    first.end(one).and(second.end(other))
}
