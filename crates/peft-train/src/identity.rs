//! What decides a run's numbers: a run that was interrupted goes on only where all of it is the same.

use std::path::Path;

use peft_models::checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Prepared, Recipe, Result, dataset::DataSummary, fingerprint, recipe::Init};

/// 1: rows by SHA-256, random numbers of ChaCha12 with seeds of SplitMix64 and SipHash-1-3. 0: the same numbers, rows by SipHash-1-3
/// and those of training alone.
const VERSION: u32 = 1;

/// What decides a run's numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Identity {
    #[serde(default)]
    version: u32,
    /// The version of the program that wrote it, for whoever looks.
    #[serde(default)]
    program: String,
    /// The recipe's deciding keys, as `section.key`.
    recipe: Map<String, Value>,
    /// How much training data there is.
    data: DataSummary,
    /// The training examples.
    #[serde(default)]
    train_sha256: String,
    /// The evaluation examples.
    #[serde(default)]
    eval_sha256: Option<String>,
    /// The base model as it was read; none of a new model, and in files of versions that did not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_sha256: Option<String>,
    /// The training examples in version 0.
    #[serde(default, skip_serializing)]
    fingerprint: u64,
}

impl Identity {
    /// That of a run of this recipe.
    ///
    /// # Errors
    /// If the base model cannot be read any more.
    pub(crate) fn new(recipe: &Recipe, prepared: &Prepared) -> Result<Self> {
        let is_new = recipe.model.init == Some(Init::Random);
        let base_sha256 = if is_new { None } else { Some(checkpoint::fingerprint(&recipe.model_folder())?) };
        Ok(Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: recipe.decisive(),
            data: prepared.train.summary.clone(),
            train_sha256: fingerprint::sha256(&prepared.train.examples),
            eval_sha256: prepared.eval.as_ref().map(|eval| fingerprint::sha256(&eval.examples)),
            base_sha256,
            fingerprint: 0,
        })
    }

    /// Whether it says which base model it was of, or need not.
    pub(crate) fn knows_base(&self, recipe: &Recipe) -> bool {
        self.base_sha256.is_some() || recipe.model.init == Some(Init::Random)
    }

    /// Refuses to go on with the run of a checkpoint in `folder`, of identity `then`, if its numbers would be others. Evaluation rows
    /// count if it has `evaluated`.
    pub(crate) fn check(
        &self,
        then: &Self,
        folder: &Path,
        evaluated: bool,
        recipe: &Recipe,
        prepared: &Prepared,
    ) -> Result<()> {
        let refuse = |problem: String| Err(Error::Resume { folder: folder.to_owned(), problem });
        if then.version > VERSION {
            return refuse(format!(
                "written by peft {}, which this version cannot go on with: update it",
                then.program
            ));
        }
        let defaults = recipe.default_decisions();
        for key in then.recipe.keys().chain(self.recipe.keys()) {
            let (before, after) = (then.recipe.get(key), self.recipe.get(key));
            // A key that the earlier program did not have decides nothing where it is left alone.
            let is_new = before.is_none() && after.is_some() && after == defaults.get(key);
            if before != after && !is_new {
                return refuse(format!(
                    "`{key}` is {} now and was {} when this was written; resume with the same value, or start anew in another output_dir",
                    text(after),
                    text(before)
                ));
            }
        }
        if let (Some(now), Some(before)) = (&self.base_sha256, &then.base_sha256)
            && now != before
        {
            return refuse(format!(
                "the base model in {} has changed since this checkpoint was written; restore it, or start anew in another output_dir",
                recipe.model_folder().display()
            ));
        }
        let same_rows = match then.version {
            0 => then.fingerprint == fingerprint::of_version_0(&prepared.train.examples),
            _ => then.train_sha256 == self.train_sha256,
        };
        if !same_rows {
            return refuse(format!(
                "the training data has changed since this checkpoint was written ({} with {} tokens now, {} with {} then)",
                self.data.examples, self.data.tokens, then.data.examples, then.data.tokens
            ));
        }
        if evaluated && then.version > 0 && then.eval_sha256 != self.eval_sha256 {
            return refuse(
                "the evaluation data has changed since this checkpoint was written, and the best value so far cannot be compared with \
                 those to come; resume with the same rows, or start anew in another output_dir"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "absent".to_owned(), Value::to_string)
}
