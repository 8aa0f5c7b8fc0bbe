//! Greedy generation, timed.

use burn::tensor::DType;
use peft::generate::{GenerationConfig, Generator};
use peft::train::report::peak_rss_bytes;
use peft::{
    AutoClass, PeftModel, Result,
    models::checkpoint::{self, LoadOptions, Loaded},
};
use serde::Serialize;

use crate::{
    case::{Generate, device, seconds_since},
    training::timed,
};

/// What a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// What was written.
    tokens: Vec<u32>,
    /// Of each time.
    generate_seconds: Vec<f64>,
    /// Largest resident memory.
    peak_rss_bytes: Option<u64>,
    /// From the start of the process to the end of the first answer.
    first_answer_seconds: f64,
}

/// Does the case.
///
/// # Errors
/// If the model cannot be read or cannot write.
pub(crate) fn run(case: &Generate) -> Result<Figures> {
    peft::backends::memory::keep_freed();
    let device = device(case.device.as_deref())?;
    let options = LoadOptions { dtype: Some(DType::from(case.dtype)), ..LoadOptions::default() };
    let Loaded { base, .. } = checkpoint::load(&case.model, &AutoClass::CAUSAL_LM, &options, &device)?;
    let model = PeftModel::from_base(base, &device);
    let running = model.valid();
    let generator = Generator { model: &running, device: &device, tokenizer: None };
    // No token ends it.
    let config = GenerationConfig { max_new_tokens: Some(case.max_new_tokens), ..GenerationConfig::default() };
    let prompts = [case.prompt.clone()];
    let mut figures = Figures {
        tokens: Vec::new(),
        generate_seconds: Vec::new(),
        peak_rss_bytes: None,
        first_answer_seconds: f64::NAN,
    };
    for time in 0..case.times {
        let (answers, seconds) = timed(|| generator.generate(&prompts, &config, &mut ()));
        figures.tokens = answers?.pop().map(|answer| answer.tokens).unwrap_or_default();
        figures.generate_seconds.push(seconds);
        if time == 0 {
            figures.first_answer_seconds = seconds_since(case.started);
        }
    }
    figures.peak_rss_bytes = peak_rss_bytes();
    Ok(figures)
}
