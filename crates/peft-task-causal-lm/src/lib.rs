//! Causal language modelling: the next token, for each token of a text or of a completion.

use burn::tensor::Tensor;
use peft_core::{
    AutoClass, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    example::{EncodeContext, Example, IGNORE, Label, Row},
    inventory, loss,
    metrics::likelihood::Likelihood,
    task::{Column, Judged, Metrics, Scores},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "CAUSAL_LM",
        wrapper: "PeftModelForCausalLM",
        auto_class: AutoClass::CAUSAL_LM,
        heads: &[],
        num_transformer_submodules: 1,
        task: &CausalLm,
        summary: "the next token of a text",
    }
}

/// The task `CAUSAL_LM`.
#[derive(Debug, Clone, Copy)]
pub struct CausalLm;

impl Task for CausalLm {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "text", required: false, holds: "the whole text, if there is no prompt" },
            Column { role: "prompt", required: false, holds: "the beginning of a text, which is not learnt" },
            Column { role: "completion", required: false, holds: "what follows the prompt" },
        ]
    }

    /// Prompt and completion are tokenized as one text; a token that reaches into the completion belongs to it.
    ///
    /// Where the whole completion was cut no label counts, which [`loss_weight`](Task::loss_weight) then says.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let (text, prompt) = match context.optional("prompt", row) {
            Some(column) => {
                let (prompt, completion) = (row.text(column)?, context.column("completion"));
                let completion =
                    if context.labelled || row.fields.contains_key(completion) { row.text(completion)? } else { "" };
                // Without a completion the prompt is a text to be judged.
                let learnt_from = if completion.is_empty() && !context.labelled { 0 } else { prompt.chars().count() };
                (format!("{prompt}{completion}"), learnt_from)
            }
            None => (row.text(context.column("text"))?.to_owned(), 0),
        };
        let encoding = context.tokenizer.encode(&text, None, context.max_length)?;
        let Some(mut example) = context.example(row, &encoding)? else { return Ok(Vec::new()) };
        let learnt = encoding.offsets.iter().zip(&encoding.sequences);
        let first = learnt.into_iter().position(|((_, end), sequence)| sequence.is_some() && *end > prompt);
        let ends = |ids: &[u32]| ids.last().copied() == context.tokenizer.eos_id();
        if let Some(eos) = context.tokenizer.eos_id()
            && context.labelled
            && !encoding.truncated
            && !ends(&example.input_ids)
            && example.input_ids.len() < context.max_length
        {
            example.input_ids.push(eos);
            if let Some(last) = example.type_ids.last().copied() {
                example.type_ids.push(last);
            }
        }
        let first = first.unwrap_or(encoding.ids.len());
        let labels =
            example.input_ids.iter().enumerate().map(|(at, id)| if at < first { IGNORE } else { i64::from(*id) });
        let labels: Vec<i64> = labels.collect();
        example.labels.insert("labels", Label::Tokens(labels));
        Ok(vec![example])
    }

    /// The cross-entropy of each token given those before it, `logits[:, :-1]` against `labels[:, 1:]`.
    ///
    /// Virtual tokens stand before the text, so that the logits may be longer than the labels.
    fn loss(&self, outputs: &Outputs, labels: &Labels, _info: &ModelInfo) -> Result<Tensor<1>> {
        let logits = outputs.get::<3>("logits")?;
        let [batch, length, classes] = logits.dims();
        let labels = rows_of(labels)?;
        if labels.len() != batch {
            return Err(Error::Data(format!("labels of {} rows for {batch} rows of logits", labels.len())));
        }
        let mut targets = Vec::with_capacity(batch * length);
        for row in &labels {
            targets.extend(shifted(row, length)?);
        }
        loss::cross_entropy(logits.reshape([batch * length, classes]), &targets)
    }

    fn loss_weight(&self, labels: &Labels) -> Result<f64> {
        Ok(rows_of(labels)?.iter().map(|row| counted(row)).sum::<usize>() as f64)
    }

    /// One vector: the summed negative log-likelihood and how many tokens it is of.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let logits = outputs.get::<3>("logits")?;
        let [_, length, _] = logits.dims();
        // The batch is as long as its longest example; what the logits have more are virtual tokens in front.
        let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let targets = examples.iter().map(|example| match example.labels.get("labels") {
            Some(Label::Tokens(labels)) => shifted(labels, (length + labels.len()).saturating_sub(longest)),
            _ => Ok(Vec::new()),
        });
        let losses = loss::sequence_losses(logits, &targets.collect::<Result<Vec<_>>>()?)?;
        Ok(losses.into_iter().map(|(sum, tokens)| vec![vec![sum as f32, tokens as f32]]).collect())
    }

    /// `perplexity`: the exponential of the mean negative log-likelihood of all tokens; NaN if there are none.
    fn metrics(&self, rows: &[Judged<'_>], _context: &EncodeContext<'_>) -> Result<Metrics> {
        let scores = rows.iter().flat_map(|row| &row.examples).map(|(_, scores)| *scores);
        Ok([("perplexity".to_owned(), Likelihood::of(scores).perplexity())].into())
    }

    /// `{"nll", "tokens", "perplexity"}` of the row's text.
    fn answer(&self, row: &Judged<'_>, _context: &EncodeContext<'_>) -> Result<Value> {
        let sum = Likelihood::of(row.examples.iter().map(|(_, scores)| *scores));
        Ok(json!({ "nll": sum.nll, "tokens": sum.tokens, "perplexity": sum.perplexity() }))
    }
}

/// The target of each of `length` positions: the label after it. Positions before the labels are virtual tokens.
fn shifted(labels: &[i64], length: usize) -> Result<Vec<i64>> {
    let Some(front) = length.checked_sub(labels.len()) else {
        return Err(Error::Data(format!("{} labels a row for {length} positions of logits", labels.len())));
    };
    let before = std::iter::repeat_n(IGNORE, front);
    Ok(before.chain(labels.iter().copied()).skip(1).chain([IGNORE]).take(length).collect())
}

/// How many labels a loss counts: the first has nothing before it to be told from.
fn counted(labels: &[i64]) -> usize {
    labels.iter().skip(1).filter(|label| **label != IGNORE).count()
}

fn rows_of(labels: &Labels) -> Result<Vec<Vec<i64>>> {
    let width = labels.get("labels")?.shape().last().copied().unwrap_or(0).max(1);
    Ok(labels.integers("labels")?.chunks(width).map(<[i64]>::to_vec).collect())
}

#[cfg(test)]
mod tests;
