//! Pods by label, so that a selector costs what it finds.

use std::collections::{BTreeSet, HashMap};

use crate::manifests::PodManifest;
use crate::manifests::selector::Labels;

type Label = (String, String);

/// Names of things by namespace and label.
#[derive(Debug, Default)]
pub(super) struct ByLabel {
    namespaces: HashMap<String, HashMap<Label, BTreeSet<String>>>,
}

impl ByLabel {
    pub(super) fn insert(&mut self, namespace: &str, label: Label, name: &str) {
        let labels = self.namespaces.entry(namespace.to_owned()).or_default();
        labels.entry(label).or_default().insert(name.to_owned());
    }

    pub(super) fn remove(&mut self, namespace: &str, label: &Label, name: &str) {
        let Some(labels) = self.namespaces.get_mut(namespace) else { return };
        let Some(names) = labels.get_mut(label) else { return };
        names.remove(name);
        if names.is_empty() {
            labels.remove(label);
        }
        if labels.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The names at any of these labels; a name at two labels comes twice.
    pub(super) fn at_any<'a>(
        &'a self,
        namespace: &str,
        labels: &Labels,
    ) -> impl Iterator<Item = &'a String> {
        let here = self.namespaces.get(namespace);
        let labels: Vec<Label> =
            labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        labels.into_iter().filter_map(move |label| here?.get(&label)).flatten()
    }

    /// The names at that one of these labels that has the fewest.
    pub(super) fn at_rarest(&self, namespace: &str, labels: &Labels) -> Option<&BTreeSet<String>> {
        let here = self.namespaces.get(namespace)?;
        let mut rarest: Option<&BTreeSet<String>> = None;
        for (key, value) in labels {
            let names = here.get(&(key.clone(), value.clone()))?;
            if rarest.is_none_or(|rarest| names.len() < rarest.len()) {
                rarest = Some(names);
            }
        }
        rarest
    }
}

/// Indexes a pod by each of its labels, or takes it out again.
pub(super) fn index(by_label: &mut ByLabel, pod: &PodManifest, is_there: bool) {
    for (key, value) in &pod.labels {
        let label = (key.clone(), value.clone());
        if is_there {
            by_label.insert(pod.namespace(), label, &pod.name);
        } else {
            by_label.remove(pod.namespace(), &label, &pod.name);
        }
    }
}
