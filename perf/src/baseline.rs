//! `overlane-perf instructions`: what each scenario executes for a packet, against a committed
//! baseline.
//!
//! Instructions do not depend on what else the machine does, and so a change that makes the packet
//! path dearer fails on any machine, however busy. They do depend on the compiler: with another
//! one than the baseline's, differences are shown and nothing fails.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::callgrind::{self, Profile};
use crate::error::PerfError;
use crate::scenario::{Load, Scenario};
use crate::text::listing;

/// The compiler that this program was built with, and how.
pub const COMPILER: &str = env!("OVERLANE_COMPILER");

/// Counts of all scenarios.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The compiler of the program that was counted.
    pub compiler: String,
    /// By scenario.
    pub scenarios: BTreeMap<String, Counts>,
}

/// Instructions of a scenario, for each packet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// All, ports included.
    pub packet: f64,
    /// By stage.
    pub stages: BTreeMap<String, f64>,
}

impl Counts {
    fn of(profile: &Profile) -> Self {
        // Tenths: the file is read by people, too.
        let tenths = |count: f64| (count * 10.0).round() / 10.0;
        let stages = profile.stages();
        let stages = stages.into_iter().map(|stage| (stage.name, tenths(stage.instructions)));
        Self { packet: tenths(profile.per_packet()), stages: stages.collect() }
    }
}

impl Baseline {
    /// Counts all scenarios, two at a time on two CPUs and so on.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn count() -> Result<Self, PerfError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = Scenario::ALL.len().div_ceil(threads);
        let counts: Vec<Result<Vec<_>, PerfError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = Scenario::ALL
                .chunks(share)
                .map(|scenarios| scope.spawn(|| scenarios.iter().map(count_one).collect()))
                .collect();
            let ended = |_| Err(PerfError::Thread);
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(ended)).collect()
        });
        let counts: Vec<Vec<_>> = counts.into_iter().collect::<Result<_, _>>()?;
        let scenarios = counts.into_iter().flatten().collect();
        Ok(Self { compiler: COMPILER.into(), scenarios })
    }

    /// Reads a committed one.
    ///
    /// # Errors
    /// [`PerfError::File`], [`PerfError::Missed`]
    pub fn read(path: &Path) -> Result<Self, PerfError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PerfError::File { path: path.into(), source })?;
        serde_json::from_str(&text).map_err(|error| {
            PerfError::Missed(format!("{} is not a baseline: {error}", path.display()))
        })
    }

    /// Writes it, to be committed.
    ///
    /// # Errors
    /// [`PerfError::File`]
    pub fn write(&self, path: &Path) -> Result<(), PerfError> {
        let file = |source| PerfError::File { path: path.into(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| file(error.into()))?;
        std::fs::write(path, text + "\n").map_err(file)
    }

    /// This baseline beside what is counted `now`; a count may rise by `tolerance` percent.
    #[must_use]
    pub fn compare(self, now: Self, tolerance: f64) -> Comparison {
        Comparison { before: self, now, tolerance }
    }
}

fn count_one(scenario: &Scenario) -> Result<(String, Counts), PerfError> {
    let profile = callgrind::count(*scenario, &Load::default(), false)?;
    Ok((scenario.name.to_owned(), Counts::of(&profile)))
}

/// Counts beside the baseline's.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The baseline.
    pub before: Baseline,
    /// This program.
    pub now: Baseline,
    /// Percentage by which a count may rise.
    pub tolerance: f64,
}

impl Comparison {
    /// Can the two be compared?
    #[must_use]
    pub fn is_same_compiler(&self) -> bool {
        self.before.compiler == self.now.compiler
    }

    /// Percentage by which a scenario has risen; none when the baseline does not have it.
    fn rise(&self, scenario: &str) -> Option<f64> {
        let before = self.before.scenarios.get(scenario)?.packet;
        let now = self.now.scenarios.get(scenario)?.packet;
        (before > 0.0).then(|| (now - before) / before * 100.0)
    }

    /// What has risen too far, a sentence each.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (name, now) in &self.now.scenarios {
            let Some(rise) = self.rise(name) else {
                complaints.push(format!("{name} is not in the baseline"));
                continue;
            };
            if rise > self.tolerance {
                let none = Counts::default();
                let before = self.before.scenarios.get(name).unwrap_or(&none);
                complaints.push(format!(
                    "{name} takes {:.0} instructions a packet, {rise:.1} % more than {:.0}: {}",
                    now.packet,
                    before.packet,
                    risen_stages(before, now)
                ));
            }
        }
        complaints
    }

    /// Scenarios that take so much less that the baseline would hide it if they rose again.
    fn gains(&self) -> Vec<&str> {
        let names = self.now.scenarios.keys().map(String::as_str);
        names.filter(|name| self.rise(name).is_some_and(|rise| rise < -self.tolerance)).collect()
    }

    /// Is nothing wrong? Counts of another compiler are never wrong.
    #[must_use]
    pub fn passes(&self) -> bool {
        !self.is_same_compiler() || self.complaints().is_empty()
    }

    /// For people: the counts, what is wrong with them and what to do.
    #[must_use]
    pub fn report(&self, path: &Path) -> String {
        let mut table = listing(["SCENARIO", "BASELINE", "NOW", "CHANGE"]);
        for (name, now) in &self.now.scenarios {
            let before = self.before.scenarios.get(name);
            table.add_row([
                name.clone(),
                before.map_or("-".into(), |counts| format!("{:.0}", counts.packet)),
                format!("{:.0}", now.packet),
                self.rise(name).map_or("-".into(), |rise| format!("{rise:+.1} %")),
            ]);
        }
        let mut text = format!("{table}\n");
        for complaint in self.complaints() {
            text += &format!("{complaint}\n");
        }
        let path = path.display();
        let accept = format!("overlane-perf instructions --baseline {path} --accept");
        if !self.is_same_compiler() {
            text += &format!(
                "warning: nothing is checked: {path} is of another compiler ({}) than this program \
                 ({}). Accept what this one makes of the same sources: {accept}\n",
                self.before.compiler, self.now.compiler
            );
        } else if !self.passes() {
            text += &format!(
                "More than {} % above {path}. `overlane-perf pipeline --scenario NAME --stages` shows \
                 where. If it has to be: {accept}, and commit the file with the reason.\n",
                self.tolerance
            );
        } else if !self.gains().is_empty() {
            let gains = self.gains().join(", ");
            text += &format!("Less than before: {gains}. To keep it so: {accept}\n");
        }
        text
    }
}

/// Stages that have risen, the most first.
fn risen_stages(before: &Counts, now: &Counts) -> String {
    let mut risen: Vec<(f64, &str)> = now
        .stages
        .iter()
        .map(|(name, count)| (count - before.stages.get(name).unwrap_or(&0.0), name.as_str()))
        .filter(|(more, _)| *more >= 1.0)
        .collect();
    risen.sort_by(|a, b| b.0.total_cmp(&a.0));
    let stages: Vec<_> = risen.iter().map(|(more, name)| format!("{name} +{more:.0}")).collect();
    if stages.is_empty() { "in no stage alone".into() } else { stages.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(compiler: &str, counts: &[(&str, f64)]) -> Baseline {
        let scenarios = counts.iter().map(|(name, packet)| {
            let stages = [("receive", 100.0), ("route", packet - 100.0)];
            let stages = stages.map(|(stage, count)| (stage.to_owned(), count)).into();
            ((*name).to_owned(), Counts { packet: *packet, stages })
        });
        Baseline { compiler: compiler.into(), scenarios: scenarios.collect() }
    }

    #[test]
    fn a_rise_beyond_the_tolerance_fails_and_names_the_stage() {
        let before = baseline("c 1", &[("a", 1000.0), ("b", 1000.0), ("c", 1000.0)]);
        let now = baseline("c 1", &[("a", 1029.0), ("b", 1031.0), ("c", 900.0)]);
        let comparison = before.compare(now, 3.0);
        assert!(!comparison.passes());
        assert_eq!(
            comparison.complaints(),
            ["b takes 1031 instructions a packet, 3.1 % more than 1000: route +31"]
        );
        let text = comparison.report(Path::new("x.json"));
        assert!(text.contains("overlane-perf instructions --baseline x.json --accept"), "{text}");
    }

    #[test]
    fn less_passes_with_a_hint() {
        let before = baseline("c 1", &[("a", 1000.0)]);
        let comparison = before.compare(baseline("c 1", &[("a", 900.0)]), 3.0);
        assert!(comparison.passes());
        assert!(comparison.report(Path::new("x.json")).contains("Less than before: a."));
    }

    #[test]
    fn another_compiler_warns_only() {
        let before = baseline("c 1", &[("a", 1000.0)]);
        let comparison = before.compare(baseline("c 2", &[("a", 2000.0)]), 3.0);
        assert!(comparison.passes());
        assert!(comparison.report(Path::new("x.json")).contains("warning: nothing is checked"));
    }

    #[test]
    fn a_new_scenario_must_be_accepted_first() {
        let comparison = baseline("c 1", &[]).compare(baseline("c 1", &[("a", 1.0)]), 3.0);
        assert_eq!(comparison.complaints(), ["a is not in the baseline"]);
        assert!(!comparison.passes());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        let all = baseline("c 1", &[("a", 1000.1)]);
        all.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), all);
        std::fs::write(&path, "{}").unwrap();
        assert!(Baseline::read(&path).unwrap_err().to_string().contains("is not a baseline"));
    }
}
