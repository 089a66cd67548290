//! `millrace-bench`: what a packet costs in userspace, measured in memory.

mod core_case;
mod gateway;

use clap::{Parser, Subcommand};

/// What Millrace costs, measured on this machine, now.
#[derive(Parser)]
#[command(after_help = "Example: millrace-bench core --flows 1000,100000 --runs 5")]
struct Arguments {
    #[command(subcommand)]
    case: Case,
    /// One line of JSON per figure instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Counted runs of each figure.
    #[arg(long, global = true, default_value_t = 5)]
    runs: usize,
}

#[derive(Subcommand)]
enum Case {
    /// Parse, look up, rewrite: established IPv4 TCP flows drawn at random, client and reply packets 1:1, 64 octets.
    Core {
        /// How many flows, a comma list.
        #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000")]
        flows: Vec<usize>,
        /// Packets a run.
        #[arg(long, default_value_t = 4_000_000)]
        packets: usize,
    },
}

/// A measured figure.
struct Figure {
    case: &'static str,
    flows: usize,
    name: &'static str,
    unit: &'static str,
    /// Ordered.
    values: Vec<f64>,
}

fn main() {
    let arguments = Arguments::parse();
    let Case::Core { flows, packets } = arguments.case;
    if !arguments.json {
        println!("{:<8} {:>10} {:<16} {:>8} {:>8} {:>8} unit", "case", "flows", "name", "min", "median", "max");
    }
    for count in flows {
        eprintln!("core: {count} flows, {} runs of {packets} packets", arguments.runs);
        print(&core_case::run(count, packets, arguments.runs.max(1)), arguments.json);
    }
}

fn print(figure: &Figure, json: bool) {
    let (min, median, max) =
        (figure.values[0], figure.values[figure.values.len() / 2], figure.values[figure.values.len() - 1]);
    if json {
        let line = serde_json::json!({
            "case": figure.case, "flows": figure.flows, "name": figure.name, "value": median, "unit": figure.unit,
            "min": min, "max": max, "runs": figure.values.len(),
        });
        println!("{line}");
    } else {
        let Figure { case, flows, name, unit, .. } = figure;
        println!("{case:<8} {flows:>10} {name:<16} {min:>8.1} {median:>8.1} {max:>8.1} {unit}");
    }
}
