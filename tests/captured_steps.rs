//! Recorded training steps against plain ones on a GPU, bit for bit: Mesa's software Vulkan records too.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use peft::train::{CapturedSteps, Event, Observer, Optimizer, Recipe, TrainOptions, recipe::TrainingArguments, train};
use peft::{
    Batch, CheckedBatch, Inputs, PeftModel, Task,
    adapter::AdapterFolder,
    backends::device,
    batch::IGNORE,
    causal_lm::CausalLm,
    data::{
        example::{Example, Label, Padding, collate_to},
        loss::token_cross_entropy_on_device,
    },
    model::peft_model::DEFAULT_ADAPTER,
};
use rstest::rstest;

use crate::fixture::{base, case, floats, golden};

fn gpu() -> Device {
    device::parse(Some("wgpu")).unwrap()
}

fn model(case: &Path, gpu: &Device) -> PeftModel {
    PeftModel::from_pretrained(base(case, gpu), &case.join("adapter"), gpu).unwrap()
}

/// Rows of these lengths, of other tokens for each number, of which the first is only read.
fn batch(number: usize, lengths: &[usize]) -> Batch {
    let example = |(row, length): (usize, &usize)| {
        let input_ids: Vec<u32> = (0..*length as u32).map(|at| 3 + (at * 7 + (row + number) as u32 * 5) % 38).collect();
        let labels = input_ids.iter().enumerate().map(|(at, id)| if at == 0 { IGNORE } else { i64::from(*id) });
        let labels = [("labels", Label::Tokens(labels.collect()))];
        Example { input_ids, labels: labels.into(), ..Example::default() }
    };
    let examples: Vec<_> = lengths.iter().enumerate().map(example).collect();
    let least = lengths.iter().max().unwrap().next_multiple_of(8);
    collate_to(Padding { least, left: false }, &examples.iter().collect::<Vec<_>>(), 0, false, &Device::flex())
}

/// The same computation, not recorded and with tensors of its own.
fn plain(model: &PeftModel, batch: &CheckedBatch, share: f64) -> (Tensor<1>, GradientsParams) {
    let ids = batch.inputs.input_ids.clone().unwrap();
    let [rows, length] = ids.dims();
    let targets = CausalLm.targets(&batch.labels, length).unwrap().unwrap();
    let device = ids.device();
    let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [rows * length]), &device);
    let inputs = model.check(Inputs { input_ids: Some(ids), ..Inputs::default() }).unwrap().inputs;
    let outputs = model.forward(&inputs).unwrap();
    let loss = token_cross_entropy_on_device(&outputs, "logits", &targets).unwrap().mul_scalar(share);
    (loss.clone().without_autodiff(), model.gradients(&loss))
}

type Pass<'a> = Box<dyn FnMut(&PeftModel, &CheckedBatch, f64) -> (Tensor<1>, GradientsParams) + 'a>;

/// The losses and the adapter after these steps, each of several batches.
fn trained(
    mut model: PeftModel,
    steps: &[Vec<Batch>],
    mut pass: Pass<'_>,
) -> (Vec<TensorData>, BTreeMap<String, TensorData>) {
    let arguments = TrainingArguments { learning_rate: 1e-2, weight_decay: 0.1, ..TrainingArguments::default() };
    let mut optimizer = Optimizer::new(&arguments, &model.trainable());
    let mut losses = Vec::new();
    for batches in steps {
        for batch in batches {
            let batch = model.check(batch.clone()).unwrap();
            let (loss, gradients) = pass(&model, &batch, 1.0 / batches.len() as f64);
            losses.push(loss);
            optimizer.accumulate(gradients);
        }
        optimizer.step(&mut model, arguments.learning_rate);
    }
    // Read at the end, as the losses of a run are: none may lie where another is written to.
    (losses.into_iter().map(Tensor::into_data).collect(), model.state_dict(DEFAULT_ADAPTER).unwrap())
}

/// That captured steps are plain ones, and that so many shapes were recorded.
fn check(model: impl Fn() -> PeftModel, steps: &[Vec<Batch>], shapes: usize) {
    let mut recorded = model();
    recorded.set_training(true);
    let mut captured = CapturedSteps::new(&mut recorded, 0).unwrap();
    let found = trained(recorded, steps, Box::new(|model, batch, share| captured.pass(model, batch, share).unwrap()));
    assert_eq!(captured.kept(), [shapes, shapes]);
    let expected = trained(model(), steps, Box::new(plain));
    assert!(expected.0.windows(2).all(|losses| losses[0] != losses[1]));
    assert_eq!(found, expected);
    // And these are those of a batch with a mask, whose labels the host looks at.
    let masked = |model: &PeftModel, batch: &CheckedBatch, share| {
        let loss = model.loss(batch).unwrap().0.mul_scalar(share);
        (loss.clone().without_autodiff(), model.gradients(&loss))
    };
    let (losses, _) = trained(model(), steps, Box::new(masked));
    for (found, expected) in found.0.iter().zip(&losses) {
        let (found, expected) = (floats(found)[0], floats(expected)[0]);
        assert!((found - expected).abs() <= 1e-4 * expected, "{found} {expected}");
    }
}

#[rstest]
fn ten_captured_steps_are_ten_plain_ones(#[values("llama.CAUSAL_LM.default", "gemma2.CAUSAL_LM.default")] name: &str) {
    let lengths = [[3, 7], [12, 5], [8, 2], [9, 16], [4, 4], [11, 15], [6, 13], [2, 3], [16, 16], [7, 8]];
    let gpu = gpu();
    let steps: Vec<_> = lengths.iter().enumerate().map(|(at, lengths)| vec![batch(at, lengths)]).collect();
    check(|| model(&case(name), &gpu), &steps, 2);
}

#[test]
fn gradients_of_several_batches_add_up() {
    let gpu = gpu();
    let step = |at| (0..4).map(|part| batch(at + part, &[3 + part, 8])).collect();
    check(|| model(&case("llama.CAUSAL_LM.tied-all-linear"), &gpu), &[step(0), step(7)], 1);
}

#[test]
fn a_head_that_is_trained_is_recorded_too() {
    let (gpu, case) = (gpu(), case("llama.CAUSAL_LM.default"));
    let config = AdapterFolder::read(&case.join("adapter")).unwrap().config;
    let config = config.with("modules_to_save", vec!["lm_head"]).unwrap().with("init_lora_weights", false).unwrap();
    let model = || PeftModel::new(base(&case, &gpu), config.clone(), &gpu, 5).unwrap();
    check(model, &[vec![batch(0, &[3, 8])], vec![batch(1, &[7, 2])], vec![batch(2, &[8, 8])]], 1);
}

#[test]
fn every_family_of_decoders_is_recorded() {
    let gpu = gpu();
    let cases = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    // And those that look at more than others: at weights, at how long rows are.
    let ends = ["CAUSAL_LM.default", "gpt2.CAUSAL_LM.dora", "llama.CAUSAL_LM.rope-dynamic", "phi3.CAUSAL_LM.longrope"];
    let mut cases: Vec<_> =
        cases.filter(|path| ends.iter().any(|end| path.display().to_string().ends_with(end))).collect();
    cases.sort();
    assert!(cases.len() > 12);
    for case in cases {
        // Without dropout, which some of them have.
        let mut model = model(&case, &gpu);
        let mut captured = CapturedSteps::new(&mut model, 1).unwrap();
        let batch = model.check(batch(1, &[6, 8])).unwrap();
        let found = captured.pass(&model, &batch, 1.0).unwrap().0.into_data();
        assert_eq!(captured.kept(), [1, 1], "{case:?}");
        assert_eq!(found, plain(&model, &batch, 1.0).0.into_data(), "{case:?}");
    }
}

#[test]
fn the_recording_that_was_not_used_longest_goes() {
    let gpu = gpu();
    let mut model = model(&case("llama.CAUSAL_LM.default"), &gpu);
    let mut captured = CapturedSteps::new(&mut model, 0).unwrap();
    // The first shape is used between the others and stays; the second goes for the ninth and comes back.
    for (number, rows) in [1, 2, 3, 4, 1, 5, 6, 7, 8, 1, 9, 2, 1, 9].into_iter().enumerate() {
        let batch = model.check(batch(number, &vec![8; rows])).unwrap();
        let found = captured.pass(&model, &batch, 1.0).unwrap().0.into_data();
        assert_eq!(found, plain(&model, &batch, 1.0).0.into_data(), "{rows}");
    }
    assert_eq!(captured.kept(), [8, 8]);
}

#[test]
fn what_cannot_be_recorded_says_why() {
    let gpu = gpu();
    let reason = |name: &str, device: &Device| {
        let mut model = model(&case(name), device);
        model.set_training(true);
        CapturedSteps::new(&mut model, 0).unwrap_err()
    };
    for (name, device, why) in [
        ("llama.CAUSAL_LM.default", &Device::flex(), "only a GPU"),
        ("gpt2.CAUSAL_LM.default", &gpu, "dropout"),
        ("llama.SEQ_CLS.default", &gpu, "not known"),
        ("t5.SEQ_2_SEQ_LM.default", &gpu, "not known"),
        ("bert.TOKEN_CLS.default", &gpu, "not known"),
    ] {
        let reason = reason(name, device);
        assert!(reason.contains(why), "{name}: {reason}");
    }
}

#[test]
fn other_batches_are_refused() {
    let gpu = gpu();
    let mut model = model(&case("llama.CAUSAL_LM.default"), &gpu);
    let mut captured = CapturedSteps::new(&mut model, 0).unwrap();
    let mut refused = |change: &dyn Fn(&mut Batch)| {
        let mut batch = batch(0, &[3, 8]);
        change(&mut batch);
        captured.pass(&model, &model.check(batch).unwrap(), 1.0).unwrap_err().to_string()
    };
    let mask = |rows: [[i64; 8]; 2]| Some(Tensor::from_data(rows, &Device::flex()));
    let left = refused(&|batch| batch.inputs.attention_mask = mask([[0, 0, 0, 0, 0, 1, 1, 1], [1; 8]]));
    assert!(left.contains("padding is not on the right"), "{left}");
    let packed = refused(&|batch| batch.inputs.attention_mask = mask([[1; 8], [1, 1, 1, 2, 2, 2, 3, 3]]));
    assert!(packed.contains("padding is not on the right"), "{packed}");
    let placed = refused(&|batch| batch.inputs.position_ids = batch.inputs.input_ids.clone());
    assert!(placed.contains("other inputs"), "{placed}");
    let label = refused(&|batch| {
        batch.labels.0.insert("labels".to_owned(), TensorData::from([[41_i64; 8]; 2]));
    });
    assert!(label.contains("label 41 is outside"), "{label}");
}

/// Notes of a run that captures its steps.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Note(note) = event {
            self.0.extend(note.strip_prefix("captured_steps: ").map(str::to_owned));
        }
    }
}

#[rstest]
fn a_recipe_with_captured_steps_trains_what_it_trains_without(
    #[values("load_in_4bit=false", "load_in_4bit=true")] packed: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(case("llama.CAUSAL_LM.default").join("model").join(file), model.join(file)).unwrap();
    }
    // A tokenizer of the model's 41 tokens, most of which are letters.
    let tokenizer = golden().join("../generation/stops/tokenizer.json");
    fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "<end>"}"#).unwrap();
    fs::write(folder.path().join("rows.txt"), "fjrgh\n\nabcdefghjk\n\nkq\n\nhgfedcbaqwe\n\nwj\n\neqkwj\n\nfghab\n")
        .unwrap();
    let recipe = "[model]\nmodel_name_or_path = \"model\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"CAUSAL_LM\"\n\
                  r = 4\n[data]\ntrain = \"rows.txt\"\n[training]\noutput_dir = \"set below\"\nmax_steps = 6\n\
                  per_device_train_batch_size = 2\ngradient_accumulation_steps = 2\nlearning_rate = 1e-2\n\
                  pad_to_multiple_of = 8\nadam_epsilon = 1.0\n";
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    let run = |captured: bool| {
        let out = folder.path().join(if captured { "captured" } else { "plain" });
        let own = [
            format!("training.output_dir={:?}", out.display().to_string()),
            format!("training.captured_steps={captured}"),
            format!("model.{packed}"),
        ];
        let recipe = Recipe::read(&folder.path().join("recipe.toml"), &own).unwrap();
        let mut notes = Notes::default();
        let report = train(&recipe, &TrainOptions::new(gpu()), &mut notes).unwrap();
        assert_eq!(notes.0, [""; 0]);
        (report.train_loss, AdapterFolder::read(&out).unwrap().tensors)
    };
    let ((loss, adapter), (expected_loss, expected)) = (run(true), run(false));
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
    for (key, tensor) in &adapter {
        let near = |(a, b): (f64, f64)| (a - b).abs() < 1e-5 + 1e-3 * b.abs();
        assert!(floats(tensor).into_iter().zip(floats(&expected[key])).all(near), "{key}");
    }
}
