//! Fuzz targets: functions of any octets that panic where something does not hold.
//!
//! `make fuzz` drives them by libFuzzer, which learns from coverage; the test `corpus` replays what is under `corpus`, so
//! that what was found once stays mended.
#![forbid(unsafe_code)]

pub mod associations;
pub mod configuration;
pub mod flow_file;
pub mod fragments;
pub mod manifests;
pub mod parse;
pub mod process;
pub mod soundness;

// The gateway without NICs that golden tests have.
#[path = "../../../dataplane/lb/tests/golden/association.rs"]
#[allow(dead_code, missing_docs)]
mod association;
#[path = "../../../dataplane/lb/tests/golden/judge.rs"]
#[allow(dead_code, missing_docs)]
mod judge;
#[path = "../../../dataplane/lb/tests/golden/packet.rs"]
#[allow(dead_code, missing_docs)]
mod packet;
#[path = "../../../dataplane/lb/tests/golden/parts.rs"]
#[allow(dead_code, missing_docs)]
mod parts;
#[path = "../../../dataplane/lb/tests/golden/rig.rs"]
#[allow(dead_code, missing_docs)]
mod rig;

/// What is run for an input.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("parse", parse::run),
    ("process", process::run),
    ("associations", associations::run),
    ("fragments", fragments::run),
    ("flow-file", flow_file::run),
    ("manifests", manifests::run),
    ("configuration", configuration::run),
];
