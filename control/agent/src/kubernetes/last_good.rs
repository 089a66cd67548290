//! The objects that were seen last, in a file under `state`: a node that starts without an API server serves them.
//!
//! One JSON file, replaced by rename: a reader finds the old or the new one, whole. Instances that follow each other may
//! both want to write it, each what it saw, so that either is right; a lock has them do so one after the other.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};

use super::access::ApiServer;
use super::address_pool::AddressPool;
use super::kinds::Kind;
use super::store::{Entry, Store, Stores};

/// The file's name.
const FILE: &str = "objects.json";
/// How long to wait for another instance that writes: a process that ends does not wait for one that hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon to look again whether it is done.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The file.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    path: PathBuf,
}

/// What it holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
struct Kept {
    services: Vec<Versioned<k8s_openapi::api::core::v1::Service>>,
    endpoint_slices: Vec<Versioned<k8s_openapi::api::discovery::v1::EndpointSlice>>,
    endpoints: Vec<Versioned<k8s_openapi::api::core::v1::Endpoints>>,
    nodes: Vec<Versioned<k8s_openapi::api::core::v1::Node>>,
    #[serde(default)]
    service_ranges: Vec<Versioned<k8s_openapi::api::networking::v1::ServiceCIDR>>,
    #[serde(default)]
    address_pools: Vec<Versioned<AddressPool>>,
    #[serde(default)]
    api_server: ApiServer,
}

#[derive(Deserialize, Serialize)]
struct Versioned<K> {
    version: u64,
    object: K,
}

/// The same to be written: the objects as they were when this was made, whatever becomes of the stores meanwhile.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub(super) struct Keeping {
    #[serde(serialize_with = "each")]
    services: Vec<Entry<k8s_openapi::api::core::v1::Service>>,
    #[serde(serialize_with = "each")]
    endpoint_slices: Vec<Entry<k8s_openapi::api::discovery::v1::EndpointSlice>>,
    #[serde(serialize_with = "each")]
    endpoints: Vec<Entry<k8s_openapi::api::core::v1::Endpoints>>,
    #[serde(serialize_with = "each")]
    nodes: Vec<Entry<k8s_openapi::api::core::v1::Node>>,
    #[serde(serialize_with = "each")]
    service_ranges: Vec<Entry<k8s_openapi::api::networking::v1::ServiceCIDR>>,
    #[serde(serialize_with = "each")]
    address_pools: Vec<Entry<AddressPool>>,
    api_server: ApiServer,
}

impl Keeping {
    pub fn of(stores: &Stores) -> Self {
        Self {
            services: stores.services.entries().cloned().collect(),
            endpoint_slices: stores.slices.entries().cloned().collect(),
            endpoints: stores.endpoints.entries().cloned().collect(),
            nodes: stores.nodes.entries().cloned().collect(),
            service_ranges: stores.service_ranges.entries().cloned().collect(),
            address_pools: stores.pools.entries().cloned().collect(),
            api_server: stores.api_server.clone(),
        }
    }
}

fn each<K: Kind, S: Serializer>(entries: &[Entry<K>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_seq(entries.iter().map(|entry| Versioned { version: entry.version, object: &entry.object.object }))
}

impl LastGood {
    pub fn in_folder(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// What was kept; what cannot be read counts as not there, and is logged.
    pub fn read(&self) -> Option<Stores> {
        let read = File::open(&self.path).and_then(|file| Ok(serde_json::from_reader(BufReader::new(file))?));
        let kept: Kept = match read {
            Ok(kept) => kept,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %self.path.display(), %error, "cannot be read; starting without it");
                }
                return None;
            }
        };
        let mut stores = Stores::default();
        restore(&mut stores.services, kept.services);
        restore(&mut stores.slices, kept.endpoint_slices);
        restore(&mut stores.endpoints, kept.endpoints);
        restore(&mut stores.nodes, kept.nodes);
        restore(&mut stores.service_ranges, kept.service_ranges);
        restore(&mut stores.pools, kept.address_pools);
        stores.api_server = kept.api_server;
        Some(stores)
    }

    /// Keeps these. Whether that went well; if not, it is logged.
    pub fn write(&self, keeping: &Keeping) -> bool {
        let written = self.try_write(keeping);
        if let Err(error) = &written {
            tracing::error!(file = %self.path.display(), %error, "cannot be kept: a start without an API server serves older objects");
        }
        written.is_ok()
    }

    fn try_write(&self, keeping: &Keeping) -> io::Result<()> {
        // By their ids they cannot be told apart: both may be process 1 of a container.
        let _lock = locked(&self.path.with_extension("json.lock"), PATIENCE)?;
        let part = self.path.with_extension("json.part");
        let mut file = BufWriter::new(File::create(&part)?);
        serde_json::to_writer(&mut file, keeping)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(part, &self.path)
    }
}

/// The file, locked until it is dropped.
pub(super) fn locked(path: &Path, patience: Duration) -> io::Result<File> {
    let file = File::create(path)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => std::thread::sleep(LOOK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                let why = format!("another instance holds the lock file `{path}`: end that one if it hangs");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

fn restore<K: Kind>(store: &mut Store<K>, kept: Vec<Versioned<K>>) {
    for Versioned { version, object } in kept {
        store.restore(version, object);
    }
}
