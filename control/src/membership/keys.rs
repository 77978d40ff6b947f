//! The file with the keys that membership messages are authenticated with.
//!
//! ```text
//! # comment
//! 5f0c...64 hexadecimal digits or more: the key with which this node signs
//! 9a41...and, while the key is changed, another one that is taken as well
//! ```
//! Whoever can read it can speak as any node of the cluster: it belongs to root, or to who runs this
//! process, and nobody else may read it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _};
use sha2::Sha256;

/// Shortest key, bytes: as long as the hash that it is used with (RFC 2104 section 3).
const SHORTEST: usize = 32;
/// Longest key, bytes: a longer one is no stronger.
const LONGEST: usize = 64;
/// Most keys.
const KEYS: usize = 2;
/// Longest file, bytes.
const LONGEST_FILE: u64 = 4096;

/// Where the keys are, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySettings {
    /// The file.
    pub file: PathBuf,
    /// Are messages taken, too, that are not signed at all?
    pub accept_unsigned: bool,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("membership.keyFile {} cannot be read: {source}; make one, the same on all nodes: (umask 077; openssl rand -hex 32 > {})", .file.display(), .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is none.
    #[error("membership.keyFile {} is not a regular file: name one", .0.display())]
    NoFile(PathBuf),
    /// Others may read or write it.
    #[error("membership.keyFile {} can be used by others than its owner (mode {mode:04o}): chmod 600 {}", .file.display(), .file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is somebody else's.
    #[error("membership.keyFile {} belongs to user {owner}: chown it to root, or to the user {own} that runs this", .file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this process.
        own: u32,
    },
    /// It holds something else than keys.
    #[error("membership.keyFile {}: {what}", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What, where, and what to do.
        what: String,
    },
}

/// The keys: one to sign with, and perhaps another that is taken as well.
#[derive(Clone)]
pub struct Keys(Vec<Hmac<Sha256>>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not what they are.
        f.debug_tuple("Keys").field(&self.0.len()).finish()
    }
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// [`KeyError`]: it cannot be read, others can read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let file = || path.to_owned();
        let unreadable = |source| KeyError::Unreadable { file: file(), source };
        let opened = File::open(path).map_err(unreadable)?;
        // Of what was opened, not of what the name stands for by then.
        let about = opened.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(KeyError::NoFile(file()));
        }
        let mode = about.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { file: file(), mode });
        }
        let (owner, own) = (about.uid(), nix::unistd::geteuid().as_raw());
        if owner != 0 && owner != own {
            return Err(KeyError::Foreign { file: file(), owner, own });
        }
        let mut text = String::new();
        opened.take(LONGEST_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text).map_err(|what| KeyError::Content { file: file(), what })
    }

    /// Takes the keys from the text of such a file.
    ///
    /// # Errors
    /// What is wrong, in which line, and what to do. No part of a key is said.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() as u64 > LONGEST_FILE {
            return Err(format!("it is longer than {LONGEST_FILE} bytes: give one or two keys"));
        }
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let key = bytes(line).ok_or_else(|| {
                format!("line {number} is no key: write hexadecimal digits, two a byte (openssl rand -hex 32)")
            })?;
            if !(SHORTEST..=LONGEST).contains(&key.len()) {
                let digits = (2 * SHORTEST, 2 * LONGEST);
                return Err(format!(
                    "the key in line {number} has {} hexadecimal digits: give {} to {}, at random",
                    line.len(),
                    digits.0,
                    digits.1
                ));
            }
            if keys.contains(&key) {
                return Err(format!("the key in line {number} is there twice: remove one"));
            }
            keys.push(key);
        }
        if keys.is_empty() || keys.len() > KEYS {
            let what = if keys.is_empty() {
                "there is no key".to_owned()
            } else {
                format!("there are {} keys", keys.len())
            };
            return Err(format!(
                "{what}: give one, or two while it is changed, each in a line of its own"
            ));
        }
        let keyed = keys.iter().map(|key| Hmac::new_from_slice(key));
        keyed.collect::<Result<_, _>>().map(Self).map_err(|error| error.to_string())
    }

    /// What a message is signed with.
    pub(super) fn first(&self) -> Option<Hmac<Sha256>> {
        self.0.first().cloned()
    }

    /// What a message may be signed with.
    pub(super) fn each(&self) -> impl Iterator<Item = Hmac<Sha256>> + '_ {
        self.0.iter().cloned()
    }
}

/// The bytes of hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digit =
        |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn count(text: &str) -> Result<usize, String> {
        Keys::parse(text).map(|keys| keys.0.len())
    }

    #[test]
    fn one_key_or_two_among_comments() {
        assert_eq!(count(&key('a')), Ok(1));
        assert_eq!(count(&format!("# made in May\n\n  {}\r\n{}\n", key('A'), key('b'))), Ok(2));
        assert_eq!(count(&key('1').repeat(2)), Ok(1), "the longest");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (text, said) in [
            (String::new(), "there is no key"),
            ("# nothing\n".into(), "there is no key"),
            (format!("{}\n{}\n{}", key('a'), key('b'), key('c')), "there are 3 keys"),
            (key('a')[1..].into(), "line 1 is no key"),
            (key('a')[2..].into(), "62 hexadecimal digits: give 64 to 128"),
            (key('a').repeat(3), "192 hexadecimal digits"),
            (format!("# x\n{}", key('g')), "line 2 is no key"),
            (format!("{}\n{}", key('a'), key('A')), "line 2 is there twice"),
            ("# ".repeat(3000), "longer than 4096 bytes"),
        ] {
            let error = count(&text).unwrap_err();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("aaaa") && !error.contains("gggg"), "{error}");
        }
        assert_eq!(format!("{:?}", Keys::parse(&key('a')).unwrap()), "Keys(1)");
    }

    #[test]
    fn who_may_read_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let said = |mode: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Keys::read(&path).map(|_| ()).map_err(|error| error.to_string())
        };
        assert!(Keys::read(&path).unwrap_err().to_string().contains("openssl rand -hex 32"));
        std::fs::write(&path, key('a')).unwrap();
        for mode in [0o600, 0o400, 0o700] {
            assert_eq!(said(mode), Ok(()));
        }
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            let error = said(mode).unwrap_err();
            assert!(error.contains("by others") && error.contains("chmod 600"), "{error}");
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
        }
        std::fs::write(&path, "secret").unwrap();
        let error = said(0o600).unwrap_err();
        assert!(error.contains("line 1 is no key") && !error.contains("secret"), "{error}");
        assert!(Keys::read(directory.path()).is_err());
    }
}
