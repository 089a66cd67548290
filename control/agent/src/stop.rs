//! Removing what Millrace made: steering, bpffs, flow file, reserved ports, VLAN tags left in frames, the kernel port, admin
//! socket. Also after a dead instance.
//!
//! Everything is judged before anything is removed: a socket, a flow file by its first octets, pins by what the kernel
//! says they are, notes of reserved ports, of VLAN tags and of a kernel port by their text. One thing of that name that is somebody
//! else's, and nothing is removed. The runtime folder goes with what was in it if that leaves it empty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb::flow::FlowFile;
use xsk::Steering;

use crate::admin;
use crate::kernel_port;
use crate::steering::{is_reserved, unreserve};
use crate::vlan_tags;

/// Where steering is pinned.
#[must_use]
pub fn pins(runtime: &Path) -> PathBuf {
    runtime.join("bpf")
}

/// Detaches steering from interfaces that a predecessor had and `kept` does not name: nothing serves them any more. What
/// fails is logged, for those that are served go on.
pub fn detach_others(runtime: &Path, kept: &[String]) {
    let folder = pins(runtime);
    let pinned = xsk::pinned(&folder).unwrap_or_else(|error| {
        tracing::error!(%error, "whether interfaces left the configuration cannot be told");
        Vec::new()
    });
    for interface in pinned.into_iter().filter(|interface| !kept.contains(interface)) {
        match Steering::detach(&interface, &folder) {
            Ok(_) => tracing::info!(interface, "is not in the configuration any more: steering detached"),
            Err(error) => tracing::error!(
                interface, %error,
                "is not in the configuration any more, and steering cannot be detached: `ip link set dev {interface} xdp off`"
            ),
        }
    }
    if let Err(error) = vlan_tags::put_back(runtime, kept) {
        tracing::error!(%error, "of interfaces that are not in the configuration any more");
    }
    if !kept.iter().any(|interface| interface == kernel_port::OURS)
        && let Err(error) = kernel_port::remove(runtime)
    {
        tracing::error!(%error, "the kernel port is not in the configuration any more, and cannot be removed");
    }
}

/// What there is to remove, all of it ours.
#[derive(Debug, Default)]
struct Leftovers {
    interfaces: Vec<String>,
    pins: bool,
    reserved: bool,
    untagging: bool,
    kernel_port: bool,
    files: Vec<PathBuf>,
}

impl Leftovers {
    fn find(runtime: &Path) -> Result<Self, String> {
        let folder = pins(runtime);
        Ok(Self {
            interfaces: xsk::pinned(&folder).map_err(|e| e.to_string())?,
            pins: folder.exists(),
            reserved: is_reserved(runtime).map_err(|e| e.to_string())?,
            untagging: vlan_tags::is_noted(runtime).map_err(|e| e.to_string())?,
            kernel_port: kernel_port::is_noted(runtime).map_err(|e| e.to_string())?,
            files: FlowFile::find(runtime).map_err(|e| e.to_string())?,
        })
    }

    fn is_empty(&self) -> bool {
        !self.pins && !self.reserved && !self.untagging && !self.kernel_port && self.files.is_empty()
    }
}

/// Whether a runtime folder can be used: nothing in it has a name that would be written to and is somebody else's. What
/// another version pinned is no hindrance.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn usable(runtime: &Path) -> Result<(), String> {
    is_reserved(runtime).map_err(|e| e.to_string())?;
    vlan_tags::is_noted(runtime).map_err(|e| e.to_string())?;
    kernel_port::is_noted(runtime).map_err(|e| e.to_string())?;
    FlowFile::find(runtime).map(drop).map_err(|e| e.to_string())
}

/// Whether a runtime folder can be cleaned up: nothing in it has a name that Millrace uses and is somebody else's.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn check(runtime: &Path) -> Result<(), String> {
    Leftovers::find(runtime).map(drop)
}

/// Removes everything of ours in the runtime folder and what it stands for; with `admin` that socket, and those that
/// successors left which never took its name. Whether there was anything.
///
/// # Errors
/// With something of somebody else's in the way: what it is, and nothing is removed. Else the first thing that could
/// not be removed, after trying all the others.
pub fn clean(runtime: &Path, admin: Option<&Path>) -> Result<bool, String> {
    let leftovers = Leftovers::find(runtime)?;
    let mut sockets = Vec::new();
    if let Some(path) = admin {
        sockets = admin::abandoned(path);
        if admin::is_there(path).map_err(|e| e.to_string())? {
            sockets.push(path.to_owned());
        }
    }
    let found = !leftovers.is_empty() || !sockets.is_empty();
    let mut failed = None;
    let mut note = |result: Result<(), String>| failed = failed.take().or(result.err());
    let folder = pins(runtime);
    for interface in &leftovers.interfaces {
        note(Steering::detach(interface, &folder).map(drop).map_err(|e| e.to_string()));
    }
    if leftovers.pins {
        note(xsk::unmount_bpffs(&folder).map_err(|e| e.to_string()));
    }
    if leftovers.reserved {
        note(unreserve(runtime).map(drop).map_err(|e| format!("ip_local_reserved_ports: {e}")));
    }
    if leftovers.untagging {
        note(vlan_tags::put_back(runtime, &[]));
    }
    if leftovers.kernel_port {
        note(kernel_port::remove(runtime));
    }
    for path in leftovers.files.iter().chain(&sockets) {
        note(remove(path));
    }
    if found {
        // Other people's files keep it.
        let _ = fs::remove_dir(runtime);
    }
    failed.map_or(Ok(found), Err)
}

fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use lb::flow::FlowFileConfig;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("millrace-clean-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn flow_file(runtime: &Path) {
        let config = FlowFileConfig { flows: 64, services: 4, backends: 4, affinity_sources: 64, ..Default::default() };
        drop(FlowFile::open(runtime, &config).unwrap());
    }

    #[test]
    fn a_dead_instances_files_are_removed_and_nothing_left_is_told_apart() {
        let runtime = folder("dead");
        flow_file(&runtime);
        fs::create_dir(pins(&runtime)).unwrap();
        let admin = runtime.join("admin.sock");
        drop(UnixListener::bind(&admin).unwrap());
        drop(UnixListener::bind(runtime.join("admin.sock.4711")).unwrap());
        assert_eq!(clean(&runtime, Some(&admin)), Ok(true));
        assert!(!runtime.exists());
        assert_eq!(clean(&runtime, Some(&admin)), Ok(false));
    }

    #[test]
    fn one_thing_of_somebody_elses_and_nothing_is_removed() {
        for (name, is_folder) in [
            ("admin.sock", false),
            ("admin.sock", true),
            ("flows", false),
            ("flows", true),
            ("flows.new", false),
            ("reserved-ports", false),
            ("vlan-stripping", false),
            ("kernel-port", false),
            ("bpf", false),
            ("bpf/eth0", false),
            ("bpf/eth0", true),
        ] {
            let runtime = folder("foreign");
            let (foreign, admin) = (runtime.join(name), runtime.join("admin.sock"));
            if name != "flows" {
                flow_file(&runtime);
            }
            fs::create_dir_all(foreign.parent().unwrap()).unwrap();
            if is_folder {
                fs::create_dir(&foreign).unwrap();
            } else {
                fs::write(&foreign, "precious\n").unwrap();
            }
            let error = clean(&runtime, Some(&admin)).unwrap_err();
            assert!(error.contains(&*foreign.to_string_lossy()), "{name}: {error}");
            assert!(foreign.exists() && (name == "flows" || runtime.join("flows").exists()), "{name}: removed");
            assert_eq!(check(&runtime).is_err(), name != "admin.sock", "{name}");
            fs::remove_dir_all(runtime).unwrap();
        }
    }

    #[test]
    fn an_empty_folder_that_is_not_ours_stays() {
        let runtime = folder("empty");
        assert_eq!(clean(&runtime, Some(&runtime.join("admin.sock"))), Ok(false));
        fs::remove_dir(runtime).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_listens_on_under_a_successors_name_stays() {
        let runtime = folder("starting");
        let admin = runtime.join("admin.sock");
        let starting = UnixListener::bind(runtime.join("admin.sock.12")).unwrap();
        fs::write(runtime.join("admin.sock.13"), "no socket").unwrap();
        drop(UnixListener::bind(runtime.join("admin.sock.old")).unwrap());
        assert_eq!(clean(&runtime, Some(&admin)), Ok(false));
        assert_eq!(fs::read_dir(&runtime).unwrap().count(), 3);
        drop(starting);
        assert_eq!(clean(&runtime, Some(&admin)), Ok(true));
        assert_eq!(fs::read_dir(&runtime).unwrap().count(), 2);
        fs::remove_dir_all(runtime).unwrap();
    }
}
