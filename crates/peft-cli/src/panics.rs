//! Panics of a device's runtime as errors: graphics runtimes have no other way to say that memory or a driver is missing.

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, PoisonError},
};

use crate::CliError;

/// Crates whose panics are about a device.
const RUNTIMES: [&str; 6] = ["cubecl", "wgpu", "burn-cuda", "burn-fusion", "burn-cubecl", "cudarc"];

/// What runtimes say where memory is short, in lower case.
const SHORT: [&str; 6] =
    ["out of memory", "outofmemory", "out_of_memory", "buffertoobig", "not enough memory", "out of device memory"];

/// What says that the system has no memory left for a thread or a mapping, or could not hold what was asked for at all.
const EXHAUSTED: [&str; 4] =
    ["capacity overflow", "failed to spawn thread", "threadpoolbuilderror", "cannot allocate memory"];

/// A panic of any thread.
#[derive(Debug, Clone)]
struct Panic {
    message: String,
    place: String,
}

static PANICS: Mutex<Vec<Panic>> = Mutex::new(Vec::new());

/// Runs a verb; a panic becomes an error. With `RUST_BACKTRACE` it is printed as usual, too.
pub(crate) fn caught(run: impl FnOnce() -> Result<(), CliError>) -> Result<(), CliError> {
    let usual = panic::take_hook();
    let shows = env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("without a message").to_owned();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(Panic { message, place });
        if shows {
            usual(info);
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result,
        // Another thread's panic comes first where this one's only follows from it.
        Err(_) => Err(error(&PANICS.lock().unwrap_or_else(PoisonError::into_inner))),
    }
}

fn error(panics: &[Panic]) -> CliError {
    let is_short = |panic: &&Panic| {
        let message = panic.message.to_lowercase();
        SHORT.iter().any(|word| message.contains(word))
    };
    let is_runtime = |panic: &&Panic| RUNTIMES.iter().any(|runtime| panic.place.contains(runtime));
    let first_line = |panic: &Panic| panic.message.lines().next().unwrap_or_default().to_owned();
    let is_exhausted = |panic: &&Panic| {
        let message = panic.message.to_lowercase();
        EXHAUSTED.iter().any(|word| message.contains(word))
    };
    if let Some(panic) = panics.iter().find(is_exhausted) {
        return CliError::Memory(first_line(panic));
    }
    if let Some(panic) = panics.iter().find(is_short) {
        return CliError::DeviceMemory(first_line(panic));
    }
    match (panics.iter().find(is_runtime), panics.first()) {
        (Some(panic), _) => CliError::DeviceFailed(first_line(panic)),
        (None, Some(panic)) => CliError::Internal(format!("{} at {}", first_line(panic), panic.place)),
        (None, None) => CliError::Internal("without a message".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panic(message: &str, place: &str) -> Panic {
        Panic { message: message.to_owned(), place: place.to_owned() }
    }

    #[test]
    fn panics_are_told_apart_by_what_they_say_and_where() {
        let registry = "/root/.cargo/registry/src/x/cubecl-runtime-0.11.3/src/client.rs:1:1";
        for (panics, code, says) in [
            (vec![panic("BufferTooBig { size: 9 }", registry)], 5, "--dry-run"),
            (vec![panic("wgpu error: Out of Memory\nmore", "x.rs:1:1")], 5, "smaller"),
            (vec![panic("receiver gone", "x.rs:1:1"), panic("device lost", registry)], 5, "device lost"),
            (vec![panic("index out of bounds", "crates/peft-train/src/x.rs:1:1")], 1, "x.rs:1:1"),
            (vec![panic("capacity overflow", "alloc/src/raw_vec.rs:1:1")], 5, "out of memory"),
            (vec![panic("failed to spawn thread: Os { code: 11 }", "x.rs:1:1")], 5, "out of memory"),
            (Vec::new(), 1, "without a message"),
        ] {
            let error = error(&panics);
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
