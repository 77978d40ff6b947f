//! Arguments of the commands that measure a forwarder on the bed, and what becomes of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::bed::{Job, PEERS};
use crate::error::PerfError;
use crate::path::Subject;
use crate::traffic::Size;
use crate::{latency, ndr, soak};

/// The forwarder and its traffic.
#[derive(Debug, Clone, Args)]
pub struct SubjectArguments {
    /// The forwarder.
    #[arg(long, default_value = "overlane", value_parser = PossibleValuesParser::new(PEERS))]
    peer: String,
    /// What it does.
    #[arg(long, value_enum, default_value_t = Job::DnatGeneve)]
    job: Job,
    /// In how many flows.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: u32,
    /// Bytes of a frame on the wire, check sequence included, or imix. A stamp needs 64.
    #[arg(long, default_value = "64")]
    size: Size,
}

impl SubjectArguments {
    fn subject(&self) -> Subject {
        let Self { peer, job, flows, size } = self.clone();
        Subject { peer, job, flows, size }
    }
}

/// Of `ndr`.
#[derive(Debug, Clone, Args)]
pub struct NdrArguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// How to search.
    #[arg(long, value_enum, default_value_t = ndr::Method::Mlr)]
    search: ndr::Method,
    /// Loss ratios in percent, separated by commas; 0 is the no-drop rate.
    #[arg(long, value_delimiter = ',', default_value = "0,0.5", value_parser = percent)]
    loss: Vec<f64>,
    /// Seconds of a trial; of mlr, of one of full length.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    trial: f64,
    /// Of mlr: seconds of trials that decide about a load.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    sum: f64,
    /// Of binary: how often the search is done.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    repeats: u16,
    /// How close the bounds must come, in percent of the load.
    #[arg(long, default_value_t = 1.0, value_parser = percent_above_0)]
    width: f64,
}

impl NdrArguments {
    /// What is asked for.
    ///
    /// # Errors
    /// [`PerfError::Arguments`]
    pub fn plan(&self) -> Result<ndr::Plan, PerfError> {
        if self.search == ndr::Method::Mlr && self.sum < self.trial {
            let text = format!(
                "--sum {} is less than one trial of --trial {}: give a larger sum or shorter trials",
                self.sum, self.trial
            );
            return Err(PerfError::Arguments(text));
        }
        Ok(ndr::Plan {
            subject: self.subject.subject(),
            method: self.search,
            loss_ratios: self.loss.iter().map(|percent| percent / 100.0).collect(),
            trial_seconds: self.trial,
            sum_seconds: self.sum,
            repeats: self.repeats.into(),
            width: self.width / 100.0,
        })
    }
}

/// Of `latency`.
#[derive(Debug, Clone, Args)]
pub struct LatencyArguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Parts of the no-drop rate in percent, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "10,50,90", value_parser = percent_above_0)]
    at: Vec<f64>,
    /// Seconds at each.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// The no-drop rate in packets a second, with k or M; without, it is searched first.
    #[arg(long, value_parser = rate)]
    ndr: Option<f64>,
    /// Folder for files of percentiles (.hgrm), which other HDR tools read.
    #[arg(long)]
    hgrm: Option<PathBuf>,
}

impl LatencyArguments {
    /// What is asked for.
    #[must_use]
    pub fn plan(&self) -> latency::Plan {
        latency::Plan {
            subject: self.subject.subject(),
            parts: self.at.iter().map(|percent| percent / 100.0).collect(),
            seconds: self.seconds,
            ndr_pps: self.ndr,
            folder: self.hgrm.clone(),
        }
    }
}

/// Of `soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Packets a second, with k or M.
    #[arg(long, default_value = "300k", value_parser = rate)]
    rate: f64,
    /// For how long, seconds.
    #[arg(long, default_value_t = 3600.0, value_parser = seconds)]
    seconds: f64,
    /// How often to look, seconds.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    every: f64,
    /// Packets that may be lost, in percent.
    #[arg(long, default_value_t = 0.0, value_parser = percent)]
    loss: f64,
}

impl SoakArguments {
    /// What is asked for.
    #[must_use]
    pub fn plan(&self) -> soak::Plan {
        soak::Plan {
            subject: self.subject.subject(),
            rate_pps: self.rate,
            duration: Duration::from_secs_f64(self.seconds),
            interval: Duration::from_secs_f64(self.every),
            loss_ratio: self.loss / 100.0,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds @ 0.05..=1e6) => Ok(seconds),
        _ => Err(format!("{text} is not within 0.05 and 1,000,000 seconds")),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent @ 0.0..=99.0) => Ok(percent),
        _ => Err(format!("{text} is not within 0 and 99 percent")),
    }
}

fn percent_above_0(text: &str) -> Result<f64, String> {
    match percent(text) {
        Ok(percent) if percent >= 0.01 => Ok(percent),
        _ => Err(format!("{text} is not within 0.01 and 99 percent")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = crate::traffic::parse_rate(text)?;
    rate.0.ok_or_else(|| "a rate is wanted, such as 300k".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        assert!(seconds("0").unwrap_err().contains("0.05"));
        assert!(percent("100").unwrap_err().contains("99"));
        assert!(percent_above_0("0").is_err() && percent("0").is_ok());
        assert!(rate("flat").unwrap_err().contains("300k"));
        assert_eq!(rate("1.5M"), Ok(1.5e6));
        assert!(percent("NaN").is_err() && seconds("inf").is_err());
    }
}
