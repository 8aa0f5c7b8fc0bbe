//! Chat templates: a tokenizer's own Jinja, rendered as Transformers renders it.

mod generation;
mod python;

use std::{collections::BTreeMap, path::Path};

use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;
use peft_core::{
    Error, Result,
    chat::{Conversation, RenderedChat},
    files::read_text,
};
use serde_json::{Map, Value};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The chat templates of a tokenizer.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether the template marks what the assistant wrote, by the template's name.
    marks_generation: BTreeMap<String, bool>,
    /// `bos_token`, `eos_token` and their like.
    special_tokens: Map<String, Value>,
    /// Why the template is none; told when it is first needed, because a tokenizer is of use without it.
    broken: Option<String>,
}

impl ChatTemplate {
    /// One template under the name `default`.
    pub(crate) fn new(source: &str, special_tokens: Map<String, Value>) -> Self {
        Self::named([(DEFAULT.to_owned(), source.to_owned())], special_tokens)
    }

    /// The templates of a folder: `chat_template.jinja` and `additional_chat_templates/`, else `chat_template` of
    /// `tokenizer_config.json`, which is one or a list of named ones; none if there is none of these.
    pub(crate) fn of_folder(
        folder: &Path,
        config: Option<&Value>,
        special_tokens: Map<String, Value>,
    ) -> Result<Option<Self>> {
        let file = folder.join("chat_template.jinja");
        if file.exists() {
            let mut named = vec![(DEFAULT.to_owned(), read_text(&file, "a chat template")?)];
            let tools = folder.join("additional_chat_templates").join(format!("{TOOL_USE}.jinja"));
            if tools.exists() {
                named.push((TOOL_USE.to_owned(), read_text(&tools, "a chat template")?));
            }
            return Ok(Some(Self::named(named, special_tokens)));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let unfit = || Error::File {
            path: folder.join("tokenizer_config.json"),
            problem: "`chat_template` should be text, or a list of objects with `name` and `template`".to_owned(),
        };
        let named: Option<Vec<_>> = match config {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => Some(vec![(DEFAULT.to_owned(), source.clone())]),
            Some(Value::Array(list)) => {
                list.iter().map(|one| text(one.get("name")?).zip(text(one.get("template")?))).collect()
            }
            Some(_) => None,
        };
        Ok(Some(Self::named(named.ok_or_else(unfit)?, special_tokens)))
    }

    fn named(templates: impl IntoIterator<Item = (String, String)>, special_tokens: Map<String, Value>) -> Self {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        environment.add_filter(generation::FILTER, generation::mark);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        let (mut marks_generation, mut broken) = (BTreeMap::new(), None);
        for (name, source) in templates {
            let (source, marks) = generation::as_filter(&source);
            if let Err(error) = environment.add_template_owned(name.clone(), source) {
                broken = Some(format!("the chat template is broken: {error}"));
            }
            marks_generation.insert(name, marks);
        }
        Self { environment, marks_generation, special_tokens, broken }
    }

    /// The text of a conversation.
    pub(crate) fn render(&self, conversation: &Conversation<'_>) -> Result<RenderedChat> {
        if let Some(broken) = &self.broken {
            return Err(Error::Data(broken.clone()));
        }
        let has = |name: &str| self.marks_generation.contains_key(name);
        let name = if conversation.tools.is_some() && has(TOOL_USE) || !has(DEFAULT) { TOOL_USE } else { DEFAULT };
        let failed = |error: JinjaError| {
            let place = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
            let problem = match error.kind() {
                ErrorKind::InvalidOperation => error.detail().map_or_else(|| error.to_string(), str::to_owned),
                _ => error.to_string(),
            };
            Error::Data(format!("the chat template refuses the conversation{place}: {problem}"))
        };
        let mut variables = self.special_tokens.clone();
        variables.insert("messages".to_owned(), conversation.messages.into());
        variables.insert("tools".to_owned(), conversation.tools.cloned().unwrap_or_default());
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), conversation.add_generation_prompt.into());
        let template = self.environment.get_template(name).map_err(failed)?;
        let text = template.render(minijinja::Value::from(minijinja::value::Serde(&variables))).map_err(failed)?;
        let marks = self.marks_generation.get(name).copied().unwrap_or(false);
        Ok(generation::unmarked(&text, marks))
    }
}

fn raise_exception(message: String) -> Result<String, JinjaError> {
    Err(JinjaError::new(ErrorKind::InvalidOperation, message))
}
