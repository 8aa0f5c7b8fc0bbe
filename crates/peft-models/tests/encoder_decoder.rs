//! Decoding step by step with what was computed before, as generation does it.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, Tolerance};
use peft_core::{AutoClass, BaseModel, Inputs, Outputs, PastKeyValues, files::TensorFile};
use peft_models::checkpoint::{LoadOptions, Loaded, load};

const CASES: [&str; 5] = ["t5", "mt5", "bart", "mbart", "marian"];

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/{family}.SEQ_2_SEQ_LM.default"))
}

fn open(family: &str) -> Loaded {
    load(&golden(family).join("model"), &AutoClass::SEQ2SEQ_LM, &LoadOptions::default(), &Device::flex()).unwrap()
}

/// The source of a golden case, and a target.
fn inputs(family: &str) -> Inputs {
    let tensors = TensorFile::read(&golden(family).join("inputs.safetensors"), "inputs").unwrap().tensors;
    let ids = |name: &str| Some(Tensor::from_data(tensors[name].clone().convert::<i64>(), &Device::flex()));
    let target = Tensor::from_data([[2, 9, 8, 7, 6], [2, 5, 11, 4, 3], [2, 14, 4, 31, 12]], &Device::flex());
    Inputs {
        input_ids: ids("input_ids"),
        attention_mask: ids("attention_mask"),
        decoder_input_ids: Some(target),
        ..Inputs::default()
    }
}

fn run(base: &BaseModel, inputs: Inputs) -> Outputs {
    let model = base.running();
    model.forward(&model.check(inputs).unwrap()).unwrap()
}

fn logits(outputs: &Outputs) -> Tensor<3> {
    outputs.get("logits").unwrap()
}

fn assert_same(left: Tensor<3>, right: Tensor<3>) {
    left.into_data().assert_approx_eq::<f32>(&right.into_data(), Tolerance::absolute(1e-5));
}

#[test]
fn step_by_step_a_decoder_says_what_it_says_at_once() {
    for family in CASES {
        let base = open(family).base;
        let inputs = inputs(family);
        let whole = run(&base, inputs.clone());
        let target = inputs.decoder_input_ids.clone().unwrap();
        let past = PastKeyValues::new();
        let mut states = None;
        let steps = [0..1, 1..2, 2..5].map(|range| {
            let ids: Tensor<2, Int> = target.clone().slice([0..3, range]);
            let step = Inputs {
                decoder_input_ids: Some(ids),
                past_key_values: Some(past.clone()),
                input_ids: inputs.input_ids.clone().filter(|_| states.is_none()),
                encoder_outputs: states.clone(),
                ..inputs.clone()
            };
            let outputs = run(&base, step);
            states = Some(outputs.get::<3>("encoder_last_hidden_state").unwrap());
            logits(&outputs)
        });
        assert_eq!(past.length(), 5, "{family}");
        assert_same(Tensor::cat(steps.to_vec(), 1), logits(&whole));
    }
}

#[test]
fn rows_can_be_exchanged_between_steps() {
    for family in CASES {
        let base = open(family).base;
        let inputs = inputs(family);
        let target = inputs.decoder_input_ids.clone().unwrap();
        let rows = Tensor::<1, Int>::from_data([2, 0, 0], &Device::flex());
        let chosen = |ids: Option<Tensor<2, Int>>| ids.map(|ids| ids.select(0, rows.clone()));
        let whole = run(
            &base,
            Inputs {
                input_ids: chosen(inputs.input_ids.clone()),
                attention_mask: chosen(inputs.attention_mask.clone()),
                decoder_input_ids: chosen(Some(target.clone())),
                ..Inputs::default()
            },
        );
        let past = PastKeyValues::new();
        let first = Inputs {
            decoder_input_ids: Some(target.clone().slice([0..3, 0..4])),
            past_key_values: Some(past.clone()),
            ..inputs.clone()
        };
        let states = run(&base, first).get::<3>("encoder_last_hidden_state").unwrap();
        past.select(&rows);
        let last = run(
            &base,
            Inputs {
                attention_mask: chosen(inputs.attention_mask.clone()),
                encoder_outputs: Some(states.select(0, rows.clone())),
                decoder_input_ids: chosen(Some(target.slice([0..3, 4..5]))),
                past_key_values: Some(past),
                ..Inputs::default()
            },
        );
        let [batch, length, words] = logits(&whole).dims();
        assert_same(logits(&last), logits(&whole).slice([0..batch, length - 1..length, 0..words]));
    }
}

#[test]
fn without_a_target_t5_gives_the_states_of_the_source_alone() {
    let outputs = run(&open("t5").base, Inputs { decoder_input_ids: None, ..inputs("t5") });
    let names: Vec<_> = outputs.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["encoder_last_hidden_state"]);
}
