//! The objects that were seen last, in a file under `state`: a node that starts without an API server serves them.
//!
//! One JSON file, replaced by rename: a reader finds the old or the new one, whole. Instances that follow each other may
//! write it at the same time, each what it saw, so that either is right.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::kinds::Kind;
use super::store::{Store, Stores};

/// The file's name.
const FILE: &str = "objects.json";

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
}

#[derive(Deserialize, Serialize)]
struct Versioned<K> {
    version: u64,
    object: K,
}

/// The same to be written, without a copy.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
struct Keeping<'s> {
    #[serde(serialize_with = "each")]
    services: &'s Store<k8s_openapi::api::core::v1::Service>,
    #[serde(serialize_with = "each")]
    endpoint_slices: &'s Store<k8s_openapi::api::discovery::v1::EndpointSlice>,
    #[serde(serialize_with = "each")]
    endpoints: &'s Store<k8s_openapi::api::core::v1::Endpoints>,
    #[serde(serialize_with = "each")]
    nodes: &'s Store<k8s_openapi::api::core::v1::Node>,
}

fn each<K: Kind, S: Serializer>(store: &&Store<K>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_seq(store.entries().map(|entry| Versioned { version: entry.version, object: &entry.object.object }))
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
        Some(stores)
    }

    /// Keeps these.
    pub fn write(&self, stores: &Stores) {
        if let Err(error) = self.try_write(stores) {
            tracing::error!(file = %self.path.display(), %error, "cannot be kept: a start without an API server serves older objects");
        }
    }

    fn try_write(&self, stores: &Stores) -> io::Result<()> {
        let part = self.path.with_extension(format!("json.{}.part", std::process::id()));
        let keeping = Keeping {
            services: &stores.services,
            endpoint_slices: &stores.slices,
            endpoints: &stores.endpoints,
            nodes: &stores.nodes,
        };
        let mut file = BufWriter::new(File::create(&part)?);
        serde_json::to_writer(&mut file, &keeping)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(part, &self.path)
    }
}

fn restore<K: Kind>(store: &mut Store<K>, kept: Vec<Versioned<K>>) {
    for Versioned { version, object } in kept {
        store.restore(version, object);
    }
}
