//! Where manifests come from.
//!
//! A [`Source`] holds what it last read, so that something broken never takes away what was
//! right before. [`directory`] is the source on a node without an API server; another one only
//! has to deliver [`Update`]s.

pub mod directory;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifests::{Manifest, ManifestKey, PodManifest};

/// Something that knows the manifests and notices when they change.
pub trait Source: Send {
    /// Waits until something has changed, at most `timeout`, and says what. The first call
    /// answers at once, with everything. `None`: nothing has changed.
    fn wait(&mut self, timeout: Duration) -> Option<Update>;
}

/// A manifest, and the place it comes from (a file's path).
pub type Placed = (Manifest, String);

/// What has changed since the last update.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    /// Manifests that are new or another than before; `None`: it is there no more.
    pub changes: BTreeMap<ManifestKey, Option<Placed>>,
    /// All that could not be read or is not used, and why.
    pub problems: Vec<Problem>,
    /// All that was read and is not used, in plain words.
    pub notes: Vec<String>,
    /// See [`View::incomplete`].
    pub incomplete: bool,
}

impl From<View> for Update {
    /// The update that leads from nothing to this view.
    fn from(view: View) -> Self {
        Self {
            changes: view.manifests.into_iter().map(|(key, placed)| (key, Some(placed))).collect(),
            problems: view.problems,
            notes: view.notes,
            incomplete: view.incomplete,
        }
    }
}

/// Everything a source knows at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The manifests, each with the place it comes from.
    pub manifests: BTreeMap<ManifestKey, Placed>,
    /// What could not be read or is not used, and why.
    pub problems: Vec<Problem>,
    /// What was read and is not used, in plain words.
    pub notes: Vec<String>,
    /// Is something missing here that may well exist (a file that was broken from the start)?
    /// Then what is absent from `manifests` must not be taken for removed.
    pub incomplete: bool,
}

impl View {
    /// Takes over an update. Answers with what has changed and what was there before.
    pub fn apply(&mut self, update: Update) -> Vec<(ManifestKey, Option<Manifest>)> {
        self.problems = update.problems;
        self.notes = update.notes;
        self.incomplete = update.incomplete;
        let mut changed = Vec::with_capacity(update.changes.len());
        for (key, placed) in update.changes {
            let before = match placed {
                Some(placed) => self.manifests.insert(key.clone(), placed),
                None => self.manifests.remove(&key),
            };
            changed.push((key, before.map(|(manifest, _)| manifest)));
        }
        changed
    }

    /// The manifest of that key.
    #[must_use]
    pub fn get(&self, key: &ManifestKey) -> Option<&Manifest> {
        self.manifests.get(key).map(|(manifest, _)| manifest)
    }

    /// The place that the manifest of that key comes from.
    #[must_use]
    pub fn place(&self, key: &ManifestKey) -> &str {
        self.manifests.get(key).map_or("", |(_, place)| place.as_str())
    }

    /// The pod of that name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<&PodManifest> {
        match self.get(&ManifestKey::Pod(name.to_owned())) {
            Some(Manifest::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    /// All pods whose `namespace/name` begins so.
    pub fn pods<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a PodManifest> {
        self.manifests
            .range(ManifestKey::Pod(prefix.to_owned())..)
            .map_while(|(_, (manifest, _))| match manifest {
                Manifest::Pod(pod) => Some(pod),
                _ => None,
            })
            .take_while(move |pod| pod.name.starts_with(prefix))
    }
}

/// Something that is wrong with the desired state, for a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
