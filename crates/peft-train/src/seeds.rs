//! Seeds that follow from the recipe's seed and a place in the run, so that a resumed run draws what it would have drawn.

/// A seed for a place in the run: the same on every machine.
pub(crate) fn derive(seed: u64, place: &[u64]) -> u64 {
    place.iter().fold(mix(seed), |state, part| mix(state ^ part))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_by_place_and_by_seed() {
        let all = [derive(0, &[0, 0]), derive(0, &[0, 1]), derive(0, &[1, 0]), derive(1, &[0, 0]), derive(0, &[0])];
        for (at, seed) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(seed), "{all:?}");
        }
    }

    #[test]
    fn a_place_always_has_the_same_seed() {
        // SplitMix64 started at 0 gives this number first.
        assert_eq!(derive(0, &[]), 0xE220_A839_7B1D_CDAF);
    }
}
