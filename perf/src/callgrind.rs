//! Instruction counts: this program runs itself under valgrind's callgrind.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::scenario::{Load, Scenario};

/// Vectors that are counted.
pub const VECTORS: usize = 1000;

/// Functions by which instructions are told apart, and what they are called here. Each is one
/// phase over the vector; what they call is counted with them.
const STAGES: [(&str, &str); 9] = [
    ("::receive", "receive, ports included"),
    ("ingress::from_inside", "ingress: parse, source check"),
    ("ingress::decap::phase", "ingress: decap, parse"),
    ("ingress::peer_check::phase", "ingress: peer check"),
    ("resolve::route::phase", "resolve: route"),
    ("stages::connections", "flows: lookup, opening"),
    ("stages::forward", "hop; transmit: encap, deliver"),
    ("::dispatch", "dispatch, ports included"),
    ("::after_work", "recycle, ports included"),
];

/// Instructions of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which.
    pub name: String,
    /// Instructions a packet.
    pub instructions: f64,
    /// Of all.
    pub share: f64,
}

/// A place in the code: the file it is in and its address there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Program or library.
    pub object: String,
    /// Address as its disassembly shows it.
    pub address: u64,
}

/// What callgrind counted.
#[derive(Debug, Default)]
pub struct Profile {
    /// Packets that were forwarded meanwhile.
    pub packets: u64,
    /// Instructions.
    pub total: u64,
    /// Instructions by function, what it calls included.
    pub inclusive: HashMap<String, u64>,
    /// How often each instruction was executed.
    pub executed: HashMap<Place, u64>,
}

impl Profile {
    /// Instructions a packet.
    #[must_use]
    pub fn per_packet(&self) -> f64 {
        self.total as f64 / self.packets.max(1) as f64
    }

    /// Instructions by stage, in the packet's order, and the rest.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut rest = self.total;
        for (function, name) in STAGES {
            let of = self.inclusive.iter().filter(|(full, _)| full.ends_with(function));
            let count: u64 = of.map(|(_, count)| count).sum();
            if count > 0 {
                rest = rest.saturating_sub(count);
                stages.push(self.stage(name, count));
            }
        }
        stages.push(self.stage("the rest of the poll loop", rest));
        stages
    }

    fn stage(&self, name: &str, count: u64) -> Stage {
        Stage {
            name: name.into(),
            instructions: count as f64 / self.packets.max(1) as f64,
            share: count as f64 / self.total.max(1) as f64,
        }
    }
}

/// Counts what forwarding in `scenario` executes; `ports`: what the ports alone do.
///
/// # Errors
/// [`PerfError::Missing`] without valgrind; [`PerfError`]
pub fn count(scenario: Scenario, load: &Load, ports: bool) -> Result<Profile, PerfError> {
    let folder = tempfile::tempdir()
        .map_err(|source| PerfError::File { path: std::env::temp_dir(), source })?;
    let out = folder.path().join("callgrind.out");
    let counted = if ports { "*measure::Ports::carry" } else { "*measure::forward" };
    let program = std::env::current_exe()
        .map_err(|source| PerfError::File { path: "/proc/self/exe".into(), source })?;
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--dump-instr=yes", "--dump-line=no"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--toggle-collect={counted}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(child_arguments(scenario, load, VECTORS, ports));
    let output =
        command.output().map_err(|source| PerfError::Missing { program: "valgrind", source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(PerfError::Failed { program: "valgrind", output: text });
    }
    let packets = printed_packets(&output.stdout, "valgrind")?;
    let mut profile = read(&out)?;
    profile.packets = packets;
    Ok(profile)
}

/// Arguments for this program that make it forward `vectors` vectors and nothing else.
#[must_use]
pub fn child_arguments(
    scenario: Scenario,
    load: &Load,
    vectors: usize,
    ports: bool,
) -> Vec<String> {
    let mut arguments = vec!["forward".into(), scenario.name.into()];
    for (option, value) in [
        ("--flows", load.flows),
        ("--peers", load.peers),
        ("--endpoints", load.endpoints),
        ("--frames", load.frames),
        ("--vectors", vectors),
    ] {
        arguments.push(option.into());
        arguments.push(value.to_string());
    }
    arguments.extend(["--size".into(), load.size.to_string()]);
    arguments.extend(["--order".into(), load.order.to_string()]);
    if ports {
        arguments.push("--ports-alone".into());
    }
    arguments
}

/// The number that such a child writes.
///
/// # Errors
/// [`PerfError::Unreadable`]
pub fn printed_packets(stdout: &[u8], program: &'static str) -> Result<u64, PerfError> {
    let text = String::from_utf8_lossy(stdout);
    text.trim()
        .parse()
        .map_err(|_| PerfError::Unreadable { program, what: "number of packets".into() })
}

/// Reads callgrind's file of uncompressed lines.
fn read(path: &Path) -> Result<Profile, PerfError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| PerfError::File { path: path.into(), source })?;
    let profile = parse(&text);
    if profile.total == 0 {
        return Err(PerfError::Unreadable {
            program: "valgrind",
            what: "counted instruction (was the program stripped of its symbols?)".into(),
        });
    }
    Ok(profile)
}

/// Lines are `fn=name`, `ob=file`, `0xaddress count`, and after `calls=` one line with what the
/// called function cost.
fn parse(text: &str) -> Profile {
    let mut profile = Profile::default();
    let (mut object, mut function) = (String::new(), String::new());
    let mut is_call = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            object = name.into();
        } else if let Some(name) = line.strip_prefix("fn=") {
            function = plain_name(name);
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if let Some(rest) = line.strip_prefix("0x") {
            let mut words = rest.split_whitespace();
            let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            let count = words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(address), Some(count)) = (address, count) else { continue };
            *profile.inclusive.entry(function.clone()).or_default() += count;
            if !is_call {
                profile.total += count;
                let place = Place { object: object.clone(), address };
                *profile.executed.entry(place).or_default() += count;
            }
            is_call = false;
        }
    }
    profile
}

/// A function's name without type arguments, hash and recursion level.
fn plain_name(name: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0_usize;
    for letter in name.chars() {
        match letter {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(letter),
            _ => {}
        }
    }
    let plain = plain.split('\'').next().unwrap_or_default();
    match plain.rsplit_once("::h") {
        Some((front, hash)) if hash.len() == 16 => front.into(),
        _ => plain.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_counts_for_the_caller_but_only_once_in_all() {
        let profile = parse(
            "events: Ir\nob=/bin/x\nfn=<w::Worker<P>>::dispatch::h0123456789abcdef\n\
             0x10 5\n0x14 5\ncfn=y\ncalls=5 0x20\n0x14 30\n\nfn=y\n0x20 30\n",
        );
        assert_eq!(profile.total, 40);
        assert_eq!(profile.inclusive["::dispatch"], 40);
        assert_eq!(profile.inclusive["y"], 30);
        let place = Place { object: "/bin/x".into(), address: 0x14 };
        assert_eq!(profile.executed[&place], 5);
    }
}
