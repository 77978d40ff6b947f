//! Entering a network namespace.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::PerfError;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// Moves the calling thread into a named network namespace, as `ip netns exec` does; threads that
/// it starts from now on are in it, too. Without a name it stays where it is.
///
/// # Errors
/// [`PerfError::Namespace`]
pub fn enter(name: Option<&str>) -> Result<(), PerfError> {
    let Some(name) = name else { return Ok(()) };
    let failed = |source| PerfError::Namespace { name: name.to_owned(), source };
    let file = File::open(Path::new(NAMES).join(name)).map_err(failed)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = enter(Some("ovq-nowhere")).unwrap_err().to_string();
        assert!(error.contains("ovq-nowhere") && error.contains("ip netns list"), "{error}");
        enter(None).unwrap();
    }
}
