//! Hashes of encoded rows: they change with any token or label, and with nothing else.

use std::hash::{Hash, Hasher};

use peft_core::{
    data::example::{Example, Label},
    files::hex,
};
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;

/// SHA-256 of examples, in lower case hexadecimal.
pub(crate) fn sha256(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    let mut list = |length: usize, bytes: &mut dyn Iterator<Item = u64>| {
        hash.update((length as u64).to_le_bytes());
        bytes.for_each(|number| hash.update(number.to_le_bytes()));
    };
    for example in examples {
        list(example.input_ids.len(), &mut example.input_ids.iter().map(|id| u64::from(*id)));
        list(example.type_ids.len(), &mut example.type_ids.iter().map(|id| u64::from(*id)));
        list(example.parts.len(), &mut example.parts.iter().map(|length| *length as u64));
        list(example.labels.len(), &mut std::iter::empty());
        for (name, label) in &example.labels {
            list(name.len(), &mut name.bytes().map(u64::from));
            match label {
                Label::Class(class) => list(1, &mut std::iter::once(class.cast_unsigned())),
                Label::Float(value) => list(1, &mut std::iter::once(u64::from(value.to_bits()))),
                Label::Floats(values) => list(values.len(), &mut values.iter().map(|value| u64::from(value.to_bits()))),
                Label::Tokens(tokens) => list(tokens.len(), &mut tokens.iter().map(|token| token.cast_unsigned())),
            }
        }
    }
    hex(&hash.finalize())
}

/// What checkpoints of version 0 have: SipHash-1-3 as the standard library fed it then.
pub(crate) fn of_version_0(examples: &[Example]) -> u64 {
    let mut hasher = SipHasher13::new();
    for example in examples {
        example.input_ids.hash(&mut hasher);
        example.type_ids.hash(&mut hasher);
        example.parts.hash(&mut hasher);
        for (name, label) in &example.labels {
            name.hash(&mut hasher);
            match label {
                Label::Class(class) => class.hash(&mut hasher),
                Label::Float(value) => value.to_bits().hash(&mut hasher),
                Label::Floats(values) => values.iter().for_each(|value| value.to_bits().hash(&mut hasher)),
                Label::Tokens(tokens) => tokens.hash(&mut hasher),
            }
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn example() -> Example {
        Example {
            input_ids: vec![2, 5, 3],
            type_ids: vec![0, 0, 1],
            labels: BTreeMap::from([("labels", Label::Class(1)), ("score", Label::Float(0.5))]),
            ..Example::default()
        }
    }

    #[test]
    fn rows_have_the_same_hash_on_every_machine_and_with_every_compiler() {
        assert_eq!(sha256(&[example()]), "e68b32fcd758f6e8b74f1d16fdcfb82a86aceb68cf1d8d3526f50e6252c0b37b");
        assert_eq!(of_version_0(&[example()]), 4_202_960_369_616_014_700);
    }

    #[test]
    fn any_token_or_label_changes_the_hash() {
        let changes: [fn(&mut Example); 5] = [
            |example| example.input_ids = vec![2, 5, 4],
            |example| example.type_ids.clear(),
            |example| example.parts = vec![1, 2],
            |example| drop(example.labels.insert("labels", Label::Class(2))),
            |example| drop(example.labels.remove("score")),
        ];
        for change in changes {
            let mut changed = example();
            change(&mut changed);
            assert_ne!(sha256(&[changed.clone()]), sha256(&[example()]), "{changed:?}");
        }
    }
}
