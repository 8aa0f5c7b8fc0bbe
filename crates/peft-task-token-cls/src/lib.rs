//! Token classification: one tag for each word of a sentence.
//!
//! The first token of a word speaks for the word. Words that were cut off, or that the tokenizer makes nothing of, have no
//! label and no prediction.

use std::collections::BTreeSet;

use peft_core::{
    AutoClass, BadRows, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, Example, Label, Row},
        loss::{self, Loss},
    },
    inventory,
    metrics::{
        Metrics, Scores,
        classification::{Average, accuracy, argmax, precision_recall_f1},
        entities::{entities, entity_scores, is_entity_tag},
    },
    plugins::task::{Column, LabelSet, Scored},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "TOKEN_CLS",
        wrapper: "PeftModelForTokenClassification",
        auto_class: AutoClass::TOKEN_CLASSIFICATION,
        heads: &["classifier", "score"],
        num_transformer_submodules: 1,
        task: &TokenClassification,
        summary: "a tag for each word: entities, parts of speech",
    }
}

/// The task `TOKEN_CLS`.
#[derive(Debug, Clone, Copy)]
pub struct TokenClassification;

impl Task for TokenClassification {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "tokens", required: true, learnt: false, holds: "the words, a list" },
            Column { role: "tags", required: true, learnt: true, holds: "a tag for each word, a list" },
        ]
    }

    fn labels(&self, rows: &[Row], label_column: &str) -> Result<Option<LabelSet>> {
        let mut tags = BTreeSet::new();
        let mut bad = BadRows::default();
        for row in rows {
            tags.extend(bad.take(row.words(label_column))?.unwrap_or_default());
        }
        bad.finish()?;
        let labels: Vec<String> = tags.into_iter().collect();
        Ok((!labels.is_empty()).then_some(LabelSet { labels, problem_type: "single_label_classification" }))
    }

    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let words = words(row, context)?;
        let encoding = context.tokenizer.encode_words(&words, context.options.max_length)?;
        let Some(mut example) = context.example(row, &encoding)? else { return Ok(Vec::new()) };
        example.word_starts = vec![example.input_ids.len(); words.len()];
        for (token, word) in encoding.words.iter().enumerate().rev() {
            if let Some(start) = word.and_then(|word| example.word_starts.get_mut(word)) {
                *start = token;
            }
        }
        if context.labelled {
            let tags = row.words(context.column("tags"))?;
            if tags.len() != words.len() {
                return Err(row.error(format!("{} tags for {} words", tags.len(), words.len())));
            }
            let mut labels = vec![IGNORE; example.input_ids.len()];
            for (tag, start) in tags.iter().zip(&example.word_starts) {
                // Tags of cut words are looked up as well, so that a wrong one is found wherever it stands.
                let class = context.class(row, tag)?;
                if let Some(label) = labels.get_mut(*start) {
                    *label = class;
                }
            }
            example.labels.insert("labels", Label::Tokens(labels));
        }
        Ok(vec![example])
    }

    /// Virtual tokens stand before the words, so that the logits may be longer than the labels. PEFT fails there.
    fn loss<'a>(&self, labels: &'a Labels, _info: &'a ModelInfo) -> Result<Loss<'a>> {
        Ok(Loss::of_sum(loss::counted(&labels.integers("labels")?), move |outputs| {
            let logits = outputs.get::<3>("logits")?;
            let [batch, length, classes] = logits.dims();
            let targets = loss::after_prompt(labels, batch, length)?;
            Ok(loss::cross_entropies(logits.reshape([batch * length, classes]), &targets)?.sum())
        }))
    }

    fn keeps_token_types(&self) -> bool {
        true
    }

    /// One vector: the most likely class of each word; NaN for a word without a prediction.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let (logits, [_, length, classes]) = outputs.read::<3>("logits")?;
        // The batch is as long as its longest example; what the logits have more are virtual tokens in front.
        let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
        let front = length.saturating_sub(longest);
        let per_example = examples.iter().enumerate().map(|(at, example)| {
            let class = |start: &usize| {
                let token = (*start < example.input_ids.len()).then_some((at * length + front + start) * classes)?;
                argmax(logits.get(token..token + classes)?)
            };
            vec![example.word_starts.iter().map(|start| class(start).map_or(f32::NAN, |class| class as f32)).collect()]
        });
        Ok(per_example.collect())
    }

    /// With `B-` and `I-` tags the entities' `f1`, `precision` and `recall` by seqeval's rules, and `accuracy` over words;
    /// else `accuracy` and `f1` (the mean over classes).
    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics> {
        let info = context.info;
        let (mut truth, mut predicted) = (Vec::new(), Vec::new());
        for (example, scores) in rows.iter().flat_map(|row| &row.examples) {
            let Some(Label::Tokens(labels)) = example.labels.get("labels") else { continue };
            let words = example.word_starts.iter().zip(classes(scores));
            let judged = words.filter_map(|(start, predicted)| {
                let label = labels.get(*start).and_then(|label| usize::try_from(*label).ok())?;
                Some((info.label(label), info.label(predicted?)))
            });
            let (right, found): (Vec<String>, Vec<String>) = judged.unzip();
            truth.push(right);
            predicted.push(found);
        }
        let (words, found) = (truth.concat(), predicted.concat());
        let accuracy = ("accuracy".to_owned(), accuracy(&words, &found));
        if info.labels().iter().any(|label| is_entity_tag(label)) {
            let scores = entity_scores(&truth, &predicted);
            let named = [("f1", scores.f1), ("precision", scores.precision), ("recall", scores.recall)];
            return Ok(named.into_iter().map(|(name, value)| (name.to_owned(), value)).chain([accuracy]).collect());
        }
        let f1 = ("f1".to_owned(), precision_recall_f1(&words, &found, Average::Macro).f1);
        Ok([accuracy, f1].into_iter().collect())
    }

    /// `{"tokens", "tags", "entities": [{"type", "start", "end", "text"}]}`; `start` and `end` count words, and a word without
    /// a prediction has the tag null.
    fn answer(&self, row: &Scored<'_>, context: &EncodeContext<'_>) -> Result<Value> {
        let words = words(row.row, context)?;
        let predicted = row.examples.first().map_or(&[][..], |(_, scores)| scores.first().map_or(&[], Vec::as_slice));
        let mut tags: Vec<Option<String>> =
            predicted.iter().map(|class| Some(context.info.label(known(*class)?))).collect();
        tags.resize(words.len(), None);
        let spans = entities(&tags.iter().map(|tag| tag.as_deref().unwrap_or("O")).collect::<Vec<_>>());
        let bio = context.info.labels().iter().any(|label| is_entity_tag(label));
        let found = spans.iter().filter(|_| bio).map(|entity| {
            let text = words.get(entity.start..entity.end).unwrap_or_default().join(" ");
            json!({ "type": entity.kind, "start": entity.start, "end": entity.end, "text": text })
        });
        let found: Vec<Value> = found.collect();
        Ok(json!({ "tokens": words, "tags": tags, "entities": found }))
    }
}

/// The words of a row. Where nothing is learnt or measured a sentence will do, as `tokens` or `text`: its words are what
/// white space parts.
fn words(row: &Row, context: &EncodeContext<'_>) -> Result<Vec<String>> {
    let column = context.column("tokens");
    let sentence = [column, "text"].into_iter().find_map(|column| row.fields.get(column));
    match sentence {
        Some(Value::String(text)) if !context.labelled => Ok(text.split_whitespace().map(str::to_owned).collect()),
        _ => row.words(column),
    }
}

fn classes(scores: &Scores) -> impl Iterator<Item = Option<usize>> {
    scores.iter().flatten().map(|class| known(*class))
}

fn known(class: f32) -> Option<usize> {
    class.is_finite().then_some(class as usize)
}

#[cfg(test)]
mod tests;
