//! rtnetlink, synchronously: [`Netlink`] asks and waits for the kernel's answer, [`Events`] hears
//! what changes. Both belong to the network namespace of the thread that made them, wherever they
//! are used later.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Largest datagram that is read, bytes. The kernel fills dump datagrams up to 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;

/// Receive buffer of an event socket, bytes: some 10,000 neighbour events.
const EVENT_BUFFER_BYTES: usize = 4 << 20;

/// Times that a dump is repeated because the table changed meanwhile.
const DUMP_ATTEMPTS: u32 = 5;

/// How long the kernel may take to answer, seconds.
const ANSWER_S: i64 = 5;

/// What went wrong between this process and the kernel's routing tables.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket cannot be made or set up.
    #[error("cannot open a netlink socket ({step}): {source}")]
    Open {
        /// The failing call.
        step: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A request could not be sent, or no answer came.
    #[error("cannot ask the kernel to {what}: {source}")]
    Io {
        /// What was asked.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The kernel said no.
    #[error("the kernel refuses to {what}: {errno}{}", note(.reason))]
    Refused {
        /// What was asked.
        what: String,
        /// Its error number.
        errno: Errno,
        /// Its own words, if any.
        reason: String,
    },
    /// Every attempt at a dump was disturbed by changes.
    #[error("cannot {what}: the table changed during each of {DUMP_ATTEMPTS} attempts")]
    Unsettled {
        /// What was asked.
        what: String,
    },
}

fn note(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel who refused.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn opened<T>(step: &'static str, result: std::io::Result<T>) -> Result<T, NetlinkError> {
    result.map_err(|source| NetlinkError::Open { step, source })
}

/// Calls `each` with every message of a datagram that can be understood; what cannot be is
/// logged and skipped, so that one strange object does not hide the others.
fn for_each_message(
    mut datagram: &[u8],
    mut each: impl FnMut(NetlinkMessage<RouteNetlinkMessage>),
) {
    while let Ok(frame) = NetlinkBuffer::new_checked(datagram) {
        let length = usize::try_from(frame.length()).unwrap_or(usize::MAX);
        let Some(bytes) = datagram.get(..length).filter(|bytes| !bytes.is_empty()) else { return };
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            Ok(message) => each(message),
            Err(error) => tracing::debug!(
                message_type = frame.message_type(),
                length,
                %error,
                "skipped a netlink message that cannot be read"
            ),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// A socket for requests. Each waits for its answer, at most five seconds.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How a request ended.
enum End {
    Open,
    Done,
    Refused(Errno, String),
}

impl Netlink {
    /// Opens a socket in the thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] with the failing call.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = opened("socket", Socket::new(NETLINK_ROUTE))?;
        opened("bind", socket.bind_auto())?;
        // The kernel's words instead of a copy of the request, in answers that are errors.
        opened("extended errors", socket.set_ext_ack(true))?;
        opened("short errors", socket.set_cap_ack(true))?;
        opened("strict requests", socket.set_netlink_get_strict_chk(true))?;
        let wait = TimeVal::seconds(ANSWER_S);
        let timeout = setsockopt(&socket, sockopt::ReceiveTimeout, &wait);
        opened("timeout", timeout.map_err(Into::into))?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BYTES], sequence: 0 })
    }

    /// Sends `message` and waits until the kernel has carried it out. `what` completes the
    /// sentence "the kernel refuses to ...". Returns what it answered besides its approval.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] with the kernel's reason, [`NetlinkError::Io`] otherwise.
    pub fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(message, NLM_F_ACK | flags, &what).map(|(answers, _)| answers)
    }

    /// Asks for a whole table, repeating the question when the table changed meanwhile.
    ///
    /// # Errors
    /// As [`Self::request`], or [`NetlinkError::Unsettled`].
    pub fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        what: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, disturbed) = self.exchange(message.clone(), NLM_F_DUMP, &what)?;
            if !disturbed {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Unsettled { what: what() })
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &dyn Fn() -> String,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let io = |source| NetlinkError::Io { what: what(), source };
        self.send(message, flags).map_err(io)?;
        let (mut answers, mut disturbed, mut end) = (Vec::new(), false, End::Open);
        while matches!(end, End::Open) {
            let read = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty());
            let read = match read {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(io(errno.into())),
                Ok(read) => read,
            };
            for_each_message(self.buffer.get(..read).unwrap_or_default(), |message| {
                // An earlier request that timed out may still be answered.
                if message.header.sequence_number != self.sequence {
                    return;
                }
                disturbed |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) => end = ended(done.code, &[]),
                    NetlinkPayload::Error(error) => end = ended(error.raw_code(), &error.header),
                    _ => {}
                }
            });
        }
        match end {
            End::Refused(errno, reason) => {
                Err(NetlinkError::Refused { what: what(), errno, reason })
            }
            End::Open | End::Done => Ok((answers, disturbed)),
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> std::io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(|_| ())
    }
}

/// Reads the error number and the kernel's words (attribute 1 behind the request's 16-byte
/// header) of the message that ends an exchange.
fn ended(code: i32, request: &[u8]) -> End {
    const NETLINK_HEADER_BYTES: usize = 16;
    const ATTRIBUTE_MESSAGE: u16 = 1;
    if code == 0 {
        return End::Done;
    }
    let attributes = request.get(NETLINK_HEADER_BYTES..).unwrap_or_default();
    let reason = NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).replace('\0', ""));
    End::Refused(Errno::from_raw(code.saturating_abs()), reason.unwrap_or_default())
}

/// A multicast group of rtnetlink (`enum rtnetlink_groups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Interfaces.
    Link = 1,
    /// Neighbours of both families.
    Neighbor = 3,
    /// IPv4 addresses.
    Ipv4Address = 5,
    /// IPv4 routes.
    Ipv4Route = 7,
    /// IPv4 policy rules.
    Ipv4Rule = 8,
    /// IPv6 addresses.
    Ipv6Address = 9,
    /// IPv6 routes.
    Ipv6Route = 11,
    /// IPv6 policy rules.
    Ipv6Rule = 19,
}

/// What an event socket had to say.
#[derive(Debug)]
pub enum Heard {
    /// These changes, in order.
    Changes(Vec<RouteNetlinkMessage>),
    /// Changes were lost because they were not read in time: look at everything again.
    Lost,
    /// Nothing more at present.
    Quiet,
}

/// A socket that hears of changes. It never blocks.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes to `groups` in the thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] with the failing call.
    pub fn subscribe(groups: &[Group]) -> Result<Self, NetlinkError> {
        let mut socket = opened("socket", Socket::new(NETLINK_ROUTE))?;
        opened("bind", socket.bind_auto())?;
        opened("non-blocking", socket.set_non_blocking(true))?;
        // Beyond the system's limit only with privileges, which the dataplane has; a smaller
        // buffer costs a re-read of the tables in a storm, nothing else.
        if setsockopt(&socket, sockopt::RcvBufForce, &EVENT_BUFFER_BYTES).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &EVENT_BUFFER_BYTES);
        }
        for group in groups {
            opened("join a group", socket.add_membership(*group as u32))?;
        }
        Ok(Self { socket, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Readable when there is something to hear.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// [`NetlinkError::Io`] when the socket is broken.
    pub fn hear(&mut self) -> Result<Heard, NetlinkError> {
        match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(read) => {
                let mut changes = Vec::new();
                for_each_message(self.buffer.get(..read).unwrap_or_default(), |message| {
                    if let NetlinkPayload::InnerMessage(change) = message.payload {
                        changes.push(change);
                    }
                });
                Ok(Heard::Changes(changes))
            }
            Err(Errno::EAGAIN) => Ok(Heard::Quiet),
            Err(Errno::EINTR) => Ok(Heard::Changes(Vec::new())),
            Err(Errno::ENOBUFS) => Ok(Heard::Lost),
            Err(errno) => {
                Err(NetlinkError::Io { what: "tell of changes".into(), source: errno.into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_carry_the_kernels_words() {
        let mut request = vec![0; 16];
        request.extend([9, 0, 1, 0]);
        request.extend(b"Nope\0");
        request.extend([0, 0, 0]);
        match ended(-22, &request) {
            End::Refused(errno, reason) => {
                assert_eq!((errno, reason.as_str()), (Errno::EINVAL, "Nope"));
            }
            End::Open | End::Done => panic!("an error is not the end"),
        }
        assert!(matches!(ended(0, &[]), End::Done));
        assert!(matches!(ended(-2, &[]), End::Refused(Errno::ENOENT, _)));
    }

    #[test]
    fn broken_datagrams_end_the_reading() {
        for bytes in [&[][..], &[0; 16], &[255; 20], &[17, 0, 0, 0, 2]] {
            for_each_message(bytes, |_| panic!("read a message out of {bytes:?}"));
        }
    }
}
