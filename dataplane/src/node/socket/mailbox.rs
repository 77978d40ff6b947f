//! The way from the connections to the slow thread and back.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use overlane_api::protocol::{ApiError, ErrorCode, Op, Reply};

use super::MAX_CONNECTIONS;

/// How often a waiting connection looks whether the server stops.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub op: Op,
    /// Where the answer goes: exactly one. Dropping it unanswered is answered as a failure.
    pub reply: Sender<Result<Reply, ApiError>>,
}

/// Makes the way for calls: it holds one for each possible connection, so sending never waits
/// long.
///
/// # Errors
/// When the kernel has no event descriptor left.
pub fn mailbox() -> Result<(CallSender, CallReceiver), Errno> {
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let wake = Arc::new(wake);
    let (sender, receiver) = bounded(MAX_CONNECTIONS);
    Ok((
        CallSender { calls: sender, wake: Arc::clone(&wake), stopping: Arc::default() },
        CallReceiver { calls: receiver, wake },
    ))
}

/// The connections' end.
#[derive(Debug, Clone)]
pub struct CallSender {
    calls: Sender<Call>,
    wake: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
}

impl CallSender {
    /// Asks the slow thread and waits for its answer.
    ///
    /// # Errors
    /// What the slow thread answered, or [`ErrorCode::Failed`] when it is gone.
    pub fn ask(&self, op: Op) -> Result<Reply, ApiError> {
        let gone = || {
            ApiError::new(ErrorCode::Failed, "the dataplane is stopping")
                .hint("try again when it is back")
        };
        let (reply, answer) = bounded(1);
        self.calls.send(Call { op, reply }).map_err(|_| gone())?;
        // A full counter is readable too, which is all that matters.
        let _ = self.wake.write(1);
        loop {
            match answer.recv_timeout(STOP_CHECK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !self.stopping.load(Ordering::Relaxed) => {}
                Err(_) => return Err(gone()),
            }
        }
    }

    /// Lets everybody who waits for an answer go: whoever stops the server may be the one who
    /// would have answered.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The slow thread's end.
#[derive(Debug)]
pub struct CallReceiver {
    calls: Receiver<Call>,
    wake: Arc<EventFd>,
}

impl CallReceiver {
    /// Readable when a call waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The next call, if one waits. Call it until it returns none before waiting for
    /// [`Self::fd`] again.
    #[must_use]
    pub fn next(&self) -> Option<Call> {
        if let Ok(call) = self.calls.try_recv() {
            return Some(call);
        }
        // First the event is cleared, then the queue looked at again: a call sent in between is
        // found here, a later one makes the descriptor readable.
        let _ = self.wake.read();
        self.calls.try_recv().ok()
    }
}
