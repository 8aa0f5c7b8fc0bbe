//! `peft plugins`: what is linked into this program.

use clap::Args;
use peft::{ArchitecturePlugin, TaskPlugin, TunerPlugin, plugins::registry::plugins};
use serde_json::json;

use crate::{CliError, Globals, terminal};

/// List the tasks, tuners, architectures and backends linked into this program
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft plugins --json")]
pub(crate) struct Plugins {}

impl Plugins {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let tasks = plugins::<TaskPlugin>();
        let tuners = plugins::<TunerPlugin>();
        let architectures = plugins::<ArchitecturePlugin>();
        let backends = peft::backends::device::built_in();
        if globals.json {
            let task = |t: &&TaskPlugin| {
                json!({
                    "name": t.name, "wrapper": t.wrapper, "auto_class": t.auto_class.as_str(), "heads": t.heads,
                    "num_transformer_submodules": t.num_transformer_submodules, "summary": t.summary,
                })
            };
            let architecture = |a: &&ArchitecturePlugin| {
                let classes: Vec<_> = a.classes.iter().map(|c| c.as_str()).collect();
                json!({ "name": a.name, "classes": classes, "summary": a.summary })
            };
            return terminal::json(&json!({
                "tasks": tasks.iter().map(task).collect::<Vec<_>>(),
                "tuners": tuners.iter().map(|t| json!({ "name": t.name, "summary": t.summary })).collect::<Vec<_>>(),
                "architectures": architectures.iter().map(architecture).collect::<Vec<_>>(),
                "backends": backends,
            }));
        }
        let mut lines = vec!["tasks".to_owned()];
        for t in tasks {
            let heads =
                if t.heads.is_empty() { "no head".to_owned() } else { format!("trains {}", t.heads.join(", ")) };
            lines.push(format!("  {:<19} {} ({heads})", t.name, t.wrapper));
        }
        lines.push("  (none)              PeftModel, the default wrapper: forwards, no head, no loss".to_owned());
        lines.push("tuners".to_owned());
        lines.extend(tuners.iter().map(|t| format!("  {:<19} {}", t.name, t.summary)));
        lines.push("architectures".to_owned());
        lines.extend(architectures.iter().map(|a| format!("  {:<19} {}", a.name, a.summary)));
        lines.push("backends".to_owned());
        lines.extend(backends.iter().map(|b| format!("  {b}")));
        terminal::result(lines.join("\n"))
    }
}
