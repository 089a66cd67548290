//! The BPF file system that the steering link and its maps are pinned in.

use std::{
    ffi::{CStr, CString},
    fs, io,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::Path,
};

use crate::XskError;

/// What the mount table says of a bpffs that was mounted here, so that it is told from anybody else's.
const SOURCE: &CStr = c"millrace";

/// Makes `dir` (and its parents) and mounts a bpffs on it, unless it already lies in one.
///
/// # Errors
///
/// [`XskError::Path`] with what could not be done; a folder with files in it is none to mount on.
pub fn mount_bpffs(dir: &Path) -> Result<(), XskError> {
    let failed = |action| move |source| XskError::Path { action, path: dir.into(), source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("cannot make"))?;
    if is_bpffs(dir).map_err(failed("cannot look at"))? {
        return Ok(());
    }
    if fs::read_dir(dir).map_err(failed("cannot look at"))?.next().is_some() {
        let why = io::Error::other("there are files in it: move them away, or choose another runtime folder");
        return Err(failed("cannot mount a bpffs on")(why));
    }
    let target = c_path(dir).map_err(failed("cannot mount a bpffs on"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all four strings are NUL-terminated and outlive the call.
    let result =
        unsafe { libc::mount(SOURCE.as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(failed("cannot mount a bpffs on")(io::Error::last_os_error())) }
}

/// Unmounts the bpffs that [`mount_bpffs`] mounted on `dir` and removes the empty directory; neither being there is fine.
/// Somebody else's mount stays.
///
/// Whatever is still pinned in it is released by that.
///
/// # Errors
///
/// [`XskError::Path`] with what could not be done.
pub fn unmount_bpffs(dir: &Path) -> Result<(), XskError> {
    let failed = |action| move |source| XskError::Path { action, path: dir.into(), source };
    match mount_source(dir).map_err(failed("cannot look at"))? {
        Some(source) if source.as_bytes() == SOURCE.to_bytes() => {
            let target = c_path(dir).map_err(failed("cannot unmount"))?;
            // SAFETY: the path is NUL-terminated and outlives the call.
            if unsafe { libc::umount2(target.as_ptr(), libc::UMOUNT_NOFOLLOW) } != 0 {
                return Err(failed("cannot unmount")(io::Error::last_os_error()));
            }
        }
        Some(_) => return Ok(()),
        None => {}
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove")(error)),
        _ => Ok(()),
    }
}

/// What is mounted on `dir` itself, by the name of its source; `None` if nothing is, or there is no `dir`.
fn mount_source(dir: &Path) -> io::Result<Option<String>> {
    let dir = match fs::canonicalize(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // Of several mounts on a folder the last one is seen.
    Ok(table.lines().rev().find_map(|line| source_of(line, &dir)))
}

/// The source of a line of `/proc/self/mountinfo`, if it is of a mount on `dir` (proc(5)).
fn source_of(line: &str, dir: &Path) -> Option<String> {
    let (mount, file_system) = line.split_once(" - ")?;
    let point = unescaped(mount.split(' ').nth(4)?);
    (point == dir.as_os_str().as_bytes()).then(|| file_system.split(' ').nth(1).map(str::to_owned)).flatten()
}

/// Blanks and the like stand as three octal digits in the mount table.
fn unescaped(text: &str) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        octets.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    octets
}

/// Whether `dir` lies in a bpffs.
pub(crate) fn is_bpffs(dir: &Path) -> io::Result<bool> {
    let path = c_path(dir)?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    statfs(&path, &mut stat)?;
    // SAFETY: statfs succeeded, so it has filled the struct.
    Ok(unsafe { stat.assume_init() }.f_type == libc::BPF_FS_MAGIC)
}

fn statfs(path: &CStr, stat: &mut MaybeUninit<libc::statfs>) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated and `stat` has room for what the kernel writes.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_tells_whose_mount_a_folder_is() {
        let line = r"36 35 98:0 / /run/mill\040race/bpf rw,nosuid shared:7 - bpf millrace rw,mode=700";
        assert_eq!(source_of(line, Path::new("/run/mill race/bpf")).as_deref(), Some("millrace"));
        assert_eq!(source_of(line, Path::new("/run/mill race")), None);
        assert_eq!(source_of("36 35 98:0 / /run/x rw", Path::new("/run/x")), None);
    }

    #[test]
    fn nothing_is_mounted_over_files() {
        let dir = std::env::temp_dir().join(format!("millrace-bpffs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("precious"), "x").unwrap();
        assert!(mount_bpffs(&dir).unwrap_err().to_string().contains("there are files in it"));
        assert!(unmount_bpffs(&dir).is_err(), "its files are somebody's");
        assert!(dir.join("precious").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
