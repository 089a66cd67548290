//! Loading a damaged flow file: it is refused or taken up, and what was taken up is used, listed and ended.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use lb::flow::FlowFile;

use crate::packet::{ACK, SYN_ACK, Segment};
use crate::rig::{INSIDE, KINDS, OUTSIDE, Rig};

const FLOWS: usize = 32;
const WORKERS: usize = 2;
/// Octets from the beginning that are damaged as often as all others: the header and what follows it.
const FRONT: usize = 8192;

/// A folder of this process, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let shared_memory = PathBuf::from("/dev/shm");
        let below = if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() };
        let path = below.join(format!("millrace-fuzz-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for the flow file");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Damages a file with flows as the input tells, and goes on with it.
///
/// # Panics
/// Where that panics.
pub fn run(input: &[u8]) {
    let folder = Folder::new();
    let config = Rig::file_config(WORKERS, FLOWS, &Rig::snat());
    let mut rig = Rig::over(FlowFile::open(&folder.0, &config).expect("a new file"), Rig::snat());
    for kind in KINDS {
        for port in 1..=2 {
            let (_, got) = rig.open(kind, port);
            rig.inside(&got.back().with_flags(SYN_ACK)).sent(OUTSIDE);
        }
    }
    drop(rig);
    let mut input = Unstructured::new(input);
    let workers = damage(&mut input, &folder).unwrap_or(WORKERS);
    let config = Rig::file_config(workers, FLOWS, &Rig::snat());
    // Of a size that cannot be, or no longer a flow file: refused, and that is well.
    if let Ok(opened) = FlowFile::open(&folder.0, &config) {
        go_on(Rig::over(opened, Rig::snat()));
    }
}

/// Overwrites octets, and perhaps cuts the file. Gives how many workers the next process has.
fn damage(input: &mut Unstructured<'_>, folder: &Folder) -> Result<usize> {
    let file = File::options().write(true).open(folder.0.join("flows")).expect("the file is there");
    let len = file.metadata().expect("its length").len() as usize;
    let workers = input.int_in_range(1..=3)?;
    if input.ratio(1, 8)? {
        file.set_len(input.int_in_range(0..=len)? as u64).expect("it is cut");
    }
    while !input.is_empty() {
        let front: bool = input.arbitrary()?;
        let at = input.choose_index(if front { FRONT } else { len })?;
        let octets = input.int_in_range(1..=8)?;
        let octets = input.bytes(octets.min(input.len()))?;
        file.write_all_at(octets, at as u64).expect("it is written");
    }
    Ok(workers)
}

/// Packets of the flows that were and of new ones, a listing, and the end of all.
fn go_on(mut rig: Rig) {
    for kind in KINDS {
        for port in 1..=4 {
            let sent = kind.opening(port);
            for flags in [ACK, SYN_ACK, crate::packet::SYN] {
                for worker in 0..rig.workers.len() as u8 {
                    let outcome = rig.process(worker, OUTSIDE, true, &sent.with_flags(flags).bytes());
                    if outcome.verdict == lb::Verdict::Tx(INSIDE) {
                        let got = Segment::read_unchecked(&outcome.frame);
                        rig.process(worker, INSIDE, true, &got.back().with_flags(flags).bytes());
                    }
                }
            }
        }
    }
    for worker in &rig.workers {
        let (mut from, mut records) = (Some(0), Vec::new());
        while let Some(at) = from {
            from = worker.flows.export(at, 64, &mut records);
        }
        assert!(records.len() <= worker.flows.capacity());
        for record in &records {
            let _ = format!("{record:?}");
        }
    }
    rig.wait(Duration::from_secs(100_000));
    let now = rig.now;
    for worker in &mut rig.workers {
        while worker.housekeep(now, &rig.tables) {}
    }
}
