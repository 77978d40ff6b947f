//! The desired objects with what has been touched, and the remarks about their manifests.

use std::collections::BTreeMap;

use overlane_api::{Object, ObjectKey};

use crate::manifests::ManifestKey;
use crate::sources::Problem;

/// The desired objects; knows which have changed since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Objects {
    map: BTreeMap<ObjectKey, Object>,
    /// What was there before the first touch.
    touched: BTreeMap<ObjectKey, Option<Object>>,
}

impl Objects {
    pub(super) const fn map(&self) -> &BTreeMap<ObjectKey, Object> {
        &self.map
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.map.get(key)
    }

    pub(super) fn set(&mut self, object: Object) {
        let key = object.key();
        let before = self.map.insert(key.clone(), object);
        self.touched.entry(key).or_insert(before);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        let before = self.map.remove(key)?;
        self.touched.entry(key.clone()).or_insert_with(|| Some(before.clone()));
        Some(before)
    }

    /// Takes out all objects of a kind.
    pub(super) fn take_all(&mut self, kind: fn(&ObjectKey) -> bool) -> BTreeMap<ObjectKey, Object> {
        let keys: Vec<ObjectKey> = self.map.keys().filter(|key| kind(key)).cloned().collect();
        keys.into_iter().filter_map(|key| self.remove(&key).map(|object| (key, object))).collect()
    }

    /// The keys of what has changed since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<ObjectKey> {
        let touched = std::mem::take(&mut self.touched);
        let changed = |(key, before): (ObjectKey, Option<Object>)| {
            (self.map.get(&key) != before.as_ref()).then_some(key)
        };
        touched.into_iter().filter_map(changed).collect()
    }
}

/// What a remark is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A manifest.
    Manifest(ManifestKey),
    /// An egress rule of the configuration.
    Rule(String),
}

/// What is to be said about one subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) problems: Vec<Problem>,
    pub(super) pending: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Remark {
    fn is_empty(&self) -> bool {
        self.problems.is_empty() && self.pending.is_empty() && self.notes.is_empty()
    }
}

/// What is to be said, by subject.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    map: BTreeMap<Subject, Remark>,
    changed: bool,
}

impl Remarks {
    /// Replaces what is said about `subject`.
    pub(super) fn set(&mut self, subject: Subject, remark: Remark) {
        if remark.is_empty() {
            self.changed |= self.map.remove(&subject).is_some();
        } else if self.map.get(&subject) != Some(&remark) {
            self.map.insert(subject, remark);
            self.changed = true;
        }
    }

    /// Adds to what is said about a manifest.
    pub(super) fn entry(&mut self, key: ManifestKey) -> &mut Remark {
        self.changed = true;
        self.map.entry(Subject::Manifest(key)).or_default()
    }

    /// Forgets what is said about manifests of a kind.
    pub(super) fn clear(&mut self, kind: fn(&ManifestKey) -> bool) {
        let before = self.map.len();
        self.map.retain(|subject, _| !matches!(subject, Subject::Manifest(key) if kind(key)));
        self.changed |= self.map.len() != before;
    }

    /// Has anything changed since the last call?
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Remark> {
        self.map.values()
    }
}
