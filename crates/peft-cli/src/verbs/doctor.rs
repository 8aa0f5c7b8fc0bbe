//! `peft doctor`: what works on this machine and what does not.

use clap::Args;
use peft::{
    backends::{
        device::{self, is_host},
        ops::{SelfTest, self_test},
    },
    models::hub::Hub,
};
use serde_json::json;

use crate::{CliError, Globals, terminal};

/// Show devices, features and caches: what works here and what does not
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft doctor")]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let devices = device::report();
        let built_in = device::built_in();
        let absent: Vec<_> = ["wgpu", "cuda"].into_iter().filter(|b| !built_in.contains(b)).collect();
        let chosen = crate::session::device(globals)?;
        let tests = self_test(&chosen);
        let works = tests.iter().all(SelfTest::passes);
        let hub = Hub::from_env();
        let kernel_cache = device::kernel_cache();
        if globals.json {
            let hub = json!({
                "cache": hub.cache, "endpoint": hub.endpoint.to_string(), "offline": hub.offline, "token": hub.token.is_some(),
                "downloads": cfg!(feature = "hub"),
            });
            let rows: Vec<_> = devices
                .iter()
                .map(|d| {
                    json!({
                        "name": d.name, "kind": d.kind, "note": d.note, "works": d.works, "memory": d.memory, "driver": d.driver,
                        "compiles_for": d.compiles_for, "dtypes": d.dtypes, "cooperative_matrices": d.cooperative_matrices,
                    })
                })
                .collect();
            let tests: Vec<_> = tests.iter().map(test_as_json).collect();
            return terminal::json(&json!({
                "version": env!("CARGO_PKG_VERSION"), "backends": built_in, "devices": rows, "hub": hub,
                "kernel_cache": kernel_cache, "self_test": works, "operations": tests,
            }));
        }
        let mut lines = vec![format!("peft {}", env!("CARGO_PKG_VERSION")), "devices".to_owned()];
        lines.extend(devices.iter().map(|d| {
            let works = if d.works { "" } else { "DOES NOT WORK: " };
            let mut notes: Vec<String> = Some(d.note.clone()).into_iter().filter(|note| !note.is_empty()).collect();
            notes.extend(d.driver.as_ref().map(|driver| format!("driver {driver}")));
            notes.extend(d.memory.map(|bytes| format!("{} MB", bytes / 1_000_000)));
            notes.extend((!d.dtypes.is_empty()).then(|| d.dtypes.join(" ")));
            notes.extend(d.compiles_for.clone());
            notes.extend(
                (!d.cooperative_matrices.is_empty())
                    .then(|| format!("cooperative matrices: {}", d.cooperative_matrices.join(", "))),
            );
            format!("  {:<8} {works}{} ({})", d.name, d.kind, notes.join(", "))
        }));
        for backend in absent {
            lines.push(format!("  {backend:<8} not built in; cargo build --release -p peft-cli --features {backend}"));
        }
        lines.push(format!("hub cache  {}", hub.cache.display()));
        lines.push(format!("downloads  {}", downloads(&hub)));
        if built_in.iter().any(|backend| *backend != "cpu") {
            lines.push(match kernel_cache {
                // The self-test has just computed on it.
                Some(file) if !is_host(&chosen) && !file.is_file() => {
                    format!("kernels    could not be kept for the next run in {}", file.display())
                }
                Some(file) => format!("kernels    kept for the next run in {}", file.display()),
                None => {
                    "kernels    compiled and measured anew in each run; --features persistence keeps them".to_owned()
                }
            });
        }
        lines.push(format!("self-test  {}", summary(&tests)));
        lines.extend(tests.iter().filter(|test| !test.passes()).map(|test| match &test.found {
            Ok(off) => format!("  {:<24} WRONG: off by {off:.1e}, {:.0e} is allowed", test.operation, SelfTest::WITHIN),
            Err(reason) => format!("  {:<24} WRONG: {reason}", test.operation),
        }));
        terminal::result(lines.join("\n"))
    }
}

/// What came out of the operations' tests.
fn summary(tests: &[SelfTest]) -> String {
    let right = tests.iter().filter(|test| test.passes()).count();
    let most = tests.iter().filter_map(|test| test.found.as_ref().ok()).fold(0.0_f64, |most, off| most.max(*off));
    let all = tests.len();
    format!("{right}/{all} kernels pass (forward, backward; max error {most:.0e} against f64)")
}

fn test_as_json(test: &SelfTest) -> serde_json::Value {
    let (off, error) = (test.found.as_ref().ok(), test.found.as_ref().err());
    json!({ "operation": test.operation, "right": test.passes(), "off": off, "error": error })
}

/// Where models come from that are not on this machine.
fn downloads(hub: &Hub) -> String {
    if !cfg!(feature = "hub") {
        return "not built in; cargo build --release -p peft-cli --features hub".to_owned();
    }
    if hub.offline {
        return "off: HF_HUB_OFFLINE is set".to_owned();
    }
    let token = if hub.token.is_some() { "with a token" } else { "without a token; HF_TOKEN is for gated models" };
    format!("from {} ({token})", hub.endpoint)
}
