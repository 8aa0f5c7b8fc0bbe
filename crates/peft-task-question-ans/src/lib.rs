//! Extractive question answering: the span of a context that answers a question.
//!
//! A context that is too long is cut into windows that overlap; each window is an example of its own, and the answer is the
//! best span of all. A window that does not hold the answer is taught to point at the first token, which is also how "there
//! is no answer" is said (SQuAD 2).

use burn::tensor::Tensor;
use peft_core::{
    AutoClass, Inputs, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, Example, Label, Row},
        loss::{self, Loss},
        tokenizer::Encoding,
    },
    inventory,
    metrics::{
        Metrics, Scores,
        squad::{exact_match, f1},
    },
    plugins::task::{Column, Scored},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "QUESTION_ANS",
        wrapper: "PeftModelForQuestionAnswering",
        auto_class: AutoClass::QUESTION_ANSWERING,
        heads: &["qa_outputs"],
        num_transformer_submodules: 1,
        task: &QuestionAnswering,
        summary: "the span of a context that answers a question",
    }
}

/// How many starts, ends and spans are considered.
const BEST: usize = 20;
/// Most tokens of an answer.
const LONGEST: usize = 30;
/// Where the first token, `[CLS]`, stands: the place that means "not here".
const NO_ANSWER: usize = 0;

/// The task `QUESTION_ANS`.
#[derive(Debug, Clone, Copy)]
pub struct QuestionAnswering;

impl Task for QuestionAnswering {
    /// PEFT's wrapper takes segments and positions and never hands them on; adapters trained there expect it so.
    fn prepare(&self, inputs: Inputs) -> Inputs {
        Inputs { token_type_ids: None, position_ids: None, ..inputs }
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "question", required: true, learnt: false, holds: "the question" },
            Column { role: "context", required: true, learnt: false, holds: "the text that holds the answer" },
            Column {
                role: "answers",
                required: true,
                learnt: true,
                holds: "SQuAD's answers: text and answer_start; empty for none",
            },
        ]
    }

    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let text = row.text(context.column("context"))?;
        let question = row.text(context.column("question"))?;
        let windows =
            context.tokenizer.encode_windows(question, text, context.options.max_length, context.options.doc_stride);
        let span =
            if context.labelled { answers(row, context)?.into_iter().next().map(|a| (a.start, a.end)) } else { None };
        let windows = windows.map_err(|error| row.error(error))?;
        let characters = Characters::new(text, &windows);
        let span = span.map(|span| characters.trimmed(span));
        let example = |window: Encoding| {
            let spans = context_spans(&window).map(|span| span.map(|span| characters.with_stripped(span))).collect();
            let mut example = Example { input_ids: window.ids, type_ids: window.type_ids, spans, ..Example::default() };
            if context.labelled {
                let (start, end) =
                    span.and_then(|span| tokens_of(span, &example.spans)).unwrap_or((NO_ANSWER, NO_ANSWER));
                example.labels.insert("start_positions", position(start));
                example.labels.insert("end_positions", position(end));
            }
            example
        };
        Ok(windows.into_iter().map(example).collect())
    }

    fn loss<'a>(&self, labels: &'a Labels, _info: &'a ModelInfo) -> Result<Loss<'a>> {
        let rows = labels.get("start_positions")?.num_elements() as f64;
        Ok(Loss::of_mean(rows, move |outputs| spans(outputs, labels)))
    }

    /// Two vectors: the logits of the start and of the end, one a token.
    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let (starts, [_, length]) = outputs.read::<2>("start_logits")?;
        let (ends, _) = outputs.read::<2>("end_logits")?;
        let rows = starts.chunks(length.max(1)).zip(ends.chunks(length.max(1)));
        let own = |row: &[f32], example: &Example| row.iter().copied().take(example.input_ids.len()).collect();
        Ok(rows.zip(examples).map(|((starts, ends), example)| vec![own(starts, example), own(ends, example)]).collect())
    }

    /// SQuAD's `f1` and `exact_match`, 0 to 100. "No answer" is possible if a row of the data has none.
    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics> {
        let right = rows.iter().map(|judged| answers(judged.row, context)).collect::<Result<Vec<_>>>()?;
        let may_be_none = right.iter().any(Vec::is_empty);
        let (mut exact, mut overlap) = (0.0, 0.0);
        for (judged, right) in rows.iter().zip(&right) {
            let right: Vec<&str> = right.iter().map(|answer| answer.text.as_str()).collect();
            let text = judged.row.text(context.column("context"))?;
            let found = Verdict::of(judged)
                .answer(may_be_none)
                .map_or_else(String::new, |span| cut(text, span.start, span.end));
            exact += exact_match(&found, &right);
            overlap += f1(&found, &right);
        }
        let percent = 100.0 / (rows.len().max(1) as f64);
        Ok([("f1", overlap * percent), ("exact_match", exact * percent)]
            .map(|(name, value)| (name.to_owned(), value))
            .into())
    }

    /// `{"answer", "start", "end", "score", "no_answer"}`: the place in code points, the probability among the best spans and
    /// that of no answer. The answer is empty only if that is the likeliest and the row has SQuAD 2's `is_impossible`.
    fn answer(&self, row: &Scored<'_>, context: &EncodeContext<'_>) -> Result<Value> {
        let text = row.row.text(context.column("context"))?;
        let verdict = Verdict::of(row);
        let no_answer = verdict.probability(verdict.null);
        Ok(match verdict.answer(row.row.fields.contains_key("is_impossible")) {
            Some(span) => json!({
                "answer": cut(text, span.start, span.end),
                "start": span.start,
                "end": span.end,
                "score": verdict.probability(span.score),
                "no_answer": no_answer,
            }),
            None => json!({ "answer": "", "start": null, "end": null, "score": no_answer, "no_answer": no_answer }),
        })
    }
}

/// A right answer and its place, in code points.
struct Answer {
    text: String,
    start: usize,
    end: usize,
}

/// The right answers of a row: a list of `{text, answer_start}`, or a pair of lists under these names.
fn answers(row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Answer>> {
    let column = context.column("answers");
    let value = row.fields.get(column).ok_or_else(|| row.missing(column))?;
    let context = row.text(context.column("context"))?;
    let unfit =
        || row.error(format!("column `{column}` should hold SQuAD's answers (text and answer_start), found {value}"));
    let pairs: Vec<(&Value, &Value)> = match value {
        Value::Array(list) => list.iter().map(|a| Some((a.get("text")?, a.get("answer_start")?))).collect(),
        Value::Object(lists) => match (lists.get("text"), lists.get("answer_start")) {
            (Some(Value::Array(texts)), Some(Value::Array(starts))) if texts.len() == starts.len() => {
                Some(texts.iter().zip(starts).collect())
            }
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(unfit)?;
    let read = |(text, start): (&Value, &Value)| {
        let text = text.as_str().ok_or_else(unfit)?;
        let start = start.as_u64().and_then(|start| usize::try_from(start).ok()).ok_or_else(unfit)?;
        let end = start.saturating_add(text.chars().count());
        let there = cut(context, start, end);
        if there != text {
            return Err(row.error(format!("answer `{text}` should stand at character {start}, but `{there}` does")));
        }
        Ok(Answer { text: text.to_owned(), start, end })
    };
    pairs.into_iter().map(read).collect()
}

/// Characters `start` to `end` of a text.
fn cut(text: &str, start: usize, end: usize) -> String {
    text.chars().skip(start).take(end.saturating_sub(start)).collect()
}

/// Where the tokens of the context stand in it; none for those of the question and special ones.
fn context_spans(window: &Encoding) -> impl Iterator<Item = Option<(usize, usize)>> {
    window.offsets.iter().zip(&window.sequences).map(|(span, sequence)| (*sequence == Some(1)).then_some(*span))
}

/// The characters of a context, and which of them some token stands for. A tokenizer strips white space, and often marks that
/// change the letter before them.
struct Characters {
    is_space: Vec<bool>,
    has_token: Vec<bool>,
}

impl Characters {
    fn new(text: &str, windows: &[Encoding]) -> Self {
        let is_space: Vec<bool> = text.chars().map(char::is_whitespace).collect();
        let mut has_token = vec![false; is_space.len()];
        for (start, end) in windows.iter().flat_map(context_spans).flatten() {
            has_token.get_mut(start..end).into_iter().for_each(|characters| characters.fill(true));
        }
        Self { is_space, has_token }
    }

    /// A span without the characters at its ends that no token stands for.
    fn trimmed(&self, (start, end): (usize, usize)) -> (usize, usize) {
        let inside = self.has_token.get(start..end).unwrap_or_default();
        let first = inside.iter().position(|has_token| *has_token).unwrap_or(inside.len());
        let last = inside.iter().rposition(|has_token| *has_token).map_or(first, |last| last + 1);
        (start + first, start + last)
    }

    /// A token's span with what was stripped right behind it, so that an answer that ends there has its marks.
    fn with_stripped(&self, (start, end): (usize, usize)) -> (usize, usize) {
        let behind = self.has_token.iter().zip(&self.is_space).skip(end);
        let stripped = behind.take_while(|(has_token, is_space)| !**has_token && !**is_space).count();
        (start, if start < end { end + stripped } else { end })
    }
}

/// The first and last token of a span of characters; none if the window does not hold all of it.
fn tokens_of((start, end): (usize, usize), spans: &[Option<(usize, usize)>]) -> Option<(usize, usize)> {
    let inside = || spans.iter().enumerate().filter_map(|(token, span)| span.map(|span| (token, span)));
    // A character may be several tokens: the first and the last of them.
    let (first, at) = inside().find(|(_, span)| span.1 > start)?;
    let (last, until) = inside().rfind(|(_, span)| span.0 < end)?;
    (start < end && first <= last && at.0 <= start && end <= until.1).then_some((first, last))
}

fn position(token: usize) -> Label {
    Label::Class(i64::try_from(token).unwrap_or(i64::MAX))
}

/// A span of characters with its score, the sum of the logits of its first and last token.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    score: f64,
}

/// What the windows of one row say together.
struct Verdict {
    /// The best spans, the very best first.
    spans: Vec<Span>,
    /// The score of "no answer": the least of the windows', because the answer needs to be in one of them only.
    null: f64,
}

impl Verdict {
    fn of(judged: &Scored<'_>) -> Self {
        let mut verdict = Self { spans: Vec::new(), null: f64::INFINITY };
        for (example, scores) in &judged.examples {
            let [starts, ends] = scores.as_slice() else { continue };
            if let (Some(start), Some(end)) = (starts.get(NO_ANSWER), ends.get(NO_ANSWER)) {
                verdict.null = verdict.null.min(f64::from(*start) + f64::from(*end));
            }
            let (starts, ends) = (best(starts, &example.spans), best(ends, &example.spans));
            for &(first, start, start_logit) in &starts {
                let fitting = ends.iter().filter(|(last, ..)| (first..first + LONGEST).contains(last));
                verdict.spans.extend(fitting.map(|(_, end, end_logit)| Span {
                    start: start.0,
                    end: end.1,
                    score: start_logit + end_logit,
                }));
            }
        }
        verdict.spans.sort_by(|a, b| b.score.total_cmp(&a.score));
        verdict.spans.truncate(BEST);
        verdict
    }

    /// The best span; none if "no answer" is possible and better, or if there is no span.
    fn answer(&self, may_be_none: bool) -> Option<Span> {
        self.spans.first().copied().filter(|span| !may_be_none || span.score >= self.null)
    }

    /// The softmax of a score among the best spans and "no answer".
    fn probability(&self, score: f64) -> f64 {
        let all = || self.spans.iter().map(|span| span.score).chain([self.null]).filter(|score| score.is_finite());
        let largest = all().fold(f64::NEG_INFINITY, f64::max);
        (score - largest).exp() / all().map(|score| (score - largest).exp()).sum::<f64>()
    }
}

type Place = (usize, (usize, usize), f64);

/// The context's tokens with the highest logits.
fn best(logits: &[f32], spans: &[Option<(usize, usize)>]) -> Vec<Place> {
    let inside = logits.iter().zip(spans).enumerate();
    let mut places: Vec<Place> =
        inside.filter_map(|(token, (logit, span))| Some((token, (*span)?, f64::from(*logit)))).collect();
    places.sort_by(|a, b| b.2.total_cmp(&a.2));
    places.truncate(BEST);
    places
}

/// The mean of the cross-entropies of the two ends.
fn spans(outputs: &Outputs, labels: &Labels) -> Result<Tensor<1>> {
    let side = |logits: &str, positions: &str| {
        let logits = outputs.get::<2>(logits)?;
        let [_, length] = logits.dims();
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        // A position behind the last token counts for nothing, and one before the first is the first.
        let clamped = |position: i64| if position >= length { IGNORE } else { position.max(0) };
        let targets: Vec<i64> = labels.integers(positions)?.into_iter().map(clamped).collect();
        loss::cross_entropy(logits, &targets)
    };
    let (start, end) = (side("start_logits", "start_positions")?, side("end_logits", "end_positions")?);
    Ok((start + end).div_scalar(2.0))
}

#[cfg(test)]
mod tests;
