//! Manifests from a watched directory: `*.yaml`, `*.yml` and `*.json` directly inside it, symbolic
//! links followed (as Kubernetes lays out a mounted ConfigMap). A change is noticed by inotify
//! and, where that sees nothing (network file systems, a directory that came later), by looking
//! again every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use overlane_api::object::Fnv;

use super::{Placed, Problem, Source, Update};
use crate::manifests::documents::Documents;
use crate::manifests::{Manifest, ManifestKey};

/// How long the directory must be quiet before it is read.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for a directory that never is quiet.
const MAX_DEBOUNCE: Duration = Duration::from_millis(250);
/// How often the directory is looked at without a reason.
const RESCAN: Duration = Duration::from_secs(2);
/// Looking without a reason takes at most this part of the time: one in so many.
const RESCAN_SHARE: u32 = 50;
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
    documents: Documents,
    notes: Vec<String>,
    problem: Option<Problem>,
}

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// The files that hold an object; the first in the list is the one in force.
    owners: BTreeMap<ManifestKey, Vec<PathBuf>>,
    /// Objects in more than one file.
    doubles: BTreeSet<ManifestKey>,
    /// Objects that the last update did not speak of.
    changed: BTreeSet<ManifestKey>,
    /// Files of which something is to be said.
    remarkable: BTreeSet<PathBuf>,
    problem: Option<Problem>,
    watch: Option<Watch>,
    next_rescan: Option<Instant>,
}

#[derive(Debug)]
struct Watch {
    events: Receiver<Sign>,
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
            doubles: BTreeSet::new(),
            changed: BTreeSet::new(),
            remarkable: BTreeSet::new(),
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
        let is_gone = |path: &&PathBuf| names.binary_search(path).is_err();
        let gone: Vec<PathBuf> = self.files.keys().filter(is_gone).cloned().collect();
        changed |= !gone.is_empty();
        for path in &gone {
            self.replace(path, None);
        }
        for path in names {
            changed |= self.refresh(path);
        }
        changed
    }

    /// Reads these files again, which are known to have changed. Did anything change?
    fn scan_only(&mut self, paths: BTreeSet<PathBuf>) -> bool {
        let mut changed = false;
        for path in paths {
            // The watcher speaks of absolute paths.
            let Some(name) = path.file_name() else { continue };
            let path = self.path.join(name);
            // Of one that is gone by now, there will be a sign.
            if path.is_file() {
                changed |= self.refresh(path);
            }
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
        let good = self.files.get_mut(&path).and_then(|file| file.good.take());
        let before: Option<Vec<Manifest>> = good.clone();
        let documents = self.files.get_mut(&path).map(|file| std::mem::take(&mut file.documents));
        let file = File::read(&path, text, good, documents.unwrap_or_default());
        if let Some(known) = self.files.get_mut(&path) {
            known.good = before;
        }
        self.replace(&path, Some(File { stamp, text_hash: hash, ..file }));
        true
    }

    /// Puts another version of a file in place, and notes which objects are concerned. An object
    /// in two files stays with the one that had it first.
    fn replace(&mut self, path: &Path, file: Option<File>) {
        let before = self.files.remove(path).and_then(|file| file.good).unwrap_or_default();
        let mut before: BTreeMap<ManifestKey, Manifest> =
            before.into_iter().map(|manifest| (manifest.key(), manifest)).collect();
        for manifest in file.iter().filter_map(|file| file.good.as_ref()).flatten() {
            let key = manifest.key();
            match before.remove(&key) {
                Some(same) if same == *manifest => {}
                Some(_) => {
                    self.changed.insert(key);
                }
                None => self.own(key, path),
            }
        }
        for key in before.into_keys() {
            self.disown(key, path);
        }
        let remarkable = file.as_ref().is_some_and(File::is_remarkable);
        if remarkable {
            self.remarkable.insert(path.to_owned());
        } else {
            self.remarkable.remove(path);
        }
        if let Some(file) = file {
            self.files.insert(path.to_owned(), file);
        }
    }

    fn own(&mut self, key: ManifestKey, path: &Path) {
        let owners = self.owners.entry(key.clone()).or_default();
        owners.push(path.to_owned());
        if owners.len() > 1 {
            self.doubles.insert(key);
        } else {
            self.changed.insert(key);
        }
    }

    fn disown(&mut self, key: ManifestKey, path: &Path) {
        let Some(owners) = self.owners.get_mut(&key) else { return };
        owners.retain(|owner| owner != path);
        if owners.len() < 2 {
            self.doubles.remove(&key);
        }
        if owners.is_empty() {
            self.owners.remove(&key);
        }
        self.changed.insert(key);
    }

    /// What has changed since the last update, and all that is to be said.
    fn update(&mut self) -> Update {
        let mut update = Update { incomplete: self.problem.is_some(), ..Update::default() };
        update.problems.extend(self.problem.clone());
        for file in self.remarkable.iter().filter_map(|path| self.files.get(path)) {
            update.incomplete |= file.good.is_none();
            update.problems.extend(file.problem.clone());
            update.notes.extend(file.notes.iter().cloned());
        }
        for (key, paths) in self.doubles.iter().filter_map(|key| self.owners.get_key_value(key)) {
            let Some((used, unused)) = paths.split_first() else { continue };
            update.problems.extend(unused.iter().map(|unused| twice(key, unused, used)));
        }
        self.place_changed(&mut update.changes);
        update
    }

    /// Finds the manifests in force of what has changed, going through each file once.
    fn place_changed(&mut self, changes: &mut BTreeMap<ManifestKey, Option<Placed>>) {
        let mut wanted: BTreeMap<&Path, BTreeSet<ManifestKey>> = BTreeMap::new();
        for key in std::mem::take(&mut self.changed) {
            match self.owners.get(&key).and_then(|owners| owners.first()) {
                Some(path) => {
                    wanted.entry(path).or_default().insert(key);
                }
                None => {
                    changes.insert(key, None);
                }
            }
        }
        for (path, keys) in wanted {
            let manifests = self.files.get(path).and_then(|file| file.good.as_ref());
            let place = path.display().to_string();
            for manifest in manifests.into_iter().flatten() {
                let key = manifest.key();
                if keys.contains(&key) {
                    changes.insert(key, Some((manifest.clone(), place.clone())));
                }
            }
        }
    }

    /// Waits for a sign of change until `deadline`: the files that have changed, or that anything
    /// may have.
    fn wait_for_sign(&mut self, deadline: Instant) -> Option<Signs> {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(watch) = &self.watch else {
            std::thread::sleep(left);
            return None;
        };
        match watch.events.recv_timeout(left) {
            Ok(first) => {
                let mut signs = Signs::default();
                signs.add(first);
                let latest = Instant::now() + MAX_DEBOUNCE;
                while Instant::now() < latest {
                    let quiet = if signs.are_complete() { Duration::ZERO } else { QUIET };
                    let Ok(next) = watch.events.recv_timeout(quiet) else { break };
                    signs.add(next);
                }
                Some(signs)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                None
            }
        }
    }
}

/// What the kernel said about the directory.
#[derive(Debug, Default)]
struct Signs {
    /// Files that were closed after writing, or moved here: they are whole.
    whole: BTreeSet<PathBuf>,
    /// Files that are being written.
    open: BTreeSet<PathBuf>,
    /// Something else has happened: the directory must be read.
    other: bool,
}

/// One sign.
#[derive(Debug)]
enum Sign {
    /// This file is whole.
    Whole(PathBuf),
    /// This file is being written.
    Open(PathBuf),
    /// Anything may have happened.
    Other,
}

impl Signs {
    fn add(&mut self, sign: Sign) {
        match sign {
            Sign::Whole(path) => {
                self.open.remove(&path);
                self.whole.insert(path);
            }
            Sign::Open(path) => {
                self.open.insert(path);
            }
            Sign::Other => self.other = true,
        }
    }

    /// Is every file whole? Then there is nothing to wait for.
    fn are_complete(&self) -> bool {
        !self.other && self.open.is_empty()
    }
}

impl Source for Directory {
    fn wait(&mut self, timeout: Duration) -> Option<Update> {
        let end = Instant::now() + timeout;
        let Some(mut rescan) = self.next_rescan else {
            self.scan();
            self.next_rescan = Some(Instant::now() + RESCAN);
            return Some(self.update());
        };
        loop {
            let signs = self.wait_for_sign(end.min(rescan));
            let now = Instant::now();
            let changed = match signs {
                Some(signs) if signs.are_complete() && self.problem.is_none() => {
                    self.scan_only(signs.whole)
                }
                None if now < rescan => false,
                _ => {
                    let changed = self.scan();
                    // Looking at many files takes its time: not too often without a reason.
                    let pause = RESCAN.max(now.elapsed() * RESCAN_SHARE);
                    rescan = Instant::now() + pause;
                    self.next_rescan = Some(rescan);
                    changed
                }
            };
            if changed {
                return Some(self.update());
            }
            if Instant::now() >= end {
                return None;
            }
        }
    }
}

impl File {
    fn is_remarkable(&self) -> bool {
        self.good.is_none() || self.problem.is_some() || !self.notes.is_empty()
    }

    fn read(
        path: &Path,
        text: Result<String, String>,
        good: Option<Vec<Manifest>>,
        mut documents: Documents,
    ) -> Self {
        let stays = if good.is_some() {
            "the objects it held before stay in force"
        } else {
            "nothing of it is in force, and nothing is removed until it can be read"
        };
        let place = path.display().to_string();
        let read = match text {
            Ok(text) => documents.read(path, &text).map_err(|error| match error.line {
                0 => (place.clone(), error.message),
                line => (format!("{place}:{line}:{}", error.column), error.message),
            }),
            Err(message) => Err((place.clone(), message)),
        };
        let (notes, problem) = (Vec::new(), None);
        let empty = Self { stamp: None, text_hash: None, good, documents, notes, problem };
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
        for sign in signs_of(event) {
            let _ = sender.send(sign);
        }
    })?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(Watch { events, inode, _watcher: watcher })
}

/// Opening and reading changes nothing; an error means that something may be lost.
fn signs_of(event: Result<notify::Event, notify::Error>) -> Vec<Sign> {
    use notify::EventKind;
    use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
    let Ok(event) = event else { return vec![Sign::Other] };
    let sign = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Sign::Whole,
        EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => Sign::Open,
        // The other name of a mounted ConfigMap's `..data` stands for all of its files.
        EventKind::Modify(ModifyKind::Name(RenameMode::To))
            if event.paths.iter().all(|path| is_manifest(path)) =>
        {
            Sign::Whole
        }
        // Both names of one move were told before. What goes under a name that is no manifest's
        // was none.
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
            return Vec::new();
        }
        EventKind::Modify(ModifyKind::Name(RenameMode::From))
            if !event.paths.iter().any(|path| is_manifest(path)) =>
        {
            return Vec::new();
        }
        _ => return vec![Sign::Other],
    };
    event.paths.into_iter().filter(|path| is_manifest(path)).map(sign).collect()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
