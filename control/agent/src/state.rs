//! What is kept under `state` over restarts: what was given to Services, last good manifests, drained backends,
//! ends of drains, where something is served.
//!
//! Each is a JSON file that is replaced by rename, so that a reader finds the old or the new one, whole; what changed of
//! the large ones since they were written is in a journal beside them.

mod journal;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use translate::{Drained, Given};

use crate::drains::Drains;
use crate::linger::Places;
use crate::manifests::LastGood;
use journal::{Changes, Journal};

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
        // First: whoever makes it part of the others meanwhile writes those before it goes.
        let changes = Journal::in_folder(&self.folder).read();
        let mut kept = Kept {
            given: self.read("given.json"),
            last_good: self.read("last-good.json"),
            drained: self.read("drained.json"),
            drains: self.read("drains.json"),
            places: self.read("places.json"),
        };
        journal::replay(changes, &mut kept);
        kept
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
        let changes = Changes::between(former, kept);
        let whole = !changes.is_empty() && self.is_to_be_whole(&changes, kept)?;
        let but_endpoints = |given: &Given| Given { endpoints: Arc::default(), ..given.clone() };
        if whole || but_endpoints(&former.given) != but_endpoints(&kept.given) {
            self.write("given.json", &kept.given)?;
        }
        if whole {
            self.write("last-good.json", &kept.last_good)?;
            Journal::in_folder(&self.folder).clear()?;
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

    /// Whether these changes are to be kept by writing all; else they are in the journal.
    fn is_to_be_whole(&self, changes: &Changes, kept: &Kept) -> io::Result<bool> {
        let journal = Journal::in_folder(&self.folder);
        let most = changes.are_most_of(kept);
        // What is in the journal is taken in over the rest, so it may not fall behind.
        Ok(if most && !journal.exists() { true } else { journal.append(changes)? || most })
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let (path, part) = (self.folder.join(name), self.folder.join(format!("{name}.part")));
        // Piece by piece: the whole text of it may be as large as what it is of.
        let mut file = BufWriter::new(fs::File::create(&part)?);
        serde_json::to_writer_pretty(&mut file, value)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(part, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_rubbish_does_not_stop_a_start() {
        let folder = std::env::temp_dir().join(format!("millrace-state-{}", std::process::id()));
        let state = State::open(&folder).unwrap();
        assert_eq!(state.load(), Kept::default());
        let mut kept = Kept::default();
        Arc::make_mut(&mut kept.given.node_ports).insert("default/web/TCP/".into(), 30001);
        Arc::make_mut(&mut kept.last_good.0).insert("a.yaml".into(), "text".into());
        kept.drained.insert(Drained { address: "10.0.0.1".parse().unwrap(), port: Some(80) });
        state.save(&Kept::default(), &kept).unwrap();
        assert_eq!(state.load(), kept);
        fs::write(folder.join("given.json"), "{\"rub").unwrap();
        assert_eq!(state.load(), Kept { given: Given::default(), ..kept });
        fs::remove_dir_all(folder).unwrap();
    }

    /// What is kept where every Service's file has this text and its endpoint this address.
    fn kept(services: &[(u8, u8)]) -> Kept {
        let mut kept = Kept::default();
        for (name, n) in services {
            let address = [10, 0, 0, *n].into();
            Arc::make_mut(&mut kept.last_good.0).insert(format!("{name}.yaml").into(), format!("n: {n}").into());
            Arc::make_mut(&mut kept.given.endpoints).insert(name.to_string().into(), Arc::new([address].into()));
        }
        kept
    }

    #[test]
    fn one_change_of_many_is_a_line_in_the_journal_and_comes_back_whatever_was_cut_off_behind_it() {
        let folder = std::env::temp_dir().join(format!("millrace-journal-{}", std::process::id()));
        let state = State::open(&folder).unwrap();
        let journal = folder.join("changes.jsonl");
        let mut services: Vec<(u8, u8)> = (0..9).map(|name| (name, 0)).collect();
        let mut saved = kept(&services);
        state.save(&Kept::default(), &saved).unwrap();
        assert!(!journal.exists(), "all of it is new");
        let before = fs::read(folder.join("last-good.json")).unwrap();
        for turn in 1..20 {
            match turn % 5 {
                4 => drop(services.pop()),
                _ => services[usize::from(turn) % 4].1 = turn,
            }
            let mut now = kept(&services);
            if turn == 7 {
                Arc::make_mut(&mut now.given.node_ports).insert("default/web/TCP/".into(), 30001);
            } else {
                now.given.node_ports = Arc::clone(&saved.given.node_ports);
            }
            state.save(&saved, &now).unwrap();
            assert_eq!(state.load(), now, "turn {turn}");
            assert_eq!(fs::read(folder.join("last-good.json")).unwrap(), before);
            saved = now;
        }
        fs::write(&journal, [fs::read(&journal).unwrap(), b"{\"lastGood\": {\"1.yaml\"".to_vec()].concat()).unwrap();
        assert_eq!(state.load(), saved, "what was cut off is left out");
        let given = saved.given.node_ports.clone();
        services[0].1 = 99;
        let mut now = kept(&services);
        now.given.node_ports = given;
        state.save(&saved, &now).unwrap();
        assert_eq!(state.load(), now, "and what comes after it counts");
        state.save(&now, &kept(&[(200, 1)])).unwrap();
        assert!(!journal.exists(), "most of it changed");
        assert_eq!(state.load(), kept(&[(200, 1)]));
        fs::remove_dir_all(folder).unwrap();
    }
}
