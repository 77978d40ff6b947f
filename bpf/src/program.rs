//! What both programs share: their maps' errors, the socket map and the kernel's test run.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, libbpf_sys};

use crate::BpfError;

/// Puts a socket in the slot of its queue. The socket leaves the map when it is closed.
pub(crate) fn register_socket(
    xsks: &MapHandle,
    queues: u32,
    queue: u32,
    socket: RawFd,
) -> Result<(), BpfError> {
    if queue >= queues {
        return Err(BpfError::NoSuchQueue { queue, queues });
    }
    write(xsks, "xsks", &queue.to_ne_bytes(), &socket.to_ne_bytes(), || {
        format!("putting socket {socket} in the slot of queue {queue} (is it an AF_XDP socket?)")
    })
}

/// Writes one entry; `action` says what it was when the kernel refuses.
pub(crate) fn write(
    map: &MapHandle,
    name: &'static str,
    key: &[u8],
    value: &[u8],
    action: impl FnOnce() -> String,
) -> Result<(), BpfError> {
    map.update(key, value, MapFlags::ANY).map_err(|source| BpfError::Map {
        map: name,
        action: action(),
        source,
    })
}

/// Runs the program once over a frame and returns its XDP action.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> Result<u32, BpfError> {
    let failed = |source| BpfError::TestRun { length: frame.len(), source };
    let length = u32::try_from(frame.len())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: length,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: `options` states its own size; `data_in` and `data_size_in` describe `frame`,
    // which the kernel only reads and which outlives the call; no output buffer is given.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    if result < 0 {
        return Err(failed(io::Error::from_raw_os_error(-result)));
    }
    Ok(options.retval)
}
