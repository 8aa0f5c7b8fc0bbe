//! `peft data`: looking at data as a model will see it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use peft::train::{Dataset, Prepared, Recipe, prepare::preview_all};
use peft::{
    ModelInfo,
    batch::IGNORE,
    data::example::{Example, Label},
    models::hub::Needed,
};
use serde_json::{Map, Value, json};

use super::train::data_lines;
use crate::{CliError, Globals, session, terminal};

/// Look at data as the model will see it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft data show recipe.toml
  peft data show recipe.toml --split eval --examples 10 data.assistant_only_loss=true")]
pub(crate) struct Data {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Debug, Subcommand)]
enum DataVerb {
    Show(Show),
}

/// Print examples token by token with their labels
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft data show recipe.toml
  peft data show recipe.toml --split eval --examples 10 data.assistant_only_loss=true
  peft data show recipe.toml --adapter red

A dot stands for a token that the loss does not count. The weights of the model are not read.")]
struct Show {
    /// The recipe, in TOML.
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// Values that replace those of the recipe.
    #[arg(value_name = "section.key=value")]
    overrides: Vec<String>,
    /// How many examples.
    #[arg(long, value_name = "N", default_value_t = 3)]
    examples: usize,
    /// Which of the two sets of rows.
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
    /// Whose rows, of a recipe with several adapters; those of the first when absent.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Split {
    Train,
    Eval,
}

impl Data {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        match self.verb {
            DataVerb::Show(show) => show.run(globals),
        }
    }
}

impl Show {
    fn run(self, globals: &Globals) -> Result<(), CliError> {
        let recipe = Recipe::read(&self.recipe, &self.overrides)?;
        let names: Vec<&str> = recipe.apart().iter().map(|(name, _)| *name).collect();
        let chosen = match &self.adapter {
            None => 0,
            Some(wanted) => names.iter().position(|name| name == wanted).ok_or_else(|| {
                let known = names.join(", ");
                CliError::Usage(format!("--adapter {wanted}: the recipe has no adapter of that name (it has: {known})"))
            })?,
        };
        let adapter = names.get(chosen).filter(|_| !recipe.adapters.is_empty());
        session::fetch(&recipe, Needed::Tokenizer, globals)?;
        let prepared = preview_all(&recipe, &session::device(globals)?)?.swap_remove(chosen);
        let data = match (self.split, &prepared.eval) {
            (Split::Train, _) => &prepared.train,
            (Split::Eval, Some(eval)) => eval,
            (Split::Eval, None) => {
                let problem =
                    "--split eval: the recipe has no rows to evaluate on: give `eval` or `eval_split` in [data]";
                return Err(CliError::Usage(problem.to_owned()));
            }
        };
        let shown =
            data.examples.iter().take(self.examples).map(|example| Shown { example, data, prepared: &prepared });
        if globals.json {
            let examples: Vec<Value> = shown.map(|example| example.to_json()).collect();
            let mut report = Map::new();
            report.extend(adapter.map(|name| ("adapter".to_owned(), json!(name))));
            report.extend([("summary".to_owned(), json!(data.summary)), ("examples".to_owned(), json!(examples))]);
            return terminal::json(&report);
        }
        if let Some(adapter) = adapter {
            let others: Vec<&str> = names.iter().copied().filter(|name| name != adapter).collect();
            let others = others.join(", ");
            terminal::result(match others.is_empty() {
                true => format!("adapter `{adapter}`"),
                false => format!("adapter `{adapter}`; --adapter shows the rows of another: {others}"),
            })?;
        }
        for line in data_lines(&prepared) {
            terminal::result(line)?;
        }
        for example in shown {
            terminal::result(format!("\n{}", example.to_text()))?;
        }
        Ok(())
    }
}

/// An example with what its ids mean.
struct Shown<'a> {
    example: &'a Example,
    data: &'a Dataset,
    prepared: &'a Prepared,
}

impl Shown<'_> {
    fn token(&self, id: u32) -> String {
        self.prepared.tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string())
    }

    /// The labels of the tokens, if there is one for each.
    fn token_labels(&self) -> Option<&[i64]> {
        self.example.labels.values().find_map(|label| match label {
            Label::Tokens(labels) if labels.len() == self.example.input_ids.len() => Some(labels.as_slice()),
            _ => None,
        })
    }

    /// What a label of a token means: a class, or a token.
    fn name(&self, label: i64) -> Option<String> {
        if label == IGNORE {
            return None;
        }
        let id = u32::try_from(label).ok()?;
        Some(match &self.prepared.labels {
            Some(_) => class(&self.prepared.info, label),
            None => self.token(id),
        })
    }

    /// Labels that do not belong to one token each, by name.
    fn other_labels(&self) -> Map<String, Value> {
        let aligned = self.token_labels().map(<[i64]>::as_ptr);
        let others = self.example.labels.iter().filter_map(|(name, label)| {
            let value = match label {
                Label::Tokens(labels) if Some(labels.as_ptr()) == aligned => return None,
                Label::Tokens(labels) => labels.iter().map(|label| self.name(*label)).collect::<Vec<_>>().into(),
                Label::Class(label) if self.prepared.labels.is_some() => class(&self.prepared.info, *label).into(),
                Label::Class(position) => (*position).into(),
                Label::Float(value) => (*value).into(),
                Label::Floats(values) => values.clone().into(),
            };
            Some(((*name).to_owned(), value))
        });
        others.collect()
    }

    fn to_json(&self) -> Value {
        let labels = self.token_labels();
        let tokens = self.example.input_ids.iter().enumerate().map(|(at, id)| {
            let mut token = json!({ "id": id, "token": self.token(*id) });
            if let (Some(label), Some(fields)) = (labels.and_then(|labels| labels.get(at)), token.as_object_mut()) {
                fields.insert("label".to_owned(), (*label).into());
            }
            token
        });
        let row = self.data.rows.get(self.example.row);
        json!({
            "file": row.map(|row| row.file.display().to_string()),
            "line": row.map(|row| row.line),
            "tokens": tokens.collect::<Vec<_>>(),
            "labels": self.other_labels(),
            "packed": self.example.parts,
        })
    }

    fn to_text(&self) -> String {
        let labels = self.token_labels();
        let count = self.example.input_ids.len();
        let learnt = labels.map_or_else(String::new, |labels| {
            format!(", {} in the loss", labels.iter().filter(|label| **label != IGNORE).count())
        });
        let place = self.data.rows.get(self.example.row).map(peft::data::example::Row::place).unwrap_or_default();
        let packed = match self.example.parts.len() {
            0 => String::new(),
            parts => format!(", {parts} examples packed"),
        };
        let mut lines = vec![format!("{place}: {count} tokens{learnt}{packed}")];
        lines.extend(self.other_labels().iter().map(|(name, value)| format!("  {name}: {value}")));
        for (at, id) in self.example.input_ids.iter().enumerate() {
            let label = labels.and_then(|labels| labels.get(at)).map(|label| self.name(*label));
            let label = label.map(|name| name.unwrap_or_else(|| "·".to_owned())).unwrap_or_default();
            let line = format!("  {at:>5} {id:>7}  {:<24} {label}", escaped(&self.token(*id)));
            lines.push(line.trim_end().to_owned());
        }
        lines.join("\n")
    }
}

fn class(info: &ModelInfo, class: i64) -> String {
    let labels = info.labels();
    usize::try_from(class).ok().and_then(|class| labels.get(class).cloned()).unwrap_or_else(|| class.to_string())
}

fn escaped(token: &str) -> String {
    token.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}
