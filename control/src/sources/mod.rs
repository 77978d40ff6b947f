//! Where manifests come from.
//!
//! A [`Source`] holds what it last read, so that something broken never takes away what was
//! right before. [`directory`] is the source on a node without an API server; another one only
//! has to deliver [`View`]s.

pub mod directory;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifests::{Manifest, ManifestKey};

/// Something that knows the manifests and notices when they change.
pub trait Source: Send {
    /// Waits until something has changed, at most `timeout`, and says what there is now. The
    /// first call answers at once. `None`: nothing has changed.
    fn wait(&mut self, timeout: Duration) -> Option<View>;
}

/// Everything a source knows at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The manifests, each with the place it comes from (a file's path).
    pub manifests: BTreeMap<ManifestKey, (Manifest, String)>,
    /// What could not be read or is not used, and why.
    pub problems: Vec<Problem>,
    /// What was read and is not used, in plain words.
    pub notes: Vec<String>,
    /// Is something missing here that may well exist (a file that was broken from the start)?
    /// Then what is absent from `manifests` must not be taken for removed.
    pub incomplete: bool,
}

/// Something that is wrong with the desired state, for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where: a file with line and column as far as known.
    pub place: String,
    /// What is wrong and what stays in force.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}
