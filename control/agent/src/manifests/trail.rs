//! On which entries of which folders it depends what a path leads to.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// Calls `depends` with (folder without links, name) for the path's own entry and that of each link on the way; for
/// the first one missing where there is one.
pub(super) fn trail(path: &Path, mut depends: impl FnMut(&Path, OsString)) {
    let mut at = if path.is_absolute() { PathBuf::from("/") } else { std::env::current_dir().unwrap_or_default() };
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(meta) = fs::symlink_metadata(&next) else { return depends(&at, name) };
        if meta.is_symlink() {
            let Ok(target) = fs::read_link(&next) else { return depends(&at, name) };
            depends(&at, name);
            links += 1;
            if links > MOST_LINKS {
                return;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(name);
            }
            continue;
        }
        if rest.is_empty() {
            depends(&at, name);
        }
        at = next;
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}
