//! A blocking client of the dataplane's socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::{ApiError, Op, Reply, Request, Response, VERSION};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("cannot connect to {path}: {source}; is the process running, and is --socket right?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The connection broke or timed out.
    #[error("lost the connection to {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The answer is not of this protocol.
    #[error("{path} answered something that is not version {VERSION} of the protocol: {what}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The other side refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// A connection to a dataplane.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Client {
    /// Connects to the socket at `path`. Each later call waits at most `timeout` for its answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nothing listens there.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let connect = |source| ClientError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(timeout)).map_err(connect)?;
        stream.set_write_timeout(Some(timeout)).map_err(connect)?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(stream), next_id: 1 })
    }

    /// Asks `op` and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the server's reason, or what went wrong on the way. After
    /// any other error the connection is of no more use.
    pub fn call(&mut self, op: Op) -> Result<Reply, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Request { version: VERSION, id, op })
            .map_err(|error| self.protocol(error.to_string()))?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(|source| self.io(source))?;
        let mut answer = String::new();
        let read = self.reader.read_line(&mut answer).map_err(|source| self.io(source))?;
        if read == 0 {
            return Err(self.io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let response: Response =
            serde_json::from_str(&answer).map_err(|error| self.protocol(error.to_string()))?;
        if response.version != VERSION {
            return Err(self.protocol(format!("it speaks version {}", response.version)));
        }
        match response.result {
            Err(error) => Err(error.into()),
            Ok(_) if response.id != id => {
                Err(self.protocol(format!("answer {} to request {id}", response.id)))
            }
            Ok(reply) => Ok(reply),
        }
    }

    fn io(&self, source: std::io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }

    fn protocol(&self, what: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), what }
    }
}
