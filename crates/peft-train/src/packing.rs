//! Short examples put into one sequence, each still seeing only itself.

use std::collections::BTreeMap;

use burn::tensor::Device;
use peft_core::{
    BaseModel, Error as PeftError,
    batch::IGNORE,
    data::example::{Example, Label, collate},
};

use crate::Result;

/// Packs examples into sequences of at most `max_length` tokens: the longest first, each into the fullest sequence that has
/// room for it (best fit decreasing).
///
/// The first label of every example counts for nothing, because what stands before it is another's.
pub fn pack(examples: Vec<Example>, max_length: usize) -> Vec<Example> {
    let mut order: Vec<Example> = examples;
    order.sort_by_key(|example| std::cmp::Reverse(example.input_ids.len()));
    let mut packed: Vec<Example> = Vec::new();
    // Sequences by the room that they have left.
    let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for example in order {
        let length = example.input_ids.len();
        let fitting = room.range_mut(length..).next().and_then(|(left, places)| Some((*left, places.pop()?)));
        room.retain(|_, places| !places.is_empty());
        let (left, place) = match fitting {
            Some((left, place)) => {
                if let Some(sequence) = packed.get_mut(place) {
                    append(sequence, example);
                }
                (left - length, place)
            }
            None => {
                let mut sequence = Example { row: example.row, ..Example::default() };
                append(&mut sequence, example);
                packed.push(sequence);
                (max_length.saturating_sub(length), packed.len() - 1)
            }
        };
        room.entry(left).or_default().push(place);
    }
    packed
}

fn append(sequence: &mut Example, example: Example) {
    sequence.parts.push(example.input_ids.len());
    sequence.input_ids.extend(example.input_ids);
    sequence.type_ids.extend(example.type_ids);
    for (name, label) in example.labels {
        let Label::Tokens(mut tokens) = label else { continue };
        if let Some(first) = tokens.first_mut() {
            *first = IGNORE;
        }
        match sequence.labels.entry(name).or_insert_with(|| Label::Tokens(Vec::new())) {
            Label::Tokens(all) => all.extend(tokens),
            other => *other = Label::Tokens(tokens),
        }
    }
}

/// Tries on two short examples whether the model gives packed ones the numbers that it gives each alone.
///
/// # Errors
/// If it does not: an architecture that counts positions by itself, or carries a state along.
pub fn check_kept_apart(base: &BaseModel, examples: &[Example], pad_id: u32, device: &Device) -> Result<()> {
    const TOKENS: usize = 8;
    let short = |example: &Example| Example {
        input_ids: example.input_ids.iter().copied().take(TOKENS).collect(),
        ..Example::default()
    };
    let mut pair: Vec<Example> = examples.iter().take(2).map(short).collect();
    // The order in which they are packed.
    pair.sort_by_key(|example| std::cmp::Reverse(example.input_ids.len()));
    let model = base.running();
    let logits = |example: &Example| {
        let batch = collate(&[example], pad_id, false, &Device::flex());
        let inputs = model.check(batch.inputs)?.on(&device.clone().inner());
        model.forward(&inputs)?.read::<3>("logits").map(|(values, _)| values)
    };
    let alone = pair.iter().map(logits).collect::<peft_core::Result<Vec<_>>>()?.concat();
    let together = pack(pair, 2 * TOKENS).iter().map(logits).collect::<peft_core::Result<Vec<_>>>()?.concat();
    // Sums of another length are rounded elsewhere; a neighbour that is seen changes far more.
    let largest = alone.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.02 * largest;
    if alone.len() == together.len() && alone.iter().zip(&together).all(same) {
        return Ok(());
    }
    let problem = format!(
        "`{}` does not keep packed examples apart: what it says of one depends on what stands before it; \
         set packing = false",
        base.info.model_type
    );
    Err(PeftError::config("packing", problem).into())
}
