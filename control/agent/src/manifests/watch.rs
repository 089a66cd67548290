//! Following manifests on a thread: inotify says when to look and which files are whole, a slow look serves file
//! systems that tell nothing (NFS).
//!
//! Watched are the folders of manifests and those of every link on the way, by inode; each look renews them. Events are
//! hints alone: what counts is what a look finds (`settle`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::Gathered;
use super::gather::{self, Walk, is_hidden, is_manifest};
use super::settle::{AGAIN, Files, Manner, Marks, read_all};
use super::trail::trail;

/// How often to look where no event tells.
const SLOW: Duration = Duration::from_secs(5);

/// Follows files and folders; dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    follower: Arc<Mutex<Follower>>,
    /// Apart from the follower, whose looks may hang with a file server.
    published: Arc<Mutex<Arc<Gathered>>>,
    wake: UnixStream,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    /// Reads these files and folders and calls `changed` whenever [`Watch::gathered`] gives something else.
    ///
    /// # Errors
    /// If the thread cannot be started. Without inotify it looks every 5 s, and says so.
    pub fn start(paths: &[PathBuf], changed: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let mut follower = Follower::new(paths.to_vec());
        follower.read_all();
        let published = Arc::new(Mutex::new(follower.files.gathered()));
        let follower = Arc::new(Mutex::new(follower));
        let (theirs, publish) = (Arc::clone(&follower), Arc::clone(&published));
        let report = move |gathered| {
            *lock(&publish) = gathered;
            changed();
        };
        let serve = move || serve(&theirs, &woken, &report);
        let thread = thread::Builder::new().name("manifests".to_owned()).spawn(serve)?;
        Ok(Self { follower, published, wake, thread })
    }

    /// Whether files are followed no longer.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// What the files hold.
    #[must_use]
    pub fn gathered(&self) -> Arc<Gathered> {
        Arc::clone(&lock(&self.published))
    }

    /// Reads all anew, of these files and folders from now on.
    pub fn follow(&self, paths: &[PathBuf]) {
        let mut follower = lock(&self.follower);
        paths.clone_into(&mut follower.paths);
        follower.read_all();
        *lock(&self.published) = follower.files.gathered();
        // It may sleep too long for what was left to look at again; if the pipe is full it is awake.
        let _ = (&self.wake).write(&[0]);
    }
}

/// What a panic left behind is whole: the next look finds everything again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(follower: &Mutex<Follower>, mut woken: &UnixStream, report: &dyn Fn(Arc<Gathered>)) {
    let (inotify, mut next) = {
        let follower = lock(follower);
        (follower.events.inotify.clone(), follower.next)
    };
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(inotify.as_ref().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, timeout);
        if woken.read(&mut [0; 16]).is_ok_and(|count| count == 0) {
            return;
        }
        let (changed, gathered);
        (changed, gathered, next) = {
            let mut follower = lock(follower);
            let (changed, next) = follower.step(Instant::now());
            (changed, follower.files.gathered(), next)
        };
        if changed {
            report(gathered);
        }
    }
}

#[derive(Debug)]
struct Follower {
    paths: Vec<PathBuf>,
    files: Files,
    events: Events,
    /// When to look next, events or not.
    next: Instant,
    /// When to look at what has no events.
    slow: Instant,
}

impl Follower {
    fn new(paths: Vec<PathBuf>) -> Self {
        let now = Instant::now();
        let mut events = Events::new();
        // Watched before anything is read: what changes meanwhile is not missed.
        events.watch(&paths, &gather::walk(&paths));
        Self { paths, files: Files::default(), events, next: now, slow: now + SLOW }
    }

    fn read_all(&mut self) {
        let Self { paths, files, events, .. } = self;
        let walk = || {
            let walk = gather::walk(paths);
            events.watch(paths, &walk);
            walk
        };
        let outcome = read_all(files, walk, &mut |_| {});
        self.next = Instant::now() + outcome.again.unwrap_or(Duration::ZERO);
    }

    /// Looks if there is reason to. Whether what counts changed, and when to look next.
    fn step(&mut self, now: Instant) -> (bool, Instant) {
        let Self { paths, files, events, .. } = self;
        events.drain(&mut files.marks);
        if events.soon {
            self.next = self.next.min(now + AGAIN);
            events.soon = false;
        }
        if !events.urgent && now < self.next {
            return (false, self.next);
        }
        events.urgent = false;
        let manner = if now >= self.slow { Manner::Retry } else { Manner::Patient };
        if manner == Manner::Retry {
            self.slow = now + SLOW;
        }
        let walk = gather::walk(paths);
        let fresh = events.watch(paths, &walk);
        let outcome = files.take_in(&walk, now, manner, &mut |marks| events.drain(marks));
        // What came into a folder before it was watched is there at the next look.
        let again = [fresh.then_some(AGAIN), outcome.again].into_iter().flatten().min();
        self.next = again.map_or(self.slow, |wait| self.slow.min(now + wait));
        (outcome.report, self.next)
    }
}

/// What matters of a folder.
#[derive(Debug, Default)]
struct Interest {
    /// Every manifest and folder in it.
    all: bool,
    /// Entries of these names.
    names: HashSet<OsString>,
}

/// Inotify and what it watches.
#[derive(Debug)]
struct Events {
    /// `None`: this kernel, or this user's limits, allow none.
    inotify: Option<Arc<Inotify>>,
    watched: HashMap<WatchDescriptor, (PathBuf, Interest)>,
    /// Something changed that a look will show.
    urgent: bool,
    /// Something is changing.
    soon: bool,
    warned: bool,
}

impl Events {
    fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let warned = inotify.is_err();
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify (see fs.inotify.max_user_instances): manifests are looked at every 5 s");
        }
        let inotify = inotify.ok().map(Arc::new);
        Self { inotify, watched: HashMap::new(), urgent: false, soon: false, warned }
    }

    /// Watches what the manifests depend on now, and nothing else. Whether some of it was not watched before.
    fn watch(&mut self, paths: &[PathBuf], walk: &Walk) -> bool {
        let Some(inotify) = self.inotify.clone() else { return false };
        let mut wanted: BTreeMap<PathBuf, Interest> = BTreeMap::new();
        for folder in &walk.real_folders {
            wanted.entry(folder.clone()).or_default().all = true;
        }
        for path in paths.iter().chain(&walk.links) {
            trail(path, |folder, name| {
                wanted.entry(folder.to_owned()).or_default().names.insert(name);
            });
        }
        let mut former = std::mem::take(&mut self.watched);
        let mut fresh = false;
        for (folder, interest) in wanted {
            match inotify.add_watch(&folder, mask()) {
                Ok(descriptor) => {
                    fresh |= former.remove(&descriptor).is_none() && !self.watched.contains_key(&descriptor);
                    let entry = self.watched.entry(descriptor).or_insert_with(|| (folder, Interest::default()));
                    entry.1.all |= interest.all;
                    entry.1.names.extend(interest.names);
                }
                // Gone since, which its parent tells.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => self.warn(&folder, error),
            }
        }
        for descriptor in former.into_keys() {
            // It is gone already where its folder is.
            let _ = inotify.rm_watch(descriptor);
        }
        fresh
    }

    fn warn(&mut self, folder: &Path, error: Errno) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                folder = %folder.display(), %error,
                "cannot be watched (see fs.inotify.max_user_watches): it is looked at every 5 s"
            );
        }
    }

    /// Reads all events there are.
    fn drain(&mut self, marks: &mut Marks) {
        let Some(inotify) = self.inotify.clone() else { return };
        while let Ok(events) = inotify.read_events() {
            for event in events {
                self.note(&event, marks);
            }
        }
    }

    fn note(&mut self, event: &InotifyEvent, marks: &mut Marks) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            marks.clear();
            self.urgent = true;
            return;
        }
        let Some((folder, interest)) = self.watched.get(&event.wd) else { return };
        // Of the folder itself: it went, or is another one now.
        let Some(name) = &event.name else {
            self.urgent = true;
            return;
        };
        let has = |mask| event.mask.intersects(mask);
        let entry = has(AddWatchFlags::IN_ISDIR | moves());
        if !interest.matters(name, entry) {
            return;
        }
        let file = folder.join(name);
        if has(AddWatchFlags::IN_ISDIR) {
            self.urgent = true;
        } else if has(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE) {
            marks.written(file);
            self.soon = true;
        } else {
            if has(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO) {
                marks.finished(file);
            }
            self.urgent = true;
        }
    }
}

impl Interest {
    /// Whether an event of this name matters; `entry`: the name as such came, went, or is a folder's.
    fn matters(&self, name: &OsStr, entry: bool) -> bool {
        let path = Path::new(name);
        self.names.contains(name) || (self.all && !is_hidden(path) && (entry || is_manifest(path)))
    }
}

/// Events by which a name comes or goes.
fn moves() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVED_TO
}

/// What to be told; reading a file is none of it.
fn mask() -> AddWatchFlags {
    let content = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
    let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
    moves() | content | itself
}
