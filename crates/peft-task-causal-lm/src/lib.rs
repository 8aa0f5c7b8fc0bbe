//! Causal language modelling: the next token, for each token of a text or of a completion.

mod asked;
mod conversation;
mod parts;
mod shape;

use std::ops::Range;

use peft_core::{
    AutoClass, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, Example, Label, Row},
        loss::{self, Loss},
    },
    inventory,
    metrics::{Metrics, Scores, likelihood::Likelihood},
    plugins::task::{Column, GenerationPrompt, Scored},
};
use serde_json::{Value, json};

use asked::asked;
use conversation::{Chat, tools};
use parts::Parts;

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
            Column { role: "text", required: false, learnt: false, holds: "the whole text" },
            Column {
                role: "prompt",
                required: false,
                learnt: false,
                holds: "the beginning of a text or conversation, only read",
            },
            Column { role: "completion", required: false, learnt: true, holds: "what follows the prompt" },
            Column { role: "messages", required: false, learnt: false, holds: "a conversation: `role` and `content`" },
            Column {
                role: "conversations",
                required: false,
                learnt: false,
                holds: "a conversation: `from` and `value` (ShareGPT)",
            },
            Column { role: "tools", required: false, learnt: false, holds: "what the assistant may call" },
            Column { role: "instruction", required: false, learnt: false, holds: "what is to be done (Alpaca)" },
            Column { role: "input", required: false, learnt: false, holds: "what it is to be done with" },
            Column { role: "output", required: false, learnt: true, holds: "what comes out" },
        ]
    }

    fn alternatives(&self) -> &'static [&'static str] {
        &["text", "prompt", "messages", "conversations", "instruction"]
    }

    fn check_rows(&self, rows: &[Row], context: &EncodeContext<'_>) -> Result<()> {
        shape::check(rows, context)
    }

    /// Prompt and completion are tokenized as one text; a token that reaches into the completion belongs to it.
    ///
    /// Where the whole completion was cut no label counts, which the weight of the [`loss`](Task::loss) then says.
    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let Some(mut example) = encode_text(row, &Text::of(row, context)?, context)? else { return Ok(Vec::new()) };
        // Labels of a text that is only read are all there are to judge it by.
        if let Some(Label::Tokens(labels)) = example.labels.get_mut("labels")
            && !context.labelled
            && labels.iter().all(|label| *label == IGNORE)
        {
            *labels = example.input_ids.iter().map(|id| i64::from(*id)).collect();
        }
        Ok(vec![example])
    }

    /// A model that is taught answers must be taught where they end: of the examples with a part that is only read, one at
    /// least has to have a special token among its labels.
    fn check_examples(&self, examples: &[Example], context: &EncodeContext<'_>) -> Result<()> {
        let special = |id: i64| u32::try_from(id).is_ok_and(|id| context.tokenizer.is_special(id));
        let labels = |example: &Example| match example.labels.get("labels") {
            Some(Label::Tokens(labels)) => labels.clone(),
            _ => Vec::new(),
        };
        let answers: Vec<Vec<i64>> =
            examples.iter().map(labels).filter(|l| counted(l) > 0 && l.iter().skip(1).any(|l| *l == IGNORE)).collect();
        let has_end = context.tokenizer.eos_id().is_some()
            || examples.iter().flat_map(|e| &e.input_ids).any(|id| special(i64::from(*id)));
        if answers.is_empty() || !has_end || answers.iter().flatten().any(|label| special(*label)) {
            return Ok(());
        }
        Err(Error::Data(
            "the end of a turn is never learnt: no end-of-turn token counts for the loss in any row, so that the model \
             would not learn to stop; put that token inside the chat template's {% generation %} block, or raise max_length \
             if every row is cut"
                .to_owned(),
        ))
    }

    fn packs(&self) -> bool {
        true
    }

    /// The cross-entropy of each token given those before it, `logits[:, :-1]` against `labels[:, 1:]`.
    ///
    /// Virtual tokens stand before the text, so that the logits may be longer than the labels.
    fn loss<'a>(&self, labels: &'a Labels, info: &'a ModelInfo) -> Result<Loss<'a>> {
        let labels = rows_of(labels)?;
        // Behind virtual tokens the first token has something before it.
        let skipped = usize::from(info.virtual_outputs == 0);
        let weight = labels.iter().map(|row| loss::counted(row.iter().skip(skipped))).sum();
        Ok(Loss::of_sum(weight, move |outputs| {
            let [batch, length, _] = outputs.dims::<3>("logits")?;
            if labels.len() != batch {
                return Err(Error::Data(format!("labels of {} rows for {batch} rows of logits", labels.len())));
            }
            if let Some(row) = labels.first().filter(|row| row.len() + info.virtual_outputs != length) {
                return Err(Error::Data(format!("{} labels a row for {length} positions of logits", row.len())));
            }
            Ok(loss::token_cross_entropies(outputs, "logits", &targets_of(&labels, length)?)?.sum())
        }))
    }

    fn targets(&self, labels: &Labels, length: usize) -> Result<Option<Vec<i64>>> {
        targets_of(&rows_of(labels)?, length).map(Some)
    }

    /// One vector: the summed negative log-likelihood and how many tokens it is of.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let [_, length, _] = outputs.dims::<3>("logits")?;
        // The batch is as long as its longest example; what the logits have more are virtual tokens in front.
        let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let targets = examples.iter().map(|example| match example.labels.get("labels") {
            Some(Label::Tokens(labels)) => shifted(labels, (length + labels.len()).saturating_sub(longest)),
            _ => Ok(Vec::new()),
        });
        let losses = loss::sequence_losses(outputs, "logits", &targets.collect::<Result<Vec<_>>>()?)?;
        Ok(losses.into_iter().map(|(sum, tokens)| vec![vec![sum as f32, tokens as f32]]).collect())
    }

    fn asks(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Option<GenerationPrompt>> {
        asked(row, context)
    }

    /// `perplexity`: the exponential of the mean negative log-likelihood of all tokens; NaN if there are none.
    fn metrics(&self, rows: &[Scored<'_>], _context: &EncodeContext<'_>) -> Result<Metrics> {
        let scores = rows.iter().flat_map(|row| &row.examples).map(|(_, scores)| *scores);
        Ok([("perplexity".to_owned(), Likelihood::of(scores).perplexity())].into())
    }

    /// `{"nll", "tokens", "perplexity"}` of the row's text.
    fn answer(&self, row: &Scored<'_>, _context: &EncodeContext<'_>) -> Result<Value> {
        let sum = Likelihood::of(row.examples.iter().map(|(_, scores)| *scores));
        Ok(json!({ "nll": sum.nll, "tokens": sum.tokens, "perplexity": sum.perplexity() }))
    }
}

/// A row as one text.
struct Text {
    text: String,
    /// What is learnt of it, in code points.
    learnt: Vec<Range<usize>>,
    /// Whether a chat template wrote it, with its special tokens.
    rendered: bool,
}

impl Text {
    fn of(row: &Row, context: &EncodeContext<'_>) -> Result<Self> {
        match Parts::of(row, context)? {
            Parts::Texts { prompt, completion } => Ok(Self::plain(prompt, completion, context)),
            Parts::Messages { messages, prompt } => Self::chat(row, &messages, prompt, context),
        }
    }

    fn plain(prompt: String, completion: &str, context: &EncodeContext<'_>) -> Self {
        let learnt_from = if context.options.completion_only_loss { prompt.chars().count() } else { 0 };
        // The end of the text belongs to the completion, whatever its length.
        Self { text: prompt + completion, learnt: std::iter::once(learnt_from..usize::MAX).collect(), rendered: false }
    }

    /// A conversation, of which the first `prompt` messages are only read.
    fn chat(row: &Row, messages: &[Value], prompt: Option<usize>, context: &EncodeContext<'_>) -> Result<Self> {
        let tools = tools(row, context)?;
        let chat = Chat { row, context, messages, tools: tools.as_ref() };
        if prompt == Some(messages.len()) {
            let text = chat.render(messages.len(), true)?.text;
            return Ok(Self { text, learnt: Vec::new(), rendered: true });
        }
        let whole = chat.render(messages.len(), false)?;
        let learnt = match prompt.filter(|_| context.options.completion_only_loss) {
            Some(prompt) => vec![chat.after(prompt, &whole.text)?],
            None if context.options.assistant_only_loss => chat.assistant(&whole)?,
            None => std::iter::once(0..usize::MAX).collect(),
        };
        Ok(Self { text: whole.text, learnt, rendered: true })
    }
}

/// The example of a text; none if it is dropped.
fn encode_text(row: &Row, text: &Text, context: &EncodeContext<'_>) -> Result<Option<Example>> {
    let encoding = match text.rendered {
        true => context.tokenizer.encode_rendered(&text.text, context.options.max_length)?,
        false => context.tokenizer.encode(&text.text, None, context.options.max_length)?,
    };
    let Some(mut example) = context.example(row, &encoding)? else { return Ok(None) };
    let is_learnt = |(start, end): (usize, usize)| text.learnt.iter().any(|part| start < part.end && end > part.start);
    // Special tokens around a text stand outside of it: they are learnt where the text beside them is.
    let own = |at: usize| encoding.sequences.get(at).is_some_and(Option::is_some);
    let first = (0..encoding.ids.len()).find(|at| own(*at)).unwrap_or(encoding.ids.len());
    let mut learnt: Vec<bool> = Vec::with_capacity(encoding.ids.len() + 1);
    for (at, offset) in encoding.offsets.iter().enumerate() {
        let is = if own(at) { is_learnt(*offset) } else { at > first && learnt.last() == Some(&true) };
        learnt.push(is);
    }
    if let Some(eos) = context.tokenizer.eos_id()
        && context.labelled
        && !text.rendered
        && !encoding.truncated
        && example.input_ids.last() != Some(&eos)
        && example.input_ids.len() < context.options.max_length
    {
        example.input_ids.push(eos);
        learnt.push(true);
        if let Some(last) = example.type_ids.last().copied() {
            example.type_ids.push(last);
        }
    }
    let labels = example.input_ids.iter().zip(learnt).map(|(id, is)| if is { i64::from(*id) } else { IGNORE });
    example.labels.insert("labels", Label::Tokens(labels.collect()));
    Ok(Some(example))
}

fn targets_of(labels: &[Vec<i64>], length: usize) -> Result<Vec<i64>> {
    Ok(labels.iter().map(|row| shifted(row, length)).collect::<Result<Vec<_>>>()?.concat())
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
