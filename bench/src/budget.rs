//! Case `budget`: how many instructions a packet takes, held against a budget that is committed.
//!
//! Instructions are counted by callgrind, which simulates one and the same processor everywhere: no noise touches them.
//! It runs case `core` twice, once with twice as many packets, and leaves the writing of packets out
//! (`--toggle-collect`); the difference is what the packets cost, and everything else (opening flows, starting, ending)
//! falls out of it.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use crate::figure::Figure;
use crate::needs;

/// What one may take more than its budget, and how much less before the budget is to be lowered.
const TOLERANCE: f64 = 0.05;
/// Packets of the shorter run.
const PACKETS: usize = 204_800;
/// Where packets are written.
const LEFT_OUT: &str = "*TimedQueue*next_round*";
/// What is counted: a name, and how case `core` is told.
const SHAPES: [(&str, &[&str]); 4] = [
    ("tcp 64", &[]),
    ("tcp6 64", &["--shapes", "tcp6"]),
    ("udp 64", &["--shapes", "udp"]),
    ("udp6 1500", &["--shapes", "udp6", "--size", "1500"]),
];

/// Counts, prints, and compares with the budgets in a file; `write` replaces them by what was counted.
///
/// # Errors
/// What is missing, or which budgets were not kept.
pub fn run(path: &Path, write: bool, mut print: impl FnMut(Figure)) -> Result<(), String> {
    needs::programs(&["valgrind"])?;
    let budgets = if write { Map::new() } else { read(path)? };
    let mut counted = Map::new();
    let mut broken = Vec::new();
    for (name, flags) in SHAPES {
        eprintln!("budget: {name}");
        let instructions = per_packet(flags)?;
        counted.insert(name.into(), instructions.round().into());
        print(Figure::new("budget", 1000, "instructions_per_packet", "", vec![instructions]).of(name));
        if write {
            continue;
        }
        let budget = budgets.get(name).and_then(Value::as_f64);
        let budget = budget.ok_or_else(|| format!("{}: no budget for {name}; --write writes them", path.display()))?;
        print(Figure::new("budget", 1000, "budget", "", vec![budget]).of(name));
        if instructions > budget * (1.0 + TOLERANCE) {
            broken.push(format!("{name}: {instructions:.0} instructions a packet, budget {budget:.0}"));
        } else if instructions < budget * (1.0 - TOLERANCE) {
            eprintln!("budget: {name} takes {instructions:.0} of {budget:.0}: lower it with --write");
        }
    }
    if write {
        let text = serde_json::to_string_pretty(&counted).expect("numbers under names");
        return std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()));
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("over budget by more than 5 %: {}", broken.join("; "))) }
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn per_packet(flags: &[&str]) -> Result<f64, String> {
    let [once, twice] = [instructions(PACKETS, flags)?, instructions(2 * PACKETS, flags)?];
    // Case `core` makes a turn to warm up and one that counts.
    Ok((twice - once) / (2 * PACKETS) as f64)
}

/// Instructions of a whole run of case `core`, as callgrind counts them.
fn instructions(packets: usize, flags: &[&str]) -> Result<f64, String> {
    let this = std::env::current_exe().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", &format!("--toggle-collect={LEFT_OUT}")])
        .arg("--collect-atstart=yes")
        .arg(this)
        .args(["core", "--flows", "1000", "--runs", "1", "--packets", &packets.to_string()])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let collected = log.lines().find_map(|line| line.split_once("Collected :"));
    let number = collected.and_then(|(_, count)| count.trim().parse().ok());
    number.filter(|_| output.status.success()).ok_or_else(|| format!("valgrind did not count: {}", log.trim()))
}
