use super::*;

use crate::sources::View;

use std::fs;

struct Bed {
    directory: tempfile::TempDir,
    source: Directory,
    view: View,
}

fn bed() -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let source = Directory::new(directory.path());
    Bed { directory, source, view: View::default() }
}

fn pod(name: &str, address: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: a}}\nstatus: {{podIP: {address}}}\n"
    )
}

impl Bed {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn wait(&mut self) -> View {
        let update = self.source.wait(Duration::from_secs(5)).expect("nothing has changed");
        self.view.apply(update);
        self.view.clone()
    }

    fn address(view: &View, name: &str) -> Option<String> {
        match view.manifests.get(&ManifestKey::Pod(format!("default/{name}"))) {
            Some((Manifest::Pod(pod), _)) => Some(pod.addresses[0].to_string()),
            _ => None,
        }
    }
}

#[test]
fn added_changed_and_removed_files_are_noticed_at_once() {
    let mut bed = bed();
    assert!(bed.wait().manifests.is_empty());
    let start = Instant::now();
    bed.write("x.yaml", &pod("x", "10.244.1.10"));
    assert_eq!(Bed::address(&bed.wait(), "x").unwrap(), "10.244.1.10");
    bed.write("x.yaml", &pod("x", "10.244.1.11"));
    assert_eq!(Bed::address(&bed.wait(), "x").unwrap(), "10.244.1.11");
    fs::remove_file(bed.directory.path().join("x.yaml")).unwrap();
    assert!(bed.wait().manifests.is_empty());
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(bed.source.wait(Duration::from_millis(100)), None);
}

#[test]
fn broken_file_is_reported_with_its_place_and_the_last_good_state_stays() {
    let mut bed = bed();
    bed.write("x.yaml", &pod("x", "10.244.1.10"));
    bed.write("y.yaml", &pod("y", "10.244.1.20"));
    assert!(bed.wait().problems.is_empty());
    bed.write("x.yaml", "kind: Pod\nmetadata:\n  name: [x]\n");
    let view = bed.wait();
    assert_eq!(Bed::address(&view, "x").unwrap(), "10.244.1.10");
    assert_eq!(view.problems.len(), 1);
    assert!(view.problems[0].place.ends_with("x.yaml:3:9"), "{}", view.problems[0].place);
    assert!(view.problems[0].message.contains("held before stay"), "{}", view.problems[0]);
    assert!(!view.incomplete);
    bed.write("x.yaml", &pod("x", "10.244.1.12"));
    let view = bed.wait();
    assert!(view.problems.is_empty());
    assert_eq!(Bed::address(&view, "x").unwrap(), "10.244.1.12");
}

#[test]
fn file_broken_from_the_start_makes_the_view_incomplete() {
    let mut bed = bed();
    bed.write("x.yaml", "kind: [");
    let view = bed.wait();
    assert!(view.incomplete);
    assert!(view.problems[0].message.contains("nothing is removed"), "{}", view.problems[0]);
}

#[test]
fn same_object_in_two_files_stays_with_the_first() {
    let mut bed = bed();
    bed.write("m.yaml", &pod("x", "10.244.1.10"));
    bed.wait();
    // Earlier by name, later in time.
    bed.write("a.yaml", &pod("x", "10.244.1.99"));
    let view = bed.wait();
    assert_eq!(Bed::address(&view, "x").unwrap(), "10.244.1.10");
    assert_eq!(view.problems.len(), 1);
    let text = view.problems[0].to_string();
    assert!(text.contains("a.yaml: Pod default/x is also in") && text.contains("m.yaml"), "{text}");
    fs::remove_file(bed.directory.path().join("m.yaml")).unwrap();
    assert_eq!(Bed::address(&bed.wait(), "x").unwrap(), "10.244.1.99");
}

#[test]
fn temporary_and_foreign_files_are_not_read() {
    let mut bed = bed();
    for name in [".x.yaml.swp", ".x.yaml", "x.yaml~", "#x.yaml", "x.txt", "4913"] {
        bed.write(name, "kind: [");
    }
    fs::create_dir(bed.directory.path().join("sub.yaml")).unwrap();
    let view = bed.wait();
    assert_eq!(view, View::default());
}

#[test]
fn mounted_config_map_is_followed() {
    let mut bed = bed();
    let root = bed.directory.path().to_owned();
    for (version, address) in [("..1", "10.244.1.10"), ("..2", "10.244.1.11")] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("x.yaml"), pod("x", address)).unwrap();
    }
    std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/x.yaml", root.join("x.yaml")).unwrap();
    assert_eq!(Bed::address(&bed.wait(), "x").unwrap(), "10.244.1.10");
    std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(Bed::address(&bed.wait(), "x").unwrap(), "10.244.1.11");
}

#[test]
fn directory_that_disappears_takes_nothing_away_and_may_come_back() {
    let mut bed = bed();
    let path = bed.directory.path().join("manifests");
    bed.source = Directory::new(&path);
    let view = bed.wait();
    assert!(view.incomplete && view.problems[0].message.contains("cannot read the directory"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("x.yaml"), pod("x", "10.244.1.10")).unwrap();
    assert!(Bed::address(&bed.wait(), "x").is_some());
    fs::rename(&path, bed.directory.path().join("away")).unwrap();
    let view = bed.wait();
    assert!(view.incomplete && Bed::address(&view, "x").is_some());
}

#[test]
fn two_writes_of_equal_length_in_one_tick_are_told_apart() {
    let mut bed = bed();
    bed.write("x.yaml", &pod("x", "10.244.1.10"));
    bed.wait();
    for last in 11..40 {
        let address = format!("10.244.1.{last}");
        bed.write("x.yaml", &pod("x", &address));
        bed.source.scan();
        let update = bed.source.update();
        assert_eq!(update.changes.len(), 1);
        bed.view.apply(update);
        let view = bed.view.clone();
        assert_eq!(Bed::address(&view, "x").unwrap(), address);
    }
    let (_, file) = bed.source.files.first_key_value().unwrap();
    assert_eq!(file.stamp, None, "a stamp this fresh proves nothing");
}

#[test]
fn stamp_is_settled_once_the_clock_has_moved_on() {
    let seconds = |age: i64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (i64::try_from(now).unwrap() - age, 0)
    };
    let stamp = |age| Stamp {
        inode: 1,
        device: 1,
        length: 1,
        modified_ns: seconds(age),
        changed_ns: seconds(age),
    };
    assert!(stamp(10).is_settled());
    assert!(!stamp(0).is_settled());
    assert!(!stamp(-3600).is_settled(), "written in the future");
}

#[test]
fn relative_path_names_the_same_files() {
    let mut bed = bed();
    let here = std::env::current_dir().unwrap();
    let root: PathBuf = here.ancestors().skip(1).map(|_| "..").collect();
    let relative = root.join(bed.directory.path().strip_prefix("/").unwrap());
    bed.source = Directory::new(&relative);
    bed.write("x.yaml", &pod("x", "10.244.1.10"));
    assert!(bed.wait().problems.is_empty());
    let start = Instant::now();
    for last in 11..14 {
        let address = format!("10.244.1.{last}");
        bed.write("x.yaml", &pod("x", &address));
        let view = bed.wait();
        assert_eq!((Bed::address(&view, "x").unwrap(), view.problems), (address, vec![]));
    }
    assert!(start.elapsed() < RESCAN, "{:?}", start.elapsed());
}
