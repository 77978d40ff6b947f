//! A device's features and channels, as `ethtool` shows and sets them.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/ethtool.h, linux/sockios.h
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a feature's name.
const NAME_LEN: usize = 32;
/// Features are counted in blocks of so many.
const BLOCK: usize = 32;

/// Queues of a device that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
}

/// One feature of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// As `ethtool -k` names it.
    pub name: String,
    /// On now?
    pub active: bool,
    /// Can it be changed?
    pub changeable: bool,
}

/// Questions about one device of the calling thread's network namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: std::os::fd::OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    /// For device `name`; whether there is one, the first question shows.
    ///
    /// # Errors
    /// When no socket can be made, or the name is too long for a device's.
    pub fn open(name: &str) -> io::Result<Self> {
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut field = [0; libc::IFNAMSIZ];
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, name: field })
    }

    /// Runs one ethtool command on `buffer`, whose first word it is.
    ///
    /// # Safety
    /// The buffer is as long as the command, with the counts that stand in the buffer, makes the
    /// kernel read and write.
    unsafe fn run(&self, buffer: &mut [u32]) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: buffer.as_mut_ptr().cast() },
        };
        // SAFETY: the request names a buffer that outlives the call and is long enough, says
        // the caller.
        let result = unsafe {
            libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, std::ptr::from_mut(&mut request))
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Name of the device's driver.
    ///
    /// # Errors
    /// When there is no such device, or it has no such question.
    pub fn driver(&self) -> io::Result<String> {
        // struct ethtool_drvinfo: 196 bytes, the name after the command.
        let mut buffer = [0; 49];
        buffer[0] = ETHTOOL_GDRVINFO;
        // SAFETY: the kernel writes one struct ethtool_drvinfo.
        unsafe { self.run(&mut buffer)? };
        Ok(text(&buffer[1..9]))
    }

    /// Queues in use; a combined channel is one of each.
    ///
    /// # Errors
    /// When there is no such device, or it has no such question: then it has one of each.
    pub fn channels(&self) -> io::Result<Channels> {
        // struct ethtool_channels: the maxima, then the counts: rx, tx, other, combined.
        let mut buffer = [0; 9];
        buffer[0] = ETHTOOL_GCHANNELS;
        // SAFETY: the kernel writes one struct ethtool_channels.
        unsafe { self.run(&mut buffer)? };
        let [rx, tx, _, combined] = [buffer[5], buffer[6], buffer[7], buffer[8]];
        Ok(Channels { rx: rx + combined, tx: tx + combined })
    }

    /// All features of the device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn features(&self) -> io::Result<Vec<Feature>> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(BLOCK);
        let mut buffer = vec![0; 2 + 4 * blocks];
        (buffer[0], buffer[1]) = (ETHTOOL_GFEATURES, count(blocks));
        // SAFETY: the kernel writes as many blocks of four words as the second word says.
        unsafe { self.run(&mut buffer)? };
        let bit =
            |at: usize, word: usize| buffer[2 + at / BLOCK * 4 + word] >> (at % BLOCK) & 1 == 1;
        let feature = |(at, name)| {
            // Words of a block: available, requested, active, never changed.
            Feature { name, active: bit(at, 2), changeable: bit(at, 0) && !bit(at, 3) }
        };
        Ok(names.into_iter().enumerate().map(feature).filter(|f| !f.name.is_empty()).collect())
    }

    /// Asks for every feature that `choose` picks to be off. Read [`Ethtool::features`] again to
    /// see which are.
    ///
    /// # Errors
    /// When there is no such device, or changing it is not permitted.
    pub fn switch_off(&self, choose: impl Fn(&str) -> bool) -> io::Result<()> {
        let names = self.feature_names()?;
        let changeable: Vec<String> =
            self.features()?.into_iter().filter(|f| f.changeable).map(|f| f.name).collect();
        let blocks = names.len().div_ceil(BLOCK);
        // Words of a block: which bits are meant, and their values.
        let mut buffer = vec![0; 2 + 2 * blocks];
        (buffer[0], buffer[1]) = (ETHTOOL_SFEATURES, count(blocks));
        for (at, name) in names.iter().enumerate() {
            if choose(name) && changeable.contains(name) {
                buffer[2 + at / BLOCK * 2] |= 1 << (at % BLOCK);
            }
        }
        // SAFETY: the kernel reads as many blocks of two words as the second word says.
        unsafe { self.run(&mut buffer) }
    }

    /// Names of the features by number; empty where there is none.
    fn feature_names(&self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: command, reserved, 64-bit mask, one count for the one set.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        // SAFETY: one bit is set in the mask, so the kernel writes one count.
        unsafe { self.run(&mut info)? };
        let names = info[4] as usize;
        // struct ethtool_gstrings: command, set, count, names.
        let mut buffer = vec![0; 3 + names * NAME_LEN / 4];
        (buffer[0], buffer[1], buffer[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]);
        // SAFETY: the kernel writes the names of the set, whose number it has just told; it is
        // a constant of the kernel.
        unsafe { self.run(&mut buffer)? };
        Ok(buffer[3..].chunks_exact(NAME_LEN / 4).map(text).collect())
    }
}

/// A count of blocks, of which there are two or three.
fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(0)
}

/// The text in a field of bytes, up to its first zero.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|w| w.to_ne_bytes()).take_while(|&b| b != 0).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_features_and_a_missing_one_is_an_error() {
        let lo = Ethtool::open("lo").unwrap();
        let features = lo.features().unwrap();
        let fixed = features.iter().find(|f| f.name == "loopback").unwrap();
        assert!(fixed.active && !fixed.changeable);
        assert!(features.iter().any(|f| f.name == "tx-tcp-segmentation"));
        assert!(Ethtool::open("nosuchdevice0").unwrap().features().is_err());
        assert!(Ethtool::open("a-name-that-is-too-long").is_err());
    }
}
