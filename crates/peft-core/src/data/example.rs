//! From rows of a data file to batches: the form in which a task hands its examples to a training loop.

mod options;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::{Map, Value};

use crate::{
    Batch, Error, Inputs, Labels, ModelInfo, Result,
    batch::IGNORE,
    data::tokenizer::{Encoding, Tokenizer},
    error::nearest,
};

pub use options::{EncodeOptions, Overflow, Pooling};

/// One row of a data file.
#[derive(Debug, Clone)]
pub struct Row {
    /// The file it came from.
    pub file: Arc<Path>,
    /// The line it starts on, from 1.
    pub line: usize,
    /// Its columns.
    pub fields: Map<String, Value>,
}

impl Row {
    /// An error about this row.
    pub fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::Data(format!("{}: {problem}", self.place()))
    }

    /// Its file and line, as messages name them.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    /// The text of a column.
    ///
    /// # Errors
    /// [`Error::Data`] with file and line, and the columns that are there.
    pub fn text(&self, column: &str) -> Result<&str> {
        match self.fields.get(column) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.error(format!("column `{column}` should be text, found {other}"))),
            None => Err(self.missing(column)),
        }
    }

    /// The list of words of a column.
    ///
    /// # Errors
    /// [`Error::Data`] with file and line.
    pub fn words(&self, column: &str) -> Result<Vec<String>> {
        match self.fields.get(column) {
            Some(Value::Array(words)) => words
                .iter()
                .map(|word| match word {
                    Value::String(word) => Ok(word.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    other => Err(self.error(format!("column `{column}` should hold words, found {other}"))),
                })
                .collect(),
            Some(other) => Err(self.error(format!(
                "column `{column}` should be a list of words, such as [\"New\", \"York\"], found {other}"
            ))),
            None => Err(self.missing(column)),
        }
    }

    /// An error about a column that is not there.
    pub fn missing(&self, column: &str) -> Error {
        let there: Vec<_> = self.fields.keys().map(String::as_str).collect();
        self.error(format!("no column `{column}` (columns: {})", there.join(", ")))
    }
}

/// What a task needs to turn rows into examples.
#[derive(Debug, Clone)]
pub struct EncodeContext<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// The model that the examples are for.
    pub info: &'a ModelInfo,
    /// What the recipe says about it.
    pub options: &'a EncodeOptions,
    /// Whether the rows carry labels: true in training and evaluation.
    pub labelled: bool,
}

impl EncodeContext<'_> {
    /// The column that plays a role; the role's own name unless the recipe says otherwise.
    pub fn column<'c>(&'c self, role: &'c str) -> &'c str {
        self.options.columns.get(role).map_or(role, String::as_str)
    }

    /// The column that plays an optional role, if the row has it.
    pub fn optional<'c>(&'c self, role: &'c str, row: &Row) -> Option<&'c str> {
        let column = self.column(role);
        row.fields.contains_key(column).then_some(column)
    }

    /// The id of a class by its name, from the model's `label2id`, else from its `id2label`.
    ///
    /// Of a model whose classes are not called by numbers a whole number is the id itself, as in the `datasets` library; `1.0` is
    /// the whole number that pandas writes so where a column has gaps.
    ///
    /// # Errors
    /// [`Error::Data`] with file and line, the label found and the nearest that the model has.
    pub fn class(&self, row: &Row, label: &str) -> Result<i64> {
        let labels = self.info.labels();
        let label2id = self.info.config.get("label2id");
        let named = |label: &str| {
            let by_key = label2id.and_then(|map| map.get(label)).and_then(Value::as_i64);
            let place = || labels.iter().position(|name| name == label).and_then(|class| i64::try_from(class).ok());
            by_key.or_else(place)
        };
        let whole = whole_number(label);
        let is_id = |id: &i64| {
            usize::try_from(*id).is_ok_and(|id| id < labels.len())
                && labels.iter().all(|name| whole_number(name).is_none())
        };
        let by_number = || named(&whole?.to_string()).or(whole.filter(is_id));
        named(label).or_else(by_number).ok_or_else(|| {
            let hint = match nearest(label, labels.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("classes: {}", shortened(&labels)),
            };
            row.error(format!("unknown label `{label}`; {hint}"))
        })
    }

    /// Whether a role was given a column by name.
    pub fn names(&self, role: &str) -> bool {
        self.options.columns.contains_key(role)
    }

    /// An example of an encoded text, without labels; none if the row is too long and is to be dropped.
    ///
    /// # Errors
    /// [`Error::Data`] with file and line if the row is too long and is not to be cut.
    pub fn example(&self, row: &Row, encoding: &Encoding) -> Result<Option<Example>> {
        match self.options.overflow {
            Overflow::Raise if encoding.truncated => {
                let most = self.options.max_length;
                Err(row.error(match self.info.room() {
                    Some(room) if room == most => {
                        format!("more than the {most} tokens that the model has positions for: set overflow to truncate or drop")
                    }
                    _ => format!("more than {most} tokens: raise max_length, or set overflow to truncate or drop"),
                }))
            }
            Overflow::Drop if encoding.truncated => Ok(None),
            _ => Ok(Some(Example {
                input_ids: encoding.ids.clone(),
                type_ids: encoding.type_ids.clone(),
                cut: encoding.truncated,
                ..Example::default()
            })),
        }
    }
}

/// The whole number that a text is: `1`, and `1.0` too.
fn whole_number(text: &str) -> Option<i64> {
    let digits = text.split_once('.').map_or(text, |(digits, zeros)| {
        if !zeros.is_empty() && zeros.bytes().all(|zero| zero == b'0') { digits } else { text }
    });
    digits.parse().ok()
}

fn shortened(labels: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = labels.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if labels.len() > SHOWN { format!("{shown}, … ({} in all)", labels.len()) } else { shown }
}

/// A label of one example.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// A class or a position.
    Class(i64),
    /// A number to predict.
    Float(f32),
    /// One value for each class.
    Floats(Vec<f32>),
    /// One class for each token, [`IGNORE`] where none counts.
    Tokens(Vec<i64>),
}

/// One sequence that goes through the model.
#[derive(Debug, Clone, Default)]
pub struct Example {
    /// The row it was made from, by index.
    pub row: usize,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Segments; empty where the tokenizer has none.
    pub type_ids: Vec<u32>,
    /// Labels by their Transformers names.
    pub labels: BTreeMap<&'static str, Label>,
    /// The tokens' offsets in the text that answers are cut from; none outside it.
    pub spans: Vec<Option<(usize, usize)>>,
    /// The first token of each word, for tasks that label words; past the end for a word without tokens.
    pub word_starts: Vec<usize>,
    /// Lengths of the examples that were packed into this one, in order; empty for a single one.
    pub parts: Vec<usize>,
    /// Whether something of the row was cut off because it was too long.
    pub cut: bool,
}

impl Example {
    /// The number of the part that a token belongs to, from 1, and its place in it.
    fn part(&self, token: usize) -> (i64, i64) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (mut start, mut number) = (0, 1);
        for length in self.parts.iter().take(self.parts.len().saturating_sub(1)) {
            if token < start + length {
                break;
            }
            start += length;
            number += 1;
        }
        (number, count(token - start))
    }
}

/// Pads examples on the right to one length and puts them on a device, the attention mask on the host.
///
/// Where examples are packed, the attention mask numbers the parts of each row from 1 and the positions start anew in each.
///
/// # Shapes
/// All inputs `[examples, longest]`; labels `[examples]`, `[examples, classes]` or `[examples, longest]`.
pub fn collate(examples: &[&Example], pad_id: u32, type_ids: bool, device: &Device) -> Batch {
    collate_to(Padding::default(), examples, pad_id, type_ids, device)
}

/// Where padding stands, and how much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// On the left, for a classifier that reads the last position. Labels of tokens stay on the left.
    pub left: bool,
    /// Positions of a row at least.
    pub least: usize,
}

/// [`collate`] with other padding.
pub fn collate_to(padding: Padding, examples: &[&Example], pad_id: u32, type_ids: bool, device: &Device) -> Batch {
    let longest = longest(examples).max(padding.least);
    let count = examples.len();
    let padded = |pick: &dyn Fn(&Example, usize) -> Option<i64>, fill: i64, width: usize| {
        let cells = examples.iter().flat_map(|e| {
            let front = if padding.left { width.saturating_sub(e.input_ids.len()) } else { 0 };
            (0..width).map(move |at| at.checked_sub(front).and_then(|at| pick(e, at)).unwrap_or(fill))
        });
        TensorData::new(cells.collect::<Vec<_>>(), [count, width])
    };
    let ints = |data: TensorData| Tensor::<2, Int>::from_data(data, device);
    let ids = padded(&|e, at| e.input_ids.get(at).map(|id| i64::from(*id)), i64::from(pad_id), longest);
    let mask = padded(&|e, at| (at < e.input_ids.len()).then(|| e.part(at).0), 0, longest);
    let places = || padded(&|e, at| Some(e.part(at).1), 0, longest);
    let is_packed = examples.iter().any(|e| !e.parts.is_empty());
    let segments = || padded(&|e, at| e.type_ids.get(at).map(|id| i64::from(*id)), 0, longest);
    let inputs = Inputs {
        input_ids: Some(ints(ids)),
        // A GPU would be waited for to look at it.
        attention_mask: Some(Tensor::from_data(mask, &Device::flex())),
        token_type_ids: type_ids.then(|| ints(segments())),
        position_ids: is_packed.then(|| ints(places())),
        ..Inputs::default()
    };

    Batch { inputs, labels: labels_of(examples, longest) }
}

fn longest(examples: &[&Example]) -> usize {
    examples.iter().map(|e| e.input_ids.len()).max().unwrap_or(0)
}

/// The labels of examples as [`collate`] puts them into a batch, on the host: [`IGNORE`] or NaN for an example that lacks one.
pub fn collate_labels(examples: &[&Example]) -> Labels {
    labels_of(examples, longest(examples))
}

fn labels_of(examples: &[&Example], longest: usize) -> Labels {
    let count = examples.len();
    let mut labels = BTreeMap::new();
    for (name, first) in examples.iter().flat_map(|e| &e.labels) {
        if labels.contains_key(*name) {
            continue;
        }
        let each = || examples.iter().map(|e| e.labels.get(name));
        let data = match first {
            Label::Class(_) => {
                let classes = each().map(|l| if let Some(Label::Class(class)) = l { *class } else { IGNORE });
                TensorData::new(classes.collect::<Vec<_>>(), [count])
            }
            Label::Float(_) => {
                let values = each().map(|l| if let Some(Label::Float(value)) = l { *value } else { f32::NAN });
                TensorData::new(values.collect::<Vec<_>>(), [count])
            }
            Label::Floats(first) => {
                let width = first.len();
                let row = |l: Option<&Label>| match l {
                    Some(Label::Floats(values)) if values.len() == width => values.clone(),
                    _ => vec![f32::NAN; width],
                };
                TensorData::new(each().flat_map(row).collect::<Vec<f32>>(), [count, width])
            }
            Label::Tokens(_) => {
                let tokens = |l: Option<&Label>| match l {
                    Some(Label::Tokens(tokens)) => tokens.clone(),
                    _ => Vec::new(),
                };
                let rows: Vec<Vec<i64>> = each().map(tokens).collect();
                let aligned = examples.iter().zip(&rows).all(|(e, row)| row.len() == e.input_ids.len());
                let width = if aligned { longest } else { rows.iter().map(Vec::len).max().unwrap_or(0) };
                let cells = rows.iter().flat_map(|row| (0..width).map(|at| row.get(at).copied().unwrap_or(IGNORE)));
                TensorData::new(cells.collect::<Vec<_>>(), [count, width])
            }
        };
        labels.insert((*name).to_owned(), data);
    }
    Labels(labels)
}
