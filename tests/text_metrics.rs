//! ROUGE, chrF and BLEU against `rouge_score` and `sacrebleu` (`text_metrics/generate.py`), and for texts of every kind.

use std::path::Path;

use peft::metrics::{bleu::bleu, chrf::chrf, rouge::rouge_l, texts::compare};
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn values_are_those_of_the_python_libraries() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("text_metrics/expected.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in cases {
        let pairs: Vec<(String, String)> = serde_json::from_value(case["pairs"].clone()).unwrap();
        let (written, wanted): (Vec<&str>, Vec<&str>) = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).unzip();
        let found = compare(&written, &wanted);
        for name in ["rouge_l", "rouge_1", "rouge_2", "chrf", "bleu"] {
            let (found, expected) = (found[name], case[name].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-9, "{name}: {found} against {expected} for {pairs:?}");
        }
    }
}

/// Letters, and what the metrics' tokenizers look at.
const TEXT: &str = "(\\PC|[ \n\x1c.,&;9a-c-]|<skipped>|&amp;){0,30}";

proptest! {
    #[test]
    fn scores_stay_within_their_bounds(pairs in prop::collection::vec((TEXT, TEXT), 0..5)) {
        let (written, wanted): (Vec<&str>, Vec<&str>) = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).unzip();
        for (name, value) in compare(&written, &wanted) {
            let most = if name.starts_with("rouge") { 1.0 } else { 100.0 };
            prop_assert!((0.0..=most + 1e-9).contains(&value), "{} {}", name, value);
        }
    }

    #[test]
    fn a_text_is_like_itself(text in TEXT) {
        let has = |is: fn(char) -> bool| text.to_lowercase().chars().any(is);
        let words = f64::from(u8::from(has(|c| c.is_ascii_lowercase() || c.is_ascii_digit())));
        prop_assert!((rouge_l(&text, &text) - words).abs() < 1e-9);
        let letters = f64::from(u8::from(has(|c| !c.is_whitespace() && !('\x1c'..='\x1f').contains(&c))));
        prop_assert!((chrf(&[&text], &[&text]) - 100.0 * letters).abs() < 1e-9);
        let found = bleu(&[&text], &[&text]);
        prop_assert!(found == 0.0 || (found - 100.0).abs() < 1e-9);
    }
}
