//! Manifests: which files there are, what is in them, and what was in them when they were last sound.
//!
//! A file is all or nothing: while it has an error, what it said when it was last sound counts; a file that was never
//! sound contributes what is sound in it. What cannot be read, is empty or is being written counts by what it said
//! before. Only a file that is gone from a folder that is there takes its objects along.
//!
//! `gather` looks at the file system, `settle` decides what of that to take in and when, `watch` runs both on a thread
//! of their own; `judge` is pure.

mod gather;
mod judge;
mod settle;
#[cfg(test)]
mod tests;
mod trail;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use translate::{Finding, Severity};

pub use judge::{Former, Judged, judge, judge_after};
pub use settle::{check_paths, gather};
pub use watch::Watch;

/// Files by path, each with its text.
pub type Texts = BTreeMap<Arc<str>, Arc<str>>;

/// The texts that were sound when they were last read; kept under `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood(pub Arc<Texts>);

/// Why a file's text is not what the file holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing but blanks, comments and separators: no manifest, but no deletion either.
    Empty,
    /// It cannot be read: (line, what is wrong and what was expected).
    Unreadable(u32, String),
}

/// What the file system gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Each file's text, of a file in trouble the one that it had before.
    pub texts: Arc<Texts>,
    /// Files that are there and give no text.
    pub troubles: BTreeMap<String, Trouble>,
    /// Files and folders whose files are neither there nor known to be deleted, and why.
    pub lost: BTreeMap<PathBuf, String>,
}

impl Gathered {
    /// Whether this file is one of those that only seem to be gone.
    fn is_lost(&self, file: &str) -> bool {
        self.lost.keys().any(|scope| Path::new(file).starts_with(scope))
    }

    /// What is wrong with files and folders as such. `known` says whether a file had objects before.
    fn findings(&self, known: impl Fn(&str) -> bool) -> Vec<Finding> {
        let finding = |file: String, line: u32, message: String| {
            let field = "file".to_owned();
            Finding { file, line, field, message, severity: Severity::Error }
        };
        let lost = self.lost.iter().map(|(path, why)| finding(path.display().to_string(), 1, why.clone()));
        let troubles = self.troubles.iter().filter_map(|(file, trouble)| match trouble {
            Trouble::Empty if !known(file) => None,
            Trouble::Empty => {
                let message = "empty, expected manifests: delete the file to remove its objects";
                Some(finding(file.clone(), 1, message.to_owned()))
            }
            Trouble::Unreadable(line, message) => Some(finding(file.clone(), *line, message.clone())),
        });
        lost.chain(troubles).collect()
    }
}
