//! `millrace-bench`: what Millrace costs, measured.

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
mod setup;
mod tables;
mod tcp;
mod traffic;
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
use crate::setup::{Flood, Setup};
use crate::tables::TablesCase;
use crate::tcp::{Contender, Tcp};
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
        /// IPv6 instead of IPv4.
        #[arg(long)]
        ipv6: bool,
        /// UDP instead of TCP.
        #[arg(long)]
        udp: bool,
        /// Octets of a packet, frame check sequence included.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Which pages flows are on.
        #[arg(long, value_enum, default_value = "base")]
        pages: PageSize,
        /// Runs the least loop there can be beside it, turn by turn, and prints the ratio (IPv4).
        #[arg(long, conflicts_with = "ipv6")]
        floor: bool,
    },
    /// Flows that open and end, and what a flood of SYNs costs those that are there.
    #[command(after_help = "Example: millrace-bench setup --limit 1000000 --runs 5")]
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
        /// Which pages flows are on.
        #[arg(long, value_enum, default_value = "base")]
        pages: PageSize,
    },
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
    /// Packets a second on veth wires in network namespaces (as root), against others that forward.
    #[command(after_help = "Example: millrace-bench wire --against bare,nftables --flows 1024 --sizes 64")]
    Wire(Wire),
}

#[derive(Clone, Copy, ValueEnum)]
enum PageSize {
    /// The machine's base pages (4 KiB).
    Base,
    /// Huge pages, where the kernel gives them to those who ask.
    Huge,
}

impl From<PageSize> for Pages {
    fn from(size: PageSize) -> Self {
        match size {
            PageSize::Base => Self::Base,
            PageSize::Huge => Self::Huge,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::new(arguments.json, arguments.plot);
    match arguments.case {
        Case::Core { flows, packets, ipv6, udp, size, pages, floor } => {
            let core = Core {
                shape: Shape { ipv6, protocol: if udp { Protocol::UDP } else { Protocol::TCP } },
                size: size.saturating_sub(4),
                pages: pages.into(),
                packets,
                runs: arguments.runs.max(1),
                floor,
            };
            for count in flows {
                eprintln!("core: {count} flows, {} runs of {packets} packets", core.runs);
                core.run(count).into_iter().for_each(|figure| report.add(figure));
            }
        }
        Case::Setup { limit, flows, established, packets, pages } => {
            let (pages, runs) = (pages.into(), arguments.runs.max(1));
            let mut figures = Setup { limit: limit.max(100), flows: flows.max(1), pages, runs }.run();
            figures.extend(Flood { flows: established.max(1), pages, packets, runs }.run());
            figures.into_iter().for_each(|figure| report.add(figure));
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
