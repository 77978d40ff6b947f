//! Percentiles of times in HdrHistogram's text format, the `.hgrm` files that its plotters and other
//! programs read.
//!
//! ```text
//!        Value     Percentile TotalCount 1/(1-Percentile)
//!
//!        1.007 0.500000000000         90           2.00
//!       20.223 1.000000000000        100            inf
//! #[Mean    = ..., StdDeviation   = ...]
//! #[Max     = ..., Total count    = ...]
//! #[Buckets = ..., SubBuckets     = ...]
//! ```

use std::io::{Result, Write};

use hdrhistogram::Histogram;

/// Lines for each halving of what is left to 100 %.
const TICKS: u32 = 5;

/// Writes the percentiles of `times`, which are nanoseconds, in microseconds.
///
/// # Errors
/// What `out` says.
pub fn write(times: &Histogram<u64>, out: &mut impl Write) -> Result<()> {
    let us = |ns: u64| ns as f64 / 1e3;
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut passed = 0;
    for step in times.iter_quantiles(TICKS) {
        passed += step.count_since_last_iteration();
        let (value, quantile) = (us(step.value_iterated_to()), step.quantile_iterated_to());
        write!(out, "{value:12.3} {quantile:2.12} {passed:10}")?;
        if quantile < 1.0 {
            writeln!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, " {:>14}", "inf")?;
        }
    }
    let (mean, deviation) = (times.mean() / 1e3, times.stdev() / 1e3);
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    let (max, count) = (us(times.max()), times.len());
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {count:12}]")?;
    let (buckets, sub) = (times.buckets(), times.distinct_values());
    writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {sub:12}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_percentiles_has_the_columns_that_plotters_read() {
        let mut times = Histogram::new_with_bounds(1, 1 << 37, 3).unwrap();
        times.record_n(1007, 90).unwrap();
        times.record_n(20_223, 10).unwrap();
        let mut out = Vec::new();
        write(&times, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let heads: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(heads, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        assert_eq!(lines[1], "");
        let rows: Vec<Vec<&str>> = lines[2..]
            .iter()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert!(rows.iter().all(|row| row.len() == 4), "{text}");
        assert_eq!(rows[0], ["1.007", "0.000000000000", "90", "1.00"]);
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2], last[3]), ("1.000000000000", "100", "inf"));
        assert!(last[0].starts_with("20.2"), "{text}");
        assert!(text.contains("Total count    =          100]"), "{text}");
    }
}
