//! Chat templates: a tokenizer's own Jinja, rendered as Transformers renders it.

mod filters;
mod generation;
mod json;
mod limits;
mod methods;
mod repr;
mod strftime;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, syntax::SyntaxConfig};
use peft_core::{
    Error, Result,
    data::chat::{Conversation, RenderedChat},
    files::read_text,
};
use serde_json::{Map, Value};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// The file of the template, and the folder of those that have other names.
pub(crate) const FILE: &str = "chat_template.jinja";
pub(crate) const FOLDER: &str = "additional_chat_templates";
/// What a message's reasoning is called. The first that is there counts; templates read the first two.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// How many letters of a problem are shown: a template may put a whole conversation into its message.
const MOST_SHOWN: usize = 400;
/// How long a template may take the first time.
const FIRST_TIME: Duration = Duration::from_secs(8);

/// The chat templates of a tokenizer.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    templates: BTreeMap<String, Named>,
    /// `bos_token`, `eos_token` and their like.
    special_tokens: Map<String, Value>,
}

/// One of them.
#[derive(Debug)]
struct Named {
    /// Its file, if it has one.
    origin: Option<PathBuf>,
    /// Whether it marks what the assistant wrote.
    marks_generation: bool,
    /// Why it is none; told when it is first needed, because a tokenizer is of use without it.
    broken: Option<String>,
    /// Whether it came to an end once.
    has_ended: AtomicBool,
}

impl ChatTemplate {
    /// One template under the name `default`.
    pub(crate) fn new(source: &str, special_tokens: Map<String, Value>) -> Self {
        Self::named([(DEFAULT.to_owned(), source.to_owned(), None)], special_tokens)
    }

    /// The templates of a folder: `chat_template.jinja` and `additional_chat_templates/`, else `chat_template` of
    /// `tokenizer_config.json`, which is one or a list of named ones; none if there is none of these.
    pub(crate) fn of_folder(
        folder: &Path,
        config: Option<&Value>,
        special_tokens: Map<String, Value>,
    ) -> Result<Option<Self>> {
        let mut named = Vec::new();
        let default = folder.join(FILE);
        for (name, path) in
            default.exists().then(|| (DEFAULT.to_owned(), default)).into_iter().chain(additional(folder))
        {
            named.push((name, read_text(&path, "a chat template")?, Some(path)));
        }
        if !named.is_empty() {
            return Ok(Some(Self::named(named, special_tokens)));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let path = folder.join("tokenizer_config.json");
        let unfit = || Error::File {
            path: path.clone(),
            problem: "`chat_template` should be text, or a list of objects with `name` and `template`".to_owned(),
        };
        let named: Option<Vec<_>> = match config {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => Some(vec![(DEFAULT.to_owned(), source.clone(), Some(path.clone()))]),
            Some(Value::Array(list)) => list
                .iter()
                .map(|one| Some((text(one.get("name")?)?, text(one.get("template")?)?, Some(path.clone()))))
                .collect(),
            Some(_) => None,
        };
        Ok(Some(Self::named(named.ok_or_else(unfit)?, special_tokens)))
    }

    fn named(
        sources: impl IntoIterator<Item = (String, String, Option<PathBuf>)>,
        special_tokens: Map<String, Value>,
    ) -> Self {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(repr::print);
        filters::add_to(&mut environment);
        environment.add_filter(generation::FILTER, generation::mark);
        environment.add_function("raise_exception", filters::raise_exception);
        environment.add_function("strftime_now", strftime::strftime_now);
        let mut templates = BTreeMap::new();
        for (name, source, origin) in sources {
            // Jinja reads every end of a line as a line feed.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let (source, marks_generation) = generation::as_filter(&source);
            let added = limits::check_source(&source)
                .and_then(|()| environment.add_template_owned(name.clone(), source).map_err(|error| described(&error)));
            templates.insert(
                name,
                Named { origin, marks_generation, broken: added.err(), has_ended: AtomicBool::new(false) },
            );
        }
        Self { environment, templates, special_tokens }
    }

    /// The text of a conversation.
    pub(crate) fn render(&self, conversation: &Conversation<'_>) -> Result<RenderedChat> {
        let has = |name: &&str| self.templates.contains_key(*name);
        let tool_use = conversation.tools.map(|_| TOOL_USE).filter(has);
        let Some((name, template)) = tool_use.or(Some(DEFAULT)).and_then(|name| self.templates.get_key_value(name))
        else {
            let names: Vec<&str> = self.templates.keys().map(String::as_str).collect();
            let names = names.join(", ");
            return Err(Error::Data(format!(
                "no chat template of the model is called `{DEFAULT}` (there are: {names})"
            )));
        };
        let origin = template.origin.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
        if let Some(broken) = &template.broken {
            return Err(Error::Data(format!("the chat template{origin} is broken: {}", shown(broken))));
        }
        let failed = |error: JinjaError| {
            let place = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
            Error::Data(match error.kind() {
                ErrorKind::OutOfFuel => format!(
                    "the chat template{origin} does not come to an end{place}: it takes more time or memory than a conversation of this length needs"
                ),
                _ => {
                    format!("the chat template{origin} refuses the conversation{place}: {}", shown(&described(&error)))
                }
            })
        };
        let mut variables = self.special_tokens.clone();
        variables.insert("messages".to_owned(), conversation.messages.iter().map(offered).collect());
        variables.insert("tools".to_owned(), conversation.tools.cloned().unwrap_or_default());
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), conversation.add_generation_prompt.into());
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(limits::fuel(conversation.messages, conversation.tools)));
        let text = if template.has_ended.load(Ordering::Relaxed) {
            render(&environment, name, &variables)
        } else {
            let rendered = render_for_the_first_time(environment, name.clone(), variables);
            template.has_ended.store(true, Ordering::Relaxed);
            rendered
        };
        let text = text.map_err(failed)?;
        Ok(generation::unmarked(&text, template.marks_generation))
    }
}

fn render(environment: &Environment<'_>, name: &str, variables: &Map<String, Value>) -> Result<String, JinjaError> {
    environment.get_template(name)?.render(minijinja::Value::from(minijinja::value::Serde(variables)))
}

/// Renders on a thread that is left to itself if it does not end: MiniJinja takes no steps for lists that are added to
/// each other, or are compared, and a template that doubles one does so for any conversation.
fn render_for_the_first_time(
    environment: Environment<'static>,
    name: String,
    variables: Map<String, Value>,
) -> Result<String, JinjaError> {
    let (done, result) = mpsc::channel();
    let run = move || _ = done.send(render(&environment, &name, &variables));
    let failed = |problem: String| JinjaError::new(ErrorKind::InvalidOperation, problem);
    thread::Builder::new().name("chat template".to_owned()).spawn(run).map_err(|error| failed(error.to_string()))?;
    match result.recv_timeout(FIRST_TIME) {
        Ok(rendered) => rendered,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(JinjaError::from(ErrorKind::OutOfFuel)),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed("it broke the template engine".to_owned())),
    }
}

/// Whether a file of a repository is a template with a name of its own.
pub(crate) fn is_additional(path: &str) -> bool {
    let name = path.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/'));
    name.and_then(|name| name.strip_suffix(".jinja")).is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

/// The templates in a folder of their own, by their names.
pub(crate) fn additional(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten().map(|entry| entry.path());
    // A link whose blob was deleted is no file.
    let files = entries.filter(|path| path.extension().is_some_and(|end| end == "jinja") && path.is_file());
    let mut found: Vec<_> = files.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))).collect();
    found.sort();
    found
}

/// The message as Transformers gives it to templates: without what is null, and with its reasoning under both names that
/// they read.
fn offered(message: &Value) -> Value {
    let Some(fields) = message.as_object() else { return message.clone() };
    let fields: Map<String, Value> = fields.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return Value::Object(fields);
    };
    let mut with = Map::new();
    with.insert("thinking".to_owned(), reasoning.clone());
    with.extend(fields);
    with.insert("reasoning_content".to_owned(), reasoning);
    Value::Object(with)
}

/// What went wrong, without MiniJinja's names for it where the template itself said it.
fn described(error: &JinjaError) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    }
}

/// A problem as it may be shown: not too long, and without what talks to the terminal.
fn shown(problem: &str) -> String {
    let mut letters = problem.chars().filter(|letter| !letter.is_control() || *letter == '\n');
    let start: String = letters.by_ref().take(MOST_SHOWN).collect();
    if letters.next().is_some() { start + "…" } else { start }
}
