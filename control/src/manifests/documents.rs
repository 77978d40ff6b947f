//! A file of many documents, read again at the cost of those that have changed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::{Manifest, Nothing, Read, ReadError, is_json, read_json, read_yaml, refuse_doubles};

/// Documents of a file from which on they are remembered: reading few of them costs little.
const MANY: usize = 8;

/// What a document came to.
#[derive(Debug, Clone)]
struct Document {
    manifests: Vec<Manifest>,
    unused: BTreeMap<String, usize>,
}

/// The documents of one file as they were when it was last read.
#[derive(Debug, Default)]
pub struct Documents {
    /// By hash and length of the text.
    known: HashMap<(u64, usize), Document>,
}

impl Documents {
    /// Reads `text` as [`super::read`] does, but looks only at the documents that are new.
    ///
    /// # Errors
    /// As [`super::read`].
    pub fn read(&mut self, path: &Path, text: &str) -> Result<Read<Nothing>, ReadError> {
        let read = if is_json(path) { read_json(text)? } else { self.read_all(text)? };
        refuse_doubles(&read)?;
        Ok(read)
    }

    fn read_all(&mut self, text: &str) -> Result<Read<Nothing>, ReadError> {
        let documents = split(text);
        if documents.len() < MANY {
            self.known.clear();
            return read_yaml(text);
        }
        let mut all = Read::default();
        let mut used = HashMap::with_capacity(documents.len());
        for (line, text) in documents {
            let key = (hash(text), text.len());
            let document = match self.known.remove(&key).or_else(|| used.get(&key).cloned()) {
                Some(document) => document,
                None => {
                    let read = match read_yaml::<Nothing>(text) {
                        Ok(read) => read,
                        Err(error) => {
                            self.known.extend(used);
                            return Err(error.moved(line));
                        }
                    };
                    Document { manifests: read.manifests, unused: read.unused }
                }
            };
            all.manifests.extend(document.manifests.iter().cloned());
            for (kind, count) in &document.unused {
                *all.unused.entry(kind.clone()).or_default() += count;
            }
            used.insert(key, document);
        }
        self.known = used;
        Ok(all)
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The documents with the lines before each. A line that begins with `---` begins a document
/// wherever it stands (YAML 1.2.2 section 9.1.4); a text with directives or document ends, which
/// belong to what follows or stands before, is left whole.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with('%') || line.starts_with("...") {
            return vec![(0, text)];
        }
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.extend(text.get(start..at).map(|document| (start_line, document)));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    documents.extend(text.get(start..).map(|document| (start_line, document)));
    documents.retain(|(_, document)| !document.trim().is_empty());
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: usize) -> String {
        format!("kind: Pod\nmetadata: {{name: p{name}}}\n")
    }

    fn pods(count: usize) -> String {
        (0..count).map(|name| format!("---\n{}", pod(name))).collect()
    }

    #[test]
    fn what_is_read_in_pieces_is_what_is_read_whole() {
        let path = Path::new("x.yaml");
        let inline = "--- {kind: Pod, metadata: {name: inline}}\n--- # a remark\n";
        let unused = "---\nkind: Deployment\nmetadata: {name: d}\n";
        let scalar = "---\nkind: Namespace\nmetadata:\n  name: n\n  annotations:\n    x: |\n      ---\n      kind: no\n";
        for text in [
            pods(20),
            pods(20) + inline + unused + unused + scalar,
            pod(99) + &pods(20) + "---\n---\n",
            "%YAML 1.2\n".to_owned() + &pods(20),
            pods(20) + "...\n",
            pods(20).replace('\n', "\r\n"),
            String::new(),
            pods(2),
        ] {
            let mut documents = Documents::default();
            for _ in 0..2 {
                let pieces = documents.read(path, &text).unwrap();
                let whole = super::super::read(path, &text).unwrap();
                assert_eq!(pieces.manifests, whole.manifests, "{text}");
                assert_eq!(pieces.unused, whole.unused, "{text}");
            }
        }
    }

    #[test]
    fn only_new_documents_are_looked_at() {
        let path = Path::new("x.yaml");
        let mut documents = Documents::default();
        documents.read(path, &pods(20)).unwrap();
        assert_eq!(documents.known.len(), 20);
        // What is remembered is believed: a forged memory shows through.
        for document in documents.known.values_mut() {
            document.manifests.clear();
        }
        let text = pods(20).replace("p7}", "p77}");
        let read = documents.read(path, &text).unwrap();
        let keys: Vec<String> = read.manifests.iter().map(|m| m.key().to_string()).collect();
        assert_eq!(keys, ["Pod default/p77"]);
        assert_eq!(documents.known.len(), 20, "what is gone is forgotten");
    }

    #[test]
    fn errors_keep_their_place_in_the_file() {
        let path = Path::new("x.yaml");
        let mut documents = Documents::default();
        let broken = pods(20) + "---\nkind: Pod\nmetadata:\n  name: [x]\n" + &pods(1);
        let error = documents.read(path, &broken).unwrap_err();
        assert_eq!(error, super::super::read(path, &broken).unwrap_err());
        assert_eq!(error.line, 20 * 3 + 4);
        assert_eq!(documents.known.len(), 20, "what was read is not read again");
        let double = documents.read(path, &(pods(20) + &pods(1))).unwrap_err();
        assert!(double.message.contains("Pod default/p0 is in this file twice"), "{double}");
    }
}
