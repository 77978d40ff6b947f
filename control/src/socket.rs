//! The control process's socket: newline-delimited JSON in the style of the dataplane's, one
//! request a line, one response a line. It only answers questions; nothing is changed here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlane_api::client::ClientError;
use overlane_api::protocol::{ApiError, ErrorCode, VERSION};
use serde::{Deserialize, Serialize};

use crate::credentials::Allowed;
use crate::membership::MemberStatus;
use crate::membership::agent::View;
use crate::status::ControlStatus;

/// Longest request line, bytes.
const MAX_REQUEST_BYTES: u64 = 64 << 10;
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// A connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How often a waiting server looks whether it should end, milliseconds.
const LOOK_MS: u16 = 200;

/// A question to the control process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Chosen by the sender, repeated in the response.
    pub id: u64,
    /// What is asked.
    pub op: Op,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Who are you?
    Hello,
    /// The whole state on one screen.
    Status,
    /// Which nodes live?
    Nodes,
}

/// The answer to the request of the same id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The request's id; 0 when the request could not be read.
    pub id: u64,
    /// What came of it.
    pub result: Result<Reply, ApiError>,
}

/// What came of a request that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Op::Hello`].
    Hello {
        /// The control process's version.
        version: String,
    },
    /// To [`Op::Status`].
    Status(Box<ControlStatus>),
    /// To [`Op::Nodes`].
    Nodes {
        /// By name, the answering one among them; absent: nothing needs to know.
        nodes: Option<BTreeMap<String, MemberStatus>>,
    },
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another control process serves it.
    #[error("{path} is served by another control process: stop that one, or choose another --socket", path = .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has its name.
    #[error("{path} exists and is not a socket: remove it, or choose another --socket", path = .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot serve {path}: {source}; is the directory there, and may this user write to it?", path = .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// What the socket shows.
#[derive(Debug, Default)]
pub struct Shown {
    status: Mutex<ControlStatus>,
    view: Option<View>,
}

impl Shown {
    /// `status` at first, and which nodes live, if that is known.
    #[must_use]
    pub fn new(status: ControlStatus, view: Option<View>) -> Self {
        Self { status: Mutex::new(status), view }
    }

    /// The state, written by the main loop.
    pub fn status(&self) -> MutexGuard<'_, ControlStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared with the main loop.
pub type Shared = Arc<Shown>;

/// A socket being served. It ends, and the file goes, when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the socket at `path` to those who are allowed. A file left by a process that died
    /// is replaced.
    ///
    /// # Errors
    /// [`SocketError`] says what to do.
    pub fn start(path: &Path, allowed: Allowed, shared: Shared) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.to_owned(), source };
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(io)?;
        if let Some(group) = allowed.group() {
            std::os::unix::fs::chown(path, None, Some(group.as_raw())).map_err(io)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let serve = move || accept_all(&listener, allowed, &shared, &seen);
        let thread = std::thread::Builder::new().name("socket".into()).spawn(serve).map_err(io)?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes way for a new socket at `path`.
fn clear(path: &Path) -> Result<(), SocketError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(|source| SocketError::Io { path: path.to_owned(), source })
}

fn accept_all(listener: &UnixListener, allowed: Allowed, shared: &Shared, stop: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if !poll(&mut ready, PollTimeout::from(LOOK_MS)).is_ok_and(|count| count > 0) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            let text = format!("{MAX_CONNECTIONS} connections are open");
            let error = ApiError::new(ErrorCode::Failed, text).hint("close one and try again");
            let _ = send(&stream, 0, Err(error));
            continue;
        }
        let (shared, counted) = (Arc::clone(shared), Arc::clone(&open));
        let talk = move || {
            if let Err(error) = converse(&stream, allowed, &shared) {
                tracing::debug!(%error, "a connection broke");
            }
            counted.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("connection".into()).spawn(talk).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn converse(stream: &UnixStream, allowed: Allowed, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    if let Err(error) = allowed.check(stream) {
        tracing::warn!("{error}");
        return send(stream, 0, Err(ApiError::new(ErrorCode::Denied, error.to_string())));
    }
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_REQUEST_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            let text = format!("a request line ends within {MAX_REQUEST_BYTES} bytes by a newline");
            return send(stream, 0, Err(ApiError::new(ErrorCode::Malformed, text)));
        }
        let (id, result) = answer(&line, shared);
        send(stream, id, result)?;
    }
}

fn answer(line: &str, shared: &Shared) -> (u64, Result<Reply, ApiError>) {
    /// Enough of a request to judge its version before the rest is read.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        #[serde(default)]
        id: u64,
    }
    let malformed = |error: serde_json::Error| {
        ApiError::new(ErrorCode::Malformed, format!("not a request: {error}"))
            .hint("send {\"version\":1,\"id\":1,\"op\":\"status\"}")
    };
    let head: Head = match serde_json::from_str(line) {
        Ok(head) => head,
        Err(error) => return (0, Err(malformed(error))),
    };
    if head.version != VERSION {
        let text = format!("version {} of the protocol is not known", head.version);
        let error = ApiError::new(ErrorCode::Version, text).hint(format!("use version {VERSION}"));
        return (head.id, Err(error));
    }
    let reply =
        serde_json::from_str(line).map_err(malformed).map(|request: Request| match request.op {
            Op::Hello => Reply::Hello { version: crate::VERSION.to_owned() },
            Op::Status => Reply::Status(Box::new(shared.status().clone())),
            Op::Nodes => Reply::Nodes { nodes: shared.view.as_ref().map(View::nodes) },
        });
    (head.id, reply)
}

fn send(mut stream: &UnixStream, id: u64, result: Result<Reply, ApiError>) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&Response { version: VERSION, id, result })?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Asks the control process at `path` one question.
///
/// # Errors
/// [`ClientError`], as for the dataplane's socket.
pub fn ask(path: &Path, op: Op, timeout: Duration) -> Result<Reply, ClientError> {
    let connect = |source| ClientError::Connect { path: path.to_owned(), source };
    let io = |source| ClientError::Io { path: path.to_owned(), source };
    let protocol = |error: serde_json::Error| ClientError::Protocol {
        path: path.to_owned(),
        what: error.to_string(),
    };
    let mut stream = UnixStream::connect(path).map_err(connect)?;
    stream.set_read_timeout(Some(timeout)).map_err(connect)?;
    stream.set_write_timeout(Some(timeout)).map_err(connect)?;
    let mut line =
        serde_json::to_vec(&Request { version: VERSION, id: 1, op }).map_err(protocol)?;
    line.push(b'\n');
    // One who is not allowed is told so before reading: then the write fails and the answer is
    // there all the same.
    let written = stream.write_all(&line);
    let mut answer = String::new();
    match BufReader::new(&stream).read_line(&mut answer) {
        Ok(0) => Err(io(written.err().unwrap_or(std::io::ErrorKind::UnexpectedEof.into()))),
        Ok(_) => {
            let response: Response = serde_json::from_str(&answer).map_err(protocol)?;
            Ok(response.result?)
        }
        Err(error) => Err(io(written.err().unwrap_or(error))),
    }
}
