//! What the facade links.

use std::path::Path;

use peft::{
    ArchitecturePlugin, Error, TaskPlugin, TunerPlugin,
    plugins::registry::{Plugin, find, plugins},
};

fn names<P: Plugin>() -> Vec<&'static str> {
    plugins::<P>().iter().map(|plugin| plugin.name()).collect()
}

#[test]
fn every_feature_of_the_facade_links_its_plugins() {
    assert_eq!(
        names::<TaskPlugin>(),
        ["CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"]
    );
    assert_eq!(
        names::<TunerPlugin>(),
        ["CPT", "FULL", "LORA", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"]
    );
}

#[test]
fn every_architecture_file_registers_itself() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/peft-models/src");
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let texts = files.map(|file| std::fs::read_to_string(file).unwrap());
    let plugins = texts.flat_map(|text| {
        let blocks = text.split("ArchitecturePlugin {").skip(1).filter_map(|block| block.split('"').nth(1));
        blocks.map(str::to_owned).collect::<Vec<_>>()
    });
    let mut written: Vec<_> = plugins.collect();
    written.sort();
    assert!(written.len() >= 5, "{written:?}");
    assert_eq!(names::<ArchitecturePlugin>(), written);
}

#[test]
fn the_task_types_decide_what_peft_decides() {
    let table: Vec<_> =
        plugins::<TaskPlugin>().iter().map(|t| (t.name, t.wrapper, t.heads, t.num_transformer_submodules)).collect();
    assert_eq!(
        table,
        [
            ("CAUSAL_LM", "PeftModelForCausalLM", &[][..], 1),
            ("FEATURE_EXTRACTION", "PeftModelForFeatureExtraction", &[], 1),
            ("QUESTION_ANS", "PeftModelForQuestionAnswering", &["qa_outputs"], 1),
            ("SEQ_2_SEQ_LM", "PeftModelForSeq2SeqLM", &[], 2),
            ("SEQ_CLS", "PeftModelForSequenceClassification", &["classifier", "score"], 1),
            ("TOKEN_CLS", "PeftModelForTokenClassification", &["classifier", "score"], 1),
        ]
    );
}

#[test]
fn an_unknown_name_is_an_error_that_lists_what_is_linked() {
    let Err(Error::UnknownPlugin { linked, .. }) = find::<TaskPlugin>("SEQ_CLASS") else { panic!("found") };
    assert!(linked.contains("TOKEN_CLS") && linked.ends_with("did you mean `SEQ_CLS`?"), "{linked}");
}
