//! Manifests from a watched directory: `*.yaml`, `*.yml` and `*.json` directly inside it, symbolic
//! links followed (as Kubernetes lays out a mounted ConfigMap). A change is noticed by inotify
//! and, where that sees nothing (network file systems, a directory that came later), by looking
//! again every few seconds.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use overlane_api::object::Fnv;

use super::{Problem, Source, View};
use crate::manifests::{self, Manifest, ManifestKey};

/// How long the directory must be quiet before it is read.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for a directory that never is quiet.
const MAX_DEBOUNCE: Duration = Duration::from_millis(250);
/// How often the directory is looked at without a reason.
const RESCAN: Duration = Duration::from_secs(2);
/// Age below which a file's time stamp does not prove that it is unchanged: clocks of file
/// systems tick in milliseconds, and two writes may fall into one tick.
const FRESH: Duration = Duration::from_secs(2);
/// Largest file that is read, bytes.
const MAX_FILE: u64 = 256 << 20;

/// What tells two versions of a file apart without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    device: u64,
    length: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

/// One file as it was last seen.
#[derive(Debug)]
struct File {
    stamp: Option<Stamp>,
    text_hash: Option<u64>,
    /// From the last text that could be read; absent: there was none.
    good: Option<Vec<Manifest>>,
    notes: Vec<String>,
    problem: Option<Problem>,
}

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Which file each object comes from.
    owners: BTreeMap<ManifestKey, PathBuf>,
    problem: Option<Problem>,
    watch: Option<Watch>,
    next_rescan: Option<Instant>,
}

#[derive(Debug)]
struct Watch {
    events: Receiver<()>,
    /// The directory that is watched; another one may have taken its name.
    inode: u64,
    _watcher: RecommendedWatcher,
}

impl Directory {
    /// The directory at `path`. It need not exist yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            problem: None,
            watch: None,
            next_rescan: None,
        }
    }

    /// Reads what has changed. Did anything?
    fn scan(&mut self) -> bool {
        self.renew_watch();
        let names = match list(&self.path) {
            Ok(names) => names,
            Err(error) => {
                let message = format!(
                    "cannot read the directory: {error}; what was read from it before stays in force"
                );
                return self.set_problem(Some(Problem {
                    place: self.path.display().to_string(),
                    message,
                }));
            }
        };
        let mut changed = self.set_problem(None);
        let before = self.files.len();
        self.files.retain(|path, _| names.binary_search(path).is_ok());
        changed |= self.files.len() != before;
        for path in names {
            changed |= self.refresh(path);
        }
        changed
    }

    fn set_problem(&mut self, problem: Option<Problem>) -> bool {
        let changed = self.problem != problem;
        self.problem = problem;
        changed
    }

    fn renew_watch(&mut self) {
        let inode = std::fs::metadata(&self.path).ok().map(|directory| directory.ino());
        if self.watch.as_ref().map(|watch| watch.inode) == inode {
            return;
        }
        self.watch = inode.and_then(|inode| match watch(&self.path, inode) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot watch the directory; looking at it every {} s instead", RESCAN.as_secs());
                None
            }
        });
    }

    /// Reads one file if it is new or has changed. Did what is known of it change?
    fn refresh(&mut self, path: PathBuf) -> bool {
        let known = self.files.get(&path);
        let stamp = std::fs::metadata(&path).map(|meta| Stamp::of(&meta));
        if let (Some(known), Ok(stamp)) = (known, &stamp)
            && known.stamp.as_ref() == Some(stamp)
        {
            return false;
        }
        let text = match stamp {
            Ok(stamp) if stamp.length > MAX_FILE => {
                Err(format!("has {} bytes; at most {MAX_FILE} are read", stamp.length))
            }
            Ok(_) => std::fs::read_to_string(&path).map_err(|error| error.to_string()),
            Err(ref error) => Err(error.to_string()),
        };
        let hash = text.as_ref().ok().map(|text| Fnv::hash(text.as_bytes()));
        let stamp = stamp.ok().filter(Stamp::is_settled);
        if let Some(known) = self.files.get_mut(&path)
            && known.text_hash == hash
            && (hash.is_some() || known.problem.is_some())
        {
            known.stamp = stamp;
            return false;
        }
        let before = self.files.remove(&path);
        let file = File::read(&path, text, before.and_then(|file| file.good));
        self.files.insert(path, File { stamp, text_hash: hash, ..file });
        true
    }

    /// Puts the files together. An object in two files stays with the one that had it first.
    fn view(&mut self) -> View {
        let mut view = View { incomplete: self.problem.is_some(), ..View::default() };
        view.problems.extend(self.problem.clone());
        let mut owners: BTreeMap<ManifestKey, PathBuf> = BTreeMap::new();
        for (path, file) in &self.files {
            view.incomplete |= file.good.is_none();
            view.problems.extend(file.problem.clone());
            view.notes.extend(file.notes.iter().cloned());
            for manifest in file.good.iter().flatten() {
                let key = manifest.key();
                let first = self.owners.get(&key) == Some(path);
                if let Some(other) = owners.get(&key)
                    && !first
                {
                    view.problems.push(twice(&key, path, other));
                    continue;
                }
                if let Some(other) = owners.insert(key.clone(), path.clone()) {
                    view.problems.push(twice(&key, &other, path));
                }
                view.manifests.insert(key, (manifest.clone(), path.display().to_string()));
            }
        }
        self.owners = owners;
        view
    }

    /// Waits for a sign of change until `deadline`. Was there one?
    fn wait_for_sign(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(watch) = &self.watch else {
            std::thread::sleep(left);
            return false;
        };
        match watch.events.recv_timeout(left) {
            Ok(()) => {
                let latest = Instant::now() + MAX_DEBOUNCE;
                while Instant::now() < latest && watch.events.recv_timeout(QUIET).is_ok() {}
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                false
            }
        }
    }
}

impl Source for Directory {
    fn wait(&mut self, timeout: Duration) -> Option<View> {
        let end = Instant::now() + timeout;
        let Some(mut rescan) = self.next_rescan else {
            self.scan();
            self.next_rescan = Some(Instant::now() + RESCAN);
            return Some(self.view());
        };
        loop {
            let sign = self.wait_for_sign(end.min(rescan));
            let now = Instant::now();
            if sign || now >= rescan {
                rescan = now + RESCAN;
                self.next_rescan = Some(rescan);
                if self.scan() {
                    return Some(self.view());
                }
            }
            if now >= end {
                return None;
            }
        }
    }
}

impl File {
    fn read(path: &Path, text: Result<String, String>, good: Option<Vec<Manifest>>) -> Self {
        let stays = if good.is_some() {
            "the objects it held before stay in force"
        } else {
            "nothing of it is in force, and nothing is removed until it can be read"
        };
        let place = path.display().to_string();
        let read = match text {
            Ok(text) => manifests::read(path, &text).map_err(|error| match error.line {
                0 => (place.clone(), error.message),
                line => (format!("{place}:{line}:{}", error.column), error.message),
            }),
            Err(message) => Err((place.clone(), message)),
        };
        let empty = Self { stamp: None, text_hash: None, good, notes: Vec::new(), problem: None };
        match read {
            Ok(read) => {
                let notes = read.notes().map(|note| format!("{place}: {note}")).collect();
                Self { good: Some(read.manifests), notes, ..empty }
            }
            Err((place, message)) => {
                let message = format!("{message}; {stays}");
                Self { problem: Some(Problem { place, message }), ..empty }
            }
        }
    }
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            device: meta.dev(),
            length: meta.len(),
            modified_ns: (meta.mtime(), meta.mtime_nsec()),
            changed_ns: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Is the last write long enough ago that another one would have moved the stamp?
    fn is_settled(&self) -> bool {
        let seconds = u64::try_from(self.changed_ns.0.max(self.modified_ns.0)).unwrap_or_default();
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        SystemTime::now().duration_since(written).is_ok_and(|age| age > FRESH)
    }
}

fn twice(key: &ManifestKey, unused: &Path, used: &Path) -> Problem {
    let message = format!(
        "{key} is also in {}, which had it first and stays in force: remove it from one of the two",
        used.display()
    );
    Problem { place: unused.display().to_string(), message }
}

/// The manifests' paths, sorted.
fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        // A link to nowhere is a file that cannot be read, and reported as such.
        if is_manifest(&path) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Is this name a manifest's, and not an editor's temporary file?
fn is_manifest(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let known = ["yaml", "yml", "json"].iter().any(|known| ending.eq_ignore_ascii_case(known));
    known && !name.starts_with(['.', '#', '~'])
}

fn watch(path: &Path, inode: u64) -> Result<Watch, notify::Error> {
    let (sender, events) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, _>| {
        // Opening and reading changes nothing; an error means that something may be lost.
        if !event.is_ok_and(|event| event.kind.is_access() && !is_written(event.kind)) {
            let _ = sender.send(());
        }
    })?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(Watch { events, inode, _watcher: watcher })
}

fn is_written(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    kind == notify::EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
