//! What the program writes, and what of the user's it leaves alone; what becomes of a training when its terminal goes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).canonicalize().unwrap()
}

/// A folder with a copy of the encoder of the examples, rows and a recipe.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        fs::create_dir(place.path("model")).unwrap();
        for entry in fs::read_dir(root("examples/models/tiny-encoder")).unwrap().flatten() {
            fs::copy(entry.path(), place.path("model").join(entry.file_name())).unwrap();
        }
        place.write("rows.tsv", "text\tlabel\na good film\tpos\nawful\tneg\nlovely and great\tpos\nso boring\tneg\n");
        let recipe = "[model]\nmodel_name_or_path = \"model\"\n\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"SEQ_CLS\"\nr = 2\n\
            target_modules = [\"query\"]\n\n[data]\ntrain = \"rows.tsv\"\n\n[training]\noutput_dir = \"out\"\nmax_steps = 2\n\
            per_device_train_batch_size = 2\nlogging_steps = 1\n";
        place.write("recipe.toml", recipe);
        place.write("full.toml", &recipe.replace("LORA", "FULL").replace("r = 2\ntarget_modules = [\"query\"]\n", ""));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command.current_dir(self.folder.path()).args(line.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn succeeds(&self, line: &str) {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", said(&output));
    }

    /// Refused as wrong usage, with what it says; everything in the folder stays as it was.
    fn refuses(&self, line: &str) -> String {
        let before = contents(self.folder.path());
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", said(&output));
        assert!(contents(self.folder.path()) == before, "{line} changed something");
        said(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.insert(path.clone(), Vec::new());
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

#[test]
fn training_into_the_models_own_folder_is_refused() {
    let place = Place::new();
    #[cfg(unix)]
    std::os::unix::fs::symlink(place.path("model"), place.path("link")).unwrap();
    for (recipe, output, says) in [
        ("full.toml", "model", "is the base model's own folder"),
        ("recipe.toml", "model", "is the base model's own folder"),
        ("full.toml", "model/../model", "is the base model's own folder"),
        #[cfg(unix)]
        ("full.toml", "link", "is the base model's own folder"),
        ("full.toml", ".", "holds the base model"),
    ] {
        for more in ["", "--dry-run"] {
            let message = place.refuses(&format!("train {recipe} training.output_dir={output} {more}"));
            assert!(message.contains(says) && message.contains("name another"), "{message}");
        }
    }
}

#[test]
fn training_into_a_folder_with_files_of_others_is_refused() {
    let place = Place::new();
    place.write("config/config.json", "{\"mine\": true}");
    place.write("python/checkpoint-7/trainer_state.json", "{\"global_step\": 7, \"log_history\": []}");
    place.write("adapter/adapter_config.json", "{}");
    place.write("card/README.md", "my card");
    place.write("recipe/recipe.toml", &fs::read_to_string(place.path("recipe.toml")).unwrap());
    place.write("tokenizer/tokenizer.json", "{}");
    place.write("pytorch/pytorch_model.bin", "");
    for (output, file) in [
        ("config", "config.json"),
        ("python", "checkpoint-7"),
        ("adapter", "adapter_config.json"),
        ("card", "README.md"),
        ("recipe", "recipe.toml"),
        ("tokenizer", "tokenizer.json"),
        ("pytorch", "pytorch_model.bin"),
    ] {
        for recipe in ["recipe.toml", "full.toml"] {
            let message = place.refuses(&format!("train {recipe} training.output_dir={output}"));
            assert!(message.contains(&format!("`{file}`")), "{message}");
        }
    }
    // What is not in the way stays.
    place.write("out/notes.txt", "mine");
    place.succeeds("train recipe.toml --quiet");
    let message = place.refuses("train full.toml");
    assert!(message.contains("a finished run of another kind"), "{message}");
    place.succeeds("train recipe.toml training.seed=3 --quiet");
    assert_eq!(fs::read_to_string(place.path("out/notes.txt")).unwrap(), "mine");
}

#[test]
fn a_model_card_that_somebody_wrote_on_is_not_replaced() {
    let place = Place::new();
    place.succeeds("train recipe.toml --quiet");
    place.write("out/README.md", "what this adapter is for");
    let message = place.refuses("train recipe.toml");
    assert!(message.contains("`README.md` changed"), "{message}");
    fs::rename(place.path("out/README.md"), place.path("card.md")).unwrap();
    place.succeeds("train recipe.toml --quiet");
    // A checkpoint with a file of somebody is not removed.
    place.succeeds("train recipe.toml training.save_steps=1 training.max_steps=3 --quiet");
    place.write("out/checkpoint-1/notes.txt", "mine");
    let message = place.refuses("train recipe.toml");
    assert!(message.contains("`checkpoint-1`"), "{message}");
}

const LLAMA: &str = "tests/golden/llama.CAUSAL_LM.default";

#[test]
fn merging_over_an_adapter_a_model_or_files_of_others_is_refused() {
    let place = Place::new();
    for folder in ["model", "adapter"] {
        fs::create_dir_all(place.path("llama").join(folder)).unwrap();
        for entry in fs::read_dir(root(LLAMA).join(folder)).unwrap().flatten() {
            fs::copy(entry.path(), place.path("llama").join(folder).join(entry.file_name())).unwrap();
        }
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(place.path("llama/model"), place.path("link")).unwrap();
    place.write("mine/config.json", "{}");
    let merge = |output: &str| format!("merge --model llama/model --adapter llama/adapter --output {output}");
    for (output, says) in [
        ("llama/adapter", "holds an adapter"),
        ("llama/model", "base model's own folder"),
        #[cfg(unix)]
        ("link", "base model's own folder"),
        ("llama", "holds the base model"),
        ("mine", "`config.json`"),
        ("model", "`config.json`"),
        ("model.gguf", "GGUF"),
        ("model.safetensors", "name a folder"),
        ("recipe.toml", "is a file"),
    ] {
        let message = place.refuses(&merge(output));
        assert!(message.contains(says), "{output}: {message}");
    }
    place.succeeds(&merge("merged"));
    let first = contents(&place.path("merged"));
    // What a killed merge leaves goes, what somebody put there stays.
    place.write("merged/.peft-a1B2c3.tmp", "half");
    place.write("merged/.peft-unfinished/model.safetensors", "half");
    place.write("merged/notes.txt", "mine");
    place.succeeds(&merge("merged"));
    let mut second = contents(&place.path("merged"));
    assert_eq!(second.remove(&place.path("merged/notes.txt")).unwrap(), b"mine");
    assert!(second == first, "{:?} {:?}", second.keys(), first.keys());
    let message = place.refuses("train recipe.toml training.output_dir=merged");
    assert!(message.contains("a result of `peft merge`"), "{message}");
}

#[test]
fn forward_does_not_write_over_what_it_reads_or_a_models_weights() {
    let place = Place::new();
    place.succeeds("train recipe.toml --quiet");
    let forward = |output: &str| {
        format!("forward --model model --adapter out --inputs out/adapter_model.safetensors --output {output}")
    };
    for (output, says) in [
        ("out/adapter_model.safetensors", "is what is read"),
        ("model/model.safetensors", "a file of a model"),
        ("rows.tsv", "no safetensors file"),
    ] {
        let message = place.refuses(&forward(output));
        assert!(message.contains(says), "{message}");
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        io::{BufRead, BufReader},
        os::unix::{fs::PermissionsExt, process::CommandExt},
    };

    use super::*;

    fn shell(place: &Place, line: &str) -> Output {
        let line = line.replace("peft ", &format!("{} ", env!("CARGO_BIN_EXE_peft")));
        Command::new("bash").args(["-c", &line]).current_dir(place.folder.path()).output().unwrap()
    }

    #[test]
    fn files_may_be_read_by_those_whom_the_umask_lets() {
        let place = Place::new();
        let output = shell(&place, "umask 077; peft train recipe.toml training.save_steps=1 --quiet");
        assert!(output.status.success(), "{}", said(&output));
        let all = contents(&place.path("out"));
        assert!(all.len() > 8, "{:?}", all.keys());
        for path in all.keys() {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
    }

    #[test]
    fn beyond_the_limit_of_file_size_there_is_an_error_and_nothing_half_written() {
        let place = Place::new();
        place.succeeds("train recipe.toml --quiet");
        let output = shell(&place, "ulimit -f 16; peft merge --model model --adapter out --output merged");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("merged") && !place.path("merged").exists(), "{}", said(&output));
        let train = "train full.toml training.output_dir=full training.save_steps=1 --quiet";
        let output = shell(&place, &format!("ulimit -f 1000; peft {train}"));
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let mut left = contents(&place.path("full")).into_keys();
        assert!(left.all(|path| !path.display().to_string().contains("checkpoint-")), "{}", said(&output));
        assert!(!place.path("full/.checkpoint-1").exists());
    }

    #[test]
    fn training_goes_on_when_nobody_reads_its_log() {
        let place = Place::new();
        let mut child = place.command("train recipe.toml training.max_steps=20").spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert!(child.wait().unwrap().success());
        assert!(place.path("out/adapter_model.safetensors").exists());
    }

    /// A long training, and the signal of a terminal that goes away when the first step was done.
    fn hung_up(place: &Place, more: &str, ignored: bool) -> Output {
        let mut command = place.command(&format!("train recipe.toml {more}"));
        if ignored {
            let line = format!("trap '' HUP; exec {} train recipe.toml {more}", env!("CARGO_BIN_EXE_peft"));
            command = Command::new("bash");
            command.args(["-c", &line]).current_dir(place.folder.path()).stderr(Stdio::piped());
        }
        let mut child = command.process_group(0).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap().contains("loss")));
        drop(lines);
        for _ in 0..2 {
            assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
        }
        child.wait_with_output().unwrap()
    }

    #[test]
    fn a_terminal_that_is_closed_ends_training_with_a_checkpoint() {
        let place = Place::new();
        let output = hung_up(&place, "training.max_steps=20000 training.save_steps=20000", false);
        assert_eq!(output.status.code(), Some(130));
        let checkpoints = contents(&place.path("out"));
        assert!(checkpoints.keys().any(|path| path.display().to_string().contains("/checkpoint-")), "{checkpoints:?}");
    }

    #[test]
    fn under_nohup_training_goes_on_to_its_end() {
        let place = Place::new();
        assert!(hung_up(&place, "training.max_steps=200", true).status.success());
        assert!(place.path("out/adapter_model.safetensors").exists());
    }
}
