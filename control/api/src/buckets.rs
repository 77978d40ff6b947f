//! The buckets by which times are counted: by the dataplane, and by the sink of `overlane-perf`, whose
//! program has them in C.
//!
//! They are log-linear, as those of an HdrHistogram: 64 for each doubling, so that a bucket is at
//! most 1.6 % of its values wide; below 128 ns each value has its own.

/// Buckets for each doubling: 2 to this.
const SUB_BITS: u32 = 6;

/// Longer times count as this long: 68 s, nanoseconds.
pub const LONGEST_NS: u64 = (1 << 36) - 1;

/// Buckets, numbered from 0.
pub const COUNT: usize = of(LONGEST_NS) + 1;

/// The bucket of a time, nanoseconds.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "at most 68 s: a few thousand")]
pub const fn of(ns: u64) -> usize {
    let ns = if ns > LONGEST_NS { LONGEST_NS } else { ns };
    let shift = (u64::BITS - 1).saturating_sub(ns.leading_zeros()).saturating_sub(SUB_BITS);
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// The longest time of a bucket, nanoseconds.
#[must_use]
pub const fn longest_of(bucket: usize) -> u64 {
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let lead = bucket - (shift << SUB_BITS);
    ((lead as u64 + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_one_bucket_which_is_narrow() {
        let mut next = 0;
        for number in 0..COUNT {
            let (shortest, longest) = (next, longest_of(number));
            assert_eq!((of(shortest), of(longest)), (number, number));
            assert!(longest - shortest <= shortest / 64, "{shortest} to {longest}");
            next = longest + 1;
        }
        assert_eq!(next, LONGEST_NS + 1);
        assert_eq!(of(u64::MAX), COUNT - 1);
    }
}
