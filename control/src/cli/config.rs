//! `overlane config check FILE`: would this configuration be accepted?

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use overlane_api::PortRange;
use serde::Serialize;

use super::{Answer, Cli, CliError};
use crate::config;
use crate::desired::Compiler;
use crate::host::Host;
use crate::membership::keys::{KeyError, KeySettings, Keys};
use crate::sources::directory::Directory;
use crate::sources::{Problem, Source, View};
use crate::status::Counts;
use crate::validate::validate;

/// Verbs of `overlane config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Checks a configuration, and manifests with it, as a whole. Nothing is changed.
    Check {
        /// The node's configuration (YAML). Documents with a `kind` in it are manifests.
        file: std::path::PathBuf,
        /// Directory of Kubernetes manifests to check with it.
        #[arg(long, value_name = "DIR")]
        manifests: Option<std::path::PathBuf>,
        /// The node's net.ipv4.ip_local_port_range, FIRST-LAST [default: this machine's]
        #[arg(long, value_name = "PORTS")]
        local_port_range: Option<PortRange>,
    },
}

/// What `config check` prints as JSON.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    file: String,
    accepted: bool,
    /// Everything that is wrong.
    refusals: Vec<String>,
    /// What is accepted and waits for something or is not used.
    notes: Vec<String>,
    /// What the manifests come to; absent when none were checked.
    objects: Option<Counts>,
}

/// Checks `file`, and the manifests in it and in `directory`.
///
/// # Errors
/// When the answer cannot be written; a refused configuration is an answer.
pub fn check(
    cli: &Cli,
    file: &Path,
    directory: Option<&Path>,
    local_ports: Option<PortRange>,
) -> Result<Answer, CliError> {
    let host = match local_ports {
        Some(_) => Host { local_ports, ..Host::default() },
        None => Host::read(),
    };
    let mut verdict = judge(file, directory, host);
    verdict.accepted = verdict.refusals.is_empty();
    let mut answer = cli.answer(&verdict, || screen(&verdict))?;
    answer.worked = verdict.accepted;
    Ok(answer)
}

fn judge(file: &Path, directory: Option<&Path>, host: Host) -> Verdict {
    let place = file.display().to_string();
    let mut verdict = Verdict { file: place.clone(), ..Verdict::default() };
    let read = match config::load(file) {
        Ok(read) => read,
        Err(error) => {
            verdict.refusals.push(error.to_string());
            return verdict;
        }
    };
    let mut view = View::default();
    let update = directory.and_then(|directory| Directory::new(directory).wait(Duration::ZERO));
    view.apply(update.unwrap_or_default());
    for manifest in read.manifests {
        let key = manifest.key();
        if let Some((_, other)) = view.manifests.get(&key) {
            let message = format!("{key} is also in {other}: remove it from one of the two");
            view.problems.push(Problem { place: place.clone(), message });
            continue;
        }
        view.manifests.insert(key, (manifest, place.clone()));
    }
    let checked = validate(read.config, host);
    if let Some(KeySettings { file: keys, .. }) =
        checked.as_ref().ok().and_then(|c| c.membership_keys.as_ref())
    {
        match Keys::read(keys) {
            Ok(_) => {}
            Err(KeyError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let text = format!(
                    "membership.keyFile {} is not on this machine: not checked",
                    keys.display()
                );
                verdict.notes.push(text);
            }
            Err(error) => verdict.refusals.push(format!("{place}: {error}")),
        }
    }
    match checked {
        Ok(config) if directory.is_some() || !view.manifests.is_empty() => {
            let mut compiler = Compiler::new(config);
            compiler.take(view.into());
            let account = compiler.account();
            verdict.objects = Some(Counts::of(compiler.objects().keys()));
            verdict.refusals.extend(account.problems.iter().map(Problem::to_string));
            verdict.notes.extend(account.pending.iter().chain(&account.notes).cloned());
        }
        Ok(_) => {}
        Err(refusals) => {
            verdict.refusals.extend(refusals.iter().map(|refusal| format!("{place}: {refusal}")));
            let View { problems, .. } = view;
            verdict.refusals.extend(problems.iter().map(Problem::to_string));
        }
    }
    verdict
}

fn screen(verdict: &Verdict) -> String {
    let mut screen = String::new();
    for refusal in &verdict.refusals {
        let _ = writeln!(screen, "refused: {refusal}");
    }
    for note in &verdict.notes {
        let _ = writeln!(screen, "note: {note}");
    }
    if let Some(Counts { node, peers, endpoints, services, egress, announcements: _ }) =
        verdict.objects
    {
        let _ = writeln!(
            screen,
            "objects: {node} node, {peers} peers, {endpoints} endpoints, {services} service ports, {egress} egress rules"
        );
    }
    if verdict.accepted {
        let _ = writeln!(screen, "{} is accepted", verdict.file);
    }
    screen
}
