//! Terminal manners: results on stdout, everything else on stderr. Nothing ends because nobody is there to read it.

use std::{
    error::Error,
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use peft::train::{Event, Observer};
use serde::Serialize;

use crate::{
    CliError, Globals,
    printable::{message, printable},
};

/// Prints an error and its causes.
pub(crate) fn error(error: &CliError) {
    say(&message(&format!("error: {error}")));
    let mut source = error.source();
    while let Some(cause) = source {
        say(&format!("  caused by: {}", message(&cause.to_string())));
        source = cause.source();
    }
}

/// Prints a remark that is no result.
pub(crate) fn note(globals: &Globals, text: impl Display) {
    if !globals.quiet {
        say(&message(&text.to_string()));
    }
}

/// Writes a line to stderr, lost if it cannot be written: the terminal was closed, or a pipe's reader has seen enough.
fn say(line: &str) {
    let _lost = writeln!(io::stderr().lock(), "{line}");
}

/// Prints a result for a person, in which control characters of files are shown and do not act.
pub(crate) fn result(text: impl Display) -> Result<(), CliError> {
    verbatim(printable(&text.to_string()))
}

/// Prints a result as it is: JSON, or the words of a model. A reader that went away is no failure.
pub(crate) fn verbatim(text: impl Display) -> Result<(), CliError> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if !is_gone(&error) => Err(CliError::Stdout(error)),
        _ => Ok(()),
    }
}

/// Whether nobody can read what was to be written: a pipe without a reader, a terminal that was closed.
fn is_gone(error: &io::Error) -> bool {
    /// `EIO`, which has no name in the standard library.
    const INPUT_OUTPUT: i32 = 5;
    error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(INPUT_OUTPUT) && !is_file(&io::stdout())
}

/// Whether a stream was sent into a file, whose errors are those of a disk.
#[cfg(unix)]
fn is_file(stream: &impl std::os::fd::AsFd) -> bool {
    let file = stream.as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|found| found.is_file())
}

#[cfg(not(unix))]
fn is_file(_stream: &io::Stdout) -> bool {
    true
}

/// Prints a machine-readable result on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::Stdout(error.into()))?;
    verbatim(text)
}

/// Lets ctrl-C end the program behind a whole line of results, with code 130.
pub(crate) fn end_between_lines_on_ctrl_c() -> Result<(), CliError> {
    let handler = || {
        // Whoever writes a line holds the lock until it is out.
        let mut stdout = io::stdout().lock();
        // A reader that went away is no reason to stay.
        _ = stdout.flush();
        std::process::exit(130);
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::Usage(format!("cannot listen for ctrl-C: {error}")))
}

/// Shows remarks, and nothing of progress.
pub(crate) struct Notes<'a>(pub(crate) &'a Globals);

impl Observer for Notes<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Note(remark) = event {
            note(self.0, format!("note: {remark}"));
        }
    }
}
