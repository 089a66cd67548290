//! Looking at the file system: which manifests there are, and reading one.
//!
//! Nothing here blocks on a FIFO or device, follows links in circles, or takes in more than the limits below.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Trouble;

/// Largest file: the API takes 1.5 MiB an object, so these are hundreds in one file.
pub(super) const LARGEST_FILE: u64 = 16 << 20;
/// Most entries of folders that are looked at.
const MOST_ENTRIES: usize = 200_000;

/// A device and inode number: which file or folder it is, whatever its name.
pub(super) type Identity = (u64, u64);

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    identity: Identity,
    pub size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            identity: identity(meta),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A file.
    File(Stamp),
    /// Nothing that can be read, and why.
    Bad(String),
}

/// A manifest.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    /// The same without links.
    pub real: PathBuf,
    pub look: Look,
}

/// A folder of manifests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folder {
    pub identity: Identity,
    /// How many manifests are in it and below.
    pub files: usize,
}

/// A path below which nothing can be said to be deleted.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub why: String,
    /// Whether it matters only if manifests were known below it.
    pub if_known: bool,
}

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Manifests by name.
    pub files: BTreeMap<String, Found>,
    /// Folders by path.
    pub folders: BTreeMap<PathBuf, Folder>,
    /// The same folders without links.
    pub real_folders: Vec<PathBuf>,
    /// Links that were followed or lead to nowhere.
    pub links: Vec<PathBuf>,
    pub lost: BTreeMap<PathBuf, Lost>,
    entries: usize,
}

/// Whether a name is hidden.
pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether a file of a folder is a manifest: its name ends as one and is not hidden.
pub(super) fn is_manifest(path: &Path) -> bool {
    let named = path.extension().is_some_and(|e| ["yaml", "yml", "json"].contains(&e.to_string_lossy().as_ref()));
    !is_hidden(path) && named
}

/// Looks at files and folders, with the folders in them.
pub(super) fn walk(paths: &[PathBuf]) -> Walk {
    let mut walk = Walk::default();
    for path in paths {
        let real = fs::canonicalize(path);
        match fs::metadata(path).and_then(|meta| Ok((meta, real?))) {
            Ok((meta, real)) if meta.is_dir() => {
                walk.folder(path, real, &meta, &mut Vec::new());
            }
            Ok((meta, real)) => walk.file(path, real, &meta),
            Err(error) => walk.lose(path, format!("cannot be read ({error}), expected a file or folder of manifests")),
        }
    }
    walk
}

impl Walk {
    fn lose(&mut self, path: &Path, why: String) {
        self.lost.insert(path.to_owned(), Lost { why, if_known: false });
    }

    fn file(&mut self, path: &Path, real: PathBuf, meta: &Metadata) {
        let look = if meta.is_file() { Look::File(Stamp::of(meta)) } else { Look::Bad(not_a_file(meta)) };
        self.found(path, real, look);
    }

    fn found(&mut self, path: &Path, real: PathBuf, look: Look) {
        self.files.insert(path.display().to_string(), Found { path: path.to_owned(), real, look });
    }

    /// How many manifests are in it; `around` are the folders that it is in.
    fn folder(&mut self, path: &Path, real: PathBuf, meta: &Metadata, around: &mut Vec<Identity>) -> usize {
        let identity = identity(meta);
        if around.contains(&identity) {
            self.lose(path, "a link to a folder around it, expected none in a circle".to_owned());
            return 0;
        }
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => {
                self.lose(path, format!("cannot be read ({error}), expected a folder of manifests"));
                return 0;
            }
        };
        self.entries += entries.len();
        if self.entries > MOST_ENTRIES {
            self.lose(path, format!("too many files, expected {MOST_ENTRIES} at most in all folders"));
            return 0;
        }
        around.push(identity);
        let mut files = 0;
        for entry in entries {
            if !is_hidden(Path::new(&entry.file_name())) {
                let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                files += self.entry(&entry.path(), &real.join(entry.file_name()), link, around);
            }
        }
        around.pop();
        self.real_folders.push(real);
        self.folders.insert(path.to_owned(), Folder { identity, files });
        files
    }

    /// An entry of a folder; how many manifests it is or holds.
    fn entry(&mut self, path: &Path, beside: &Path, link: bool, around: &mut Vec<Identity>) -> usize {
        let (manifest, before) = (is_manifest(path), self.files.len());
        if link {
            self.links.push(path.to_owned());
        }
        let real = if link { fs::canonicalize(path) } else { Ok(beside.to_owned()) };
        match fs::metadata(path).and_then(|meta| Ok((meta, real?))) {
            Ok((meta, real)) if meta.is_dir() => return self.folder(path, real, &meta, around),
            Ok((meta, real)) if manifest => self.file(path, real, &meta),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && !link => {}
            Err(error) => {
                let why = format!("cannot be read ({error}), expected a file or folder of manifests");
                if manifest {
                    self.found(path, beside.to_owned(), Look::Bad(why));
                } else {
                    self.lost.insert(path.to_owned(), Lost { why, if_known: true });
                }
            }
        }
        usize::from(self.files.len() > before)
    }
}

fn not_a_file(meta: &Metadata) -> String {
    let kind = meta.file_type();
    let what = if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    format!("{what}, expected a file or folder of manifests")
}

/// What reading a file gave.
#[derive(Debug)]
pub(super) enum Reading {
    /// Its text.
    Text(String),
    /// No text.
    Trouble(Trouble),
    /// It is not the one, or not as, that was looked at.
    Changed,
}

/// Reads a file that looked like `stamp`.
pub(super) fn read(path: &Path, stamp: &Stamp) -> Reading {
    match read_bytes(path, stamp) {
        Ok(Some(bytes)) => text(bytes),
        Ok(None) => Reading::Changed,
        Err(error) if error.kind() == ErrorKind::NotFound => Reading::Changed,
        Err(error) => unreadable(1, format!("cannot be read ({error}), expected a file of manifests")),
    }
}

fn unreadable(line: u32, message: String) -> Reading {
    Reading::Trouble(Trouble::Unreadable(line, message))
}

/// `None` where the file changed before, or while, it was read.
fn read_bytes(path: &Path, stamp: &Stamp) -> std::io::Result<Option<Vec<u8>>> {
    // It may have become a FIFO since.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let same = |file: &File| file.metadata().map(|meta| meta.is_file() && Stamp::of(&meta) == *stamp);
    if !same(&file)? {
        return Ok(None);
    }
    if stamp.size > LARGEST_FILE {
        let message = format!("{} octets, expected {LARGEST_FILE} at most: split it", stamp.size);
        return Err(std::io::Error::other(message));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or(0));
    (&file).take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    Ok(same(&file)?.then_some(bytes))
}

fn text(bytes: Vec<u8>) -> Reading {
    match String::from_utf8(bytes) {
        Ok(text) if is_blank(&text) => Reading::Trouble(Trouble::Empty),
        Ok(text) => Reading::Text(text),
        Err(error) => {
            let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + sound.iter().filter(|byte| **byte == b'\n').count();
            let octet = error.as_bytes()[sound.len()];
            let message = format!("the octet 0x{octet:02x} is no UTF-8, expected the file saved as UTF-8");
            unreadable(u32::try_from(line).unwrap_or(u32::MAX), message)
        }
    }
}

/// Whether there is nothing but blanks, comments, directives and separators.
fn is_blank(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().map(str::trim).all(|line| {
        line.is_empty() || line.starts_with(['#', '%']) || line == "..." || {
            line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty() || rest.trim().starts_with('#'))
        }
    })
}
