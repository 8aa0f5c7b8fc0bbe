//! Floats in JSON that come back as the same bits: serde_json's reader may be off by one unit in the last place, and a
//! resumed run compares metrics with those of before.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A float that JSON holds as text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Exact(pub(crate) f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| D::Error::custom(format!("`{text}` is no number")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn every_bit_survives() {
        for value in [0.1 + 0.2, 1.0 / 3.0, f64::MIN_POSITIVE, f64::MAX, -0.0, f64::INFINITY, 8.988_465_674_311_58e307]
        {
            let text = serde_json::to_string(&Exact(value)).unwrap();
            assert_eq!(serde_json::from_str::<Exact>(&text).unwrap().0.to_bits(), value.to_bits(), "{text}");
        }
    }
}
