//! VLAN tags stay in frames: NICs that take them off on reception (`rx-vlan-offload`) are told not to, for neither the
//! steering program nor a worker would know of them. What was changed is noted in the runtime folder, for a successor, and
//! to be put back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;

/// In the runtime folder: the interfaces that took tags off before, a line each, as ethtool(8) would be told.
const NOTE: &str = "vlan-stripping";
const SETTING: &str = " rxvlan on";
/// Octets of a note: more than all interfaces that can be served.
const LONGEST_NOTE: u64 = 255 * 32;

/// Has an interface leave VLAN tags in the frames that it receives; with `vlans` it has subinterfaces for some. What
/// becomes of its tags must be known before it is steered.
///
/// # Errors
/// A text for people: the interface has VLANs and cannot leave tags alone, or the note cannot be written.
pub fn leave(runtime: &Path, interface: &str, vlans: bool) -> Result<(), String> {
    let failed = |error: io::Error| format!("{interface}: whether it takes VLAN tags off cannot be told: {error}");
    if !xsk::strips_vlan_tags(interface).map_err(failed)? {
        return Ok(());
    }
    let mut all = noted(runtime).map_err(|e| e.to_string())?;
    all.insert(interface.to_owned());
    write(runtime, &all).map_err(|e| format!("{}: {e}", runtime.join(NOTE).display()))?;
    match xsk::set_vlan_stripping(interface, false) {
        Ok(()) => {
            tracing::info!(interface, "leaves VLAN tags in frames from now on (rxvlan off)");
            Ok(())
        }
        Err(error) => {
            all.remove(interface);
            write(runtime, &all).map_err(|e| format!("{}: {e}", runtime.join(NOTE).display()))?;
            let why = format!("takes VLAN tags off and cannot be told not to ({error})");
            if vlans {
                return Err(format!(
                    "{interface} {why}, so VLANs cannot be told apart here: try `ethtool -K {interface} rxvlan off`, or use \
                     a NIC whose switch port has no tags"
                ));
            }
            tracing::warn!(interface, "{why}: no VLAN may end here but the one without a tag");
            Ok(())
        }
    }
}

/// Whether [`leave`] noted that it changed something.
///
/// # Errors
/// If there is something else of that name, or it cannot be read.
pub fn is_noted(runtime: &Path) -> io::Result<bool> {
    Ok(!noted(runtime)?.is_empty())
}

/// Has the interfaces that [`leave`] changed take tags off again, but for those `kept`. One that is not there any more needs
/// nothing.
///
/// # Errors
/// The first that could not be changed, after trying all others; or the note is somebody else's.
pub fn put_back(runtime: &Path, kept: &[String]) -> Result<(), String> {
    let noted = noted(runtime).map_err(|e| e.to_string())?;
    let (stay, over): (BTreeSet<_>, BTreeSet<_>) = noted.into_iter().partition(|interface| kept.contains(interface));
    if over.is_empty() {
        return Ok(());
    }
    let mut failed = Ok(());
    for interface in over {
        match xsk::set_vlan_stripping(&interface, true) {
            Err(error) if error.raw_os_error() != Some(Errno::ENODEV as i32) => {
                let way = format!("`ethtool -K {interface} rxvlan on`");
                failed = failed.and(Err(format!("{interface} does not take VLAN tags off again ({error}): {way}")));
            }
            _ => tracing::info!(interface, "takes VLAN tags off again (rxvlan on)"),
        }
    }
    failed.and(write(runtime, &stay).map_err(|e| format!("{}: {e}", runtime.join(NOTE).display())))
}

fn write(runtime: &Path, interfaces: &BTreeSet<String>) -> io::Result<()> {
    let note = runtime.join(NOTE);
    if interfaces.is_empty() { fs::remove_file(note) } else { fs::write(note, text(interfaces)) }
}

fn text(interfaces: &BTreeSet<String>) -> String {
    interfaces.iter().map(|interface| format!("{interface}{SETTING}\n")).collect()
}

/// What was changed: nothing where there is no note. What [`text`] makes reads back to the letter, and anything else is
/// somebody else's file.
fn noted(runtime: &Path) -> io::Result<BTreeSet<String>> {
    let note = runtime.join(NOTE);
    let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", note.display()));
    let found = match fs::symlink_metadata(&note) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(said(error)),
    };
    let read = if found.is_file() && found.len() <= LONGEST_NOTE { fs::read(&note).map_err(said)? } else { Vec::new() };
    let read = String::from_utf8_lossy(&read);
    let interfaces: BTreeSet<String> =
        read.lines().filter_map(|line| line.strip_suffix(SETTING)).map(str::to_owned).collect();
    // As the kernel has them (`dev_valid_name`).
    let is_name = |name: &String| {
        (1..16).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace())
    };
    if interfaces.is_empty() || !interfaces.iter().all(is_name) || text(&interfaces) != read {
        let why = "is not a list of interfaces: move it away, or choose another runtime folder";
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", note.display())));
    }
    Ok(interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::lab::Namespace;

    #[test]
    fn a_nic_leaves_tags_in_frames_until_that_is_put_back() {
        let (host, peer) = (Namespace::new(), Namespace::new());
        host.wire("eth0", &[], &peer, "p0", &[]);
        let runtime = std::env::temp_dir().join(format!("millrace-vlan-tags-{}", std::process::id()));
        fs::create_dir_all(&runtime).unwrap();
        let folder = runtime.clone();
        host.within(move || {
            let strips = || xsk::strips_vlan_tags("eth0").unwrap();
            xsk::set_vlan_stripping("eth0", true).unwrap();
            assert!(strips() && !is_noted(&folder).unwrap());
            for _ in 0..2 {
                leave(&folder, "eth0", true).unwrap();
                assert!(!strips() && is_noted(&folder).unwrap());
            }
            put_back(&folder, &["eth0".to_owned()]).unwrap();
            assert!(!strips() && is_noted(&folder).unwrap(), "it is served still");
            // Beside one that is gone.
            fs::write(folder.join(NOTE), "eth0 rxvlan on\ngone0 rxvlan on\n").unwrap();
            put_back(&folder, &[]).unwrap();
            assert!(strips() && !is_noted(&folder).unwrap() && !folder.join(NOTE).exists());
            // One that never did is never made to.
            xsk::set_vlan_stripping("eth0", false).unwrap();
            leave(&folder, "eth0", true).unwrap();
            put_back(&folder, &[]).unwrap();
            assert!(!strips() && !folder.join(NOTE).exists());
            assert!(leave(&folder, "none0", true).unwrap_err().contains("none0"));
        });
        fs::remove_dir_all(runtime).unwrap();
    }

    #[test]
    fn a_file_of_somebody_elses_is_no_note() {
        let runtime = std::env::temp_dir().join(format!("millrace-vlan-note-{}", std::process::id()));
        fs::create_dir_all(&runtime).unwrap();
        for foreign in
            ["", "precious\n", "a rxvlan on", "b rxvlan on\na rxvlan on\n", "a:b rxvlan on\n", "a rxvlan on\nb\n"]
        {
            fs::write(runtime.join(NOTE), foreign).unwrap();
            assert!(is_noted(&runtime).unwrap_err().to_string().contains(NOTE), "{foreign:?}");
            assert!(put_back(&runtime, &[]).is_err());
            assert_eq!(fs::read_to_string(runtime.join(NOTE)).unwrap(), foreign);
        }
        fs::write(runtime.join(NOTE), "a rxvlan on\nb rxvlan on\n").unwrap();
        assert!(is_noted(&runtime).unwrap());
        fs::remove_dir_all(runtime).unwrap();
    }
}
