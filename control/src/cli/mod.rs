//! `overlane`, the command line a person uses: one file for each verb. Tables for people,
//! `-o json` for programs; exit status 0 worked, 1 refused or failed, 2 wrong usage.

pub mod completions;
pub mod config;
pub mod drops;
pub mod endpoint;
pub mod flow;
pub mod latency;
pub mod nat;
pub mod node;
pub mod service;
pub mod status;
pub mod version;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use overlane_api::client::{Client, ClientError};
use overlane_api::protocol::{Op, Reply};
use serde::Serialize;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Shows and checks an Overlane node.
#[derive(Debug, Parser)]
#[command(name = "overlane", version, propagate_version = true)]
pub struct Cli {
    /// The dataplane's socket.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "OVERLANE_SOCKET",
        default_value = "/run/overlane/dataplane.sock"
    )]
    pub socket: PathBuf,
    /// The control process's socket [default: control.sock beside the dataplane's]
    #[arg(long, global = true, value_name = "PATH", env = "OVERLANE_CONTROL_SOCKET")]
    pub control_socket: Option<PathBuf>,
    /// How the answer is written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// The control process's socket: as given, or beside the dataplane's.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        let beside = || self.socket.with_file_name("control.sock");
        self.control_socket.clone().unwrap_or_else(beside)
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The whole state on one screen.
    Status,
    /// Nodes: this one and its peers.
    #[command(subcommand)]
    Node(node::Node),
    /// Pods of this node.
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    /// Services.
    #[command(subcommand)]
    Service(service::Service),
    /// Connections that workers remember.
    #[command(subcommand)]
    Flow(flow::Flow),
    /// Source NAT: external ports and whose they are.
    #[command(subcommand)]
    Nat(nat::Nat),
    /// How long packets are inside of the dataplane.
    Latency(latency::Latency),
    /// Dropped packets by reason, and what to do about them.
    Drops,
    /// The node's configuration.
    #[command(subcommand)]
    Config(config::Config),
    /// Versions of the command line, the dataplane and the control process.
    Version,
    /// Completions for a shell, on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Why a verb did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A process did not answer, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A process answered something else.
    #[error(
        "the dataplane answered {0} with something else; are the versions the same (overlane version)?"
    )]
    Unexpected(&'static str),
    /// The order is too wide to be meant.
    #[error("{0}")]
    Refused(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Write(#[from] std::io::Error),
    /// The answer cannot be written as JSON.
    #[error("cannot write the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a verb has to say, and whether it means success.
#[derive(Debug)]
pub struct Answer {
    text: String,
    worked: bool,
}

/// Reads the arguments, does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run().and_then(|answer| {
        let mut out = std::io::stdout().lock();
        out.write_all(answer.text.as_bytes())?;
        out.flush()?;
        Ok(answer.worked)
    }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Who closes a pipe early has seen enough.
        Err(CliError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overlane: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    /// Does what the verb says.
    ///
    /// # Errors
    /// [`CliError`] when a process that is needed does not answer as it should.
    pub fn run(&self) -> Result<Answer, CliError> {
        match &self.verb {
            Verb::Status => status::run(self),
            Verb::Node(node::Node::List) => node::list(self),
            Verb::Endpoint(endpoint::Endpoint::List) => endpoint::list(self),
            Verb::Service(service::Service::List { name }) => service::list(self, name.as_deref()),
            Verb::Flow(flow::Flow::List { filter, limit }) => flow::list(self, filter, *limit),
            Verb::Flow(flow::Flow::Flush { filter, all }) => flow::flush(self, filter, *all),
            Verb::Nat(nat::Nat::List { filter, limit }) => nat::list(self, filter, *limit),
            Verb::Nat(nat::Nat::Usage) => nat::usage(self),
            Verb::Latency(asked) => latency::run(self, asked),
            Verb::Drops => drops::run(self),
            Verb::Config(config::Config::Check { file, manifests, local_port_range }) => {
                config::check(self, file, manifests.as_deref(), *local_port_range)
            }
            Verb::Version => version::run(self),
            Verb::Completions { shell } => Ok(completions::run(*shell)),
        }
    }

    /// Connects to the dataplane.
    fn dataplane(&self) -> Result<Client, CliError> {
        Ok(Client::connect(&self.socket, TIMEOUT)?)
    }

    /// Writes `reply` as JSON, or as `table` makes it.
    fn answer<T: Serialize>(
        &self,
        reply: &T,
        table: impl FnOnce() -> String,
    ) -> Result<Answer, CliError> {
        let text = match self.output {
            Output::Table => table(),
            Output::Json => serde_json::to_string_pretty(reply)? + "\n",
        };
        Ok(Answer { text, worked: true })
    }
}

/// Asks the dataplane for its status.
fn ask_status(client: &mut Client) -> Result<overlane_api::status::Status, CliError> {
    match client.call(Op::Status)? {
        Reply::Status(status) => Ok(*status),
        _ => Err(CliError::Unexpected("status")),
    }
}

/// An empty table with these column heads, as wide as its content or the terminal.
fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(heads.iter().copied());
    table
}

/// A headed section of a screen.
fn section(screen: &mut String, title: &str, body: &impl std::fmt::Display) {
    let _ = write!(screen, "\n{title}\n{body}\n");
}

/// Addresses or ranges, one a line; `-` for none.
fn lines<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// A value that may be absent; `-` when it is.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Bytes in the largest unit that leaves at least 1.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let tenths = u128::from(count) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_are_shortened_without_rounding_up() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((4 << 20) - 1), "3.9 MiB");
        assert_eq!(bytes(u64::MAX), "17179869183.9 GiB");
    }
}
