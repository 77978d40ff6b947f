//! Keeps the dataplane's announcements in force, on a connection and a thread of its own: a long
//! push of objects must not look like the death of this process. With this process ends the lease,
//! before other nodes take over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overlane_api::client::{Client, ClientError};
use overlane_api::protocol::{Op, Reply};

/// A lease that is renewed. Dropping this ends it at once.
#[derive(Debug)]
pub struct Lease {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lease {
    /// Renews a lease of `time` of the dataplane at `socket` four times as often as needed, while
    /// `is_settled`: a dataplane that does not have what it should may still have what another node
    /// has taken over. `tell` is told each time until when the dataplane forwards.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        socket: &Path,
        time: Duration,
        is_settled: Arc<AtomicBool>,
        tell: impl Fn(Option<Instant>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let mut renewal = Renewal { socket: socket.to_owned(), time, client: None };
        let run = move || {
            while !seen.load(Ordering::Relaxed) {
                let begun = Instant::now();
                tell(renewal.renew(is_settled.load(Ordering::Relaxed), begun));
                std::thread::sleep((time / 4).saturating_sub(begun.elapsed()));
            }
            renewal.end();
        };
        let thread = std::thread::Builder::new().name("lease".into()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Renewal {
    socket: PathBuf,
    time: Duration,
    client: Option<Client>,
}

impl Renewal {
    /// Renews the lease, or ends it. Says until when the dataplane forwards as it should; none: it
    /// does not, or is away.
    fn renew(&mut self, is_settled: bool, now: Instant) -> Option<Instant> {
        let whole = u32::try_from(self.time.as_millis()).unwrap_or(u32::MAX);
        match self.ask(if is_settled { whole } else { 0 }) {
            Ok(forwarding) => (forwarding && is_settled).then_some(now + self.time),
            Err(error) => {
                // Told by the reconciler, who loses the same dataplane.
                tracing::debug!(%error, "the lease is not renewed");
                self.client = None;
                None
            }
        }
    }

    fn ask(&mut self, milliseconds: u32) -> Result<bool, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket, self.time / 2)?,
        };
        let client = self.client.insert(client);
        match client.call(Op::Lease { milliseconds })? {
            Reply::Lease { forwarding } => Ok(forwarding),
            other => {
                let what = format!("an answer of another kind to lease: {other:?}");
                Err(ClientError::Protocol { path: self.socket.clone(), what })
            }
        }
    }

    fn end(&mut self) {
        if let Err(error) = self.ask(0) {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::{self, Receiver, Sender};

    use overlane_api::protocol::{Request, Response, VERSION};

    use super::*;

    /// A dataplane that answers to leases and tells what it was asked; without an answer it hangs.
    fn serve(listener: &UnixListener, answer: &Receiver<Option<bool>>, asked: &Sender<u32>) {
        let mut forwarding = Some(true);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let request: Request = serde_json::from_str(&line).unwrap();
                forwarding = answer.try_iter().last().unwrap_or(forwarding);
                let Op::Lease { milliseconds } = request.op else { panic!("{line}") };
                if asked.send(milliseconds).is_err() {
                    return;
                }
                let Some(forwarding) = forwarding else { continue };
                let result = Ok(Reply::Lease { forwarding });
                let response = Response { version: VERSION, id: request.id, result };
                let text = serde_json::to_string(&response).unwrap() + "\n";
                let _ = stream.write_all(text.as_bytes());
            }
        }
    }

    #[test]
    fn a_lease_holds_while_the_dataplane_answers_and_has_what_it_should() {
        const TIME: Duration = Duration::from_millis(400);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("dataplane.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (answer, answers) = mpsc::channel();
        let (asks, asked) = mpsc::channel();
        std::thread::spawn(move || serve(&listener, &answers, &asks));
        let is_settled = Arc::new(AtomicBool::new(false));
        let (tells, told) = mpsc::channel();
        let tell = move |until: Option<Instant>| {
            let _ = tells.send(until.map(|until| until.saturating_duration_since(Instant::now())));
        };
        let lease = Lease::start(&socket, TIME, Arc::clone(&is_settled), tell).unwrap();
        // Until what is told is so, at most ten seconds; what was asked meanwhile, last.
        let wait = |is_so: fn(Option<Duration>) -> bool| {
            let end = Instant::now() + Duration::from_secs(10);
            while !is_so(told.recv_timeout(Duration::from_secs(5)).unwrap()) {
                assert!(Instant::now() < end);
            }
            asked.try_iter().last()
        };
        assert_eq!(wait(|until| until.is_none()), Some(0), "not everything is pushed yet");
        is_settled.store(true, Ordering::Relaxed);
        assert_eq!(wait(|until| until.is_some_and(|left| left <= TIME)), Some(400));
        answer.send(Some(false)).unwrap();
        assert_eq!(wait(|until| until.is_none()), Some(400), "its uplink is gone");
        answer.send(Some(true)).unwrap();
        wait(|until| until.is_some());
        answer.send(None).unwrap();
        wait(|until| until.is_none());
        answer.send(Some(true)).unwrap();
        wait(|until| until.is_some());
        is_settled.store(false, Ordering::Relaxed);
        assert_eq!(wait(|until| until.is_none()), Some(0), "it was lost and found again");
        is_settled.store(true, Ordering::Relaxed);
        wait(|until| until.is_some());
        drop(lease);
        assert_eq!(asked.try_iter().last(), Some(0), "others need not wait for its end");
    }
}
