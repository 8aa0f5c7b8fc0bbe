//! Everything that Python PEFT computed for the cases in `golden/`, computed here.

use peft::{Explanation, files::AdapterFolder, model::KEY_PREFIX};
use serde_json::Value;

use crate::fixture::{assert_close, base, batch, case, expected, golden, model};

fn check(name: &str) {
    let case = case(name);
    let expected = expected(&case);
    let mut model = model(&case);
    let batch = batch(&case);
    model.base().info.check(&batch).unwrap();

    let outputs = model.forward(&batch.inputs);
    for (output, tensor) in outputs.iter() {
        assert_close(output, &tensor.clone().without_autodiff().to_data(), &expected[output]);
    }
    let loss = match outputs.get::<3>("last_hidden_state") {
        Ok(hidden) => hidden.square().mean(),
        Err(_) => model.loss(&batch).unwrap().0,
    };
    assert_close("loss", &loss.clone().without_autodiff().to_data(), &expected["loss"]);

    let gradients = model.gradients(&loss);
    let trainable = model.trainable();
    let wanted = expected.keys().filter(|key| key.starts_with("grad.")).count();
    assert_eq!(trainable.len(), wanted, "trainable tensors");
    for tensor in trainable {
        let key = format!("grad.{KEY_PREFIX}{}", tensor.key);
        let gradient = tensor.param.gradient(&gradients).unwrap_or_else(|| panic!("{key}: no gradient"));
        assert_close(&key, &tensor.oriented(gradient).to_data(), &expected[&key]);
    }

    model.set_enabled(false);
    for (output, tensor) in model.forward(&batch.inputs).iter() {
        let name = format!("base.{output}");
        assert_close(&name, &tensor.clone().without_autodiff().to_data(), &expected[&name]);
    }
    model.set_enabled(true);

    let folder = tempfile::tempdir().unwrap();
    let merged = model.merge().unwrap();
    peft::models::checkpoint::save(&merged, None, folder.path()).unwrap();
    let written = peft::files::TensorFile::read(&folder.path().join("model.safetensors"), "merged").unwrap().tensors;
    for (key, data) in &written {
        assert_close(key, data, &expected[&format!("merged.{key}")]);
    }
    let tied = usize::from(name.contains(".tied"));
    assert_eq!(written.len(), expected.keys().filter(|key| key.starts_with("merged.")).count() - tied);

    let facts: Value = serde_json::from_str(&std::fs::read_to_string(case.join("expected.json")).unwrap()).unwrap();
    let config = AdapterFolder::read(&case.join("adapter")).unwrap().config;
    let mut explanation = Explanation::new(&base(&case, &burn::tensor::Device::flex()), &config).unwrap();
    explanation.targeted.sort();
    let explanation = serde_json::to_value(&explanation).unwrap();
    for fact in ["wrapper", "targeted", "trainable_params", "all_params"] {
        assert_eq!(explanation[fact], facts[fact], "{fact}");
    }
}

macro_rules! golden {
    ($($test:ident: $name:literal,)+) => {
        $(#[test] fn $test() { check($name); })+

        #[test]
        fn every_case_has_a_test() {
            let mut there: Vec<_> = std::fs::read_dir(golden())
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.path().join("expected.json").exists())
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            there.sort();
            let mut tested = vec![$($name.to_owned()),+];
            tested.sort();
            assert_eq!(there, tested);
        }
    };
}

golden! {
    bert_seq_cls: "bert.SEQ_CLS.default",
    bert_regression: "bert.SEQ_CLS.regression",
    bert_multi_label: "bert.SEQ_CLS.multi-label",
    bert_all_linear_with_all_biases: "bert.SEQ_CLS.all-linear-bias-all",
    bert_rank_stabilised_with_its_own_biases: "bert.SEQ_CLS.bias-lora-only-rslora",
    bert_adapted_embedding: "bert.SEQ_CLS.embedding",
    bert_one_layer_with_exclusions: "bert.SEQ_CLS.excluded-layers",
    bert_token_cls: "bert.TOKEN_CLS.default",
    bert_question_ans: "bert.QUESTION_ANS.default",
    bert_feature_extraction: "bert.FEATURE_EXTRACTION.default",
    bert_default_wrapper: "bert.none.default",
    llama_causal_lm: "llama.CAUSAL_LM.default",
    llama_tied_all_linear: "llama.CAUSAL_LM.tied-all-linear",
    llama_rank_and_alpha_patterns: "llama.CAUSAL_LM.patterns",
    llama3_rope_scaling: "llama.CAUSAL_LM.rope-llama3",
    llama_seq_cls: "llama.SEQ_CLS.default",
    llama_token_cls: "llama.TOKEN_CLS.default",
    llama_question_ans: "llama.QUESTION_ANS.default",
}
