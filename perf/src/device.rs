//! The kernel's counters of an interface.
//!
//! Read from `/proc`, which shows the network namespace of the thread that opened the file, and
//! goes on showing it to other threads; `/sys` shows that of whoever mounted it.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::Mutex;

use overlane_dataplane::io::af_xdp::interface::Interface;
use serde::Serialize;

use crate::error::PerfError;

/// Counters of an interface, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames that were lost while they were received: the interface had no room for them.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames that could not be sent.
    pub tx_dropped: u64,
}

impl Counters {
    /// The growth since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            rx_frames: self.rx_frames.wrapping_sub(before.rx_frames),
            rx_dropped: self.rx_dropped.wrapping_sub(before.rx_dropped),
            tx_frames: self.tx_frames.wrapping_sub(before.tx_frames),
            tx_dropped: self.tx_dropped.wrapping_sub(before.tx_dropped),
        }
    }
}

/// An interface of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Device {
    name: String,
    file: Mutex<File>,
}

impl Device {
    /// Looks for interface `name` in the calling thread's namespace.
    ///
    /// # Errors
    /// [`PerfError::Interface`]: there is none; [`PerfError::File`]
    pub fn open(name: &str) -> Result<Self, PerfError> {
        find(name)?;
        let path = "/proc/thread-self/net/dev";
        let file = File::open(path);
        let file = file.map_err(|source| PerfError::File { path: path.into(), source })?;
        Ok(Self { name: name.to_owned(), file: Mutex::new(file) })
    }

    /// The interface's counters, now.
    ///
    /// # Errors
    /// [`PerfError::Interface`]: it is gone.
    pub fn counters(&self) -> Result<Counters, PerfError> {
        let gone = |problem: &str| interface_error(&self.name, problem.to_owned());
        let mut text = String::new();
        let mut file = self.file.lock().map_err(|_| PerfError::Thread)?;
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.map_err(|error| gone(&format!("its counters cannot be read: {error}")))?;
        parse(&text, &self.name).ok_or_else(|| gone("it is gone"))
    }
}

/// The interface's line of `/proc/net/dev`: 8 numbers of receiving, 8 of sending.
fn parse(text: &str, name: &str) -> Option<Counters> {
    let numbers = text.lines().find_map(|line| {
        let (found, numbers) = line.split_once(':')?;
        (found.trim() == name).then_some(numbers)
    })?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let at = |index: usize| numbers.get(index).copied();
    Some(Counters { rx_frames: at(1)?, rx_dropped: at(3)?, tx_frames: at(9)?, tx_dropped: at(11)? })
}

/// Interface `name` of the calling thread's namespace, which must be up.
///
/// # Errors
/// [`PerfError::Interface`]: there is none, or it is down.
pub fn find(name: &str) -> Result<Interface, PerfError> {
    let interface = Interface::find(name).map_err(|error| {
        let why = error.source;
        interface_error(name, format!("not in this network namespace ({why}); see --netns"))
    })?;
    if !interface.is_up {
        return Err(interface_error(name, format!("it is down; ip link set {name} up")));
    }
    Ok(interface)
}

pub(crate) fn interface_error(name: &str, problem: String) -> PerfError {
    PerfError::Interface { name: name.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_interface_is_read() {
        let text = "Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                    veth0:100 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let counters = parse(text, "eth0").unwrap();
        let wanted = Counters { rx_frames: 2, rx_dropped: 4, tx_frames: 10, tx_dropped: 12 };
        assert_eq!(counters, wanted);
        assert_eq!(parse(text, "eth"), None);
        let later = Counters { tx_frames: 15, ..wanted };
        assert_eq!(later.since(&wanted), Counters { tx_frames: 5, ..Counters::default() });
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = Device::open("ovq-none").unwrap_err().to_string();
        assert!(error.contains("ovq-none") && error.contains("--netns"), "{error}");
    }
}
