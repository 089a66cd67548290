//! What is wrong with a manifest, and where.

use std::fmt;

use serde::Serialize;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be served as written: `check` exits 2, and a running instance keeps its last good state.
    Error,
    /// It is served, but not all of it, or not as the API server would.
    Warning,
}

/// One thing that is wrong or surprising in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Finding {
    /// The file's path as given in [`Source`](crate::Source), or what an object is (see [`Located::of_api`](crate::Located::of_api)).
    pub file: String,
    /// The line, from 1; 0 where the file, or the object, as a whole is meant.
    pub line: u32,
    /// The field's path, such as `spec.ports[0].port`.
    pub field: String,
    /// What is there, and what was expected.
    pub message: String,
    /// How grave it is.
    pub severity: Severity,
}

impl Finding {
    /// Whether the object cannot be served as written.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    /// `file:line: field: what, expected what`; warnings say that they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_error() { "" } else { "warning: " };
        write!(f, "{}: {}: {mark}{}", place(&self.file, self.line), self.field, self.message)
    }
}

/// `file:line`; the file alone where no line is meant, as for an object of an API server.
pub(crate) fn place(file: &str, line: u32) -> String {
    if line == 0 { file.to_owned() } else { format!("{file}:{line}") }
}
