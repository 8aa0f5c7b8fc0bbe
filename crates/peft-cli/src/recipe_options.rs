//! Keys of a recipe that are given as options, `--lr 1e-3`: the error says how they are written.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use peft::train::recipe::override_for;

/// What to say in place of clap's error, where an unknown option of a verb that takes a recipe is a key of recipes.
pub(crate) fn explain(error: &clap::Error, arguments: &[String]) -> Option<String> {
    let takes_recipe = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    let is_verb = takes_recipe.is_some_and(|verb| ["train", "data"].contains(&verb.as_str()));
    if error.kind() != ErrorKind::UnknownArgument || !is_verb {
        return None;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let option = option.split(['=', ' ']).next().unwrap_or_default();
    if !option.starts_with("--") {
        return None;
    }
    let at = arguments.iter().position(|argument| argument.split('=').next() == Some(option))?;
    let inside = arguments.get(at).and_then(|argument| argument.split_once('='));
    let next = || arguments.get(at + 1).filter(|next| !next.starts_with("--") && !next.contains('='));
    let value = match inside {
        Some((_, value)) => value,
        None => next().map_or("true", String::as_str),
    };
    let hint = override_for(option, value)?;
    Some(format!("unexpected option {option}: keys of a recipe stand behind it as section.key=value; {hint}"))
}
