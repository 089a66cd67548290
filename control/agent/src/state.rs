//! What is kept under `state` over restarts: what was given to Services, last good manifests, drained backends,
//! ends of drains, where something is served.
//!
//! Each is a JSON file that is replaced by rename, so that a reader finds the old or the new one, whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use translate::{Drained, Given};

use crate::drains::Drains;
use crate::linger::Places;
use crate::manifests::LastGood;

/// The folder.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

/// What was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Addresses and ports given.
    pub given: Given,
    /// Texts of manifests when they were sound.
    pub last_good: LastGood,
    /// Backends that get no new flows by order.
    pub drained: BTreeSet<Drained>,
    /// When removed endpoints give up their flows.
    pub drains: Drains,
    /// Where something is served, and was as long as flows go there.
    pub places: Places,
}

impl State {
    /// In this folder, which is made.
    ///
    /// # Errors
    /// If it cannot be made, or no file can be made in it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let probe = folder.join(format!(".probe.{}", std::process::id()));
        fs::File::create(&probe)?;
        fs::remove_file(probe)?;
        Ok(Self::at(folder))
    }

    /// In this folder, to be read alone; it need not be there.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// What is there; what cannot be read counts as not there, and is logged.
    #[must_use]
    pub fn load(&self) -> Kept {
        Kept {
            given: self.read("given.json"),
            last_good: self.read("last-good.json"),
            drained: self.read("drained.json"),
            drains: self.read("drains.json"),
            places: self.read("places.json"),
        }
    }

    fn read<T: DeserializeOwned + Default>(&self, name: &str) -> T {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "is not what was written there; starting without it");
                T::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %path.display(), %error, "cannot be read; starting without it");
                }
                T::default()
            }
        }
    }

    /// Keeps what differs from `former`.
    ///
    /// # Errors
    /// If a file cannot be written; the old one is whole then.
    pub fn save(&self, former: &Kept, kept: &Kept) -> io::Result<()> {
        if former.given != kept.given {
            self.write("given.json", &kept.given)?;
        }
        if former.last_good != kept.last_good {
            self.write("last-good.json", &kept.last_good)?;
        }
        if former.drained != kept.drained {
            self.write("drained.json", &kept.drained)?;
        }
        if former.drains != kept.drains {
            self.write("drains.json", &kept.drains)?;
        }
        if former.places != kept.places {
            self.write("places.json", &kept.places)?;
        }
        Ok(())
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let (path, part) = (self.folder.join(name), self.folder.join(format!("{name}.part")));
        let mut file = fs::File::create(&part)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(part, path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_rubbish_does_not_stop_a_start() {
        let folder = std::env::temp_dir().join(format!("millrace-state-{}", std::process::id()));
        let state = State::open(&folder).unwrap();
        assert_eq!(state.load(), Kept::default());
        let mut kept = Kept::default();
        Arc::make_mut(&mut kept.given.node_ports).insert("default/web/TCP/".into(), 30001);
        kept.last_good.0.insert("a.yaml".into(), "text".into());
        kept.drained.insert(Drained { address: "10.0.0.1".parse().unwrap(), port: Some(80) });
        state.save(&Kept::default(), &kept).unwrap();
        assert_eq!(state.load(), kept);
        fs::write(folder.join("given.json"), "{\"rub").unwrap();
        assert_eq!(state.load(), Kept { given: Given::default(), ..kept });
        fs::remove_dir_all(folder).unwrap();
    }
}
