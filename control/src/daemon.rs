//! The control process: reads, compiles, pushes, until a signal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use overlane_api::ObjectKey;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, ConfigError};
use crate::credentials::{Allowed, CredentialError};
use crate::desired::Compiler;
use crate::health::HealthServer;
use crate::host::{Host, interface_addresses};
use crate::lease::Lease;
use crate::membership::agent::Agent;
use crate::membership::keys::{KeyError, Keys};
use crate::reconcile::Reconciler;
use crate::socket::{Server, Shared, Shown, SocketError};
use crate::sources::directory::Directory;
use crate::sources::{Problem, Source, Update};
use crate::status::ControlStatus;
use crate::validate::{MembershipSettings, Refusal, Validated, validate};

/// How often the source's thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// The lease of a node that no other would take over from.
const ALONE: Duration = Duration::from_secs(1);

/// How often the addresses of this machine are looked at.
const LOOK_AT_HOST: Duration = Duration::from_secs(10);

/// Holds a node's desired state and keeps its dataplane in step with it.
#[derive(Debug, Clone, Parser)]
#[command(name = "overlane-control", version)]
pub struct Arguments {
    /// The node's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Directory of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// The dataplane's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/overlane/dataplane.sock")]
    pub dataplane_socket: PathBuf,
    /// This process's own socket.
    #[arg(long, value_name = "PATH", default_value = "/run/overlane/control.sock")]
    pub socket: PathBuf,
    /// Group whose members may use the socket, besides root.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// What is logged: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: tracing_subscriber::filter::LevelFilter,
}

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration is refused.
    #[error("{path} is refused:{}", .refusals.iter().map(|refusal| format!("\n  {refusal}")).collect::<String>(), path = .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong.
        refusals: Vec<Refusal>,
    },
    /// The keys of membership messages cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The group does not exist.
    #[error(transparent)]
    Group(#[from] CredentialError),
    /// The socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals or threads cannot be set up.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// What the main loop waits for.
enum Event {
    /// The source knows something new.
    Update(Update),
    /// Other nodes than before live, or are ready.
    Members,
    /// A signal.
    Stop,
}

/// Runs the control process until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`] when it cannot start; nothing is changed then.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError> {
    let file = config::load(&arguments.config)?;
    if !file.manifests.is_empty() {
        tracing::warn!(
            "{}: {} manifests beside the configuration are not used; move them to {}",
            arguments.config.display(),
            file.manifests.len(),
            arguments.manifests.display()
        );
    }
    let config = validate(file.config, Host::read())
        .map_err(|refusals| DaemonError::Refused { path: arguments.config.clone(), refusals })?;
    let allowed = Allowed::new(arguments.group.as_deref())?;
    let status = ControlStatus {
        version: crate::VERSION.to_owned(),
        pid: std::process::id(),
        node: config.node_name.clone(),
        ..ControlStatus::default()
    };
    let (sender, events) = mpsc::channel();
    let keys = membership_keys(&config)?;
    let watch = Watch::start(&config, keys, &arguments.dataplane_socket, &sender)?;
    let view = watch.agent.as_ref().map(Agent::view);
    let shared: Shared = Arc::new(Shown::new(status, view));
    stop_on_signal(sender.clone())?;
    let server = Server::start(&arguments.socket, allowed, Arc::clone(&shared))?;
    let stop = Arc::new(AtomicBool::new(false));
    let source = follow(Directory::new(&arguments.manifests), sender, Arc::clone(&stop))?;
    tracing::info!(node = config.node_name, manifests = %arguments.manifests.display(), "started");
    let reconciler = Reconciler::new(&arguments.dataplane_socket);
    let mut keeper = Keeper::new(config, reconciler, HealthServer::start()?, watch, shared);
    loop {
        let wait = keeper.step();
        match events.recv_timeout(wait) {
            Ok(Event::Update(update)) => keeper.take(update),
            Ok(Event::Members) => keeper.take_members(),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    tracing::info!("ending; forwarding goes on");
    drop(keeper);
    stop.store(true, Ordering::Relaxed);
    drop(server);
    let _ = source.join();
    Ok(())
}

/// The keys of membership messages, and whether those are taken that are not signed; none: they are not
/// authenticated, or there are none.
fn membership_keys(config: &Validated) -> Result<Option<(Keys, bool)>, KeyError> {
    let Some(settings) = config.membership_keys.as_ref().filter(|_| config.membership.is_some())
    else {
        return Ok(None);
    };
    Ok(Some((Keys::read(&settings.file)?, settings.accept_unsigned)))
}

fn stop_on_signal(sender: Sender<Event>) -> Result<(), std::io::Error> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            let _ = sender.send(Event::Stop);
        }
    })?;
    Ok(())
}

fn follow(
    mut source: impl Source + 'static,
    sender: Sender<Event>,
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<()>, std::io::Error> {
    std::thread::Builder::new().name("source".into()).spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Some(update) = source.wait(LOOK)
                && sender.send(Event::Update(update)).is_err()
            {
                return;
            }
        }
    })
}

/// What keeps track of the other nodes, and of the own dataplane for them.
struct Watch {
    // Dropped in this order: what this node answers for is let go before others are told.
    _lease: Option<Lease>,
    is_settled: Arc<AtomicBool>,
    agent: Option<Agent>,
}

impl Watch {
    /// Starts what the configuration needs.
    fn start(
        config: &Validated,
        keys: Option<(Keys, bool)>,
        dataplane: &Path,
        sender: &Sender<Event>,
    ) -> Result<Self, std::io::Error> {
        let is_settled = Arc::new(AtomicBool::new(false));
        let wake = sender.clone();
        let wake = move || {
            // The loop that listens has ended: nobody needs to know.
            let _ = wake.send(Event::Members);
        };
        let agent = config.membership.clone().map(|settings| Agent::start(settings, keys, wake));
        let agent = agent.transpose()?;
        let pulse = agent.as_ref().map(Agent::pulse);
        let tell = move |until| {
            if let Some(pulse) = &pulse {
                pulse.set_forwarding(until);
            }
        };
        let time = config.membership.as_ref().map_or(ALONE, MembershipSettings::lease);
        let is_needed = config.membership.is_some() || !config.gateways.is_empty();
        let lease = is_needed.then(|| Lease::start(dataplane, time, Arc::clone(&is_settled), tell));
        Ok(Self { _lease: lease.transpose()?, is_settled, agent })
    }
}

/// Everything between a source's updates and the dataplane.
struct Keeper {
    compiler: Compiler,
    reconciler: Reconciler,
    health: HealthServer,
    watch: Watch,
    shared: Shared,
    next_look: Instant,
}

impl Keeper {
    fn new(
        config: Validated,
        reconciler: Reconciler,
        health: HealthServer,
        watch: Watch,
        shared: Shared,
    ) -> Self {
        Self {
            compiler: Compiler::new(config),
            reconciler,
            health,
            watch,
            shared,
            next_look: Instant::now(),
        }
    }

    /// Takes over what the source has to say.
    fn take(&mut self, update: Update) {
        let before = self.compiler.revision();
        let changed = self.compiler.take(update);
        if self.compiler.revision() != before {
            self.tell();
        }
        let concerns_nodes = |key: &ObjectKey| matches!(key, ObjectKey::Node | ObjectKey::Peer(_));
        if let Some(agent) =
            self.watch.agent.as_ref().filter(|_| changed.iter().any(concerns_nodes))
        {
            agent.set_cluster(self.compiler.cluster());
        }
        self.health.set(self.compiler.health());
        let incomplete = self.compiler.account().incomplete;
        self.reconciler.want(self.compiler.objects(), &changed, incomplete);
    }

    /// Takes over which nodes are ready.
    fn take_members(&mut self) {
        let Some(agent) = &self.watch.agent else { return };
        let before = self.compiler.revision();
        let changed = self.compiler.set_members(agent.members());
        if self.compiler.revision() != before {
            self.tell();
        }
        if !changed.is_empty() {
            let incomplete = self.compiler.account().incomplete;
            self.reconciler.want(self.compiler.objects(), &changed, incomplete);
        }
    }

    /// Logs what is new, and shows all of it.
    fn tell(&self) {
        let account = self.compiler.account();
        let mut status = self.shared.status();
        let known: BTreeSet<&Problem> = status.problems.iter().collect();
        for problem in account.problems.iter().filter(|now| !known.contains(now)) {
            tracing::error!("{problem}");
        }
        for note in account.pending.iter().chain(&account.notes) {
            tracing::debug!("{note}");
        }
        status.problems.clone_from(&account.problems);
        status.pending.clone_from(&account.pending);
        status.notes.clone_from(&account.notes);
    }

    /// Addresses of interfaces come and go without a word.
    fn look_at_host(&mut self) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_AT_HOST;
        let before = self.compiler.revision();
        let changed = self.compiler.set_addresses(interface_addresses());
        if self.compiler.revision() != before {
            self.tell();
        }
        if !changed.is_empty() {
            let incomplete = self.compiler.account().incomplete;
            self.reconciler.want(self.compiler.objects(), &changed, incomplete);
        }
    }

    /// Does what is due and says how long nothing else will be.
    fn step(&mut self) -> Duration {
        self.look_at_host();
        let wait = self.reconciler.step(Instant::now());
        self.health.set_healthy(self.reconciler.is_connected());
        self.watch.is_settled.store(self.reconciler.is_settled(), Ordering::Relaxed);
        let agent = self.watch.agent.as_ref();
        let mut status = self.shared.status();
        self.reconciler.report(&mut status);
        status.warnings.extend(self.health.warnings());
        status.warnings.extend(agent.and_then(Agent::warning));
        status.warnings.extend(self.compiler.announcement_warnings());
        status.announcements = self.compiler.announcements();
        status.membership = agent.map(Agent::status);
        wait
    }
}
