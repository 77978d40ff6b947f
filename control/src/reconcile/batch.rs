//! Changes in portions that a dataplane reads and carries out in one go.

use std::io::{self, Write};

use overlane_api::Change;
use overlane_api::protocol::{MAX_CHANGES, MAX_REQUEST_BYTES};

/// Bytes of a portion, unless a single change has more: a service can have thousands of backends,
/// and while a portion is carried out everything else waits.
const MAX_BYTES: usize = 1 << 20;

/// Counts what is written.
#[derive(Default)]
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a change on the wire.
pub(super) fn wire_bytes(change: &Change) -> usize {
    let mut counter = Counter::default();
    // Serialising plain data into a sink that cannot fail does not fail.
    let _ = serde_json::to_writer(&mut counter, change);
    counter.0
}

/// Is this change more than a dataplane reads at all?
pub(super) fn is_too_large(change: &Change) -> bool {
    // The rest of a request is a hundred bytes at most.
    wire_bytes(change) + 256 > MAX_REQUEST_BYTES
}

/// Cuts `changes` into portions, in order.
pub(super) fn batches(changes: &[Change]) -> Vec<&[Change]> {
    let mut batches = Vec::new();
    let mut rest = changes;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |change: &&Change| {
            bytes += wire_bytes(change) + 1;
            bytes <= MAX_BYTES
        };
        let count = rest.iter().take(MAX_CHANGES).take_while(fits).count().max(1);
        let (batch, more) = rest.split_at(count);
        batches.push(batch);
        rest = more;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    use overlane_api::{Backend, Object, ObjectKey, Service};

    fn service(backends: usize) -> Change {
        let text = r#"{"name":"default/web:http","protocol":"tcp","frontends":[],"backends":[]}"#;
        let backend = r#"{"address":"10.244.1.10","port":80,"use_cluster":true,"use_local":false,"serving":true}"#;
        let mut service: Service = serde_json::from_str(text).unwrap();
        let backend: Backend = serde_json::from_str(backend).unwrap();
        service.backends = vec![backend; backends];
        Change::Set(Object::Service(service))
    }

    #[test]
    fn portions_are_bounded_by_number_and_bytes_and_lose_nothing() {
        let small = vec![Change::Remove(ObjectKey::Node); 2 * MAX_CHANGES + 1];
        let lengths: Vec<usize> = batches(&small).iter().map(|batch| batch.len()).collect();
        assert_eq!(lengths, [MAX_CHANGES, MAX_CHANGES, 1]);
        let large = vec![service(1000); 30];
        let cut = batches(&large);
        assert!(cut.len() > 2, "{}", cut.len());
        assert_eq!(cut.concat(), large);
        for batch in &cut {
            let text = serde_json::to_vec(batch).unwrap();
            assert!(text.len() <= MAX_BYTES + 2, "{}", text.len());
        }
        let huge = [service(20_000), service(1), service(20_000)];
        assert_eq!(batches(&huge).len(), 3);
        assert!(batches(&[]).is_empty());
    }

    #[test]
    fn what_no_dataplane_reads_is_known_beforehand() {
        assert!(!is_too_large(&service(10_000)));
        assert!(is_too_large(&service(200_000)));
    }
}
