//! What of a pin folder is Millrace's: told by the names that the kernel has for what is pinned, never by file names
//! alone. A folder with anything else in it is refused as a whole, so that nothing of somebody else's gets removed.
//! In a container without `CAP_SYS_ADMIN` the kernel does not tell a program's name: its link is known by the maps beside.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapData,
    programs::links::{FdLink, LinkType, PinnedLink},
};

use crate::{
    XskError, bpffs,
    steering::{LINK_PIN, MAPS, PROGRAM, program_name},
};

/// The interfaces whose steering program is pinned in `pin_dir`, and nothing but that is; none if there is no such
/// folder, or an empty one.
///
/// # Errors
///
/// [`XskError::ForeignPin`] with the first thing that is not Millrace's, [`XskError::Path`] if that cannot be told.
pub fn pinned(pin_dir: &Path) -> Result<Vec<String>, XskError> {
    let mut entries = match fs::symlink_metadata(pin_dir) {
        Ok(entry) if entry.is_dir() => entries(pin_dir)?,
        Ok(_) => return Err(XskError::ForeignPin { path: pin_dir.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(XskError::Path { action: "cannot look at", path: pin_dir.into(), source }),
    };
    let in_bpffs = |source| XskError::Path { action: "cannot look at", path: pin_dir.into(), source };
    if !entries.is_empty() && !bpffs::is_bpffs(pin_dir).map_err(in_bpffs)? {
        return Err(XskError::ForeignPin { path: entries[0].clone() });
    }
    // The kernel's own: it puts `maps.debug` and `progs.debug` into every bpffs, and lets nobody else use dots.
    entries.retain(|entry| !name(entry).contains('.'));
    let mut interfaces = Vec::new();
    for folder in entries {
        if !folder.is_dir() {
            return Err(XskError::ForeignPin { path: folder });
        }
        for pin in self::entries(&folder)? {
            if !is_ours(&pin) {
                return Err(XskError::ForeignPin { path: pin });
            }
        }
        interfaces.push(name(&folder).replace(':', "."));
    }
    Ok(interfaces)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, XskError> {
    let failed = |source| XskError::Path { action: "cannot look at", path: dir.into(), source };
    fs::read_dir(dir).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the steering program's link or one of its maps is pinned here.
fn is_ours(pin: &Path) -> bool {
    let name = name(pin);
    if name == LINK_PIN {
        let link = PinnedLink::from_pin(pin).ok().and_then(|link| FdLink::from(link).info().ok());
        return link.is_some_and(|link| match program_name(link.program_id()) {
            Some(name) => name == PROGRAM,
            None => {
                let is_xdp = link.link_type().is_ok_and(|kind| kind == LinkType::Xdp);
                is_xdp && MAPS.iter().any(|(map, _)| is_ours(&pin.with_file_name(map)))
            }
        });
    }
    MAPS.iter().any(|(map, _)| *map == name)
        && MapData::from_pin(pin).and_then(|map| map.info()).is_ok_and(|info| info.name_as_str() == Some(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_somebody_elses_files_is_refused_with_their_path() {
        let dir = std::env::temp_dir().join(format!("millrace-pins-{}", std::process::id()));
        assert_eq!(pinned(&dir).unwrap(), Vec::<String>::new());
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(pinned(&dir).unwrap(), Vec::<String>::new(), "an empty folder");
        let file = dir.join("eth0");
        fs::create_dir(&file).unwrap();
        fs::write(file.join(LINK_PIN), "x").unwrap();
        let error = pinned(&dir).unwrap_err();
        assert!(matches!(&error, XskError::ForeignPin { path } if *path == file), "{error}");
        assert!(pinned(&file.join(LINK_PIN)).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
