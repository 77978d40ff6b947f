//! Turns what the kernel refuses into a sentence that says what is missing and what to do.

use std::cell::RefCell;
use std::sync::Once;
use std::{fs, io};

use libbpf_rs::{ErrorKind, PrintLevel};

use crate::interface::Interface;

/// Largest MTU (bytes, without Ethernet) of a veth's peer that the kernel accepts under an XDP
/// program without multi-buffer support, on 4096-byte pages.
pub const VETH_MTU_LIMIT: u32 = 3506;

/// Why a BPF program could not be loaded, attached or told something.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// No interface of this name in the caller's network namespace.
    #[error("interface {interface}: not found in this network namespace; check the name")]
    NoInterface {
        /// The name looked for.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused for lack of privilege.
    #[error("{action}: not permitted; {remedy}")]
    Permission {
        /// What was tried.
        action: String,
        /// Which capability or setting is missing, and what to do.
        remedy: String,
    },
    /// The kernel did not take the program or one of its maps.
    #[error("loading the {program} program: {source}; {remedy}{log}")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// What libbpf and the verifier said, empty or starting on a new line.
        log: String,
        /// What libbpf returned.
        source: libbpf_rs::Error,
    },
    /// Somebody else's XDP program is on the interface.
    #[error(
        "interface {interface}: XDP program {program:?} (id {id}, {mode} mode) is attached \
         and is not ours; detach it (`ip link set dev {interface} xdp off`, or stop the \
         program that owns it) or give the dataplane another interface"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// Name of the program there.
        program: String,
        /// The kernel's id of it, as `bpftool prog show id` takes it.
        id: u32,
        /// `native`, `generic` or `hardware`.
        mode: &'static str,
    },
    /// A live dataplane already serves the interface.
    #[error(
        "interface {interface}: our program {program:?} (id {id}) is attached and held by \
         {owner}; stop that dataplane first, one interface serves one dataplane"
    )]
    InUse {
        /// The interface.
        interface: String,
        /// Name of the program there.
        program: String,
        /// The kernel's id of it.
        id: u32,
        /// `process 123`, or why it is not known.
        owner: String,
    },
    /// The MTU is too large for XDP on this driver.
    #[error(
        "interface {interface}: MTU too large for an XDP program (this end has {mtu}); on a \
         veth pair the peer's MTU may be at most {VETH_MTU_LIMIT}: lower it with \
         `ip link set dev PEER mtu {VETH_MTU_LIMIT}`"
    )]
    MtuTooLarge {
        /// The interface.
        interface: String,
        /// MTU of this end in bytes, or `unknown`.
        mtu: String,
    },
    /// A veth has fewer receive queues than its peer has transmit queues.
    #[error(
        "interface {interface}: it has {receive_queues} receive queues, fewer than its peer has \
         transmit queues; run `ethtool -L PEER tx {receive_queues}`, or make the pair with at \
         least as many queues here (`numrxqueues`)"
    )]
    QueueMismatch {
        /// The interface.
        interface: String,
        /// Receive queues of this end, or `unknown`.
        receive_queues: String,
    },
    /// The driver cannot run XDP programs itself. Generic mode is never used instead.
    #[error(
        "interface {interface}: driver {driver} has no native XDP; use an interface whose driver \
         has it (veth, virtio_net, hv_netvsc, mana, mlx5, ice, i40e and others)"
    )]
    NoNativeXdp {
        /// The interface.
        interface: String,
        /// Name of the driver, or `unknown`.
        driver: String,
    },
    /// Any other refusal to attach.
    #[error("interface {interface}: attaching the XDP program: {source}; `dmesg` may say why")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The programs on the interface could not be listed or removed.
    #[error("interface {interface}: {action}: {source}")]
    Query {
        /// The interface.
        interface: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map refused to be read or written.
    #[error("BPF map {map}: {action}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried, with the value.
        action: String,
        /// What libbpf returned.
        source: libbpf_rs::Error,
    },
    /// More entries than the map holds. Nothing was changed.
    #[error("BPF map {map}: {wanted} entries (old and new together) do not fit its {limit}")]
    TableFull {
        /// Name of the map.
        map: &'static str,
        /// Entries that would have been needed.
        wanted: usize,
        /// Entries that it holds.
        limit: u32,
    },
    /// A socket for a queue that the interface was not attached with.
    #[error("queue {queue}: the program was attached for {queues} queues (0 to {})", queues.saturating_sub(1))]
    NoSuchQueue {
        /// The queue asked for.
        queue: u32,
        /// How many there are.
        queues: u32,
    },
    /// The program could not be run over a frame.
    #[error("running the program over a frame of {length} bytes: {source}")]
    TestRun {
        /// Length of the frame in bytes.
        length: usize,
        /// What the kernel said: EINVAL for frames shorter than 14 bytes.
        source: io::Error,
    },
}

thread_local! {
    /// What libbpf printed on this thread since `listen`.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}
/// Bytes of libbpf's output kept; the verifier's last words are the useful ones.
const SAID_BYTES: usize = 8192;

/// Starts to collect what libbpf prints on this thread, instead of letting it go to stderr.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| {
            SAID.with_borrow_mut(|said| said.push_str(&text));
        })));
    });
    SAID.with_borrow_mut(String::clear);
}

/// Takes what libbpf printed since `listen`, at most its last `SAID_BYTES`.
fn heard() -> String {
    let said = SAID.take();
    let text = said.trim_end();
    if text.is_empty() {
        return String::new();
    }
    let mut from = text.len().saturating_sub(SAID_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    format!("\n{}", &text[from..])
}

/// Explains why a program did not load.
pub(crate) fn load(program: &'static str, source: libbpf_rs::Error) -> BpfError {
    if source.kind() == ErrorKind::PermissionDenied {
        return BpfError::Permission {
            action: format!("loading the {program} program"),
            remedy: missing_privilege(),
        };
    }
    let log = heard();
    let remedy = if !fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false) {
        "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF), which shows that it was built with few \
         BPF features: it needs CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS, CONFIG_DEBUG_INFO_BTF"
    } else if log.contains("xsks") {
        "AF_XDP sockets seem to be missing: the kernel needs CONFIG_XDP_SOCKETS"
    } else {
        "kernel 6.1 or later is needed; the lines below are the kernel's own words"
    };
    BpfError::Load { program, remedy, log, source }
}

/// Explains why a loaded program could not be attached. `EBUSY` is answered by the caller, who
/// knows what is attached.
pub(crate) fn attach(interface: &Interface, source: io::Error) -> BpfError {
    let name = interface.name.clone();
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => BpfError::Permission {
            action: format!("attaching to interface {name}"),
            remedy: missing_privilege(),
        },
        Some(libc::ERANGE) => BpfError::MtuTooLarge {
            interface: name,
            mtu: or_unknown(interface.mtu().map(|mtu| mtu.to_string())),
        },
        Some(libc::ENOSPC) => BpfError::QueueMismatch {
            interface: name,
            receive_queues: or_unknown(interface.receive_queues().map(|count| count.to_string())),
        },
        Some(libc::EOPNOTSUPP) => {
            BpfError::NoNativeXdp { interface: name, driver: or_unknown(interface.driver()) }
        }
        Some(libc::ENODEV) => BpfError::NoInterface { interface: name, source },
        _ => BpfError::Attach { interface: name, source },
    }
}

/// Capability bits of `linux/capability.h` that loading, attaching and AF_XDP need.
const NEEDED: [(u32, &str); 3] = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];

/// Names the capabilities this process lacks, or what else may forbid BPF.
fn missing_privilege() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    remedy_for(&status)
}

/// As `missing_privilege`, from the text of `/proc/self/status`.
fn remedy_for(status: &str) -> String {
    /// CAP_SYS_ADMIN includes CAP_BPF.
    const SYS_ADMIN: u64 = 1 << 21;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(effective) = effective else {
        return "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW".to_owned();
    };
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, name)| {
            let held = effective & (1 << bit) != 0;
            let implied = *name == "CAP_BPF" && effective & SYS_ADMIN != 0;
            !held && !implied
        })
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        "all capabilities are there, so a security module, a seccomp filter, kernel lockdown or \
         a user namespace (capabilities must be those of the initial one) forbids it: `dmesg` \
         names it"
            .to_owned()
    } else {
        format!(
            "this process lacks {}: run it as root or grant them (systemd: AmbientCapabilities=)",
            missing.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(effective: u64) -> String {
        format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective:016x}\n")
    }

    #[test]
    fn missing_capabilities_are_named() {
        let none = remedy_for(&status(0));
        assert!(none.contains("lacks CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW"), "{none}");
        let only_bpf = remedy_for(&status(1 << 39));
        assert!(only_bpf.contains("lacks CAP_NET_ADMIN, CAP_NET_RAW"), "{only_bpf}");
    }

    #[test]
    fn sys_admin_stands_for_bpf() {
        let text = remedy_for(&status(1 << 21 | 1 << 12 | 1 << 13));
        assert!(text.contains("security module"), "{text}");
    }

    #[test]
    fn refusals_name_the_cause_and_the_limit() {
        let lo = Interface { name: "lo".to_owned(), index: 1 };
        let explain = |code| attach(&lo, io::Error::from_raw_os_error(code)).to_string();
        assert!(explain(libc::ERANGE).contains("3506"), "{}", explain(libc::ERANGE));
        assert!(explain(libc::ENOSPC).contains("transmit queues"));
        assert!(explain(libc::EOPNOTSUPP).contains("no native XDP"));
        assert!(explain(libc::EPERM).contains("not permitted"));
        assert!(explain(libc::EIO).contains("dmesg"));
    }

    #[test]
    fn only_the_end_of_a_long_log_is_kept() {
        SAID.with_borrow_mut(|said| said.push_str(&"é".repeat(SAID_BYTES)));
        let text = heard();
        assert!(text.len() <= SAID_BYTES + 1 && text.ends_with('é'));
        assert_eq!(heard(), "");
    }
}
