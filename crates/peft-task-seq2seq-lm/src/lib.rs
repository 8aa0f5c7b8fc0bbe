//! Sequence-to-sequence language modelling: a text for a text.

use burn::tensor::{DType, Tensor};
use peft_core::{
    AutoClass, Batch, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, EncodeOptions, Example, Label, Overflow, Row},
        loss::{self, Loss},
    },
    inventory,
    metrics::{Metrics, Scores, likelihood::Likelihood},
    plugins::task::{Column, GenerationPrompt, Scored},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "SEQ_2_SEQ_LM",
        wrapper: "PeftModelForSeq2SeqLM",
        auto_class: AutoClass::SEQ2SEQ_LM,
        heads: &[],
        num_transformer_submodules: 2,
        task: &Seq2SeqLm,
        summary: "a text for a text: translation, summaries",
    }
}

/// The task `SEQ_2_SEQ_LM`.
#[derive(Debug, Clone, Copy)]
pub struct Seq2SeqLm;

impl Task for Seq2SeqLm {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "target", required: true, learnt: true, holds: "the text to write" },
            Column { role: "source", required: false, learnt: false, holds: "the text to read" },
            Column {
                role: "text",
                required: false,
                learnt: false,
                holds: "the text to read, where there is no `source`",
            },
        ]
    }

    fn alternatives(&self) -> &'static [&'static str] {
        &["source", "text"]
    }

    /// Labels are the target's tokens as the tokenizer makes them, closed by its end-of-text token where there is room.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let EncodeOptions { max_length, max_target_length, .. } = context.options;
        let Some(mut example) = source(row, context)? else { return Ok(Vec::new()) };
        if context.labelled {
            let most = max_target_length.unwrap_or(*max_length);
            let target = context.tokenizer.encode(row.text(context.column("target"))?, None, most)?;
            match context.options.overflow {
                Overflow::Raise if target.truncated => {
                    let problem = format!("the target has more than {most} tokens: raise max_target_length");
                    return Err(row.error(format!("{problem}, or set overflow to truncate or drop")));
                }
                Overflow::Drop if target.truncated => return Ok(Vec::new()),
                _ => {}
            }
            let mut ids = target.ids;
            if let Some(eos) = context.tokenizer.eos_id()
                && !target.truncated
                && ids.len() < most
                && ids.last() != Some(&eos)
            {
                ids.push(eos);
            }
            example.cut |= target.truncated;
            check_target(&ids, context.info).map_err(|problem| row.error(problem))?;
            example.labels.insert("labels", Label::Tokens(ids.into_iter().map(i64::from).collect()));
        }
        Ok(vec![example])
    }

    /// The decoder reads the labels one place later, as the model's family has it.
    fn complete(&self, mut batch: Batch, info: &ModelInfo) -> Result<Batch> {
        let inputs = &mut batch.inputs;
        let has_target = inputs.decoder_input_ids.is_some() || inputs.decoder_inputs_embeds.is_some();
        let (Some(shift), Ok(labels), false) = (&info.shift_right, batch.labels.get("labels"), has_target) else {
            return Ok(batch);
        };
        if labels.dtype().is_float() || labels.rank() != 2 {
            let problem = format!(
                "`labels` should be whole numbers [batch, target], are {:?} {:?}",
                labels.dtype(),
                labels.shape()
            );
            return Err(Error::Data(problem));
        }
        let of_ids = inputs.input_ids.as_ref().map(Tensor::device);
        let device = of_ids.or_else(|| inputs.inputs_embeds.as_ref().map(|embeds| embeds.device().inner()));
        let device = device.unwrap_or_default();
        let ids = Tensor::from_data(labels.clone().convert::<i64>(), (&device, DType::I64));
        inputs.decoder_input_ids = Some(shift.apply(ids));
        Ok(batch)
    }

    /// The cross-entropy of each decoder position. Virtual tokens before the decoder's input have no label.
    fn loss<'a>(&self, labels: &'a Labels, _info: &'a ModelInfo) -> Result<Loss<'a>> {
        Ok(Loss::of_sum(loss::counted(&labels.integers("labels")?), move |outputs| {
            let [batch, length, _] = outputs.dims::<3>("logits")?;
            let targets = loss::after_prompt(labels, batch, length)?;
            Ok(loss::token_cross_entropies(outputs, "logits", &targets)?.sum())
        }))
    }

    /// One vector: the summed negative log-likelihood of the target and how many tokens it has.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let [_, length, _] = outputs.dims::<3>("logits")?;
        let targets = examples.iter().map(|example| match example.labels.get("labels") {
            Some(Label::Tokens(labels)) => labels.as_slice(),
            _ => &[],
        });
        let longest = targets.clone().map(<[i64]>::len).max().unwrap_or(0);
        let front = length.saturating_sub(longest);
        let targets = targets.map(|labels| [vec![IGNORE; front], labels.to_vec()].concat());
        let losses = loss::sequence_losses(outputs, "logits", &targets.collect::<Vec<_>>())?;
        Ok(losses.into_iter().map(|(sum, tokens)| vec![vec![sum as f32, tokens as f32]]).collect())
    }

    fn asks(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Option<GenerationPrompt>> {
        let Some(Example { input_ids: prompt, .. }) = source(row, context)? else { return Ok(None) };
        let wanted = context.labelled.then(|| row.text(context.column("target")).map(str::to_owned)).transpose()?;
        Ok(Some(GenerationPrompt { prompt, reference: wanted }))
    }

    /// `perplexity` of the targets: the exponential of the mean negative log-likelihood; NaN if there are none.
    fn metrics(&self, rows: &[Scored<'_>], _context: &EncodeContext<'_>) -> Result<Metrics> {
        let scores = rows.iter().flat_map(|row| &row.examples).map(|(_, scores)| *scores);
        Ok([("perplexity".to_owned(), Likelihood::of(scores).perplexity())].into())
    }

    /// `{"nll", "tokens", "perplexity"}` of the row's target.
    fn answer(&self, row: &Scored<'_>, _context: &EncodeContext<'_>) -> Result<Value> {
        let sum = Likelihood::of(row.examples.iter().map(|(_, scores)| *scores));
        Ok(json!({ "nll": sum.nll, "tokens": sum.tokens, "perplexity": sum.perplexity() }))
    }
}

/// The example of what is read, without labels; none if the row is dropped.
fn source(row: &Row, context: &EncodeContext<'_>) -> Result<Option<Example>> {
    let EncodeOptions { max_length, source_prefix, .. } = context.options;
    let column = ["source", "text"].into_iter().find_map(|role| context.optional(role, row));
    let text = row.text(column.unwrap_or_else(|| context.column("source")))?;
    context.example(row, &context.tokenizer.encode(&format!("{source_prefix}{text}"), None, *max_length)?)
}

/// Whether the decoder has the tokens and the positions, judged on the host.
fn check_target(ids: &[u32], info: &ModelInfo) -> Result<(), String> {
    if let Some(most) = info.max_positions.filter(|most| ids.len() > *most) {
        return Err(format!(
            "the target has {} tokens: the model has {most} positions; set max_target_length",
            ids.len()
        ));
    }
    let words = info.number("decoder_vocab_size").or_else(|| info.number("vocab_size")).unwrap_or(usize::MAX);
    match ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= words)) {
        Some(id) => Err(format!(
            "token id {id} of the target is outside the model's 0 to {}: is the tokenizer its own?",
            words.saturating_sub(1)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
