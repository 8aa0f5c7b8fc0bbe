//! Keys and values of what a model has read before.

use std::path::PathBuf;

use burn::tensor::s;
use peft::{Inputs, PastKeyValues};
use rstest::rstest;

use crate::fixture::{assert_close, batch, model};

#[rstest]
fn reading_in_pieces_gives_what_reading_at_once_gives(
    #[files("golden/*.CAUSAL_LM.default/expected.json")] facts: PathBuf,
) {
    let case = facts.parent().unwrap();
    let (mut model, inputs) = (model(case), batch(case).inputs);
    let (ids, mask) = (inputs.input_ids.clone().unwrap(), inputs.attention_mask.clone().unwrap());
    // Without adapters one kernel attends, with them its parts do.
    for enabled in [true, false] {
        model.set_enabled(enabled);
        let at_once = model
            .forward(&model.check(inputs.clone()).unwrap().inputs)
            .unwrap()
            .get::<3>("logits")
            .unwrap()
            .without_autodiff();
        let past = PastKeyValues::new();
        for (from, to) in [(0, 4), (4, 8), (8, 9)] {
            let piece = Inputs {
                input_ids: Some(ids.clone().slice(s![.., from..to])),
                attention_mask: Some(mask.clone().slice(s![.., 0..to])),
                past_key_values: Some(past.clone()),
                ..Inputs::default()
            };
            let logits = model
                .forward(&model.check(piece).unwrap().inputs)
                .unwrap()
                .get::<3>("logits")
                .unwrap()
                .without_autodiff();
            let wanted = at_once.clone().slice(s![.., from..to, ..]);
            assert_close(&format!("{from}..{to}"), &logits.into_data(), &wanted.into_data());
        }
    }
}
