//! Adapters as values: attach, switch, disable, merge.

use burn::{
    module::{Module, Param},
    nn::{Linear, LinearConfig},
    tensor::{Device, Distribution, Tensor, TensorData},
};
use peft::{
    Error, Inputs, ModelInfo, Outputs, PeftConfig, PeftModel, PeftType, TaskType, adapted_linear,
    adapter::AdapterFolder,
};
use proptest::prelude::*;
use serde_json::json;

use crate::fixture::{assert_close, base, batch, case, model};

const CASE: &str = "bert.SEQ_CLS.default";

fn logits(model: &PeftModel) -> TensorData {
    model
        .forward(&model.check(batch(&case(CASE))).unwrap().inputs)
        .unwrap()
        .get::<2>("logits")
        .unwrap()
        .without_autodiff()
        .to_data()
}

fn config(bias: &str) -> PeftConfig {
    PeftConfig::new(PeftType::LORA, Some(TaskType::SEQ_CLS)).unwrap().with("bias", bias).unwrap()
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let device = Device::flex();
    let everywhere = config("none").with("target_modules", ["word_embeddings", "query", "dense"].as_slice()).unwrap();
    let dora = everywhere.clone().with("use_dora", true).unwrap();
    for config in [config("none"), everywhere, dora] {
        let mut model = PeftModel::new(base(&case(CASE), &device), config, &device, 7).unwrap();
        let with = logits(&model);
        model.set_enabled(false);
        assert_close("logits", &with, &logits(&model));
    }
}

#[test]
fn the_seed_decides_a_fresh_adapter_to_the_bit() {
    let device = Device::flex();
    let fresh = |seed| {
        PeftModel::new(base(&case(CASE), &device), config("none"), &device, seed)
            .unwrap()
            .state_dict("default")
            .unwrap()
    };
    assert_eq!(fresh(3), fresh(3));
    assert_ne!(fresh(3), fresh(4));
}

#[test]
fn switching_adapters_switches_outputs_and_two_active_ones_add_up() {
    let device = Device::flex();
    let mut model = model(&case(CASE));
    let first = logits(&model);
    model.add_adapter("fresh", config("none"), 1).unwrap();
    assert_eq!(first, logits(&model), "adding activates nothing");
    model.set_active(&["fresh"]).unwrap();
    assert_ne!(first, logits(&model));
    // Both save a copy of the classifier: which one should act?
    let error = model.set_active(&["default", "fresh"]).unwrap_err();
    assert!(matches!(error, Error::Adapter(text) if text.contains("classifier")));
    model.set_active(&["default"]).unwrap();
    assert_eq!(first, logits(&model));

    // Without heads two adapters act together: twice the same adapter is twice its delta.
    let lm = case("llama.CAUSAL_LM.default");
    let adapter = || AdapterFolder::read(&lm.join("adapter")).unwrap();
    let mut twice = PeftModel::from_base(base(&lm, &device), &device);
    twice.load_adapter("a", adapter()).unwrap();
    twice.load_adapter("b", adapter()).unwrap();
    twice.set_active(&["a", "b"]).unwrap();
    let mut doubled = adapter();
    let alpha = doubled.config.options.get_mut("lora_alpha").unwrap();
    *alpha = json!(alpha.as_f64().unwrap() * 2.0);
    let mut once = PeftModel::from_base(base(&lm, &device), &device);
    once.load_adapter("a", doubled).unwrap();
    once.set_active(&["a"]).unwrap();
    let run = |m: &PeftModel| {
        let batch = m.check(batch(&lm)).unwrap();
        m.forward(&batch.inputs).unwrap().get::<3>("logits").unwrap().without_autodiff().to_data()
    };
    assert_close("logits", &run(&twice), &run(&once));
}

/// DoRA's lengths are those of the frozen weight and its own product, whatever acts before it.
#[test]
fn several_adapters_are_merged_as_they_run() {
    let device = Device::flex();
    let lm = case("llama.CAUSAL_LM.default");
    for kinds in [[true, true], [false, true], [true, false]] {
        let mut model = PeftModel::from_base(base(&lm, &device), &device);
        for (name, dora) in ["a", "b"].into_iter().zip(kinds) {
            let config = PeftConfig::new(PeftType::LORA, Some(TaskType::CAUSAL_LM)).unwrap();
            let config = config.with("use_dora", dora).unwrap().with("init_lora_weights", false).unwrap();
            let config = config.with("target_modules", ["q_proj", "embed_tokens"].as_slice()).unwrap();
            model.add_adapter(name, config, 3 + u64::from(name == "b")).unwrap();
        }
        model.set_active(&["a", "b"]).unwrap();
        let batch = model.check(batch(&lm)).unwrap();
        let run =
            |m: &PeftModel| m.forward(&batch.inputs).unwrap().get::<3>("logits").unwrap().without_autodiff().to_data();
        let merged = PeftModel::from_base(model.merge().unwrap(), &device);
        assert_close(&format!("{kinds:?}"), &run(&merged), &run(&model));
    }
}

#[test]
fn names_that_cannot_be_folders_and_second_biases_are_refused() {
    let device = Device::flex();
    let mut model = PeftModel::new(base(&case(CASE), &device), config("all"), &device, 0).unwrap();
    for name in ["", "a.b", "a/b", "default"] {
        assert!(matches!(model.add_adapter(name, config("none"), 0), Err(Error::Adapter(_))), "{name}");
    }
    let error = model.add_adapter("second", config("lora_only"), 0).unwrap_err();
    assert!(error.to_string().contains("bias"), "{error}");
    assert!(matches!(model.set_active(&["nobody"]), Err(Error::Adapter(text)) if text.contains("default")));
}

#[test]
fn deleting_the_active_adapter_activates_another() {
    let mut model = model(&case(CASE));
    model.add_adapter("b", config("none"), 1).unwrap();
    model.add_adapter("a", config("none"), 2).unwrap();
    model.delete_adapter("default").unwrap();
    assert_eq!(model.active(), ["a"]);
    assert!(model.delete_adapter("default").is_err());
}

#[test]
fn merging_refuses_values_that_are_not_finite_and_changes_nothing() {
    let mut model = model(&case(CASE));
    let before = logits(&model);
    let mut tensors = model.state_dict("default").unwrap();
    let key = tensors.keys().find(|key| key.ends_with("lora_B.weight")).unwrap().clone();
    let shape = tensors[&key].shape().clone();
    tensors.insert(key, TensorData::full::<f32, _>(shape, f32::NAN));
    let folder =
        AdapterFolder { path: "broken".into(), config: model.adapter("default").unwrap().config.clone(), tensors };
    model.load_adapter("broken", folder).unwrap();
    model.set_active(&["broken"]).unwrap();
    let error = model.merge().map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::NotFinite { adapter, parameter } if adapter == "broken" && parameter.contains("query")),
        "{error}"
    );
    assert_eq!(error.exit_code(), 7);
    model.set_active(&["default"]).unwrap();
    assert_eq!(before, logits(&model));
}

#[test]
fn unloading_gives_the_base_model_back_to_the_bit() {
    let mut model = model(&case(CASE));
    model.set_enabled(false);
    let before = logits(&model);
    let device = Device::flex();
    assert_eq!(before, logits(&PeftModel::from_base(model.unload(), &device)));
}

#[derive(Module, Debug)]
struct Mine {
    inner: Linear,
    scale: Param<Tensor<1>>,
}

impl peft::Forward for Mine {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let x = inputs.inputs_embeds.clone().unwrap();
        Outputs::new().with("fast", adapted_linear(&self.inner, x.clone())).with("slow", self.inner.forward(x))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_activation_path_and_the_weight_path_give_the_same_numbers(
        d_in in 1..20_usize, d_out in 1..20_usize, rank in 1..20_usize, tokens in 1..6_usize, seed in any::<u64>(), rslora in any::<bool>(),
    ) {
        let device = Device::flex();
        device.seed(seed);
        let mine = Mine { inner: LinearConfig::new(d_in, d_out).init(&device), scale: Param::from_tensor(Tensor::ones([1], &device)) };
        let base = peft::BaseModel::new(Box::new(mine), ModelInfo::custom());
        // `init_lora_weights = false`: both factors random.
        let config = PeftConfig::new(PeftType::LORA, None).unwrap()
            .with("r", rank).unwrap().with("target_modules", "all-linear").unwrap()
            .with("init_lora_weights", false).unwrap().with("use_rslora", rslora).unwrap();
        let mut model = PeftModel::new(base, config, &device, seed).unwrap();
        let x = Tensor::random([2, tokens, d_in], Distribution::Default, &device);
        let inputs = model.check(Inputs { inputs_embeds: Some(x), ..Inputs::default() }).unwrap().inputs;
        let outputs = model.forward(&inputs).unwrap();
        let get = |outputs: &Outputs, name| outputs.get::<3>(name).unwrap().without_autodiff().to_data();
        assert_close("paths", &get(&outputs, "fast"), &get(&outputs, "slow"));
        let merged = PeftModel::from_base(model.merge().unwrap(), &device);
        assert_close("merged", &get(&merged.forward(&inputs).unwrap(), "fast"), &get(&outputs, "fast"));
        model.set_enabled(false);
        prop_assert_ne!(get(&model.forward(&inputs).unwrap(), "fast"), get(&outputs, "fast"));
    }
}

#[test]
fn a_second_adapter_cannot_bring_other_embeddings() {
    let case = case("gemma2.CAUSAL_LM.embedding");
    let read = || AdapterFolder::read(&case.join("adapter")).unwrap();
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    let mut model = model(&case);
    model.load_adapter("again", read()).unwrap();
    let mut other = read();
    let wanted = other.tensors[key].shape().clone();
    other.tensors.insert(key.to_owned(), TensorData::zeros::<f32, _>(wanted));
    let text = model.load_adapter("other", other).unwrap_err().to_string();
    assert!(text.contains("`other` brings other embeddings"), "{text}");
    let mut unknown = read();
    let data = unknown.tensors[key].clone();
    unknown.tensors.insert("base_model.model.model.norm.base_layer.weight".to_owned(), data);
    let text = model.load_adapter("unknown", unknown).unwrap_err().to_string();
    assert!(text.contains("nothing in the model takes"), "{text}");
}
