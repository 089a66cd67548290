//! The key of heartbeats: a file, mostly of a mounted Secret, that is read again when it changes.
//!
//! Each line is a key; the first signs, all are taken, so that a key can be changed while nodes have different files for
//! a while.

use std::fs;
use std::path::{Path, PathBuf};

use members::datagram::Keys;

/// The file, and what it said when it was last sound.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    text: Vec<u8>,
    keys: Keys,
    /// Whether it was said that it cannot be used.
    told: bool,
}

/// What a key file is made by.
const HINT: &str = "expected a file with 16 octets or more that every node has, such as a mounted Secret of `kubectl \
                    create secret generic millrace-heartbeat --from-literal=key=$(openssl rand -hex 32)`";

impl KeyFile {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn open(path: &Path) -> Result<Self, String> {
        let (text, keys) = read(path)?;
        Ok(Self { path: path.to_owned(), text, keys, told: false })
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Reads it again; what cannot be used changes nothing.
    pub fn follow(&mut self) {
        match read(&self.path) {
            Ok((text, keys)) => {
                if text != self.text {
                    tracing::info!(file = %self.path.display(), "the key of heartbeats changed");
                    (self.text, self.keys) = (text, keys);
                }
                self.told = false;
            }
            Err(why) if !self.told => {
                tracing::error!("heartbeat.key: {why}; the key as it was goes on");
                self.told = true;
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, Keys), String> {
    let said = |why: String| format!("{}: {why}, {HINT}", path.display());
    let text = fs::read(path).map_err(|error| said(error.to_string()))?;
    let keys = Keys::parse(&text).map_err(said)?;
    Ok((text, keys))
}

#[cfg(test)]
mod tests {
    use members::Standing;
    use members::datagram::{Datagram, Place};

    use super::*;

    fn is_taken(from: &KeyFile, by: &KeyFile) -> bool {
        let datagram = Datagram {
            name: "n1".to_owned(),
            standing: Standing::Member,
            from: Place { boot: 1, counter: 1 },
            heard: Place::default(),
            generation: 1,
            have: 0,
            macs: Vec::new(),
            part: 0,
            parts: 0,
            addresses: Vec::new(),
        };
        Datagram::read(&datagram.write(from.keys()), by.keys()).is_ok()
    }

    #[test]
    fn a_key_that_changes_is_read_again_and_one_that_is_none_changes_nothing() {
        let path = std::env::temp_dir().join(format!("millrace-key-{}", std::process::id()));
        assert!(KeyFile::open(&path).unwrap_err().contains("kubectl create secret"));
        fs::write(&path, "short\n").unwrap();
        assert!(KeyFile::open(&path).unwrap_err().contains("5 octets"));
        fs::write(&path, "a key that is long enough\n").unwrap();
        let (former, mut follows) = (KeyFile::open(&path).unwrap(), KeyFile::open(&path).unwrap());
        fs::write(&path, "\n").unwrap();
        follows.follow();
        assert!(is_taken(&former, &follows));
        fs::write(&path, "another key that is as long\n").unwrap();
        follows.follow();
        assert!(!is_taken(&former, &follows) && is_taken(&KeyFile::open(&path).unwrap(), &follows));
        fs::remove_file(&path).unwrap();
    }
}
