//! `[[adapters]]`: adapters that are trained together over one base model.
//!
//! Each is a recipe of its own, by which it would be trained alone; what its table does not say is that of the other sections.

use std::path::Path;

use peft_core::adapter::rows::BASE;
use serde_json::{Map, Value};

use super::{Recipe, adapter, document::Section};
use crate::Result;

/// Keys of a table that are no keys of `[adapter]`.
const OWN: &[&str] = &["name", "train", "eval", "learning_rate", "max_grad_norm"];

/// One of several adapters.
#[derive(Debug, Clone)]
pub struct OneOfSeveral {
    /// Its name, and that of its folder in `output_dir`.
    pub name: String,
    /// What its table says.
    pub given: Map<String, Value>,
    /// The recipe by which it would be trained alone.
    pub recipe: Recipe,
}

/// The recipe with each of the adapters that the tables are about; the sections are `[adapter]`, `[data]` and `[training]`.
pub(super) fn several(
    shared: Recipe,
    tables: Vec<Section>,
    [adapter, data, training]: [&Section; 3],
) -> Result<Recipe> {
    if shared.training.predict_with_generate {
        let problem =
            "predict_with_generate is not supported with several adapters: remove it, or train them one by one";
        return Err(training.error("predict_with_generate", problem));
    }
    if shared.data.adapter.is_some() {
        return Err(data.error("adapter", "each of the [[adapters]] takes its own rows: take it away"));
    }
    let mut adapters: Vec<OneOfSeveral> = Vec::with_capacity(tables.len());
    for table in tables {
        let one = one(&shared, &table, adapter)?;
        if adapters.iter().any(|other| other.name == one.name) {
            return Err(table.error("name", format!("`{}` is the name of another adapter already", one.name)));
        }
        one.recipe.check(data, training)?;
        adapters.push(one);
    }
    Ok(Recipe { adapters, ..shared })
}

fn one(shared: &Recipe, table: &Section, of_all: &Section) -> Result<OneOfSeveral> {
    let name = table.text("name", "the name of an adapter")?.unwrap_or_default();
    if name.is_empty() || name == BASE || name.contains(['.', '/', '\\']) {
        let problem = if table.entries.contains_key("name") {
            format!("`{name}` cannot name an adapter: no dots, slashes, `{BASE}` or nothing at all")
        } else {
            "missing; the adapter's name, and that of its folder in output_dir".to_owned()
        };
        return Err(table.error("name", problem));
    }
    let mut merged = of_all.clone();
    // What is wrong with the whole is the table's.
    (merged.name, merged.place) = (table.name.clone(), table.place.clone());
    let more = table.entries.iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
    merged.entries.extend(more.map(|(key, entry)| (key.clone(), entry.clone())));
    let config = adapter(merged, &shared.path, &shared.model)?;
    if config.task_type != shared.adapter.task_type {
        let problem = "the adapters of a run have one task: write it in [adapter]";
        return Err(table.error("task_type", problem));
    }

    let mut recipe = Recipe { adapter: config, ..shared.clone() };
    let (train, eval) = (table.text("train", "a path")?, table.text("eval", "a path")?);
    match (train, eval) {
        (None, Some(_)) => {
            let problem = "`eval` requires `train` in the same [[adapters]] table";
            return Err(table.error("eval", problem));
        }
        (Some(train), eval) => {
            recipe.data.train = train;
            if eval.is_some() {
                (recipe.data.eval, recipe.data.eval_split) = (eval, None);
            }
        }
        (None, None) => recipe.data.adapter = Some(name.clone()),
    }
    let training = &mut recipe.training;
    for (key, value) in [("learning_rate", &mut training.learning_rate), ("max_grad_norm", &mut training.max_grad_norm)]
    {
        let Some(given) = table.json(key)? else { continue };
        *value = given.as_f64().ok_or_else(|| table.error(key, format!("expected a number, found {given}")))?;
    }
    training.check().map_err(|(key, problem)| table.error(key, problem))?;
    training.output_dir = Path::new(&training.output_dir).join(&name).display().to_string();

    let mut given = Map::new();
    for key in table.entries.keys() {
        given.extend(table.json(key)?.map(|value| (key.clone(), value)));
    }
    Ok(OneOfSeveral { name, given, recipe })
}
