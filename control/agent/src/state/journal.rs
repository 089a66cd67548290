//! What changed of the large parts of what is kept, a line a change, so that one object's change costs what it changes.
//!
//! A line is JSON and has its new values whole, so that lines may be taken in twice. Once the file has grown, or many
//! things changed at once, the parts are written whole and the file goes. A last line that a crash cut off is left out.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Kept;

/// From this many octets on the parts are written whole.
const LONGEST: u64 = 4 << 20;

/// Values by key; `None`: it is gone.
type Values<T> = BTreeMap<Arc<str>, Option<Arc<T>>>;

/// What differs.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Changes {
    /// Texts of manifests by path.
    last_good: Values<str>,
    /// Where Services have endpoints.
    endpoints: Values<BTreeSet<IpAddr>>,
}

impl Changes {
    /// From one to the other.
    pub fn between(former: &Kept, kept: &Kept) -> Self {
        Self {
            last_good: differing(&former.last_good.0, &kept.last_good.0),
            endpoints: differing(&former.given.endpoints, &kept.given.endpoints),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.last_good.is_empty() && self.endpoints.is_empty()
    }

    /// Whether these are so many that all may as well be written.
    pub fn are_most_of(&self, kept: &Kept) -> bool {
        2 * self.last_good.len() > kept.last_good.0.len() || 2 * self.endpoints.len() > kept.given.endpoints.len()
    }

    fn take_in(self, kept: &mut Kept) {
        take_in(Arc::make_mut(&mut kept.last_good.0), self.last_good);
        take_in(Arc::make_mut(&mut kept.given.endpoints), self.endpoints);
    }
}

fn take_in<T: ?Sized>(all: &mut BTreeMap<Arc<str>, Arc<T>>, values: Values<T>) {
    for (key, value) in values {
        match value {
            Some(value) => drop(all.insert(key, value)),
            None => drop(all.remove(&key)),
        }
    }
}

fn differing<T: PartialEq + ?Sized>(
    former: &Arc<BTreeMap<Arc<str>, Arc<T>>>,
    now: &Arc<BTreeMap<Arc<str>, Arc<T>>>,
) -> Values<T> {
    let mut values = Values::new();
    if Arc::ptr_eq(former, now) {
        return values;
    }
    let (mut old, mut new) = (former.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return values,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) if Arc::ptr_eq(a, b) => Ordering::Equal,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        match (before, after) {
            (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b) || a == b => {}
            (_, Some((key, value))) => drop(values.insert(Arc::clone(key), Some(Arc::clone(value)))),
            (Some((key, _)), None) => drop(values.insert(Arc::clone(key), None)),
            (None, None) => {}
        }
    }
}

/// The file.
pub(super) struct Journal(PathBuf);

impl Journal {
    pub fn in_folder(folder: &Path) -> Self {
        Self(folder.join("changes.jsonl"))
    }

    /// What it has, oldest first; what cannot be read, and all behind it, counts as not there and is logged.
    pub fn read(&self) -> Vec<Changes> {
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %self.0.display(), %error, "cannot be read; starting without it");
                }
                return Vec::new();
            }
        };
        let mut changes = Vec::new();
        for line in text.split_inclusive(|&octet| octet == b'\n') {
            match serde_json::from_slice(line) {
                Ok(some) if line.ends_with(b"\n") => changes.push(some),
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(file = %self.0.display(), %error, "a line is not what was written there");
                    break;
                }
            }
        }
        changes
    }

    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Adds a line. Whether all should be written whole now, for the file is long.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&self, changes: &Changes) -> io::Result<bool> {
        let is_new = !self.exists();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.0)?;
        let mut line = serde_json::to_vec(changes)?;
        line.push(b'\n');
        if !is_new {
            cut_unfinished(&mut file)?;
        }
        file.write_all(&line)?;
        file.sync_data()?;
        if is_new && let Some(folder) = self.0.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(file.metadata()?.len() > LONGEST)
    }

    /// All of it is in the parts.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Takes away a last line that was not finished.
fn cut_unfinished(file: &mut File) -> io::Result<()> {
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    if last != *b"\n" {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&octet| octet == b'\n').map_or(0, |last| last + 1);
        file.set_len(whole as u64)?;
    }
    Ok(())
}

/// Takes in what the journal has.
pub(super) fn replay(changes: Vec<Changes>, kept: &mut Kept) {
    for some in changes {
        some.take_in(kept);
    }
}
