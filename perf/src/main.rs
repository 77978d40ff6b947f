//! `overlane-perf`: benchmarks of Overlane's dataplane.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use overlane_perf::about::{About, Document};
use overlane_perf::baseline::Baseline;
use overlane_perf::bed_commands::{LatencyArguments, NdrArguments, SoakArguments};
use overlane_perf::child::{Cluster, Forward};
use overlane_perf::compare::CompareArguments;
use overlane_perf::error::PerfError;
use overlane_perf::pipeline::{self, Plan};
use overlane_perf::raw_costs::RawCostsArguments;
use overlane_perf::scenario::Scenario;
use overlane_perf::traffic::Size;
use overlane_perf::wire_commands::{GenerateArguments, ReceiveArguments, ReflectArguments};
use overlane_perf::{
    compare, connections, forward, latency, namespace, ndr, raw_costs, report, services, soak,
    steady, tables,
};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts allocations, for `steady`.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Benchmarks of Overlane's dataplane.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct Output {
    /// How to write the result.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a packet costs from port to port, in memory.
    Pipeline {
        /// Scenarios, separated by commas; or all.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        scenario: Vec<String>,
        /// Numbers of flows, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "1000")]
        flows: Vec<usize>,
        /// Sizes of frames on the wire, check sequence (4 bytes, never in memory) included, or imix;
        /// in a tunnel, of the inner frame. Separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "64")]
        size: Vec<Size>,
        #[command(flatten)]
        cluster: Cluster,
        /// Workers, each with packets of its own.
        #[arg(long, default_value_t = 1)]
        workers: usize,
        /// How long each measurement takes.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Count instructions too (needs valgrind).
        #[arg(long)]
        instructions: bool,
        /// Count them by stage too (needs valgrind).
        #[arg(long)]
        stages: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Compares the instructions for a packet with a committed baseline (needs valgrind); fails
    /// when they have risen.
    Instructions {
        /// The baseline.
        #[arg(long, default_value = "perf/baseline.json")]
        baseline: PathBuf,
        /// Percentage by which a count may rise.
        #[arg(long, default_value_t = 3.0)]
        tolerance: f64,
        /// Makes what is counted now the baseline.
        #[arg(long)]
        accept: bool,
        #[command(flatten)]
        output: Output,
    },
    /// What the tables cost with a large cluster in them.
    Tables {
        /// Other nodes.
        #[arg(long, default_value_t = 10_000)]
        peers: usize,
        /// Pods on other nodes.
        #[arg(long, default_value_t = 500_000)]
        endpoints: usize,
        /// Endpoints that are added, and backends that are changed, one by one.
        #[arg(long, default_value_t = 1000)]
        adds: usize,
        /// Services, each with an address of each family.
        #[arg(long, default_value_t = 10_000)]
        services: usize,
        /// Backends of a service, of either family.
        #[arg(long, default_value_t = 10)]
        backends: usize,
        #[command(flatten)]
        output: Output,
    },
    /// What many services, many flows and several workers do to connections; fails when a bound does
    /// not hold.
    Connections {
        #[command(flatten)]
        output: Output,
    },
    /// Shows what a worker does besides moving packets (needs valgrind, objdump and strace).
    Steady {
        /// Scenarios, separated by commas; or all.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        scenario: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Forwards frames between two interfaces over AF_XDP, both ways, and does nothing else: the
    /// ceiling of a dataplane with the same ports. Ends by Ctrl-C; fails when frames were lost.
    Raw {
        /// The interface that stands for a pod's port.
        inside: String,
        /// The interface that stands for the uplink.
        outside: String,
        /// Network namespace of the interfaces.
        #[arg(long)]
        netns: Option<String>,
        /// CPU of the thread that forwards.
        #[arg(long)]
        cpu: Option<usize>,
        /// Ends after so many seconds.
        #[arg(long)]
        seconds: Option<f64>,
        #[command(flatten)]
        tuning: forward::Tuning,
        #[command(flatten)]
        output: Output,
    },
    /// Sends packets out of an interface, by AF_XDP or as the kernel's live frames.
    Generate {
        #[command(flatten)]
        generate: Box<GenerateArguments>,
        #[command(flatten)]
        output: Output,
    },
    /// Receives all packets of an interface: what was lost, reordered, doubled or corrupted, and how
    /// long it took.
    Receive {
        #[command(flatten)]
        receive: ReceiveArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Sends every packet of an interface back to where it came from: the far end of a round trip.
    Reflect {
        #[command(flatten)]
        reflect: ReflectArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Searches the no-drop rate of a forwarder on the bed.
    Ndr {
        #[command(flatten)]
        ndr: NdrArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Takes the time of packets through a forwarder on the bed, at parts of its no-drop rate.
    Latency {
        #[command(flatten)]
        latency: LatencyArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Sends through a forwarder on the bed for hours; fails on loss, leaks and counters that do not
    /// close.
    Soak {
        #[command(flatten)]
        soak: SoakArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Makes one HTML page, with plots, of results that other commands wrote with -o json; without
    /// any it measures first, for some four minutes, as root with a comparison and latencies.
    Report {
        /// The results.
        results: Vec<PathBuf>,
        /// The page.
        #[arg(long, default_value = "overlane-report.html")]
        page: PathBuf,
        /// Where results go that are measured now.
        #[arg(long, default_value = "overlane-results")]
        folder: PathBuf,
    },
    /// The same job through Overlane and through other forwarders, in interleaved rounds of one run.
    Compare {
        #[command(flatten)]
        compare: CompareArguments,
        #[command(flatten)]
        output: Output,
    },
    /// What the raw forwarder costs with other settings, of its own and of the far end, in
    /// interleaved rounds of one run.
    RawCosts {
        #[command(flatten)]
        raw_costs: RawCostsArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Forwards a number of vectors and writes how many packets that were: what runs under other
    /// programs' eyes.
    #[command(hide = true)]
    Forward(Forward),
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>, ExitCode> {
    let mut scenarios = Vec::new();
    for name in names {
        if name == "all" {
            scenarios.extend(Scenario::ALL);
        } else if let Some(scenario) = Scenario::named(name) {
            scenarios.push(scenario);
        } else {
            let names: Vec<_> = Scenario::ALL.iter().map(|scenario| scenario.name).collect();
            eprintln!("overlane-perf: no scenario {name}; there are: all, {}", names.join(", "));
            return Err(ExitCode::from(2));
        }
    }
    Ok(scenarios)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("overlane-perf: {error}");
            ExitCode::FAILURE
        }
        Err(usage) => usage,
    }
}

/// The inner result is the command's, the outer one says that its arguments are wrong.
fn run(command: Command) -> Result<Result<ExitCode, PerfError>, ExitCode> {
    Ok(match command {
        Command::Pipeline {
            scenario,
            flows,
            size,
            cluster,
            workers,
            seconds,
            instructions,
            stages,
            output,
        } => {
            let scenarios = scenarios(&scenario)?;
            let load = cluster.load(0, Size::Bytes(64));
            let plan = Plan {
                scenarios,
                flows,
                sizes: size,
                load,
                workers,
                seconds,
                instructions,
                stages,
            };
            pipeline::run(&plan).map(|report| show("pipeline", &report, &report.table(), &output))
        }
        Command::Instructions { baseline, tolerance, accept, output } => {
            instructions(&baseline, tolerance, accept, &output)
        }
        Command::Tables { peers, endpoints, adds, services, backends, output } => {
            services::Plan::new(services, backends, adds)
                .and_then(|plan| tables::run(peers, endpoints, adds, plan))
                .map(|report| show("tables", &report, &report.table(), &output))
        }
        Command::Connections { output } => connections::run().map(|report| {
            show("connections", &report, &report.table(), &output);
            if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }),
        Command::Steady { scenario, output } => steady(scenarios(&scenario)?, &output),
        Command::Raw { inside, outside, netns, cpu, seconds, tuning, output } => {
            let duration = seconds.map(Duration::try_from_secs_f64).transpose();
            let duration = duration.map_err(|error| wrong(&format!("--seconds: {error}")))?;
            let plan = forward::Plan { inside, outside, cpu, duration, tuning };
            raw(&plan, netns.as_deref(), &output)
        }
        Command::Generate { generate, output } => {
            generate.check().map_err(|error| wrong(&error))?;
            sent(&generate, &output)
        }
        Command::Receive { receive, output } => stopped_by_signal()
            .and_then(|stop| receive.run(&stop))
            .map(|arrived| show("receive", &arrived, &arrived.table(), &output)),
        Command::Reflect { reflect, output } => stopped_by_signal()
            .and_then(|stop| reflect.run(&stop))
            .map(|reflected| show("reflect", &reflected, &reflected.table(), &output)),
        Command::Ndr { ndr, output } => {
            no_drop_rate(&ndr.plan().map_err(|error| wrong(&error))?, &output)
        }
        Command::Latency { latency, output } => stopped_by_signal()
            .and_then(|stop| latency::run(&latency.plan(), &stop))
            .map(|report| show("latency", &report, &report.table(), &output)),
        Command::Soak { soak, output } => soaked(&soak.plan(), &output),
        Command::Report { results, page, folder } => report_page(results, &page, &folder),
        Command::Compare { compare: arguments, output } => stopped_by_signal()
            .and_then(|stop| compare::run(&arguments.plan(), &stop))
            .map(|comparison| show("compare", &comparison, &comparison.table(), &output)),
        Command::RawCosts { raw_costs: arguments, output } => {
            let plan = arguments.plan().map_err(|error| wrong(&error))?;
            stopped_by_signal()
                .and_then(|stop| raw_costs::run(&plan, &stop))
                .map(|report| show("raw-costs", &report, &report.table(), &output))
        }
        Command::Forward(forward) => forward.run().map(|packets| {
            println!("{packets}");
            ExitCode::SUCCESS
        }),
    })
}

/// Fails when nothing was sent.
fn sent(generate: &GenerateArguments, output: &Output) -> Result<ExitCode, PerfError> {
    let stop = stopped_by_signal()?;
    let generated = generate.run(&stop)?;
    let shown = show("generate", &generated, &generated.table(), output);
    Ok(if generated.sent.frames > 0 { shown } else { ExitCode::FAILURE })
}

fn steady(mut scenarios: Vec<Scenario>, output: &Output) -> Result<ExitCode, PerfError> {
    // Where every packet opens a flow there is no steady state.
    scenarios.retain(|scenario| !scenario.opens);
    let report = steady::run(&scenarios, ALLOCATOR)?;
    show("steady", &report, &report.table(), output);
    Ok(if report.is_steady() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn no_drop_rate(plan: &ndr::Plan, output: &Output) -> Result<ExitCode, PerfError> {
    let stop = stopped_by_signal()?;
    let found = ndr::run(plan, &stop)?;
    let shown = show("ndr", &found, &found.table(), output);
    Ok(if found.is_whole() { shown } else { ExitCode::FAILURE })
}

fn soaked(plan: &soak::Plan, output: &Output) -> Result<ExitCode, PerfError> {
    let stop = stopped_by_signal()?;
    let report = soak::run(plan, &stop)?;
    let shown = show("soak", &report, &report.table(), output);
    Ok(if report.faults().is_empty() { shown } else { ExitCode::FAILURE })
}

fn raw(plan: &forward::Plan, netns: Option<&str>, output: &Output) -> Result<ExitCode, PerfError> {
    namespace::enter(netns)?;
    let report = forward::run(plan, &stopped_by_signal()?, || {
        eprintln!("overlane-perf: forwarding between {} and {}", plan.inside, plan.outside);
    })?;
    let shown = show("raw", &report, &report.table(), output);
    Ok(if report.is_whole() { shown } else { ExitCode::FAILURE })
}

/// Becomes true when the process is asked to end.
fn stopped_by_signal() -> Result<Arc<AtomicBool>, PerfError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(PerfError::Signal)?;
    }
    Ok(stop)
}

fn instructions(
    path: &Path,
    tolerance: f64,
    accept: bool,
    output: &Output,
) -> Result<ExitCode, PerfError> {
    let now = Baseline::count()?;
    if accept {
        now.write(path)?;
    }
    let comparison = Baseline::read(path)?.compare(now, tolerance);
    let shown = show("instructions", &comparison, comparison.report(path).trim_end(), output);
    Ok(if comparison.passes() { shown } else { ExitCode::FAILURE })
}

fn report_page(results: Vec<PathBuf>, page: &Path, folder: &Path) -> Result<ExitCode, PerfError> {
    let results = match results.is_empty() {
        true => report::measure(folder, &*stopped_by_signal()?)?,
        false => results,
    };
    let results: Vec<_> =
        results.iter().map(|path| report::read(path)).collect::<Result<_, _>>()?;
    std::fs::write(page, report::page(&results)?)
        .map_err(|source| PerfError::File { path: page.into(), source })?;
    println!("{}", page.display());
    Ok(ExitCode::SUCCESS)
}

/// What is asked for is wrong.
fn wrong(error: &impl std::fmt::Display) -> ExitCode {
    eprintln!("overlane-perf: {error}");
    ExitCode::from(2)
}

/// Writes the result of the command `kind`; as JSON with what it was measured on.
fn show(kind: &str, result: &impl Serialize, table: &str, output: &Output) -> ExitCode {
    let document = || Document { about: About::now(), kind: kind.to_owned(), result };
    match output.output {
        Format::Table => println!("{table}"),
        Format::Json => match serde_json::to_string_pretty(&document()) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("overlane-perf: cannot write the result as JSON: {error}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}
