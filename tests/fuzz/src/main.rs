//! libFuzzer around one target, which the variable `MILLRACE_FUZZ_TARGET` names; `make fuzz` runs each.
#![no_main]

use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let name = std::env::var("MILLRACE_FUZZ_TARGET").unwrap_or_default();
    let known = fuzz::TARGETS.iter().find(|(known, _)| *known == name);
    let names: Vec<&str> = fuzz::TARGETS.iter().map(|(known, _)| *known).collect();
    known.unwrap_or_else(|| panic!("MILLRACE_FUZZ_TARGET is {name:?}, expected one of {names:?}")).1
}

fuzz_target!(|data: &[u8]| TARGET.get_or_init(target)(data));
