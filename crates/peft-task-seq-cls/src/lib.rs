//! Sequence classification: one class, several classes or a number for a text or a pair of texts.
//!
//! Which of the three it is stands in the model's `problem_type`; where it does not, one output means a number and the labels
//! decide the rest, as in Transformers.

use std::{borrow::Cow, collections::BTreeSet};

use burn::tensor::Tensor;
use peft_core::{
    AutoClass, BadRows, Error, Labels, ModelInfo, Outputs, Result, Task, TaskPlugin,
    batch::IGNORE,
    data::{
        example::{EncodeContext, Example, Label, Row},
        loss::{self, Loss},
    },
    inventory,
    metrics::{
        Metrics, Scores,
        classification::{Average, accuracy, argmax, matthews, multi_label_precision_recall_f1, precision_recall_f1},
        correlation::{mean_squared_error, pearson, spearman},
    },
    plugins::task::{Column, LabelSet, Scored},
};
use serde_json::{Map, Value, json};

inventory::submit! {
    TaskPlugin {
        name: "SEQ_CLS",
        wrapper: "PeftModelForSequenceClassification",
        auto_class: AutoClass::SEQUENCE_CLASSIFICATION,
        heads: &["classifier", "score"],
        num_transformer_submodules: 1,
        task: &SequenceClassification,
        summary: "a class, several classes or a number for a text or a pair of texts",
    }
}

/// The task `SEQ_CLS`.
#[derive(Debug, Clone, Copy)]
pub struct SequenceClassification;

/// What the outputs of the head mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    Regression,
    SingleLabel,
    MultiLabel,
}

impl Problem {
    fn of(info: &ModelInfo, one_class_each: bool) -> Result<Self> {
        match info.problem_type() {
            Some("regression") => Ok(Self::Regression),
            Some("single_label_classification") => Ok(Self::SingleLabel),
            Some("multi_label_classification") => Ok(Self::MultiLabel),
            Some(other) => Err(Error::config(
                "problem_type",
                format!("`{other}` is none of regression, single_label_classification, multi_label_classification"),
            )),
            None if info.num_labels() == 1 => Ok(Self::Regression),
            None if one_class_each => Ok(Self::SingleLabel),
            None => Ok(Self::MultiLabel),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Regression => "regression",
            Self::SingleLabel => "single_label_classification",
            Self::MultiLabel => "multi_label_classification",
        }
    }
}

impl Task for SequenceClassification {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "text", required: true, learnt: false, holds: "the text" },
            Column { role: "label", required: true, learnt: true, holds: "a class, a list of classes, or a number" },
            Column { role: "text_pair", required: false, learnt: false, holds: "a second text" },
        ]
    }

    /// Lists are several classes each, by name or as vectors of 0 and 1; numbers of which one has a decimal point are a regression;
    /// all else is one class each.
    fn labels(&self, rows: &[Row], label_column: &str) -> Result<Option<LabelSet>> {
        let mut bad = BadRows::default();
        let mut values: Vec<Cow<'_, Value>> = Vec::with_capacity(rows.len());
        let (mut classes, mut texts_of) = (BTreeSet::new(), Vec::with_capacity(rows.len()));
        for row in rows {
            let value = row.fields.get(label_column).ok_or_else(|| row.missing(label_column));
            let Some(value) = bad.take(value)?.map(as_list) else { continue };
            let Some(texts) = bad.take(class_texts(row, &value))? else { continue };
            classes.extend(texts.iter().cloned());
            texts_of.push(texts);
            values.push(value);
        }
        bad.finish()?;
        let mut bad = BadRows::default();
        let is_fraction = |text: &String| is_number(text) && text.contains(['.', 'e', 'E']);
        let lists = values.iter().filter(|value| value.is_array()).count();
        let all = || texts_of.iter().flatten();
        let is_hole = |text: &String| text.parse().is_ok_and(|number: f64| !number.is_finite());
        if all().any(is_fraction)
            && all().all(|text| is_number(text) || is_hole(text))
            && let Some((row, texts)) = rows.iter().zip(&texts_of).find(|(_, texts)| texts.iter().any(is_hole))
        {
            return Err(
                row.error(format!("label `{}` is no number among numbers: leave the row out", texts.join(", ")))
            );
        }
        if !all().any(is_fraction) {
            let ignored = IGNORE.to_string();
            for (row, _) in rows.iter().zip(&texts_of).filter(|(_, texts)| texts.contains(&ignored)) {
                let problem =
                    "marks a token that the loss ignores; a row of this task always counts: remove it, or label it";
                bad.take(Err::<(), _>(row.error(format!("label {ignored} {problem}"))))?;
            }
            std::mem::take(&mut bad).finish()?;
        }
        let problem = if lists == 0 {
            if all().all(|text| is_number(text)) && all().any(is_fraction) {
                Problem::Regression
            } else {
                Problem::SingleLabel
            }
        } else if lists == rows.len() {
            let width = texts_of.first().map_or(0, Vec::len);
            let as_wide = texts_of.iter().all(|texts| texts.len() == width);
            let vectors = as_wide && width > 1 && all().all(|text| is_number(text) || is_flag(text));
            let several = |problem: Problem| {
                let labels = (0..width).map(|class| format!("LABEL_{class}")).collect();
                Ok(Some(LabelSet { labels, problem_type: problem.name() }))
            };
            if vectors && all().all(|text| flag(text).is_some()) {
                return several(Problem::MultiLabel);
            }
            if vectors && all().any(is_fraction) {
                return several(Problem::Regression);
            }
            for (row, texts) in rows.iter().zip(&texts_of) {
                bad_class_list(row, texts, &mut bad);
            }
            Problem::MultiLabel
        } else {
            for (row, _) in rows.iter().zip(&values).filter(|(_, value)| !value.is_array()) {
                bad.push(row.error(format!("column `{label_column}` is a list in other rows, but not here")));
            }
            Problem::MultiLabel
        };
        bad.finish()?;
        let mut labels: Vec<String> = classes.into_iter().collect();
        if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
        }
        if problem == Problem::Regression {
            labels = vec!["LABEL_0".to_owned()];
        } else if let ([only], Problem::SingleLabel) = (labels.as_slice(), problem) {
            return Err(Error::Data(format!(
                "every row has the label `{only}`: a classifier needs two classes at least"
            )));
        }
        Ok((!rows.is_empty()).then_some(LabelSet { labels, problem_type: problem.name() }))
    }

    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let pair = context.optional("text_pair", row).map(|column| row.text(column)).transpose()?;
        let encoding = context.tokenizer.encode(row.text(context.column("text"))?, pair, context.options.max_length)?;
        let Some(mut example) = context.example(row, &encoding)? else { return Ok(Vec::new()) };
        if context.labelled {
            let column = context.column("label");
            let value = row.fields.get(column).ok_or_else(|| row.missing(column))?;
            example.labels.insert("labels", label(row, &as_list(value), context)?);
        }
        Ok(vec![example])
    }

    fn loss<'a>(&self, labels: &'a Labels, info: &'a ModelInfo) -> Result<Loss<'a>> {
        let data = labels.get("labels")?;
        let rows = data.shape().first().copied().unwrap_or(0) as f64;
        Ok(match Problem::of(info, !data.dtype().is_float())? {
            Problem::Regression => {
                Loss::of_mean(rows, |outputs| loss::mse(flat(outputs.get("logits")?), &labels.floats("labels")?))
            }
            Problem::SingleLabel => {
                let classes = labels.integers("labels")?;
                Loss::of_sum(loss::counted(&classes), move |outputs| {
                    Ok(loss::cross_entropies(outputs.get("logits")?, &classes)?.sum())
                })
            }
            Problem::MultiLabel => Loss::of_mean(rows, |outputs| {
                loss::binary_cross_entropy_with_logits(flat(outputs.get("logits")?), &labels.floats("labels")?)
            }),
        })
    }

    fn keeps_token_types(&self) -> bool {
        true
    }

    fn scores(&self, outputs: &Outputs, _examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let (logits, [_, classes]) = outputs.read::<2>("logits")?;
        Ok(logits.chunks(classes.max(1)).map(|row| vec![row.to_vec()]).collect())
    }

    /// One class each: `accuracy`, `f1` (the mean over classes), `f1_weighted`, `matthews`. Several: `f1_micro`, `f1_macro`
    /// and `accuracy`, for which all classes of a row must be right. A number: `pearson`, `spearman`, `mse`.
    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics> {
        let judged = || {
            rows.iter().flat_map(|row| &row.examples).filter_map(|(e, s)| Some((e.labels.get("labels")?, logits(s))))
        };
        let one_class_each = judged().all(|(label, _)| matches!(label, Label::Class(_)));
        let named = |values: &[(&str, f64)]| values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        match Problem::of(context.info, one_class_each)? {
            Problem::Regression => {
                let truth: Vec<f64> = judged().flat_map(|(label, _)| floats(label)).collect();
                let predicted: Vec<f64> =
                    judged().flat_map(|(_, logits)| logits.iter().copied().map(f64::from)).collect();
                Ok(named(&[
                    ("pearson", pearson(&truth, &predicted)),
                    ("spearman", spearman(&truth, &predicted)),
                    ("mse", mean_squared_error(&truth, &predicted)),
                ]))
            }
            Problem::SingleLabel => {
                let truth: Vec<_> = judged().map(|(label, _)| class(label)).collect();
                let predicted: Vec<_> = judged().map(|(_, logits)| argmax(logits).unwrap_or(usize::MAX)).collect();
                let f1 = |average| precision_recall_f1(&truth, &predicted, average).f1;
                Ok(named(&[
                    ("accuracy", accuracy(&truth, &predicted)),
                    ("f1", f1(Average::Macro)),
                    ("f1_weighted", f1(Average::Weighted)),
                    ("matthews", matthews(&truth, &predicted)),
                ]))
            }
            Problem::MultiLabel => {
                let flags = |values: Vec<f64>, over: f64| values.into_iter().map(|v| v > over).collect::<Vec<_>>();
                let truth: Vec<_> = judged().map(|(label, _)| flags(floats(label), 0.5)).collect();
                // A probability above one half is a logit above zero.
                let predicted: Vec<_> =
                    judged().map(|(_, logits)| logits.iter().map(|logit| *logit > 0.0).collect::<Vec<_>>()).collect();
                let f1 = |average| multi_label_precision_recall_f1(&truth, &predicted, average).f1;
                Ok(named(&[
                    ("f1_micro", f1(Average::Micro)),
                    ("f1_macro", f1(Average::Macro)),
                    ("accuracy", accuracy(&truth, &predicted)),
                ]))
            }
        }
    }

    /// `{"label", "score", "scores"}`; `{"labels", "scores"}` for several classes; `{"score"}` for one number, `{"scores"}`
    /// for several.
    fn answer(&self, row: &Scored<'_>, context: &EncodeContext<'_>) -> Result<Value> {
        let info = context.info;
        let Some((example, scores)) = row.examples.first() else { return Ok(Value::Null) };
        let logits = logits(scores);
        let by_label = |values: &[f64]| -> Map<String, Value> {
            values.iter().enumerate().map(|(class, value)| (info.label(class), json!(value))).collect()
        };
        let one_class_each = !matches!(example.labels.get("labels"), Some(Label::Floats(_)));
        Ok(match (Problem::of(info, one_class_each)?, logits) {
            (Problem::Regression, [score]) => json!({ "score": score }),
            (Problem::Regression, several) => {
                json!({ "scores": by_label(&several.iter().copied().map(f64::from).collect::<Vec<_>>()) })
            }
            (Problem::SingleLabel, logits) => {
                let probabilities = softmax(logits);
                let best = argmax(logits).unwrap_or(0);
                json!({
                    "label": info.label(best),
                    "score": probabilities.get(best),
                    "scores": by_label(&probabilities),
                })
            }
            (Problem::MultiLabel, logits) => {
                let chances: Vec<f64> = logits.iter().map(|logit| 1.0 / (1.0 + f64::from(-*logit).exp())).collect();
                let likely = chances.iter().enumerate().filter(|(_, chance)| **chance > 0.5);
                let labels: Vec<String> = likely.map(|(class, _)| info.label(class)).collect();
                json!({ "labels": labels, "scores": by_label(&chances) })
            }
        })
    }
}

fn flat(values: Tensor<2>) -> Tensor<1> {
    let [rows, columns] = values.dims();
    values.reshape([rows * columns])
}

fn label(row: &Row, value: &Value, context: &EncodeContext<'_>) -> Result<Label> {
    let problem = Problem::of(context.info, !value.is_array())?;
    let texts = class_texts(row, value)?;
    match (problem, texts.as_slice()) {
        (Problem::Regression, [one]) if !value.is_array() => Ok(Label::Float(number(row, one)?)),
        (Problem::Regression, several) => {
            let outputs = context.info.num_labels();
            if several.len() != outputs {
                return Err(row.error(format!("{} numbers for {outputs} outputs", several.len())));
            }
            Ok(Label::Floats(several.iter().map(|text| number(row, text)).collect::<Result<_>>()?))
        }
        (Problem::SingleLabel, [one]) if !value.is_array() => Ok(Label::Class(context.class(row, one)?)),
        (Problem::SingleLabel, _) => {
            Err(row.error(format!("label {value} is a list, but the model gives one class each")))
        }
        (Problem::MultiLabel, several) => {
            if let Some(flags) = vector(several, context.info) {
                return Ok(Label::Floats(flags));
            }
            let mut bad = BadRows::default();
            bad_class_list(row, several, &mut bad);
            bad.finish()?;
            let mut flags = vec![0.0; context.info.num_labels()];
            for text in several {
                let class = usize::try_from(context.class(row, text)?);
                if let Some(flag) = class.ok().and_then(|class| flags.get_mut(class)) {
                    *flag = 1.0;
                }
            }
            Ok(Label::Floats(flags))
        }
    }
}

/// A label as it is meant: a list that is written as text, as a cell of a table has it, is a list.
fn as_list(value: &Value) -> Cow<'_, Value> {
    let Value::String(text) = value else { return Cow::Borrowed(value) };
    let text = text.trim();
    if !(text.starts_with('[') && text.ends_with(']')) {
        return Cow::Borrowed(value);
    }
    // Python writes its texts in single quotes.
    let list = serde_json::from_str(text).or_else(|_| serde_json::from_str(&text.replace('\'', "\"")));
    list.map_or(Cow::Borrowed(value), |list: Vec<Value>| Cow::Owned(Value::Array(list)))
}

/// One of a vector of 0 and 1.
fn flag(text: &str) -> Option<f32> {
    match text {
        "true" => Some(1.0),
        "false" => Some(0.0),
        _ => text.parse().ok().filter(|number| [0.0, 1.0].contains(number)),
    }
}

fn is_flag(text: &str) -> bool {
    flag(text).is_some()
}

/// The labels of a row that are a vector of 0 and 1, one for each of the model's classes. Classes that are called by numbers are
/// named, not numbered.
fn vector(texts: &[String], info: &ModelInfo) -> Option<Vec<f32>> {
    let is_numbered = || info.labels().iter().any(|name| name.parse::<i64>().is_ok());
    if texts.len() < 2 || texts.len() != info.num_labels() || is_numbered() {
        return None;
    }
    texts.iter().map(|text| flag(text)).collect()
}

/// Tells of a list that is neither names of classes nor a vector of 0 and 1.
fn bad_class_list(row: &Row, texts: &[String], bad: &mut BadRows) {
    let mut seen = BTreeSet::new();
    if let Some(twice) = texts.iter().find(|text| !seen.insert(*text)) {
        bad.push(row.error(format!(
            "class `{twice}` stands twice in the list of labels: several classes are a list of names, such as [\"news\", \"sports\"], \
             or a vector of 0 and 1 with one number for each class, as long in every row"
        )));
    }
}

/// The classes or numbers of a label as text: one, or as many as a list holds.
fn class_texts(row: &Row, value: &Value) -> Result<Vec<String>> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(row.error("the label is empty")),
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Number(_) | Value::Bool(_) => Ok(vec![value.to_string()]),
        Value::Array(several) if several.iter().all(|one| !one.is_array()) => {
            several.iter().map(|one| class_texts(row, one)).collect::<Result<Vec<_>>>().map(|texts| texts.concat())
        }
        other => Err(row.error(format!("label {other} is not a class, a number or a list of them"))),
    }
}

// `f64` also parses words such as `nan` and `infinity`, which may be classes.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && text.parse().is_ok_and(f64::is_finite)
}

fn number(row: &Row, text: &str) -> Result<f32> {
    let number = is_number(text).then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| row.error(format!("label `{text}` is no number, and the model predicts numbers")))
}

fn logits(scores: &Scores) -> &[f32] {
    scores.first().map_or(&[], Vec::as_slice)
}

fn floats(label: &Label) -> Vec<f64> {
    match label {
        Label::Float(value) => vec![f64::from(*value)],
        Label::Floats(values) => values.iter().copied().map(f64::from).collect(),
        _ => Vec::new(),
    }
}

fn class(label: &Label) -> usize {
    if let Label::Class(class) = label { usize::try_from(*class).unwrap_or(usize::MAX) } else { usize::MAX }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests;
