//! What a case needs of the machine. What is missing is said with what to do about it, before anything is made.

use std::path::Path;
use std::process::Command;

use nix::sched::sched_getaffinity;
use nix::unistd::Pid;

/// Root.
pub fn root(why: &str) -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(format!("{why}: run it as root")) }
}

/// Programs in the path.
pub fn programs(names: &[&str]) -> Result<(), String> {
    for name in names {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Err(format!("{name} is not installed: `make bench-setup` installs what benchmarks need"));
        }
    }
    Ok(())
}

/// Cores that this process may use.
pub fn cores(cores: &[usize]) -> Result<(), String> {
    let mine = sched_getaffinity(Pid::from_raw(0)).map_err(|error| format!("sched_getaffinity: {error}"))?;
    match cores.iter().find(|core| !mine.is_set(**core).unwrap_or(false)) {
        Some(core) => Err(format!("core {core} is not there: name cores that this process may use (`nproc`)")),
        None => Ok(()),
    }
}

/// The binary `millrace`, beside this one or where `MILLRACE_BIN` says.
pub fn millrace() -> Result<(), String> {
    let beside = std::env::current_exe().map(|path| path.with_file_name("millrace")).unwrap_or_default();
    let path = std::env::var_os("MILLRACE_BIN").map_or(beside, Into::into);
    if Path::new(&path).exists() {
        return Ok(());
    }
    Err(format!("{} is not built: `make release` builds it, or set MILLRACE_BIN", path.display()))
}
