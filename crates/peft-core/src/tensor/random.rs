//! Random numbers and hashes by the names of their algorithms: the same on every machine, for every compiler and library to come.

use std::hash::Hasher;

pub use chacha20::ChaCha12Rng;
use chacha20::rand_core::SeedableRng;
use siphasher::sip::SipHasher13;

/// A generator for a seed.
pub fn seeded(seed: u64) -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

/// A generator for a seed and the name of what it fills.
pub fn seeded_for(seed: u64, name: &str) -> ChaCha12Rng {
    seeded(sip_hash(|hash| {
        hash.write(&seed.to_le_bytes());
        text(hash, name);
    }))
}

/// A number that follows from two names.
pub fn hash_of(first: &str, second: &str) -> u64 {
    sip_hash(|hash| {
        text(hash, first);
        text(hash, second);
    })
}

/// SipHash-1-3 with a key of zeros.
fn sip_hash(write: impl FnOnce(&mut SipHasher13)) -> u64 {
    let mut hash = SipHasher13::new();
    write(&mut hash);
    hash.finish()
}

/// A byte that no UTF-8 has ends it.
fn text(hash: &mut SipHasher13, text: &str) {
    hash.write(text.as_bytes());
    hash.write(&[0xff]);
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash};

    use rand::{Rng, rngs::StdRng};

    use super::*;

    /// What earlier versions drew, with what the standard library and `rand` had then under names that promise nothing.
    #[test]
    fn runs_of_earlier_versions_go_on_with_the_same_numbers() {
        let mut hasher = DefaultHasher::new();
        (7_u64, "lora_A.weight").hash(&mut hasher);
        let (mut earlier, mut now) = (StdRng::seed_from_u64(hasher.finish()), seeded_for(7, "lora_A.weight"));
        assert!((0..100).all(|_| earlier.next_u64() == now.next_u64()));
        let mut hasher = DefaultHasher::new();
        ("default", "a.b").hash(&mut hasher);
        assert_eq!(hash_of("default", "a.b"), hasher.finish());
    }

    /// As Python hashes the same bytes with `PYTHONHASHSEED=0`.
    #[test]
    fn names_always_have_the_same_hash() {
        assert_eq!(hash_of("default", "a.b"), 5_297_589_163_335_960_736);
    }
}
