//! What the files beside `tokenizer.json` say of a tokenizer, merged as Transformers merges them.

use std::{collections::BTreeMap, path::Path};

use peft_core::{Error, Result, files::read_text};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// The main file.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The merged settings.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `tokenizer_config.json`; without `added_tokens_decoder` in it, `special_tokens_map.json` goes over it.
    pub(crate) config: Map<String, Value>,
    /// `config.json` of the model.
    pub(crate) model: Map<String, Value>,
    /// Tokens that are added to the vocabulary, in the order of the ids they had.
    pub(crate) added: Vec<(u64, AddedToken)>,
}

impl Settings {
    /// Reads the files of a folder; all of them may be missing.
    ///
    /// # Errors
    /// [`Error::File`] if one of them is broken.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self> {
        let object = |name: &str| optional_object(&folder.join(name));
        let (config, model) = (object(TOKENIZER_CONFIG)?, object("config.json")?);
        let mut settings = Self { config, model, added: Vec::new() };
        let wrong = |name: &str, problem: String| Error::File { path: folder.join(name), problem };
        settings.name_additional();
        if let Some(decoder) = settings.config.get("added_tokens_decoder") {
            let decoder = decoder.as_object().cloned().unwrap_or_default();
            for (id, value) in decoder {
                let found = id.parse().ok().zip(token(&value, false));
                let problem = || format!("`added_tokens_decoder`: {id} should be an id with a token");
                settings.added.push(found.ok_or_else(|| wrong(TOKENIZER_CONFIG, problem()))?);
            }
        } else {
            settings
                .config
                .extend(object("special_tokens_map.json")?.into_iter().filter(|(_, value)| !value.is_null()));
            settings.name_additional();
            let special: Vec<String> = settings.special_texts();
            for (content, id) in object("added_tokens.json")? {
                let problem = || format!("{content}: should be an id");
                let id = id.as_u64().ok_or_else(|| wrong("added_tokens.json", problem()))?;
                let is_special = special.contains(&content);
                settings.added.push((id, AddedToken::from(content, is_special).normalized(!is_special)));
            }
        }
        settings.added.sort_by_key(|(id, _)| *id);
        Ok(settings)
    }

    /// `additional_special_tokens` is the older name of `extra_special_tokens`.
    fn name_additional(&mut self) {
        let is_empty = |value: &Value| match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => true,
        };
        if self.config.get("extra_special_tokens").is_none_or(is_empty)
            && let Some(additional) = self.config.remove("additional_special_tokens")
        {
            self.config.insert("extra_special_tokens".to_owned(), additional);
        }
    }

    /// A switch that is not null.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key).and_then(Value::as_bool)
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    /// Whether the token of a role is named, or said not to be there.
    pub(crate) fn names_role(&self, role: &str) -> bool {
        self.config.contains_key(role)
    }

    /// The token of a role.
    pub(crate) fn role(&self, role: &str) -> Option<AddedToken> {
        let named = token(self.config.get(role)?, true)?;
        let known = self.added.iter().find(|(_, token)| token.content == named.content);
        Some(AddedToken { special: true, ..known.map_or(named, |(_, token)| token.clone()) })
    }

    /// Special tokens of roles that only this model has, such as `image_token`.
    pub(crate) fn own_roles(&self) -> Vec<AddedToken> {
        let own = self.config.iter().filter(|(key, value)| {
            key.ends_with("_token") && !super::ROLES.contains(&key.as_str()) && value.is_string()
        });
        let named = match self.config.get("extra_special_tokens") {
            Some(Value::Object(named)) => named.values().filter_map(|value| token(value, true)).collect(),
            _ => Vec::new(),
        };
        own.filter_map(|(_, value)| token(value, true)).chain(named).collect()
    }

    /// `extra_special_tokens` as a list; none if nothing says so.
    pub(crate) fn extra(&self) -> Option<Vec<AddedToken>> {
        let value = self.config.get("extra_special_tokens")?;
        Some(value.as_array().into_iter().flatten().filter_map(|value| token(value, true)).collect())
    }

    fn special_texts(&self) -> Vec<String> {
        let roles = super::ROLES.iter().filter_map(|role| self.role(role));
        roles.chain(self.extra().unwrap_or_default()).map(|token| token.content).collect()
    }
}

/// A token as the files write it: a text, or an object with its flags.
pub(crate) fn token(value: &Value, special: bool) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), special)),
        Value::Object(object) => {
            let flag = |key: &str| object.get(key).and_then(Value::as_bool);
            let special = flag("special").unwrap_or(special);
            let token = AddedToken::from(object.get("content")?.as_str()?, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false));
            Some(token.normalized(flag("normalized").unwrap_or(!special)))
        }
        _ => None,
    }
}

/// The id of a role in a model's configuration; the first of several, none if it is negative.
pub(crate) fn id_of_role(model: &Map<String, Value>, key: &str) -> Option<u32> {
    let value = model.get(key)?;
    let first = value.as_array().and_then(|ids| ids.first()).unwrap_or(value);
    first.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The JSON object in a file; an empty one if there is no such file.
pub(crate) fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = read_text(path, "a tokenizer file")?;
    serde_json::from_str(&text)
        .map_err(|e| Error::File { path: path.to_owned(), problem: format!("not a JSON object: {e}") })
}

/// Tokens by the ids they had, without those that come twice.
pub(crate) fn by_id(tokens: &[(u64, AddedToken)]) -> BTreeMap<u64, &str> {
    tokens.iter().map(|(id, token)| (*id, token.content.as_str())).collect()
}
