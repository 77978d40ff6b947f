//! `overlane-perf report`: results as one HTML page, with plots, that needs nothing else.
//!
//! ```text
//! results of commands (-o json) --> sections --> page
//! ```
//!
//! - `charts`: the plots.
//! - `measured`: the results of a run of its own.
//! - `sections`: what of a result is shown, by the command that it comes from.

mod charts;
mod measured;
mod sections;

use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::about::{About, Document};
use crate::error::PerfError;
pub use measured::measure;

/// A result of any command.
pub type Result = Document<Value>;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --quiet: #666; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.9rem; margin-bottom: .2rem; } h2 { margin-top: 3rem; border-top: 2px solid var(--line); padding-top: 1rem; }
h3 { margin: 2rem 0 .3rem; }
p.note, figcaption, .about { color: var(--quiet); font-size: .9rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow-x: auto; } svg { width: 100%; height: auto; min-width: 34rem; }
svg text { fill: currentColor; } svg [stroke='#000000'] { stroke: currentColor; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.met { color: #0a7d4f; } td.missed { color: #c04000; }
@media (prefers-color-scheme: dark) { td.met { color: #4dd6a0; } td.missed { color: #ff9d66; } }
";

/// Reads results that commands wrote with `-o json`.
///
/// # Errors
/// [`PerfError::File`]; [`PerfError::Missed`] where a file is no result.
pub fn read(path: &Path) -> std::result::Result<Result, PerfError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| PerfError::File { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|error| {
        PerfError::Missed(format!(
            "{} is not a result of overlane-perf ({error}): write one with -o json",
            path.display()
        ))
    })
}

/// The page.
///
/// # Errors
/// [`PerfError::Missed`] where a result lacks what its section shows.
pub fn page(results: &[Result]) -> std::result::Result<String, PerfError> {
    let mut shown = Vec::new();
    for result in results {
        shown.push((result, sections::section(result)?));
    }
    let machine = results.first().map(|result| &result.about);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Overlane: measurements" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Overlane: measurements" }
                @if let Some(about) = machine { (about_machine(about)) }
                @for (result, section) in &shown {
                    section {
                        h2 { (sections::title(&result.kind)) }
                        (about_result(&result.about))
                        (section)
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn about_machine(about: &About) -> Markup {
    let gib = about.memory_bytes as f64 / f64::from(1 << 30);
    html! {
        p.about {
            (about.processor) ", " (about.processors) " processors"
            @if about.virtual_machine { " (virtual)" }
            ", " (format!("{gib:.0}")) " GiB, Linux " (about.kernel) ". Built from commit "
            code { (about.commit) } " by " (about.compiler) "."
        }
    }
}

fn about_result(about: &About) -> Markup {
    html! {
        p.about {
            code { (about.command) }
            br;
            (utc(about.unix_seconds)) ", load average " (about.load_average)
            ", commit " code { (about.commit) }
        }
    }
}

/// The time of day in UTC.
fn utc(unix_seconds: u64) -> String {
    let (days, rest) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

/// Year, month and day of a number of days since 1970, by counting.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(kind: &str, result: Value) -> Result {
        Document { about: About::now(), kind: kind.to_owned(), result }
    }

    fn pipeline(stages: Value) -> Value {
        let spread = json!({ "median": 50.0, "least": 49.0, "most": 51.0 });
        let row = |flows: usize| {
            let cost = json!({
                "total_ns": spread, "ports_ns": spread, "packets": 1, "mpps": 20.0,
            });
            json!({
                "scenario": "<dnat & geneve>", "flows": flows, "size": "64", "order": "random",
                "workers": 1, "cost": cost, "target_ns": 55.0, "instructions": [900.0, 178.0],
                "stages": stages,
            })
        };
        let memory = json!({ "l1_ns": 1.0, "l2_ns": 3.0, "l3_ns": 9.0, "dram_ns": 90.0 });
        json!({ "memory": memory, "rows": [row(1), row(1000)] })
    }

    #[test]
    fn a_page_shows_each_result_and_what_it_was_measured_on() {
        let stages = json!([
            { "name": "receive", "instructions": 160.0, "share": 0.2 },
            { "name": "route", "instructions": 640.0, "share": 0.8 },
        ]);
        let latency =
            json!({ "min": 1, "p50": 2, "p90": 3, "p99": 4, "p99_9": 5, "p99_99": 6, "max": 7 });
        let point = json!({
            "part": 0.5, "round_trip": false, "load_pps": 1e5, "sent": 1000, "received": 1000,
            "reordered": 0, "generator_late_ns": 100, "latency": latency,
            "curve": [[0.0, 900], [0.5, 1000], [0.99, 4000], [1.0, 7000]],
        });
        let latency = json!({
            "peer": "overlane", "job": "snat", "flows": 1000, "size": "64", "ndr_pps": 5e5,
            "ndr_searched": true, "points": [point],
        });
        let page =
            page(&[result("pipeline", pipeline(stages)), result("latency", latency)]).unwrap();
        assert_eq!(page.matches("<svg").count(), 3, "flows, stages, percentiles");
        assert!(page.contains(&About::now().kernel));
        assert!(page.contains("&lt;dnat &amp; geneve&gt;"), "text is escaped");
        assert!(!page.contains("<dnat"), "in plots, too");
        assert!(!page.contains("http://") || page.matches("http://").count() == 3, "only xmlns");
    }

    #[test]
    fn results_of_other_commands_are_shown_as_they_are() {
        let page = page(&[result("steady", json!({ "a": [1, 2] }))]).unwrap();
        assert!(page.contains("all figures") && page.contains("steady"));
    }

    #[test]
    fn a_result_of_another_version_is_named() {
        let error = page(&[result("pipeline", json!({ "rows": 1 }))]).unwrap_err().to_string();
        assert!(error.contains("pipeline") && error.contains("another version"), "{error}");
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_284_607), "2026-11-21 18:10 UTC");
    }
}
