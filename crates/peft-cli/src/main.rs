//! The program `peft`: fine-tune, explain, evaluate, merge. One file a verb.

mod error;
mod generation_args;
mod panics;
mod printable;
mod quantization_args;
mod recipe_options;
mod session;
mod terminal;
mod verbs;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub(crate) use error::CliError;

#[global_allocator]
static ALLOCATOR: peft::backends::ExitWhenOutOfMemory = peft::backends::ExitWhenOutOfMemory;

/// Parameter-efficient fine-tuning: adapters in the files of Hugging Face PEFT, on Burn.
#[derive(Debug, Parser)]
#[command(name = "peft", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    globals: Globals,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// Print one machine-readable document on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Where to compute: cpu, wgpu, wgpu:N, cuda or cuda:N; the best that this build has when absent.
    #[arg(long, global = true, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Type of the base model's weights: f32, bf16 or f16.
    #[arg(long, global = true, value_name = "DTYPE")]
    pub(crate) dtype: Option<String>,
    /// Errors and results only.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Train(verbs::train::Train),
    Eval(verbs::eval::Eval),
    Predict(verbs::predict::Predict),
    Generate(verbs::generate::Generate),
    Explain(verbs::explain::Explain),
    Forward(verbs::forward::Forward),
    Merge(verbs::merge::Merge),
    Inspect(verbs::inspect::Inspect),
    Plugins(verbs::plugins::Plugins),
    Doctor(verbs::doctor::Doctor),
    Data(verbs::data::Data),
}

fn main() -> ExitCode {
    peft::backends::memory::keep_freed();
    peft::backends::signals::fail_beyond_the_file_size_limit();
    let Cli { verb, globals } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
            let Some(problem) = recipe_options::explain(&error, &arguments) else { error.exit() };
            let error = CliError::Usage(problem);
            terminal::error(&error);
            return ExitCode::from(error.exit_code());
        }
    };
    let done = panics::caught(|| match verb {
        Verb::Train(verb) => verb.run(&globals),
        Verb::Eval(verb) => verb.run(&globals),
        Verb::Predict(verb) => verb.run(&globals),
        Verb::Generate(verb) => verb.run(&globals),
        Verb::Explain(verb) => verb.run(&globals),
        Verb::Forward(verb) => verb.run(&globals),
        Verb::Merge(verb) => verb.run(&globals),
        Verb::Inspect(verb) => verb.run(&globals),
        Verb::Plugins(verb) => verb.run(&globals),
        Verb::Doctor(verb) => verb.run(&globals),
        Verb::Data(verb) => verb.run(&globals),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
