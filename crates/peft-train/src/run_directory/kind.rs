//! What kind of run a result is of: a result is replaced by one of the same kind alone.

use std::path::{Path, PathBuf};

use peft_core::Error as PeftError;

use crate::{Recipe, Result};

/// Refuses to replace the result in `folder` if it has another base model, method or task than the recipe's.
///
/// # Errors
/// [`PeftError::Output`], which says what is there.
pub(super) fn refuse_other(folder: &Path, recipe: &Recipe) -> Result<()> {
    let refuse = |problem: String| {
        let problem = format!("{problem}; name another output_dir, or remove the folder first");
        Err(PeftError::Output { path: folder.to_owned(), problem }.into())
    };
    let earlier = match Recipe::of_adapter(folder) {
        Ok(Some(earlier)) => earlier,
        Ok(None) => return refuse("holds a finished run without its recipe".to_owned()),
        Err(error) => return refuse(format!("holds a finished run whose recipe cannot be read ({error})")),
    };
    let method = |recipe: &Recipe| {
        let adapter = &recipe.adapter;
        let task = adapter.task_type.as_ref().map_or_else(|| "no task".to_owned(), ToString::to_string);
        format!("{} for {task}", adapter.peft_type)
    };
    let (there, own) = (method(&earlier), method(recipe));
    let (base_there, base) = (base(&earlier), base(recipe));
    if there == own && base_there == base {
        return Ok(());
    }
    refuse(format!(
        "holds a finished run of another kind ({there}, base model {}; this recipe: {own}, base model {})",
        base_there.display(),
        base.display()
    ))
}

/// Where the base model is, however the recipe leads there; its name on the Hub if it is from there, whatever its revision.
fn base(recipe: &Recipe) -> PathBuf {
    let named = [Some(&recipe.model.model_name_or_path), recipe.model.config.as_ref()];
    let named = named.into_iter().flatten().find(|named| !named.is_empty()).map_or("", String::as_str);
    recipe.locate(named).canonicalize().unwrap_or_else(|_| PathBuf::from(named))
}
