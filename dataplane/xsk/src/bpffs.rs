//! The BPF file system that the steering link and its maps are pinned in.

use std::{
    ffi::{CStr, CString},
    fs, io,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::Path,
};

use crate::XskError;

/// Makes `dir` (and its parents) and mounts a bpffs on it, unless it already lies in one.
///
/// # Errors
///
/// [`XskError::Path`] with what could not be done.
pub fn mount_bpffs(dir: &Path) -> Result<(), XskError> {
    let failed = |action| move |source| XskError::Path { action, path: dir.into(), source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("cannot make"))?;
    if is_bpffs(dir).map_err(failed("cannot look at"))? {
        return Ok(());
    }
    let target = c_path(dir).map_err(failed("cannot mount a bpffs on"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all four strings are NUL-terminated and outlive the call.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(failed("cannot mount a bpffs on")(io::Error::last_os_error())) }
}

/// Unmounts the bpffs that is mounted on `dir` and removes the empty directory; neither being there is fine.
///
/// Whatever is still pinned in it is released by that.
///
/// # Errors
///
/// [`XskError::Path`] with what could not be done.
pub fn unmount_bpffs(dir: &Path) -> Result<(), XskError> {
    let failed = |action| move |source| XskError::Path { action, path: dir.into(), source };
    let target = c_path(dir).map_err(failed("cannot unmount"))?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    if unsafe { libc::umount2(target.as_ptr(), libc::UMOUNT_NOFOLLOW) } != 0 {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT) => return Ok(()),
            // Not a mount point.
            Some(libc::EINVAL) => {}
            _ => return Err(failed("cannot unmount")(error)),
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove")(error)),
        _ => Ok(()),
    }
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
