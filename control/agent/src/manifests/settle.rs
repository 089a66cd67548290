//! What of the file system to take in, and when.
//!
//! A file that was closed after writing, or moved into place, counts at once. Of a writer that has not closed its file,
//! or of a change that no event told of, nothing counts until it is steady; until then, and while a file cannot be
//! read, its former text stays. A file is deleted when it stays away from a folder that is there.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::gather::{self, Found, Identity, Look, Reading, Walk};
use super::{Gathered, Texts, Trouble};

/// How long a change that no event told the end of must rest: many an editor removes a file and writes it anew.
pub(super) const STEADY: Duration = Duration::from_millis(300);
/// The same, for a file that a writer is known to have open.
pub(super) const OPEN: Duration = Duration::from_secs(1);
/// After how long a file that never rests counts as it is.
const LONGEST: Duration = Duration::from_secs(10);
/// How often to look at what does not rest yet.
pub(super) const AGAIN: Duration = Duration::from_millis(50);
/// Most octets in all files together.
const MOST_OCTETS: usize = 256 << 20;

/// What events said of files, by paths without links.
#[derive(Debug, Default)]
pub(super) struct Marks {
    writing: HashSet<PathBuf>,
    whole: HashSet<PathBuf>,
}

impl Marks {
    /// Somebody writes it.
    pub fn written(&mut self, file: PathBuf) {
        self.whole.remove(&file);
        self.writing.insert(file);
    }

    /// It was closed after writing, or moved here.
    pub fn finished(&mut self, file: PathBuf) {
        self.writing.remove(&file);
        self.whole.insert(file);
    }

    /// Events got lost.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps what concerns files that are there.
    fn keep(&mut self, walk: &Walk) {
        if !self.writing.is_empty() || !self.whole.is_empty() {
            let real: HashSet<&PathBuf> = walk.files.values().map(|found| &found.real).collect();
            self.writing.retain(|file| real.contains(file));
            self.whole.retain(|file| real.contains(file));
        }
    }

    fn forget(&mut self, file: &Path) {
        self.writing.remove(file);
        self.whole.remove(file);
    }
}

/// Reads what the kernel has to tell into the marks.
pub(super) type Drain<'d> = dyn FnMut(&mut Marks) + 'd;

/// A manifest that is or was there.
#[derive(Debug, Default)]
struct Entry {
    /// How it looked when it was taken in.
    taken: Option<Look>,
    /// The last text that could be read.
    text: Option<Arc<str>>,
    trouble: Option<Trouble>,
    pending: Option<Pending>,
}

/// A change that is not taken in yet.
#[derive(Debug)]
struct Pending {
    /// `None`: the file is not there.
    look: Option<Look>,
    since: Instant,
    first: Instant,
}

impl Entry {
    /// How long until `look` will have rested.
    fn wait(&mut self, look: Option<&Look>, now: Instant, patience: Duration) -> Duration {
        let fresh = || Pending { look: look.cloned(), since: now, first: now };
        let pending = self.pending.get_or_insert_with(fresh);
        if pending.look.as_ref() != look {
            let first = if pending.look.is_some() == look.is_some() { pending.first } else { now };
            *pending = Pending { first, ..fresh() };
        }
        (pending.since + patience).min(pending.first + LONGEST).saturating_duration_since(now)
    }

    /// Whether it was waited for long enough.
    fn is_overdue(&self, now: Instant) -> bool {
        self.pending.as_ref().is_some_and(|pending| now.duration_since(pending.first) >= LONGEST)
    }
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Whether what counts changed.
    pub report: bool,
    /// When to look again.
    pub again: Option<Duration>,
}

impl Outcome {
    fn again_in(&mut self, wait: Duration) {
        self.again = Some(self.again.map_or(wait, |other| other.min(wait)));
    }
}

/// How to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// What rests, or is known to be whole.
    Patient,
    /// The same; what could not be read is tried again.
    Retry,
    /// Everything that nobody writes, read again.
    Eager,
}

/// All manifests as they count.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub marks: Marks,
    entries: BTreeMap<Arc<str>, Entry>,
    /// Which folder each was when it last held manifests.
    folders: BTreeMap<PathBuf, Identity>,
    /// What seems lost, and since when.
    lost: BTreeMap<PathBuf, (String, Instant)>,
    octets: usize,
    /// Since when something is to be reported.
    unreported: Option<Instant>,
    published: Arc<Gathered>,
}

impl Files {
    /// What counts.
    pub fn gathered(&self) -> Arc<Gathered> {
        Arc::clone(&self.published)
    }

    /// Takes in what is to count from now on.
    pub fn take_in(&mut self, walk: &Walk, now: Instant, manner: Manner, drain: &mut Drain<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        self.marks.keep(walk);
        self.note_lost(walk, now, manner, &mut outcome);
        for (name, found) in &walk.files {
            self.present(name, found, now, manner, drain, &mut outcome);
        }
        let leaving = self.absent(walk, now, manner, &mut outcome);
        // Objects that move from one file to another must not be there twice meanwhile.
        let due = |since: Instant| !leaving || manner == Manner::Eager || now.duration_since(since) >= STEADY;
        if self.unreported.is_some_and(due) {
            self.unreported = None;
            outcome.report = self.publish(now, manner);
        }
        outcome
    }

    fn present(
        &mut self,
        name: &str,
        found: &Found,
        now: Instant,
        manner: Manner,
        drain: &mut Drain<'_>,
        outcome: &mut Outcome,
    ) {
        let (writing, whole) = (self.marks.writing.contains(&found.real), self.marks.whole.contains(&found.real));
        let entry = self.entries.entry(name.into()).or_default();
        let retry = manner == Manner::Retry && matches!(entry.trouble, Some(Trouble::Unreadable(..)));
        if entry.taken.as_ref() == Some(&found.look) && !whole && !retry && manner != Manner::Eager {
            entry.pending = None;
            return;
        }
        let wait = entry.wait(Some(&found.look), now, if writing { OPEN } else { STEADY });
        let overdue = entry.is_overdue(now);
        let ready = wait.is_zero() || whole || retry || (manner == Manner::Eager && !writing);
        if !ready || !self.take(name, found, overdue, now, drain) {
            outcome.again_in(wait.clamp(Duration::from_millis(1), AGAIN));
        }
    }

    /// Reads a file; not if somebody writes it just now, unless that is `overdue`. Whether it did.
    fn take(&mut self, name: &str, found: &Found, overdue: bool, now: Instant, drain: &mut Drain<'_>) -> bool {
        self.marks.forget(&found.real);
        let reading = match &found.look {
            Look::File(stamp) => gather::read(&found.path, stamp),
            Look::Bad(why) => Reading::Trouble(Trouble::Unreadable(1, why.clone())),
        };
        drain(&mut self.marks);
        if self.marks.writing.contains(&found.real) && !overdue {
            return false;
        }
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let former = entry.text.as_ref().map_or(0, |text| text.len());
        let (text, trouble) = match reading {
            Reading::Changed => return false,
            Reading::Trouble(trouble) => (None, Some(trouble)),
            Reading::Text(text) if self.octets - former + text.len() > MOST_OCTETS => {
                let message = format!("too much text, expected {MOST_OCTETS} octets at most in all files");
                (None, Some(Trouble::Unreadable(1, message)))
            }
            Reading::Text(text) => (Some(Arc::from(text)), None),
        };
        entry.pending = None;
        entry.taken = Some(found.look.clone());
        if entry.trouble != trouble || text.is_some() && entry.text != text {
            self.unreported.get_or_insert(now);
        }
        entry.trouble = trouble;
        if let Some(text) = text {
            self.octets = self.octets - former + text.len();
            entry.text = Some(text);
        }
        true
    }

    /// Lets go of files that are gone. Whether some may be.
    fn absent(&mut self, walk: &Walk, now: Instant, manner: Manner, outcome: &mut Outcome) -> bool {
        let (lost, unreported, octets) = (&self.lost, &mut self.unreported, &mut self.octets);
        let mut leaving = false;
        self.entries.retain(|name, entry| {
            if walk.files.contains_key(name.as_ref()) {
                return true;
            }
            if lost.keys().any(|scope| Path::new(name.as_ref()).starts_with(scope)) {
                entry.pending = None;
                return true;
            }
            let wait = entry.wait(None, now, STEADY);
            if !wait.is_zero() && manner != Manner::Eager && entry.taken.is_some() {
                leaving = true;
                outcome.again_in(wait.min(AGAIN));
                return true;
            }
            *octets -= entry.text.as_ref().map_or(0, |text| text.len());
            if entry.taken.is_some() {
                unreported.get_or_insert(now);
            }
            false
        });
        leaving
    }

    /// Notes what cannot be looked into, and folders that were replaced by others without manifests.
    fn note_lost(&mut self, walk: &Walk, now: Instant, manner: Manner, outcome: &mut Outcome) {
        let known = |scope: &Path| self.entries.keys().any(|name| Path::new(name.as_ref()).starts_with(scope));
        let mut lost: BTreeMap<PathBuf, String> = walk
            .lost
            .iter()
            .filter(|(path, lost)| !lost.if_known || known(path))
            .map(|(path, lost)| (path.clone(), lost.why.clone()))
            .collect();
        for (path, folder) in walk.folders.iter().filter(|(_, folder)| folder.files == 0) {
            let other = self.folders.get(path).is_some_and(|former| *former != folder.identity);
            if other && known(path) {
                // What an unmounted folder looks like.
                let why = "another folder than before and without manifests, expected those that were there: \
                           to remove their objects put a manifest there, `{kind: List, apiVersion: v1}` will do";
                lost.insert(path.clone(), why.to_owned());
            }
        }
        let folders = walk.folders.iter().filter(|(path, folder)| folder.files > 0 || !lost.contains_key(*path));
        let folders: Vec<_> = folders.map(|(path, folder)| (path.clone(), folder.identity)).collect();
        self.folders.retain(|path, _| self.entries.keys().any(|name| Path::new(name.as_ref()).starts_with(path)));
        self.folders.extend(folders);
        let former = std::mem::take(&mut self.lost);
        for (path, why) in lost {
            let since = former.get(&path).map_or(now, |(_, since)| *since);
            self.lost.insert(path, (why, since));
        }
        let steady = self.steady_lost(now, manner);
        if steady.len() < self.lost.len() {
            outcome.again_in(AGAIN);
        }
        if steady != self.published.lost {
            self.unreported.get_or_insert(now);
        }
    }

    fn steady_lost(&self, now: Instant, manner: Manner) -> BTreeMap<PathBuf, String> {
        let steady = |since: Instant| manner == Manner::Eager || now.duration_since(since) >= STEADY;
        self.lost
            .iter()
            .filter(|(path, (_, since))| steady(*since) || self.published.lost.contains_key(*path))
            .map(|(path, (why, _))| (path.clone(), why.clone()))
            .collect()
    }

    fn publish(&mut self, now: Instant, manner: Manner) -> bool {
        let mut gathered = Gathered { lost: self.steady_lost(now, manner), ..Gathered::default() };
        let mut texts = Texts::new();
        for (name, entry) in &self.entries {
            if let Some(text) = &entry.text {
                texts.insert(Arc::clone(name), Arc::clone(text));
            }
            if let Some(trouble) = &entry.trouble {
                gathered.troubles.insert(name.to_string(), trouble.clone());
            }
        }
        gathered.texts = Arc::new(texts);
        let changed = gathered != *self.published;
        self.published = Arc::new(gathered);
        changed
    }
}

/// Reads files and folders, with the folders in them. What cannot be read is said in what comes of it.
#[must_use]
pub fn gather(paths: &[PathBuf]) -> Gathered {
    let mut files = Files::default();
    read_all(&mut files, || gather::walk(paths), &mut |_| {});
    files.gathered().as_ref().clone()
}

/// Whether each of these can be looked into.
///
/// # Errors
/// The first that cannot, why, and what to do.
pub fn check_paths(paths: &[PathBuf]) -> Result<(), String> {
    for path in paths {
        let meta = std::fs::metadata(path);
        let read = meta.and_then(|meta| if meta.is_dir() { std::fs::read_dir(path).map(drop) } else { Ok(()) });
        read.map_err(|error| {
            format!("{} cannot be read ({error}), expected a file or folder: make it, or name another", path.display())
        })?;
    }
    Ok(())
}

/// Takes in everything, and what is just being replaced after a moment.
pub(super) fn read_all(files: &mut Files, mut walk: impl FnMut() -> Walk, drain: &mut Drain<'_>) -> Outcome {
    let deadline = Instant::now() + STEADY;
    loop {
        let outcome = files.take_in(&walk(), Instant::now(), Manner::Eager, drain);
        match outcome.again {
            Some(wait) if Instant::now() < deadline => thread::sleep(wait),
            _ => return outcome,
        }
    }
}
