//! What a flow takes with one worker and with two: what is set aside, and what is resident once the table is full.
//!
//! Set aside are each worker's entries and its index of both keys, for all flows that may be, as one worker may come to
//! have them all; and the owner directory once. Resident is what the kernel says that the process grew by (`Rss` of
//! `/proc/self/smaps_rollup`) while flows were opened to the limit, shared evenly by the workers: with the counts of
//! sources, the SNAT blocks and the tables.

use std::fs;

use lb::flow::Pages;

use crate::figure::Figure;
use crate::gateway;
use crate::setup::Bursts;

use super::gateway::SHAPE;

/// Flows that are opened before anything is counted, so that what opens them is resident already.
const WARM_UP: usize = 10_000;

/// Octets a flow of a table of so many.
///
/// # Errors
/// If the kernel does not say what is resident.
pub fn octets(limit: usize, workers: usize, pages: Pages, runs: usize) -> Result<Vec<Figure>, String> {
    eprintln!("scale: {limit} flows of {workers} workers, for what they take, {runs} runs");
    let (mut set_aside, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let mut bursts = Bursts::new(SHAPE);
        let now = bursts.now();
        let (tables, mut state) = gateway::with_limit(SHAPE, WARM_UP, pages);
        bursts.open(WARM_UP, now, &tables, &mut state);
        drop((tables, state));
        let before = resident_octets()?;
        let (tables, mut states) = gateway::with_workers(SHAPE, workers, limit, pages);
        for state in &mut states {
            bursts.open(limit / workers, now, &tables, state);
        }
        let grown = resident_octets()?.saturating_sub(before);
        let flows = states.iter().map(|state| state.flows.octets()).sum::<usize>();
        set_aside.push((flows + states[0].shared.directory.octets()) as f64 / limit as f64);
        let opened: usize = states.iter().map(|state| state.flows.len()).sum();
        resident.push(grown as f64 / opened as f64);
    }
    let of = if workers == 1 { "1 worker".into() } else { format!("{workers} workers") };
    let figure = |name, values| Figure::new("scale", limit, name, "B", values).of(of.clone());
    Ok(vec![figure("octets_a_flow", set_aside), figure("resident_octets_a_flow", resident)])
}

fn resident_octets() -> Result<usize, String> {
    let path = "/proc/self/smaps_rollup";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| format!("{path} has no Rss: this kernel does not say what is resident"))
}
