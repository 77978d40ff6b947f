//! The dataplane's control socket. It reads and checks requests and passes them on; the slow
//! thread answers them. One thread accepts, and each connection has its own, so that a client who
//! reads slowly or not at all delays nobody else. There are at most [`MAX_CONNECTIONS`].

mod access;
mod connection;
mod mailbox;

use std::collections::VecDeque;
use std::io::{ErrorKind as IoErrorKind, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt};
use overlane_api::protocol::{ApiError, ErrorCode, Response, VERSION};

pub use access::Access;
pub use mailbox::{Call, CallReceiver, CallSender, mailbox};

/// Most connections at a time. One more is told so and closed.
pub const MAX_CONNECTIONS: usize = 64;

/// Refused connections that are kept open a little, so that their clients read why.
const LINGERING: usize = 16;

/// Longest wait for a client to take an answer that it was refused with.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it already.
    #[error(
        "another dataplane is running at {path} (pid {pid}): stop it, or choose another --socket"
    )]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
        /// The process that listens.
        pid: i32,
    },
    /// The path is taken by something that is no socket.
    #[error("{0} exists and is not a socket: remove it, or choose another --socket")]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("there is no group {0:?} on this machine: create it (groupadd {0}), or drop --group")]
    NoGroup(String),
    /// The system refused.
    #[error("cannot {step} {path}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The socket, or its directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Turns an I/O error at `step` on `path` into ours.
fn failed(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SocketError {
    move |source| SocketError::System { step, path: path.to_owned(), source }
}

/// A running server. Dropping it ends all connections and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    inode: (u64, u64),
    stop: Arc<EventFd>,
    calls: CallSender,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path` and sends every good request to `calls`. Members of `group`, root and
    /// the process's own user may connect. A socket that nobody serves any more is replaced, and
    /// a missing directory made.
    ///
    /// # Errors
    /// [`SocketError::AlreadyRunning`] and the others; nothing is changed then.
    pub fn start(path: &Path, group: Option<&str>, calls: CallSender) -> Result<Self, SocketError> {
        let access = Access::new(path, group)?;
        let listener = listen_after(path)?;
        let inode = identity(path).map_err(failed("look at", path))?;
        // From here on an error removes the socket.
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed("make an event for", path)(errno.into()));
        let mut server = match stop {
            Ok(stop) => {
                let (path, stop) = (path.to_owned(), Arc::new(stop));
                Self { path, inode, stop, calls: calls.clone(), acceptor: None }
            }
            Err(error) => {
                let _ = std::fs::remove_file(path);
                return Err(error);
            }
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(failed("set the mode of", path))?;
        if let Some(gid) = access.gid() {
            nix::unistd::chown(path, None, Some(gid))
                .map_err(|errno| failed("change the group of", path)(errno.into()))?;
        }
        listener.set_nonblocking(true).map_err(failed("listen on", path))?;
        let stop = Arc::clone(&server.stop);
        let acceptor = Acceptor {
            listener,
            access,
            calls,
            stop,
            open: Arc::default(),
            refused: VecDeque::new(),
        };
        let thread = std::thread::Builder::new().name("api-accept".into());
        server.acceptor =
            Some(thread.spawn(move || acceptor.run()).map_err(failed("start a thread for", path))?);
        tracing::info!(path = %path.display(), "listening");
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
        self.calls.stop();
        let _ = self.stop.write(1);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// What tells a file from another one of the same name: device and inode.
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// How long a process that was killed may take to end: the kernel closes its AF_XDP sockets one
/// after the other, some 15 ms each, and its listening socket answers until then.
const DYING: Duration = Duration::from_secs(15);

/// As [`listen`]; waits for a listener that is dying.
fn listen_after(path: &Path) -> Result<UnixListener, SocketError> {
    let deadline = Instant::now() + DYING;
    loop {
        match listen(path) {
            Err(SocketError::AlreadyRunning { pid, .. })
                if is_dying(pid) && Instant::now() < deadline =>
            {
                // Each try stays in its queue of connections, which has an end.
                std::thread::sleep(Duration::from_millis(200));
            }
            outcome => return outcome,
        }
    }
}

/// Has the process no memory any more? Then it never runs again. False when it cannot be seen.
fn is_dying(pid: i32) -> bool {
    match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(arguments) => arguments.is_empty(),
        Err(error) => pid > 0 && error.kind() == IoErrorKind::NotFound,
    }
}

/// Binds the socket, in place of one that nobody listens on.
fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == IoErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(stream) => {
                let peer = getsockopt(&stream, sockopt::PeerCredentials);
                let pid = peer.map_or(0, |peer| peer.pid());
                return Err(SocketError::AlreadyRunning { path: path.to_owned(), pid });
            }
            Err(error) if error.kind() == IoErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "replacing a socket that nobody serves");
                std::fs::remove_file(path).map_err(failed("remove the stale socket", path))?;
            }
            Err(error) => return Err(failed("ask who listens on", path)(error)),
        },
    }
    UnixListener::bind(path).map_err(failed("listen on", path))
}

/// The accepting thread's own.
struct Acceptor {
    listener: UnixListener,
    access: Access,
    calls: CallSender,
    stop: Arc<EventFd>,
    open: Arc<AtomicUsize>,
    refused: VecDeque<UnixStream>,
}

/// One of the [`MAX_CONNECTIONS`]; dropping it makes room.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Acceptor {
    fn run(mut self) {
        let mut connections: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
        while self.wait() {
            connections.retain(|(_, thread)| !thread.is_finished());
            match self.listener.accept() {
                Ok((stream, _)) => connections.extend(self.serve(stream)),
                Err(error) if error.kind() == IoErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors, most likely: do not spin on it.
                    std::thread::sleep(REFUSAL_WAIT);
                }
            }
        }
        for (stream, thread) in connections {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }

    /// Waits for a connection; false when it is time to stop.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        !fds[1].any().unwrap_or(false)
    }

    /// Starts a connection's thread, or says why not.
    fn serve(&mut self, stream: UnixStream) -> Option<(UnixStream, JoinHandle<()>)> {
        if let Err(error) = self.access.check(&stream) {
            tracing::warn!(%error, "refused a connection");
            self.refuse(stream, error);
            return None;
        }
        if self.open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            self.open.fetch_sub(1, Ordering::Relaxed);
            let what = format!("{MAX_CONNECTIONS} connections are open already");
            let hint = "close one, or ask over one that is open";
            self.refuse(stream, ApiError::new(ErrorCode::Failed, what).hint(hint));
            return None;
        }
        let place = Place(Arc::clone(&self.open));
        let (calls, copy) = (self.calls.clone(), stream.try_clone());
        let thread = std::thread::Builder::new().name("api-client".into()).spawn(move || {
            let _place = place;
            if let Err(error) = connection::serve(&stream, &calls) {
                tracing::debug!(%error, "a connection ended");
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
        match (copy, thread) {
            (Ok(copy), Ok(thread)) => Some((copy, thread)),
            (_, Err(error)) | (Err(error), _) => {
                tracing::warn!(%error, "cannot serve a connection");
                None
            }
        }
    }

    /// Answers `error` and closes, not so soon that the client cannot read it.
    fn refuse(&mut self, mut stream: UnixStream, error: ApiError) {
        let answer = connection::line(&Response { version: VERSION, id: 0, result: Err(error) });
        let _ = stream.set_write_timeout(Some(REFUSAL_WAIT));
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(Shutdown::Write);
        if self.refused.len() >= LINGERING {
            self.refused.pop_front();
        }
        self.refused.push_back(stream);
    }
}

#[cfg(test)]
mod tests;
