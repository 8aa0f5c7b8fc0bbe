//! One side of one case of `benches/compare/compare.py`: reads the case, does it, prints what it came to as a line of JSON.
//!
//! `compare-side CASE.json`. A case is training with this library's adapters or with Burn's own `Lora` on the same model, or
//! generation. `benches/compare/python_side.py` reads the same cases.

mod burn_lora;
mod case;
mod generation;
mod training;

use std::{error::Error, fs, path::Path};

use case::Case;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("which case? compare-side CASE.json")?;
    let text = fs::read_to_string(Path::new(&path))?;
    let figures = match serde_json::from_str(&text)? {
        Case::Train(case) => serde_json::to_string(&training::run(&case)?)?,
        Case::Generate(case) => serde_json::to_string(&generation::run(&case)?)?,
    };
    print(&figures);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn print(line: &str) {
    println!("{line}");
}
