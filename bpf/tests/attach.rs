//! Attaching to a veth in a network namespace of the test's own.
//!
//! ```text
//!   namespace ovlbpf-PID-N:   left  <== veth ==>  right
//!                             program here
//! ```
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use libbpf_rs::{Xdp, XdpFlags, libbpf_sys};
use nix::sched::{CloneFlags, setns};
use overlane_bpf::{BpfError, PortSteering, UplinkSteering};

/// A network namespace with a veth pair, removed when dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Self {
        Self::with_pair(&[], &[])
    }

    /// Extra arguments of `ip link add` for each end.
    fn with_pair(left: &[&str], right: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let space = Self { name: format!("ovlbpf-{}-{number}", process::id()) };
        run("ip", &["netns", "add", &space.name]);
        let mut add = vec!["-n", &space.name, "link", "add", "left"];
        add.extend(left);
        add.extend(["type", "veth", "peer", "name", "right"]);
        add.extend(right);
        run("ip", &add);
        space
    }

    /// Runs `work` on a thread inside the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    fn uplink(&self) -> Result<UplinkSteering, BpfError> {
        self.inside(|| UplinkSteering::attach("left", 1))
    }

    /// What `ip link` says about the left end: names mode and program id when there is one.
    fn link(&self) -> String {
        let output =
            Command::new("ip").args(["-n", &self.name, "-d", "link", "show", "left"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    fn has_program(&self) -> bool {
        self.link().contains("prog/xdp")
    }

    /// Attaches by netlink, which outlives whoever did it.
    fn attach_by_netlink(&self, program: &OwnedFd, flags: XdpFlags) {
        self.inside(|| {
            let index = nix::net::if_::if_nametoindex("left").unwrap();
            Xdp::new(program.as_fd()).attach(i32::try_from(index).unwrap(), flags).unwrap();
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status} (these tests need root)");
}

/// A program that passes everything, of the given name.
fn pass_program(name: &str) -> OwnedFd {
    let mov = libbpf_sys::bpf_insn { code: 0xb7, imm: 2, ..Default::default() };
    let exit = libbpf_sys::bpf_insn { code: 0x95, ..Default::default() };
    let (name, license) = (CString::new(name).unwrap(), CString::new("GPL").unwrap());
    // SAFETY: two instructions, a name and a licence, all alive during the call; the options
    // may be null.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            name.as_ptr(),
            license.as_ptr(),
            [mov, exit].as_ptr(),
            2,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "loading a program: errno {}", -fd);
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
#[ignore = "needs root"]
fn attaches_natively_and_detaches_on_drop() {
    let space = Namespace::new();
    let uplink = space.uplink().unwrap();
    let link = space.link();
    assert!(space.has_program() && !link.contains("xdpgeneric"), "{link}");
    drop(uplink);
    assert!(!space.has_program(), "{}", space.link());
    let port = space.inside(|| PortSteering::attach("left", 1)).unwrap();
    assert!(space.has_program());
    drop(port);
    assert!(!space.has_program());
}

#[test]
#[ignore = "needs root"]
fn second_instance_is_refused_and_told_who_is_there() {
    let space = Namespace::new();
    let first = space.uplink().unwrap();
    let refusal = space.inside(|| PortSteering::attach("left", 1)).unwrap_err();
    let BpfError::InUse { program, owner, .. } = &refusal else { panic!("{refusal}") };
    assert_eq!(program, "ovl_uplink");
    assert_eq!(*owner, format!("process {}", process::id()));
    assert!(space.has_program(), "the first one keeps its place");
    drop(first);
    space.uplink().expect("the place is free again");
}

#[test]
#[ignore = "needs root"]
fn stale_program_attached_by_netlink_is_replaced() {
    for mode in [XdpFlags::DRV_MODE, XdpFlags::SKB_MODE] {
        let space = Namespace::new();
        space.attach_by_netlink(&pass_program("ovl_old"), mode);
        assert!(space.has_program());
        let uplink = space.uplink().unwrap();
        assert!(!space.link().contains("xdpgeneric"), "{}", space.link());
        drop(uplink);
        assert!(!space.has_program());
    }
}

#[test]
#[ignore = "needs root"]
fn foreign_program_is_named_and_left_alone() {
    for mode in [XdpFlags::DRV_MODE, XdpFlags::SKB_MODE] {
        let space = Namespace::new();
        space.attach_by_netlink(&pass_program("somebody"), mode);
        let refusal = space.uplink().unwrap_err();
        let BpfError::Foreign { program, id, .. } = &refusal else { panic!("{refusal}") };
        assert_eq!(program, "somebody");
        assert!(space.link().contains(&format!("prog/xdp id {id}")), "{}", space.link());
    }
}

/// A BPF file system on a temporary directory, unmounted when dropped.
struct BpfFs {
    dir: tempfile::TempDir,
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[test]
#[ignore = "needs root"]
fn pinned_link_without_a_process_is_replaced() {
    let space = Namespace::new();
    let pins = BpfFs { dir: tempfile::tempdir().unwrap() };
    let dir = pins.dir.path().to_str().unwrap();
    run("mount", &["-t", "bpf", "bpf", dir]);
    let program = pass_program("ovl_pinned");
    space.inside(|| {
        let index = nix::net::if_::if_nametoindex("left").unwrap();
        let path = CString::new(format!("{dir}/link")).unwrap();
        // SAFETY: descriptors and an index are integers to the kernel, options may be null, and
        // the path is a string that outlives the call.
        unsafe {
            let link = libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                i32::try_from(index).unwrap(),
                libbpf_sys::BPF_XDP,
                std::ptr::null(),
            );
            assert!(link >= 0);
            let link = OwnedFd::from_raw_fd(link);
            assert_eq!(libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()), 0);
        }
    });
    assert!(space.has_program(), "the pin keeps it");
    let uplink = space.uplink().unwrap();
    drop(uplink);
    assert!(!space.has_program());
}

/// Name of the interface for `attached_child`.
const CHILD: &str = "OVERLANE_BPF_TEST_CHILD";

/// Not a test of its own: what the next test runs in another process.
#[test]
#[ignore = "needs root"]
fn attached_child() {
    let Ok(interface) = env::var(CHILD) else { return };
    let _uplink = UplinkSteering::attach(&interface, 1).unwrap();
    println!("\nattached");
    thread::sleep(Duration::from_secs(30));
}

#[test]
#[ignore = "needs root"]
fn killed_process_leaves_no_program() {
    let space = Namespace::new();
    let mut child = Command::new("ip")
        .args(["netns", "exec", &space.name])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "attached_child", "--include-ignored", "--nocapture"])
        .env(CHILD, "left")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let attached = lines.map_while(Result::ok).any(|line| line == "attached");
    let refusal = space.uplink().err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(attached, "the child did not attach");
    let Some(BpfError::InUse { owner, .. }) = refusal else { panic!("{refusal:?}") };
    assert_eq!(owner, format!("process {}", child.id()));
    let deadline = Instant::now() + Duration::from_secs(2);
    while space.has_program() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!space.has_program(), "{}", space.link());
    space.uplink().expect("a successor can attach");
}

#[test]
#[ignore = "needs root"]
fn refusals_of_the_driver_are_explained() {
    let jumbo = Namespace::with_pair(&["mtu", "9000"], &["mtu", "9000"]);
    let refusal = jumbo.uplink().unwrap_err();
    assert!(matches!(refusal, BpfError::MtuTooLarge { .. }), "{refusal}");
    assert!(refusal.to_string().contains("9000") && refusal.to_string().contains("3506"));

    let wide = Namespace::with_pair(
        &["numrxqueues", "1", "numtxqueues", "1"],
        &["numrxqueues", "2", "numtxqueues", "2"],
    );
    run("ip", &["netns", "exec", &wide.name, "ethtool", "-L", "right", "tx", "2"]);
    let refusal = wide.uplink().unwrap_err();
    assert!(matches!(refusal, BpfError::QueueMismatch { .. }), "{refusal}");

    let space = Namespace::new();
    let refusal = space.inside(|| UplinkSteering::attach("lo", 1)).unwrap_err();
    assert!(matches!(refusal, BpfError::NoNativeXdp { .. }), "{refusal}");

    let refusal = space.inside(|| UplinkSteering::attach("nosuch", 1)).unwrap_err();
    assert!(matches!(refusal, BpfError::NoInterface { .. }), "{refusal}");
}
