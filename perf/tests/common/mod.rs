//! What the tests with real interfaces share.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs a command; what it wrote.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A veth pair `out` -- `far` in a namespace of the calling thread's own.
pub fn pair() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    run("ip link add out type veth peer name far");
    run("ip link set out up");
    run("ip link set far up");
}
