//! The keys of all sections: where a key stands that is written without its section or in a wrong one, and what is said of a key
//! that there is not.

use peft_core::{
    TaskPlugin,
    error::nearest,
    plugins::{registry::plugins, tuner::TunerPlugin},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    DataArguments, ModelArguments, SECTIONS, TrainingArguments,
    other_trainers::{self, Here},
};

/// Roles of columns that recipes may name whatever tasks are linked.
const ROLES: &[&str] = &[
    "text",
    "text_pair",
    "label",
    "tokens",
    "tags",
    "question",
    "context",
    "answers",
    "prompt",
    "completion",
    "messages",
    "source",
    "target",
];

/// Keys of `[adapter]` that are no tuner's.
const OF_EVERY_TUNER: &[&str] = &["peft_type", "task_type", "revision", "inference_mode", "auto_mapping", "config"];

/// A list of keys up to this length is given whole.
const SHORT: usize = 15;

/// Every role that a column can play.
pub(super) fn roles() -> Vec<&'static str> {
    let linked = plugins::<TaskPlugin>();
    let roles = linked.iter().flat_map(|task| task.task.columns()).map(|column| column.role);
    let mut roles: Vec<&str> = roles.chain(ROLES.iter().copied()).collect();
    roles.sort_unstable();
    roles.dedup();
    roles
}

/// The keys of a type of options.
fn keys_of<T: Default + Serialize>() -> Vec<String> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(keys)) => keys.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// The keys of `[data]`, roles included.
pub(super) fn of_data() -> Vec<String> {
    keys_of::<DataArguments>().into_iter().chain(roles().into_iter().map(str::to_owned)).collect()
}

/// Every key that a section can have, with whichever tuner.
fn of_section(section: &str) -> Vec<String> {
    match section {
        "model" => keys_of::<ModelArguments>(),
        "data" => of_data(),
        "training" => keys_of::<TrainingArguments>(),
        _ => {
            let tuners = plugins::<TunerPlugin>();
            let options = tuners.iter().flat_map(|tuner| (tuner.defaults)().into_iter().map(|(key, _)| key));
            options.chain(OF_EVERY_TUNER.iter().map(|key| (*key).to_owned())).collect()
        }
    }
}

/// The sections that have a key of that name.
pub(crate) fn sections_of(key: &str) -> Vec<&'static str> {
    SECTIONS.iter().copied().filter(|section| of_section(section).iter().any(|known| known == key)).collect()
}

/// What to write for a name from elsewhere that a value follows: `section.key=value`, or a sentence. None for a name that nothing
/// resembles.
///
/// `name` may be written as an option is, `--learning-rate`.
pub fn override_for(name: &str, value: &str) -> Option<String> {
    let name = name.trim_start_matches('-').replace('-', "_");
    let write = |section: &str, key: &str| format!("write {section}.{key}={value}");
    if let [section] = sections_of(&name).as_slice() {
        return Some(write(section, &name));
    }
    match other_trainers::key(&name) {
        Some(Here::Key(section, key)) => return Some(write(section, key)),
        Some(Here::Else(sentence)) => return Some(sentence.to_owned()),
        None => {}
    }
    let all = SECTIONS.iter().flat_map(|section| of_section(section).into_iter().map(move |key| (*section, key)));
    let all: Vec<(&str, String)> = all.collect();
    let near = nearest(&name, all.iter().map(|(_, key)| key.as_str()))?;
    let (section, key) = all.iter().find(|(_, key)| key == near)?;
    Some(format!("did you mean {section}.{key}={value}?"))
}

/// What is said of a key that its section does not have; `known` are those that it has.
pub(super) fn hint(section: &str, key: &str, known: &[&str]) -> String {
    let here = match other_trainers::key(key) {
        Some(Here::Key(of, key)) if of == section || of == "adapter" && section == "adapters" => {
            return format!("it is `{key}` here");
        }
        Some(Here::Key(of, key)) => return format!("it is `{key}` in [{of}]"),
        Some(Here::Else(sentence)) => Some(sentence.to_owned()),
        None => None,
    };
    let is_adapter = ["adapter", "adapters"].contains(&section);
    let elsewhere = || {
        let sections = sections_of(key);
        if is_adapter && sections.contains(&"adapter") {
            return Some("it is a key of another tuner".to_owned());
        }
        let named: Vec<_> = sections.iter().map(|other| format!("[{other}]")).collect();
        (!named.is_empty()).then(|| format!("it stands in {}", named.join(" or ")))
    };
    let begun = || {
        let longer = known.iter().find(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('_')))?;
        Some(format!("did you mean `{longer}`?"))
    };
    let near = || nearest(key, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    here.or_else(begun).or_else(elsewhere).or_else(near).unwrap_or_else(|| {
        let parts: Vec<&str> = key.split('_').filter(|part| part.len() > 3).collect();
        let alike: Vec<&str> =
            known.iter().copied().filter(|known| parts.iter().any(|part| known.contains(part))).take(5).collect();
        match (known.len() <= SHORT, alike.is_empty()) {
            (true, _) => format!("known: {}", known.join(", ")),
            (false, false) => format!("keys of a similar name: {}", alike.join(", ")),
            (false, true) => format!("{} keys are known, none of a similar name: see the page on recipes", known.len()),
        }
    })
}

/// What is said of a section that recipes do not have, or of a key that stands outside of them all.
pub(super) fn section_hint(name: &str, known: &[&str]) -> String {
    if let [section] = sections_of(name).as_slice() {
        return format!("it is a key of [{section}] and has to stand below that line");
    }
    if let Some(section) = other_trainers::section(name) {
        return format!("did you mean [{section}]?");
    }
    match (other_trainers::key(name), nearest(name, known.iter().copied())) {
        (_, Some(near)) => format!("did you mean `{near}`?"),
        (Some(Here::Key(section, key)), None) => format!("it is `{key}` in [{section}]"),
        _ => format!("known: {}", known.join(", ")),
    }
}
