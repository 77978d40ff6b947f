//! Namespace: its labels, by which rules choose pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;

use super::ManifestError;

/// Label that every namespace has: its own name (KEP-2161).
const NAME: &str = "kubernetes.io/metadata.name";

/// A namespace, as far as Overlane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceManifest {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NamespaceManifest {
    /// A namespace of which only the name is known.
    #[must_use]
    pub fn bare(name: &str) -> Self {
        let labels = BTreeMap::from([(NAME.to_owned(), name.to_owned())]);
        Self { name: name.to_owned(), labels }
    }
}

/// Takes from a Namespace what Overlane uses.
///
/// # Errors
/// [`ManifestError`] when it has no name.
pub fn translate(namespace: Namespace) -> Result<NamespaceManifest, ManifestError> {
    let meta = namespace.metadata;
    let name = meta.name.filter(|name| !name.is_empty());
    let name = name.ok_or(ManifestError::NoName { kind: "Namespace" })?;
    let mut manifest = NamespaceManifest::bare(&name);
    manifest.labels.extend(meta.labels.unwrap_or_default());
    Ok(manifest)
}
