//! Every command of the documentation runs, and prints what the documentation shows.
//!
//! Blocks marked `sh`: lines that call `peft`, by its name or through `cargo run`. Blocks marked `console`: every line after
//! `$`, and the lines below it are its output, `…` for any number of lines.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// How the documentation calls the program where it is not installed.
const CARGO_RUN: &str = "cargo run --release -p peft-cli -- ";

/// Enough to see that training works.
const SHORT: &str = " training.max_steps=2 training.eval_steps=2";

struct Step {
    /// Where it stands, for messages.
    place: String,
    command: String,
    /// What it prints; none where the page does not show it.
    shown: Option<Vec<String>>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `README.md` and the book's pages in their order.
fn pages() -> Vec<PathBuf> {
    let book = root().join("docs/src");
    let summary = fs::read_to_string(book.join("SUMMARY.md")).unwrap();
    let named = summary.lines().filter_map(|line| line.split_once("](")?.1.strip_suffix(')'));
    std::iter::once(root().join("README.md")).chain(named.map(|page| book.join(page))).collect()
}

fn steps(page: &Path) -> Vec<Step> {
    let text = fs::read_to_string(page).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut block = None;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(language) = line.strip_prefix("```") {
            block = block.is_none().then_some(language);
            continue;
        }
        let step = |command: &str, shown| Step {
            place: format!("{}:{number}", page.display()),
            command: command.replace(CARGO_RUN, "peft "),
            shown,
        };
        match block {
            Some("sh") if line.starts_with("peft ") || line.starts_with(CARGO_RUN) => steps.push(step(line, None)),
            Some("console") => match line.strip_prefix("$ ") {
                Some(command) => steps.push(step(command, Some(Vec::new()))),
                None => steps.last_mut().unwrap().shown.as_mut().unwrap().push(line.to_owned()),
            },
            _ => {}
        }
    }
    steps
}

/// Whether the lines are those shown, `…` standing for any number of them.
fn matches(shown: &[String], printed: &[&str]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [gap, rest @ ..] if gap == "…" => (0..=printed.len()).any(|from| matches(rest, &printed[from..])),
        [line, rest @ ..] => {
            printed.split_first().is_some_and(|(first, left)| first.trim_end() == line && matches(rest, left))
        }
    }
}

fn is_training(command: &str) -> bool {
    command.starts_with("peft train ") && !command.contains("--dry-run")
}

fn shortened(command: &str) -> String {
    if is_training(command) { format!("{command}{SHORT}") } else { command.to_owned() }
}

#[test]
fn every_command_runs_and_prints_what_is_shown() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs");
    let _absent = fs::remove_dir_all(&place);
    let bin = place.join("bin");
    fs::create_dir_all(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_peft"), bin.join("peft")).unwrap();
    // What the commands write lands here and not in the repository.
    for folder in ["examples", "tests"] {
        symlink(root().join(folder), place.join(folder)).unwrap();
    }
    let path = env::join_paths([bin].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap()))).unwrap();

    let steps: Vec<Step> = pages().iter().flat_map(|page| steps(page)).collect();
    let trainings = steps.iter().filter(|step| is_training(&step.command)).count();
    assert!((1..=18).contains(&trainings), "{trainings} training commands: each costs seconds");
    assert!(steps.iter().filter(|step| step.shown.as_ref().is_some_and(|shown| !shown.is_empty())).count() >= 3);
    for Step { place: at, command, shown } in &steps {
        let mut shell = Command::new("sh");
        let output =
            shell.args(["-c", &shortened(command)]).current_dir(&place).env("PATH", &path).output().expect("sh runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{at}: {command}\n{errors}");
        let Some(shown) = shown else { continue };
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            matches(shown, &printed.lines().collect::<Vec<_>>()),
            "{at}: {command}\nprints\n{printed}\nnot\n{}",
            shown.join("\n")
        );
    }
}

#[test]
fn the_page_of_the_program_has_every_verb() {
    let text = fs::read_to_string(root().join("docs/src/program.md")).unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with("| verb | does |")).skip(2);
    let shown: Vec<&str> = table.map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect();

    let help = Command::new(env!("CARGO_BIN_EXE_peft")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What is further in is the second line of a summary.
    let verbs = verbs.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|verb| !verb.is_empty()));
    let verbs: Vec<&str> = verbs.filter(|verb| *verb != "help").collect();
    assert_eq!(shown, verbs);
}
