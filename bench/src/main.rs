//! `millrace-bench`: what Millrace costs, measured.

mod budget;
mod clock;
mod core;
mod cores;
mod figure;
mod gateway;
mod interrupt;
mod latency;
mod machine;
mod needs;
mod plot;
mod report;
mod rings;
mod scale;
mod setup;
mod tables;
mod tcp;
mod traffic;
mod watch;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::wire::Protocol;
use clap::{Parser, Subcommand, ValueEnum};
use lb::flow::Pages;

use crate::core::Core;
use crate::gateway::Shape;
use crate::latency::Latency;
use crate::report::Report;
use crate::scale::Scale;
use crate::setup::{Flood, Setup};
use crate::tables::TablesCase;
use crate::tcp::{Contender, Tcp};
use crate::watch::Watch;
use crate::wire::Wire;

/// What Millrace costs, measured on this machine, now.
#[derive(Parser)]
#[command(after_help = "Example: millrace-bench core --flows 1000,100000 --runs 5 --floor")]
struct Arguments {
    #[command(subcommand)]
    case: Case,
    /// One line of JSON per figure instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Counted runs of each figure.
    #[arg(long, global = true, default_value_t = 5)]
    runs: usize,
    /// Draws the figures into a folder, as SVG.
    #[arg(long, global = true, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Case {
    /// All that userspace does with packets of established flows drawn at random, both directions 1:1, on mock rings.
    Core {
        /// How many flows, a comma list.
        #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000")]
        flows: Vec<usize>,
        /// Packets a run.
        #[arg(long, default_value_t = 2_000_000)]
        packets: usize,
        /// Packets of what, a comma list.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "tcp")]
        shapes: Vec<CoreShape>,
        /// Octets of a packet, frame check sequence included.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Which pages flows are on, a comma list.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "base")]
        pages: Vec<PageSize>,
        /// Runs the least loop there can be beside it, turn by turn, and prints the ratio (IPv4).
        #[arg(long)]
        floor: bool,
    },
    /// Flows that open and end, and what a flood of SYNs costs those that are there.
    #[command(after_help = "Example: millrace-bench setup --limit 1000000 --pages base,huge --runs 5")]
    Setup {
        /// Most flows that the table takes.
        #[arg(long, default_value_t = 1_000_000)]
        limit: usize,
        /// Flows that are opened and ended in a run.
        #[arg(long, default_value_t = 50_000)]
        flows: usize,
        /// Established flows under a flood of SYNs.
        #[arg(long, default_value_t = 100_000)]
        established: usize,
        /// Packets of a run of the flood.
        #[arg(long, default_value_t = 1_000_000)]
        packets: usize,
        /// Which pages flows are on, a comma list.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "base")]
        pages: Vec<PageSize>,
    },
    /// Instructions a packet takes in case `core`, counted by callgrind, held against a file of budgets: fails above one by
    /// 5 %.
    #[command(after_help = "Example: millrace-bench budget bench/budget.json")]
    Budget {
        /// The budgets.
        file: PathBuf,
        /// Writes what was counted as the new budgets instead.
        #[arg(long)]
        write: bool,
    },
    /// Two workers against one in memory, what a packet costs that came in at the wrong one, and what a flow takes.
    #[command(after_help = "Example: millrace-bench scale --flows 100000 --wrong 25,100 --runs 5")]
    Scale(Scale),
    /// From parsed objects to published tables, whole and for one endpoint's change; Maglev's cost and disruption.
    #[command(after_help = "Example: millrace-bench tables --services 5000 --endpoints 10 --runs 5")]
    Tables {
        /// Services of type LoadBalancer, one port each.
        #[arg(long, default_value_t = 5000)]
        services: usize,
        /// Endpoints of each.
        #[arg(long, default_value_t = 10)]
        endpoints: usize,
    },
    /// Real TCP connections through real gateways in network namespaces (as root): how many a second, how many per
    /// second of the gateway's CPU, and how long they take.
    #[command(after_help = "Example: millrace-bench tcp --against haproxy,nftables,direct --runs 3")]
    Tcp {
        /// Whom to run beside Millrace, turn by turn, a comma list.
        #[arg(long, value_delimiter = ',', default_value = "haproxy,nftables,direct")]
        against: Vec<Contender>,
        /// Connections at once in the first part of a turn.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        connections: u16,
        /// Connections a second in the second part of a turn.
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        rate: u32,
        /// Milliseconds that count in each part of a turn.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
        time: u64,
        /// The core of client and server, and the gateway's.
        #[arg(long, value_delimiter = ',', default_value = "0,1")]
        cores: Vec<usize>,
    },
    /// How much later packets arrive through Millrace than directly (as root), and what an idle instance costs.
    #[command(after_help = "Example: millrace-bench latency --rate 1000 --time 3000 --runs 3")]
    Latency(Latency),
    /// A cluster's objects from a real API server (as root): from start to served, from an endpoint's change to tables in
    /// force, and the memory that takes.
    #[command(after_help = "Example: millrace-bench watch --services 5000 --endpoints 10 --changes 100")]
    Watch(Watch),
    /// Packets a second on veth wires in network namespaces (as root), against others that forward.
    #[command(after_help = "Example: millrace-bench wire --against bare,nftables --flows 1024 --sizes 64")]
    Wire(Wire),
}

#[derive(Clone, Copy, ValueEnum)]
enum CoreShape {
    /// TCP over IPv4.
    Tcp,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp,
    /// UDP over IPv6.
    Udp6,
}

impl CoreShape {
    fn shape(self) -> Shape {
        let ipv6 = matches!(self, Self::Tcp6 | Self::Udp6);
        let udp = matches!(self, Self::Udp | Self::Udp6);
        Shape { ipv6, protocol: if udp { Protocol::UDP } else { Protocol::TCP } }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum PageSize {
    /// The machine's base pages (4 KiB).
    Base,
    /// Huge pages, where the kernel gives them to those who ask.
    Huge,
}

impl From<PageSize> for Pages {
    fn from(pages: PageSize) -> Self {
        match pages {
            PageSize::Base => Self::Base,
            PageSize::Huge => Self::Huge,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::new(arguments.json, arguments.plot);
    match arguments.case {
        Case::Core { flows, packets, shapes, size, pages, floor } => {
            let runs = arguments.runs.max(1);
            for (pages, shape) in pages.iter().flat_map(|pages| shapes.iter().map(move |shape| (pages, shape))) {
                let (shape, pages) = (shape.shape(), Pages::from(*pages));
                let core =
                    Core { shape, size: size.saturating_sub(4), pages, packets, runs, floor: floor && !shape.ipv6 };
                for count in &flows {
                    eprintln!("core: {count} flows, {}, {runs} runs of {packets} packets", core.variant());
                    core.run(*count).into_iter().for_each(|figure| report.add(figure));
                }
            }
        }
        Case::Budget { file, write } => {
            if let Err(error) = budget::run(&file, write, |figure| report.add(figure)) {
                return failed(&error);
            }
        }
        Case::Setup { limit, flows, established, packets, pages } => {
            let runs = arguments.runs.max(1);
            for pages in pages.into_iter().map(Pages::from) {
                let mut figures = Setup { limit: limit.max(100), flows: flows.max(1), pages, runs }.run();
                figures.extend(Flood { flows: established.max(1), pages, packets, runs }.run());
                figures.into_iter().for_each(|figure| report.add(figure));
            }
        }
        Case::Scale(case) => {
            if let Err(error) = case.run(arguments.runs.max(1), |figure| report.add(figure)) {
                return failed(&error);
            }
        }
        Case::Tables { services, endpoints } => {
            let case = TablesCase { services: services.max(1), endpoints, runs: arguments.runs.max(1) };
            case.run().into_iter().for_each(|figure| report.add(figure));
        }
        Case::Tcp { against, connections, rate, time, cores } => {
            let [load, gateway] = cores[..] else {
                return failed("--cores: two of them, that of client and server and the gateway's");
            };
            let tcp = Tcp {
                against,
                time: Duration::from_millis(time),
                connections: connections.into(),
                rate,
                cores: tcp::Cores { load, gateway },
                runs: arguments.runs.max(1),
            };
            interrupt::catch();
            match tcp.run() {
                Ok(figures) => figures.into_iter().for_each(|figure| report.add(figure)),
                Err(error) => return failed(&error),
            }
        }
        Case::Latency(case) => {
            interrupt::catch();
            if let Err(error) = case.run(arguments.runs.max(1), |figure| report.add(figure)) {
                return failed(&error);
            }
        }
        Case::Watch(case) => {
            interrupt::catch();
            if let Err(error) = case.run(arguments.runs.max(1), |figure| report.add(figure)) {
                return failed(&error);
            }
        }
        Case::Wire(case) => {
            interrupt::catch();
            if let Err(error) = case.run(arguments.runs.max(1), |figure| report.add(figure)) {
                return failed(&error);
            }
        }
    }
    match report.finish() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("millrace-bench: {error}");
    ExitCode::FAILURE
}
