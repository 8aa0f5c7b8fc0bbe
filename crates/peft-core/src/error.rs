//! What can go wrong, said so that the reader of the message can mend it.

use std::path::PathBuf;

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the library: what was asked, what was found, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plugin was asked for by a name that nothing linked into the program has.
    #[error("unknown {kind} `{name}` (linked into this program: {linked})")]
    UnknownPlugin {
        /// `tuner`, `task` or `architecture`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names that would be found, comma separated.
        linked: String,
    },
    /// Two crates registered plugins of one kind under one name.
    #[error("two {kind} plugins are named `{name}`: link only one of the crates that register it")]
    DuplicatePlugin {
        /// `tuner`, `task` or `architecture`.
        kind: &'static str,
        /// The name they share.
        name: String,
    },
    /// A configuration value that cannot be used.
    #[error("{origin}: {}{problem}", if key.is_empty() { String::new() } else { format!("`{key}`: ") })]
    Config {
        /// The file, or `adapter configuration` for one built in memory.
        origin: String,
        /// The key that holds the value; empty where it is about the whole.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// What a file asks for cannot be done.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What cannot be done.
        error: Box<Error>,
    },
    /// A file or folder that does not exist.
    #[error("{}: not found ({what})", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// What it should have been.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A folder or file that must not be written to.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A file whose contents are broken.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is broken.
        problem: String,
    },
    /// Data given to a model that it cannot take.
    #[error("{0}")]
    Data(String),
    /// The task asks for a head that the base model's architecture does not have.
    #[error("the task needs {class}, which {model_type} does not have (it has {has})")]
    NoSuchHead {
        /// The architecture.
        model_type: String,
        /// The head asked for.
        class: String,
        /// The heads there are.
        has: String,
    },
    /// The target rules select nothing.
    #[error("{0}")]
    NothingTargeted(String),
    /// A target rule selects a module that the tuner cannot adapt.
    #[error("target module `{module}` is a {kind}, which {tuner} cannot adapt (it adapts {supported})")]
    UnsupportedModule {
        /// The module's dotted name.
        module: String,
        /// What it is.
        kind: String,
        /// The tuner.
        tuner: String,
        /// What would be accepted.
        supported: String,
    },
    /// Tensors in a file and slots in the model that do not correspond.
    #[error("{origin} does not fit the model:\n  {}", listed(problems))]
    Tensors {
        /// The file or folder.
        origin: String,
        /// One line for each tensor that does not land and each slot that stays empty.
        problems: Vec<String>,
    },
    /// An operation on adapters that cannot be done in the present state.
    #[error("{0}")]
    Adapter(String),
    /// A merge that would write values that are not finite.
    #[error(
        "not-finite values in the merged `{parameter}`: adapter `{adapter}` seems to be broken; nothing was merged"
    )]
    NotFinite {
        /// The parameter of the base model.
        parameter: String,
        /// The adapter.
        adapter: String,
    },
    /// A model that computes values that are not finite, of which nothing can be told.
    #[error(
        "`{output}` is not finite (NaN or infinity): weights of the model or of an adapter are broken, or half precision \
         overflows (bf16 and f32 reach further than f16)"
    )]
    NotFiniteOutput {
        /// The output, or what was made of it.
        output: String,
    },
}

impl Error {
    /// A configuration error about a value that was not read from a file.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { origin: "adapter configuration".to_owned(), key: key.into(), problem: problem.into() }
    }

    /// The same error, saying which file the configuration came from.
    #[must_use]
    pub fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::Config { key, problem, .. } => Self::Config { origin: path.display().to_string(), key, problem },
            Self::UnknownPlugin { .. }
            | Self::NoSuchHead { .. }
            | Self::NothingTargeted(_)
            | Self::UnsupportedModule { .. } => Self::InFile { path: path.to_owned(), error: Box::new(self) },
            other => other,
        }
    }

    /// The same error, saying which key names the plugin that is not there.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        match self {
            Self::UnknownPlugin { .. } => Self::config(key, self.to_string()),
            other => other,
        }
    }

    /// The exit code that a program ends with on this error (see `docs/`, "Exit codes").
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InFile { error, .. } => error.exit_code(),
            Self::UnknownPlugin { .. }
            | Self::DuplicatePlugin { .. }
            | Self::Config { .. }
            | Self::Output { .. }
            | Self::Adapter(_) => 2,
            Self::File { .. } | Self::Data(_) => 3,
            Self::NoSuchHead { .. }
            | Self::NothingTargeted(_)
            | Self::UnsupportedModule { .. }
            | Self::Tensors { .. } => 4,
            Self::NotFound { .. } => 6,
            Self::NotFinite { .. } | Self::NotFiniteOutput { .. } => 7,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => 5,
            Self::Io { .. } => 1,
        }
    }
}

/// What a file or a user gave, for a message: the beginning of what is long.
pub fn quoted(value: impl std::fmt::Display) -> String {
    /// Characters that a message repeats.
    const MOST: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => {
            format!("{}… ({} characters)", text.get(..end).unwrap_or_default(), text.chars().count())
        }
        None => text,
    }
}

/// The first of many problems, and how many there are.
fn listed(problems: &[String]) -> String {
    /// Problems that a message lists.
    const MOST: usize = 12;
    let mut lines: Vec<String> = problems.iter().take(MOST).map(quoted).collect();
    if let Some(left) = problems.len().checked_sub(MOST).filter(|left| *left > 0) {
        lines.push(format!("… and {left} more, {} in all", problems.len()));
    }
    lines.join("\n  ")
}

/// Characters of the longest word that is compared with those that are known.
const LONGEST_WORD: usize = 200;

/// The entry of `known` that `word` was probably meant to be, if one is near enough.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // No word that is known is nearly as long, and the distance takes the product of both lengths.
    let short = (word.len() <= LONGEST_WORD).then_some(word)?;
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(short, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(short.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// A message of serde's with the words of a user for what it expected, in place of Rust's types.
pub fn plain_types(message: &str) -> String {
    const TYPES: [(&str, &str); 10] = [
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected a text"),
        ("expected a sequence", "expected a list"),
    ];
    TYPES.iter().fold(message.to_owned(), |message, (rust, plain)| message.replace(rust, plain))
}
