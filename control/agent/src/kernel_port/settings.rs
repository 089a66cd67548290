//! The kernel's settings that a kernel port needs. Those of its two ends go with them; of the others what they were is noted
//! in the runtime folder, to be put back.
//!
//! Source: the kernel's `Documentation/networking/ip-sysctl.rst`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::{KERNELS, OURS};
use crate::host::settings;

/// In the runtime folder: the interfaces, then a line for each address that is answered for on other links, then one for
/// each setting that was changed, with what it was.
const NOTE: &str = "kernel-port";
/// Octets of a note: more than all interfaces that a host has.
const LONGEST_NOTE: u64 = 1 << 20;

const ADDRESS: &str = "address ";

const FORWARD_V4: &str = "net/ipv4/ip_forward";
/// Changes with [`FORWARD_V4`] and does not come back with it.
const REDIRECTS_V4: &str = "net/ipv4/conf/all/accept_redirects";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const OF_V6: &str = "net/ipv6/conf";

/// What was changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Addresses that may be answered for on other links.
    pub addresses: BTreeSet<IpAddr>,
    /// Settings, with what they were.
    settings: BTreeMap<String, String>,
}

impl Changed {
    /// What the note says; `None` where there is none. What [`Changed::text`] makes reads back to the letter, and anything
    /// else is somebody else's file.
    pub fn read(runtime: &Path) -> io::Result<Option<Self>> {
        let note = runtime.join(NOTE);
        let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", note.display()));
        let found = match fs::symlink_metadata(&note) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(said(error)),
        };
        let is_note = found.is_file() && found.len() <= LONGEST_NOTE;
        let read = if is_note { fs::read(&note).map_err(said)? } else { Vec::new() };
        let read = String::from_utf8_lossy(&read);
        let setting = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            let is_setting = name.starts_with("net/") && !name.split('/').any(|part| part.is_empty() || part == "..");
            (is_setting && !value.contains(' ')).then(|| (name.to_owned(), value.to_owned()))
        };
        let changed = Self {
            addresses: read.lines().filter_map(|line| line.strip_prefix(ADDRESS)?.parse().ok()).collect(),
            settings: read.lines().skip(1).filter_map(setting).collect(),
        };
        if changed.text() != read {
            let why = "is not a note of a kernel port: move it away, or choose another runtime folder";
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", note.display())));
        }
        Ok(Some(changed))
    }

    fn text(&self) -> String {
        let addresses: String = self.addresses.iter().map(|address| format!("{ADDRESS}{address}\n")).collect();
        let settings: String = self.settings.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        format!("{OURS} {KERNELS}\n{addresses}{settings}")
    }

    pub fn write(&self, runtime: &Path) -> Result<(), String> {
        let note = runtime.join(NOTE);
        fs::write(&note, self.text()).map_err(|e| format!("{}: {e}", note.display()))
    }

    /// Notes what a setting is, then changes it. What was noted first stands: what it is since then is our own doing.
    fn change(&mut self, runtime: &Path, name: &str, to: &str) -> Result<(), String> {
        self.note(name);
        self.write(runtime)?;
        set(name, to)
    }

    fn note(&mut self, name: &str) {
        if let Ok(value) = get(name) {
            self.settings.entry(name.to_owned()).or_insert(value);
        }
    }

    /// Puts everything back, and removes the note. An interface that is gone needs nothing.
    pub fn put_back(self, runtime: &Path) -> Result<(), String> {
        // Forwarding first, for the kernel sets others along with it.
        let (first, rest): (Vec<_>, Vec<_>) =
            self.settings.iter().partition(|(name, _)| [FORWARD_V4, FORWARD_V6].contains(&name.as_str()));
        let mut failed = Ok(());
        for (name, value) in first.into_iter().chain(rest) {
            if get(name).is_ok_and(|now| now != *value) {
                failed = failed.and(set(name, value));
            }
        }
        let note = runtime.join(NOTE);
        failed.and(fs::remove_file(&note).map_err(|e| format!("{}: {e}", note.display())))
    }
}

fn get(name: &str) -> io::Result<String> {
    fs::read_to_string(settings().join(name)).map(|value| value.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<(), String> {
    fs::write(settings().join(name), value).map_err(|error| {
        format!("{} cannot be set ({error}): set it on the host, `sysctl -w {0}={value}`", name.replace('/', "."))
    })
}

/// As [`set`], where the kernel has such a setting.
fn set_if_there(name: &str, value: &str) -> Result<(), String> {
    if settings().join(name).exists() { set(name, value) } else { Ok(()) }
}

/// What both ends need before they come up: ours is not to be the kernel's, and its own is to take what we send, whose
/// source it would route elsewhere.
pub(super) fn of_both_ends(ipv6: bool) -> Result<(), String> {
    // No ARP for the host's addresses by the end that has none.
    set(&format!("net/ipv4/conf/{OURS}/arp_ignore"), "8")?;
    set(&format!("net/ipv4/conf/{KERNELS}/rp_filter"), "2")?;
    set_if_there(&format!("{OF_V6}/{OURS}/disable_ipv6"), "1")?;
    let disabled = if ipv6 { "0" } else { "1" };
    set_if_there(&format!("{OF_V6}/{KERNELS}/disable_ipv6"), disabled)?;
    for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
        set_if_there(&format!("{OF_V6}/{KERNELS}/{setting}"), value)?;
    }
    Ok(())
}

/// Has nothing go on that comes out of our end past us: what nobody serves of a range that is routed in would go round.
pub(super) fn end_at_ours() -> Result<(), String> {
    set(&format!("net/ipv4/conf/{OURS}/forwarding"), "0")
}

/// Has the kernel forward packets of a family between its interfaces.
pub(super) fn forward(changed: &mut Changed, runtime: &Path, ipv6: bool) -> Result<(), String> {
    let name = if ipv6 { FORWARD_V6 } else { FORWARD_V4 };
    if get(name).is_ok_and(|value| value != "0") {
        return Ok(());
    }
    if ipv6 {
        // A host that forwards takes no router's word (1), unless told to (2): it would lose its default route.
        let folder = settings().join(OF_V6);
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for interface in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let setting = format!("{OF_V6}/{interface}/accept_ra");
            if get(&setting).is_ok_and(|value| value == "1") {
                changed.change(runtime, &setting, "2")?;
            }
        }
    } else {
        changed.note(REDIRECTS_V4);
    }
    changed.change(runtime, name, "1")?;
    tracing::info!(setting = name.replace('/', "."), "the kernel forwards packets from now on");
    Ok(())
}

/// Has the kernel answer on a link, and at once, for addresses of a family that it was told to answer for there.
pub(super) fn answer_on(runtime: &Path, interface: &str, ipv6: bool) -> Result<(), String> {
    let family = if ipv6 { "ipv6" } else { "ipv4" };
    let mut wanted = vec![(format!("net/{family}/neigh/{interface}/proxy_delay"), "0")];
    if ipv6 {
        wanted.push((format!("{OF_V6}/{interface}/proxy_ndp"), "1"));
    }
    let mut changed = Changed::read(runtime).map_err(|e| e.to_string())?.unwrap_or_default();
    for (name, value) in wanted {
        if get(&name).is_ok_and(|now| now != value) {
            changed.change(runtime, &name, value)?;
        }
    }
    Ok(())
}
