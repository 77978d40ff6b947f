//! Kubernetes manifests as written, one file per kind, translated to what [`crate::desired`]
//! works with. Kubernetes words stop here.

pub mod documents;
pub mod endpoint_slice;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod selector;
pub mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_yaml_ng::Value;

pub use endpoint_slice::SliceManifest;
pub use namespace::NamespaceManifest;
pub use node::NodeManifest;
pub use pod::PodManifest;
pub use service::ServiceManifest;

/// Kinds that are known but change nothing yet.
const NOT_USED_YET: [&str; 1] = ["NetworkPolicy"];

/// One object of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// A node of the cluster.
    Node(NodeManifest),
    /// A pod, or one that is not to be attached (see [`PodManifest::standing`]).
    Pod(PodManifest),
    /// A service.
    Service(ServiceManifest),
    /// Endpoints of a service.
    EndpointSlice(SliceManifest),
    /// A namespace.
    Namespace(NamespaceManifest),
}

/// What names a manifest in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ManifestKey {
    /// A node, by name.
    Node(String),
    /// A pod, by `namespace/name`.
    Pod(String),
    /// A service, by `namespace/name`.
    Service(String),
    /// Endpoints of a service, by `namespace/name`.
    EndpointSlice(String),
    /// A namespace, by name.
    Namespace(String),
}

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
        }
    }
}

impl Manifest {
    /// What names it.
    #[must_use]
    pub fn key(&self) -> ManifestKey {
        match self {
            Self::Node(node) => ManifestKey::Node(node.name.clone()),
            Self::Pod(pod) => ManifestKey::Pod(pod.name.clone()),
            Self::Service(service) => ManifestKey::Service(service.name.clone()),
            Self::EndpointSlice(slice) => ManifestKey::EndpointSlice(slice.name.clone()),
            Self::Namespace(namespace) => ManifestKey::Namespace(namespace.name.clone()),
        }
    }

    /// Reads an object of `kind` with `source`; none when the kind is not used.
    fn read<'de, D: Deserializer<'de>>(
        kind: &str,
        source: D,
    ) -> Option<Result<Self, ObjectError<D::Error>>> {
        fn typed<'de, D: Deserializer<'de>, K: Deserialize<'de>, M>(
            source: D,
            translate: fn(K) -> Result<M, ManifestError>,
            wrap: fn(M) -> Manifest,
        ) -> Option<Result<Manifest, ObjectError<D::Error>>> {
            let object = K::deserialize(source).map_err(ObjectError::Syntax);
            Some(
                object.and_then(|object| translate(object).map(wrap).map_err(ObjectError::Content)),
            )
        }
        match kind {
            "Node" => typed(source, node::translate, Self::Node),
            "Pod" => typed(source, pod::translate, Self::Pod),
            "Service" => typed(source, service::translate, Self::Service),
            "EndpointSlice" => typed(source, endpoint_slice::translate, Self::EndpointSlice),
            "Namespace" => typed(source, namespace::translate, Self::Namespace),
            _ => None,
        }
    }
}

/// Why an object cannot be read.
enum ObjectError<E> {
    /// It is not of its kind's form.
    Syntax(E),
    /// What it says cannot be.
    Content(ManifestError),
}

impl<E> ObjectError<E> {
    fn read(self, syntax: impl FnOnce(E) -> ReadError) -> ReadError {
        match self {
            Self::Syntax(error) => syntax(error),
            Self::Content(error) => ReadError::plain(error),
        }
    }
}

/// Why one object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// `metadata.name` is missing.
    #[error("{kind} without metadata.name: every object needs one")]
    NoName {
        /// The object's kind.
        kind: &'static str,
    },
    /// A field is not what it should be.
    #[error("{object}: {field} {value:?} is not {wanted}")]
    Field {
        /// Kind and name.
        object: ManifestKey,
        /// Path of the field.
        field: &'static str,
        /// What is written there.
        value: String,
        /// What should be.
        wanted: &'static str,
    },
    /// More addresses of one family than an endpoint or node has.
    #[error(
        "{object}: {field} has both {first} and {second}: one address of each family is used, remove one"
    )]
    SameFamily {
        /// Kind and name.
        object: ManifestKey,
        /// Path of the field.
        field: &'static str,
        /// The first.
        first: std::net::IpAddr,
        /// The other of its family.
        second: std::net::IpAddr,
    },
}

/// Why a text is not a list of manifests, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ReadError {
    /// Line, from 1; 0 when unknown.
    pub line: usize,
    /// Column, from 1; 0 when unknown.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl ReadError {
    fn plain(message: impl fmt::Display) -> Self {
        Self { line: 0, column: 0, message: message.to_string() }
    }

    fn yaml(error: &serde_yaml_ng::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        let text = error.to_string();
        // The place is reported apart.
        let message = match text.rfind(" at line ") {
            Some(end) if line > 0 => text[..end].to_owned(),
            _ => text,
        };
        Self { line, column, message }
    }

    /// As it is in a text with so many lines before.
    fn moved(mut self, lines: usize) -> Self {
        if self.line > 0 {
            self.line += lines;
        }
        self
    }

    fn json(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let message = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]).to_owned();
        Self { line: error.line(), column: error.column(), message }
    }
}

/// What a text holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Read<T> {
    /// The manifests, in order.
    pub manifests: Vec<Manifest>,
    /// Documents without a `kind`.
    pub others: Vec<T>,
    /// What was read and is not used, by kind.
    pub unused: BTreeMap<String, usize>,
}

impl<T> Default for Read<T> {
    fn default() -> Self {
        Self { manifests: Vec::new(), others: Vec::new(), unused: BTreeMap::new() }
    }
}

impl<T> Read<T> {
    /// One line per kind that is read and not used.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.unused.iter().map(|(kind, count)| {
            if NOT_USED_YET.contains(&kind.as_str()) {
                format!("{count} of kind {kind}: not used yet")
            } else {
                format!("{count} of kind {kind}: not used")
            }
        })
    }

    fn push(&mut self, manifest: Manifest) {
        self.manifests.push(manifest);
    }
}

/// A document that must not be in a file of manifests.
#[derive(Debug)]
pub struct Nothing;

impl<'de> Deserialize<'de> for Nothing {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom(
            "a document without `kind`: a manifest needs apiVersion, kind and metadata",
        ))
    }
}

/// Reads a file of manifests: JSON when its name ends in `.json`, else YAML with any number of
/// documents.
///
/// # Errors
/// The first thing that is wrong, with its place. Nothing of a broken text is used.
pub fn read(path: &Path, text: &str) -> Result<Read<Nothing>, ReadError> {
    let read = if is_json(path) { read_json(text)? } else { read_yaml(text)? };
    refuse_doubles(&read)?;
    Ok(read)
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
}

fn refuse_doubles(read: &Read<Nothing>) -> Result<(), ReadError> {
    let mut seen = BTreeSet::new();
    for manifest in &read.manifests {
        if !seen.insert(manifest.key()) {
            let key = manifest.key();
            return Err(ReadError::plain(format!("{key} is in this file twice: remove one")));
        }
    }
    Ok(())
}

/// Reads YAML documents: those with a `kind` are manifests, the others are `T`.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read_yaml<T: DeserializeOwned>(text: &str) -> Result<Read<T>, ReadError> {
    let mut read = Read::default();
    // Twice over the text: first for the kind, then for the typed object, whose errors know
    // their place only when it is read from the text itself.
    let typed = serde_yaml_ng::Deserializer::from_str(text);
    for (document, typed) in serde_yaml_ng::Deserializer::from_str(text).zip(typed) {
        let value: Value =
            Deserialize::deserialize(document).map_err(|error| ReadError::yaml(&error))?;
        if value.is_null() {
            continue;
        }
        let wrong = |error: serde_yaml_ng::Error| ReadError::yaml(&error);
        let Some(kind) = value.get("kind").and_then(Value::as_str) else {
            read.others.push(T::deserialize(typed).map_err(wrong)?);
            continue;
        };
        match Manifest::read(kind, typed) {
            Some(manifest) => read.push(manifest.map_err(|error| error.read(wrong))?),
            None => add_value(&mut read, value, None)?,
        }
    }
    Ok(read)
}

fn read_json(text: &str) -> Result<Read<Nothing>, ReadError> {
    let wrong = |error: serde_json::Error| ReadError::json(&error);
    let value: Value = serde_json::from_str(text).map_err(wrong)?;
    let mut read = Read::default();
    let Some(kind) = value.get("kind").and_then(Value::as_str) else {
        return Err(ReadError::plain("an object without `kind`"));
    };
    match Manifest::read(kind, &mut serde_json::Deserializer::from_str(text)) {
        Some(manifest) => read.push(manifest.map_err(|error| error.read(wrong))?),
        None => add_value(&mut read, value, None)?,
    }
    Ok(read)
}

/// Adds an object, or a list of such, that was read without its places. `kind` is what the
/// items of a typed list (`PodList`) are when they do not say so themselves.
fn add_value<T>(read: &mut Read<T>, value: Value, kind: Option<&str>) -> Result<(), ReadError> {
    let written = value.get("kind").and_then(Value::as_str).or(kind);
    let Some(kind) = written.map(str::to_owned) else {
        return Err(ReadError::plain("an item without `kind` in a List"));
    };
    let in_object = |error: serde_yaml_ng::Error| ReadError::plain(format!("{kind}: {error}"));
    if let Some(item_kind) = kind.strip_suffix("List") {
        let item_kind = Some(item_kind).filter(|kind| !kind.is_empty());
        let items = value.get("items").and_then(Value::as_sequence).cloned();
        for (place, item) in items.unwrap_or_default().into_iter().enumerate() {
            add_value(read, item, item_kind)
                .map_err(|error| ReadError::plain(format!("items[{place}]: {}", error.message)))?;
        }
        return Ok(());
    }
    match Manifest::read(&kind, value) {
        Some(manifest) => read.push(manifest.map_err(|error| error.read(in_object))?),
        None => *read.unused.entry(kind).or_default() += 1,
    }
    Ok(())
}

/// The annotation `name` of an object.
fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Parses a field, or says what it should be.
fn field<T: std::str::FromStr>(
    object: &ManifestKey,
    field: &'static str,
    wanted: &'static str,
    value: &str,
) -> Result<T, ManifestError> {
    value.parse().map_err(|_| ManifestError::Field {
        object: object.clone(),
        field,
        value: value.to_owned(),
        wanted,
    })
}

/// Says that a field is not what it should be.
fn wrong(
    object: &ManifestKey,
    field: &'static str,
    value: &str,
    wanted: &'static str,
) -> ManifestError {
    ManifestError::Field { object: object.clone(), field, value: value.to_owned(), wanted }
}

/// A port number.
fn number(object: &ManifestKey, field: &'static str, port: i32) -> Result<u16, ManifestError> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| wrong(object, field, &port.to_string(), "a port, 1 to 65535"))
}

/// `namespace/name` of an object.
fn namespaced(meta: &ObjectMeta, kind: &'static str) -> Result<String, ManifestError> {
    let name = meta.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or(ManifestError::NoName { kind })?;
    Ok(format!("{}/{name}", meta.namespace.as_deref().unwrap_or("default")))
}

/// Refuses two addresses of one family.
fn one_per_family(
    object: &ManifestKey,
    field: &'static str,
    addresses: &[std::net::IpAddr],
) -> Result<(), ManifestError> {
    for (place, first) in addresses.iter().enumerate() {
        let rest = addresses.get(place + 1..).unwrap_or_default();
        if let Some(second) = rest.iter().find(|other| other.is_ipv4() == first.is_ipv4()) {
            let object = object.clone();
            return Err(ManifestError::SameFamily {
                object,
                field,
                first: *first,
                second: *second,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
