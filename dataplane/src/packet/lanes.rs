//! Eight numbers of 32 bits at a time: half a cache line against the other half.
//!
//! Written so that the compiler compares all eight at once and keeps the answers side by side; asked for a
//! choice it takes them apart bit by bit, which is four times as many instructions.

/// The values whose keys are `wanted`, ORed together: the value, when one key is; else 0.
#[inline(always)]
#[must_use]
pub fn select(keys: &[u32; 8], wanted: u32, values: &[u32; 8]) -> u32 {
    let mut found = 0;
    for (key, value) in keys.iter().zip(values) {
        let difference = key ^ wanted;
        // All ones when they differ: the sign of the one or of the other.
        let differs = (difference | difference.wrapping_neg()).cast_signed() >> 31;
        found |= value & !differs.cast_unsigned();
    }
    found
}

/// All values, ORed together.
#[inline(always)]
#[must_use]
pub fn all(values: &[u32; 8]) -> u32 {
    values.iter().fold(0, |all, value| all | value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_looked_at() {
        let values: [u32; 8] = std::array::from_fn(|n| 1 << (4 * n));
        for place in 0..8 {
            let mut keys = [7; 8];
            keys[place] = u32::MAX;
            assert_eq!(select(&keys, u32::MAX, &values), values[place]);
            assert_eq!(select(&keys, 7, &values), 0x1111_1111 & !values[place]);
            assert_eq!(select(&keys, 0, &values), 0);
            let mut one = [0; 8];
            one[place] = 0x8000_0001;
            assert_eq!(all(&one), 0x8000_0001);
        }
        assert_eq!(all(&values), 0x1111_1111);
    }
}
