//! Removing what Millrace made: steering, bpffs, flow file, reserved ports, admin socket. Also after a dead instance.

use std::fs;
use std::io;
use std::path::Path;

use xsk::Steering;

use crate::steering::unreserve;

/// Where steering is pinned.
#[must_use]
pub fn pins(runtime: &Path) -> std::path::PathBuf {
    runtime.join("bpf")
}

/// Detaches steering from interfaces that a predecessor had and `kept` does not name: nothing serves them any more. What
/// fails is logged, for those that are served go on.
pub fn detach_others(runtime: &Path, kept: &[String]) {
    let folder = pins(runtime);
    for interface in pinned(&folder).into_iter().filter(|interface| !kept.contains(interface)) {
        match Steering::detach(&interface, &folder) {
            Ok(_) => tracing::info!(interface, "is not in the configuration any more: steering detached"),
            Err(error) => tracing::error!(
                interface, %error,
                "is not in the configuration any more, and steering cannot be detached: `ip link set dev {interface} xdp off`"
            ),
        }
    }
}

/// The interfaces that have pins: a folder each. The kernel has files of its own in a bpffs.
fn pinned(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.file_name().to_string_lossy().replace(':', ".")).collect()
}

/// Removes everything under the runtime folder and what it stands for. Whether there was anything.
///
/// # Errors
/// The first thing that could not be removed, after trying all the others.
pub fn clean(runtime: &Path, admin: &Path) -> Result<bool, String> {
    let mut found = false;
    let mut failed = None;
    let mut note = |result: Result<bool, String>| match result {
        Ok(there) => found |= there,
        Err(error) => failed = failed.take().or(Some(error)),
    };
    let folder = pins(runtime);
    for interface in pinned(&folder) {
        note(Steering::detach(&interface, &folder).map_err(|e| e.to_string()));
    }
    if folder.exists() {
        note(xsk::unmount_bpffs(&folder).map(|()| true).map_err(|e| e.to_string()));
    }
    note(unreserve(runtime).map_err(|e| format!("ip_local_reserved_ports: {e}")));
    for name in ["flows", "flows.new"] {
        note(remove(&runtime.join(name)));
    }
    note(remove(admin));
    // Other people's files keep it.
    let _ = fs::remove_dir(runtime);
    match failed {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

fn remove(path: &Path) -> Result<bool, String> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_instances_files_are_removed_and_nothing_left_is_told_apart() {
        let runtime = std::env::temp_dir().join(format!("millrace-clean-{}", std::process::id()));
        fs::create_dir_all(&runtime).unwrap();
        fs::write(runtime.join("flows"), "x").unwrap();
        let admin = runtime.join("admin.sock");
        assert_eq!(clean(&runtime, &admin), Ok(true));
        assert!(!runtime.exists());
        assert_eq!(clean(&runtime, &admin), Ok(false));
    }
}
