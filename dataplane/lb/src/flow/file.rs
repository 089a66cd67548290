//! The file that flows, ids and affinity live in: opened, judged, adopted or moved, and locked while in use.
//!
//! A process may be killed at any time and leaves a file that the next one can load: entries and ids count from their
//! last store on, a new file counts from its header's last store on, and a file whose sizes must change is written anew
//! beside the old one and takes its name when it is whole. A file that is not ours (its first octets say) is never
//! written to, moved or removed. Ends of a flow that the kernel outlives (a reboot) mean
//! nothing, so a file of another boot is started over.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use arena::{ArenaError, Mapping, Pages};
use siphasher::sip::SipHasher13;
use wire::Addr;
use zerocopy::{FromZeros, IntoBytes};

use crate::affinity::Affinity;
use crate::directory::Directory;
use crate::flow::key::FlowHasher;
use crate::flow::layout::{Header, MAGIC, PAGE, Parts, Sizes};
use crate::flow::table::FlowTable;
use crate::health::Health;
use crate::id::WorkerId;
use crate::rates::SourceRates;
use crate::registry::Registry;
use crate::shared::{Shared, SharedParts};
use crate::snat::{BLOCKS_PER_ADDRESS, PortBlocks};
use crate::sources::SourceLimits;
use crate::tally::Tally;

/// The file's name in the runtime folder.
const NAME: &str = "flows";
/// The name of a file that is being written.
const NEW_NAME: &str = "flows.new";
/// How often the file may be renamed away while it is being opened.
const OPEN_TRIES: usize = 8;

/// Why the flow file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FlowFileError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else's file has its name.
    #[error("{} is not a flow file: move it away, or choose another runtime folder", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The folder's file system has no room for it.
    #[error(
        "{}: no room for the flow file of {} MiB ({flows} flows for each of {workers} workers): make the file system \
         larger (a tmpfs by `mount -o remount,size=SIZE`), choose another `runtime`, or lower `limits.flows`",
        folder.display(), octets.div_ceil(1 << 20)
    )]
    Room {
        /// Where it would be.
        folder: PathBuf,
        /// Its size.
        octets: usize,
        /// The configuration's.
        flows: usize,
        /// The configuration's.
        workers: usize,
    },
    /// It cannot be mapped.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Numbers of workers, flows, services, backends or SNAT addresses that cannot be.
    #[error("the flow table cannot have these sizes: {0}")]
    Sizes(String),
}

/// How large the file's parts are and whose it is.
#[derive(Clone, Debug)]
pub struct FlowFileConfig {
    /// 1 to [`WorkerId::MAX`].
    pub workers: usize,
    /// Most flows, over all workers.
    pub flows: usize,
    /// Most Service ports, to [`crate::ServiceId::MAX`].
    pub services: usize,
    /// Most endpoints of Service ports, to [`crate::BackendId::MAX`].
    pub backends: usize,
    /// SNAT addresses; the place here is [`crate::tables::SnatAddress::index`].
    pub snat: Vec<Addr>,
    /// How many of them, at the end, are the kernel port's.
    pub kernel_snat: usize,
    /// How many sources session affinity remembers.
    pub affinity_sources: usize,
    /// The kernel's boot id: flows do not outlive it.
    pub boot_id: [u8; 16],
    /// Fresh random octets: the secret of hashes, where the file is started over.
    pub secret: [u8; 16],
    /// Which pages to ask for, for flows and their index.
    pub pages: Pages,
}

impl Default for FlowFileConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            flows: 1_000_000,
            services: 1 << 16,
            backends: 1 << 18,
            snat: Vec::new(),
            kernel_snat: 0,
            affinity_sources: 1 << 18,
            boot_id: [0; 16],
            secret: [0; 16],
            pages: Pages::Huge,
        }
    }
}

impl FlowFileConfig {
    fn sizes(&self) -> Result<Sizes, FlowFileError> {
        let sizes = Sizes {
            workers: self.workers,
            flows: self.flows,
            services: self.services,
            backends: self.backends,
            snat: self.snat.len(),
            affinity_sources: self.affinity_sources,
        };
        if sizes.are_sound() { Ok(sizes) } else { Err(FlowFileError::Sizes(format!("{sizes:?}"))) }
    }

    /// Whether a file could be made of this, without touching any.
    ///
    /// # Errors
    /// [`FlowFileError::Sizes`].
    pub fn check(&self) -> Result<(), FlowFileError> {
        self.sizes().map(drop)
    }

    fn secret_words(&self) -> [u64; 2] {
        let (low, high) = (u128::from_le_bytes(self.secret) as u64, (u128::from_le_bytes(self.secret) >> 64) as u64);
        [low, high]
    }
}

/// Why the flows of a file were not gone on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discarded {
    /// There was no file, or none that was ever whole.
    None,
    /// It is of another version of this program.
    OtherLayout,
    /// The machine was started anew since.
    OtherBoot,
}

/// What opening gave.
#[derive(Debug)]
pub struct Opened {
    /// Ids, for the control thread.
    pub registry: Registry,
    /// What the workers share.
    pub shared: Arc<Shared>,
    /// One for each worker, in their order.
    pub tables: Vec<FlowTable>,
    /// Flows that go on.
    pub adopted: usize,
    /// Flows that were not whole, or whose SNAT address is gone.
    pub dropped: usize,
    /// Why there was nothing to go on with; `None` if there was.
    pub discarded: Option<Discarded>,
}

/// Room for a flow file, taken while another process may still have the one that is there.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    /// The file that will take the place of the one that is there; `None` if that stays.
    spare: Option<File>,
}

impl Room {
    /// The new file, of which nothing is written yet.
    fn take(&mut self, sizes: &Sizes, config: &FlowFileConfig) -> Result<File, FlowFileError> {
        match self.spare.take() {
            Some(file) => Ok(file),
            None => new_file(&self.folder, sizes, config),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.spare.is_some() {
            let _ = fs::remove_file(self.folder.join(NEW_NAME));
        }
    }
}

/// Opens flow files.
#[derive(Debug)]
pub struct FlowFile;

impl FlowFile {
    /// Takes the room that the flow file will need in its folder. Another process may have it and goes on.
    ///
    /// # Errors
    /// [`FlowFileError::Room`] if there is none; others where the system refuses or the sizes cannot be.
    pub fn make_room(folder: &Path, config: &FlowFileConfig) -> Result<Room, FlowFileError> {
        let sizes = config.sizes()?;
        let path = folder.join(NAME);
        let in_path = |source| FlowFileError::Io { path: path.clone(), source };
        let stays = match File::options().read(true).write(true).open(&path) {
            Ok(file) => {
                check_ours(&path, &file)?;
                fits(&file, &sizes, config).map_err(in_path)?.then_some(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(in_path(error)),
        };
        let spare = match stays {
            Some(file) => {
                allocate(&file, &sizes, folder, config)?;
                None
            }
            None => Some(new_file(folder, &sizes, config)?),
        };
        Ok(Room { folder: folder.to_owned(), spare })
    }

    /// Opens (or makes) the flow file in a folder, and takes up its flows.
    ///
    /// # Errors
    /// [`FlowFileError::InUse`] while another process has it, [`FlowFileError::Foreign`] if it is none; others where the
    /// system refuses or the sizes cannot be.
    pub fn open(folder: &Path, config: &FlowFileConfig) -> Result<Opened, FlowFileError> {
        Self::open_in(&mut Self::make_room(folder, config)?, config)
    }

    /// The same with the room that was made for it.
    ///
    /// # Errors
    /// As [`FlowFile::open`].
    pub fn open_in(room: &mut Room, config: &FlowFileConfig) -> Result<Opened, FlowFileError> {
        let sizes = config.sizes()?;
        let path = room.folder.join(NAME);
        // Locked to the end: nobody else may make a file of that name meanwhile.
        let file = open_locked(&path)?;
        check_ours(&path, &file)?;
        let in_path = |source| FlowFileError::Io { path: path.clone(), source };
        let old = match judge(&file, config).map_err(in_path)? {
            Ok(old) => old,
            Err(why) => {
                let new = room.take(&sizes, config)?;
                let parts = start(&new, &sizes, config, config.secret_words())?;
                give_name(&room.folder)?;
                return assemble(parts, config, Some(new), Some(why));
            }
        };
        allocate(&file, &old, &room.folder, config)?;
        let parts = Parts::cut(Mapping::file(&file, old.file_len(), config.pages)?, &old)?;
        if old == sizes && parts.snat[..config.snat.len()] == config.snat[..] {
            return assemble(parts, config, Some(file), None);
        }
        let new = room.take(&sizes, config)?;
        let parts = relocate(&new, &parts, &sizes, config)?;
        give_name(&room.folder)?;
        assemble(parts, config, Some(new), None)
    }

    /// The flow files in a folder: the one in use, and one that a change of sizes left unfinished.
    ///
    /// # Errors
    /// [`FlowFileError::Foreign`] if something else has such a name, [`FlowFileError::Io`] if that cannot be told.
    pub fn find(folder: &Path) -> Result<Vec<PathBuf>, FlowFileError> {
        let mut found = Vec::new();
        for path in [NAME, NEW_NAME].map(|name| folder.join(name)) {
            match fs::symlink_metadata(&path) {
                Ok(entry) if entry.is_file() => {
                    let file = File::open(&path).map_err(|source| FlowFileError::Io { path: path.clone(), source })?;
                    check_ours(&path, &file)?;
                    found.push(path);
                }
                Ok(_) => return Err(FlowFileError::Foreign { path }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(FlowFileError::Io { path, source }),
            }
        }
        Ok(found)
    }

    /// Whether a process has the flow file in a folder open.
    #[must_use]
    pub fn in_use(folder: &Path) -> bool {
        File::open(folder.join(NAME)).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The same without a file: nothing outlives the process. For tests and simulations.
    ///
    /// # Errors
    /// [`FlowFileError::Arena`] or [`FlowFileError::Sizes`].
    pub fn in_memory(config: &FlowFileConfig) -> Result<Opened, FlowFileError> {
        let sizes = config.sizes()?;
        let mut parts = Parts::cut(Mapping::anonymous(sizes.file_len(), config.pages)?, &sizes)?;
        parts.header[0] = Header::new(&sizes, config.boot_id, config.secret_words());
        assemble(parts, config, None, Some(Discarded::None))
    }
}

/// Opens the file and locks it, so that it is still the one of that name.
fn open_locked(path: &Path) -> Result<File, FlowFileError> {
    let error = |source| FlowFileError::Io { path: path.to_path_buf(), source };
    for _ in 0..OPEN_TRIES {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FlowFileError::InUse { path: path.to_path_buf() }),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let here = file.metadata().map_err(error)?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => return Ok(file),
            // Renamed over or removed since it was opened: look again.
            _ => {}
        }
    }
    Err(FlowFileError::InUse { path: path.to_path_buf() })
}

/// An empty file beside the flow file, with the room that it will take.
fn new_file(folder: &Path, sizes: &Sizes, config: &FlowFileConfig) -> Result<File, FlowFileError> {
    let path = folder.join(NEW_NAME);
    // What a dead process left is emptied once it is surely nobody's.
    let file = open_locked(&path)?;
    check_ours(&path, &file)?;
    let emptied = begin(&file).map_err(|source| FlowFileError::Io { path: path.clone(), source });
    emptied.and_then(|()| allocate(&file, sizes, folder, config)).inspect_err(|_| drop(fs::remove_file(&path)))?;
    Ok(file)
}

/// Takes a file's room.
fn allocate(file: &File, sizes: &Sizes, folder: &Path, config: &FlowFileConfig) -> Result<(), FlowFileError> {
    let octets = sizes.file_len();
    arena::allocate(file, octets).map_err(|error| match &error {
        ArenaError::Size { source, .. } if no_room(source) => {
            FlowFileError::Room { folder: folder.to_owned(), octets, flows: config.flows, workers: config.workers }
        }
        _ => FlowFileError::Arena(error),
    })
}

fn no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory)
}

/// Gives the new file the flow file's name.
fn give_name(folder: &Path) -> Result<(), FlowFileError> {
    let path = folder.join(NEW_NAME);
    fs::rename(&path, folder.join(NAME)).map_err(|source| FlowFileError::Io { path, source })
}

/// Whether a file can be gone on with as it is.
fn fits(file: &File, sizes: &Sizes, config: &FlowFileConfig) -> io::Result<bool> {
    if judge(file, config)? != Ok(*sizes) {
        return Ok(false);
    }
    let mut snat = vec![Addr::UNSPECIFIED; config.snat.len()];
    file.read_exact_at(snat.as_mut_bytes(), PAGE as u64)?;
    Ok(snat == config.snat)
}

/// Refuses a file whose first octets are not those of a flow file. An empty one that nobody else may read is ours: a
/// process that was killed right after making it left it so.
fn check_ours(path: &Path, file: &File) -> Result<(), FlowFileError> {
    let error = |source| FlowFileError::Io { path: path.to_path_buf(), source };
    let entry = file.metadata().map_err(error)?;
    let mut front = [0; MAGIC.len()];
    let ours = match entry.len() {
        0 => entry.permissions().mode() & 0o077 == 0,
        _ => file.read_at(&mut front, 0).map_err(error)? == MAGIC.len() && front == MAGIC,
    };
    if entry.is_file() && ours { Ok(()) } else { Err(FlowFileError::Foreign { path: path.to_path_buf() }) }
}

/// Empties a file and marks it as ours; without more it counts as none.
fn begin(file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(&MAGIC, 0)
}

/// What a file has: the sizes of one to go on with, or why it is not.
fn judge(file: &File, config: &FlowFileConfig) -> io::Result<Result<Sizes, Discarded>> {
    let mut header = Header::new_zeroed();
    let len = file.metadata()?.len();
    if len < size_of::<Header>() as u64 {
        return Ok(Err(Discarded::None));
    }
    file.read_exact_at(header.as_mut_bytes(), 0)?;
    if !header.is_ready() {
        return Ok(Err(Discarded::None));
    }
    let Some(sizes) = header.sizes().filter(|sizes| sizes.file_len() as u64 == len) else {
        return Ok(Err(Discarded::OtherLayout));
    };
    Ok(if header.boot_id == config.boot_id { Ok(sizes) } else { Err(Discarded::OtherBoot) })
}

/// Makes an empty file whole.
fn start(file: &File, sizes: &Sizes, config: &FlowFileConfig, secret: [u64; 2]) -> Result<Parts, FlowFileError> {
    let mut parts = Parts::cut(Mapping::file(file, sizes.file_len(), config.pages)?, sizes)?;
    parts.snat[..config.snat.len()].copy_from_slice(&config.snat);
    finish(&mut parts, sizes, config, secret);
    Ok(parts)
}

/// Writes the header, after all else.
fn finish(parts: &mut Parts, sizes: &Sizes, config: &FlowFileConfig, secret: [u64; 2]) {
    compiler_fence(Ordering::SeqCst);
    parts.header[0] = Header::new(sizes, config.boot_id, secret);
    compiler_fence(Ordering::SeqCst);
}

/// Makes a new file whole with all flows of an old one of other sizes, moved to their new owners.
///
/// The new owner is the old one's number modulo the new count: a port block's flows have one owner and stay together.
/// What finds no room in fewer slots is dropped.
fn relocate(file: &File, old: &Parts, sizes: &Sizes, config: &FlowFileConfig) -> Result<Parts, FlowFileError> {
    let mut new = Parts::cut(Mapping::file(file, sizes.file_len(), config.pages)?, sizes)?;
    new.snat[..config.snat.len()].copy_from_slice(&config.snat);
    for (from, to) in [(&old.services, &mut new.services), (&old.backends, &mut new.backends)] {
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
    }
    // When the ports of an address were used last; who owns which is settled by the flows.
    for (i, address) in config.snat.iter().enumerate() {
        let Some(was) = old.snat.iter().position(|known| known == address) else { continue };
        let words = |n: usize| n * BLOCKS_PER_ADDRESS..(n + 1) * BLOCKS_PER_ADDRESS;
        for (from, to) in old.owners[words(was)].iter().zip(&new.owners[words(i)]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    // The buckets of another size are other ones, so affinity goes along only where the size stays.
    if old.affinity.len() == new.affinity.len() {
        for (from, to) in old.affinity.iter().zip(&new.affinity[..]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    for (worker, region) in old.regions.iter().enumerate() {
        let owner = worker % sizes.workers;
        let high = (old.high_water[worker][0] as usize).min(region.len());
        for entry in region[..high].iter().filter(|entry| entry.is_committed()) {
            let at = new.high_water[owner][0];
            if let Some(slot) = new.regions[owner].get_mut(at as usize) {
                *slot = *entry;
                new.high_water[owner][0] = at + 1;
            }
        }
    }
    finish(&mut new, sizes, config, old.header[0].secret);
    Ok(new)
}

/// Builds what is in memory alone over a file's parts, and takes up the flows.
fn assemble(
    parts: Parts,
    config: &FlowFileConfig,
    file: Option<File>,
    discarded: Option<Discarded>,
) -> Result<Opened, FlowFileError> {
    let secret = parts.header[0].secret;
    let derived = |purpose: u64| {
        let hasher = SipHasher13::new_with_keys(secret[0], secret[1]);
        let half = |n: u8| hasher.hash(&[&purpose.to_le_bytes()[..], &[n]].concat());
        (half(0), half(1))
    };
    let shared = Arc::new(Shared::new(SharedParts {
        directory: Directory::new(config.flows, config.workers, config.pages)?,
        blocks: PortBlocks::over(config.snat.clone(), config.kernel_snat, parts.owners),
        affinity: Affinity::over(parts.affinity, derived(1)),
        sources: SourceLimits::new(config.flows.clamp(1 << 10, 1 << 20), config.workers, derived(2), config.pages)?,
        rates: SourceRates::new(config.flows.clamp(1 << 10, 1 << 16), derived(3), config.pages)?,
        health: Health::new(config.backends)?,
        tallies: (0..config.workers).map(|_| Tally::new(config.services, config.backends)).collect::<Result<_, _>>()?,
        services: config.services,
        flow_limit: config.flows,
        file,
    }));
    let registry = Registry::new(parts.services, parts.backends, Arc::clone(&shared));
    let (mut adopted, mut dropped) = (0, 0);
    let mut tables = Vec::with_capacity(config.workers);
    for (worker, (entries, high_water)) in parts.regions.into_iter().zip(parts.high_water).enumerate() {
        let worker = WorkerId(worker as u8);
        let mut table =
            FlowTable::over(worker, entries, high_water, FlowHasher::new(secret), Arc::clone(&shared), config.pages)?;
        let (some, lost) = table.adopt();
        adopted += some;
        dropped += lost;
        tables.push(table);
    }
    Ok(Opened { registry, shared, tables, adopted, dropped, discarded })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
