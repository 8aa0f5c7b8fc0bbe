//! Devices that are missing, and what a run would take of the one that is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap()
}

/// Runs the program where no driver can be found, of Vulkan or of OpenGL, which WGPU falls back on.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    let drivers = [
        "VK_ICD_FILENAMES",
        "VK_DRIVER_FILES",
        "__EGL_VENDOR_LIBRARY_FILENAMES",
        "__EGL_VENDOR_LIBRARY_DIRS",
        "LIBGL_DRIVERS_PATH",
    ];
    command.envs(drivers.map(|variable| (variable, "/nonexistent"))).env_remove("RUST_BACKTRACE");
    command.current_dir(folder).args(arguments).output().unwrap()
}

fn recipe(folder: &Path) {
    let (model, data) = (examples().join("models/tiny-encoder"), examples().join("data/vader-sentiment/train.tsv"));
    let rows: Vec<String> = fs::read_to_string(data).unwrap().lines().take(40).map(str::to_owned).collect();
    fs::write(folder.join("train.tsv"), rows.join("\n") + "\n").unwrap();
    let recipe = format!(
        "[model]\nmodel_name_or_path = \"{}\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"SEQ_CLS\"\nr = 4\n\
         [data]\ntrain = \"train.tsv\"\nmax_length = 32\noverflow = \"truncate\"\n\
         [training]\noutput_dir = \"out\"\nmax_steps = 2\nper_device_train_batch_size = 4\n",
        model.display()
    );
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    recipe(folder.path());
    for device in ["wgpu", "cuda"] {
        let built_in = peft::backends::device::built_in().contains(&device);
        let (code, says) = if built_in { (5, "does not work here") } else { (2, "--features") };
        for verb in [&["train", "recipe.toml"][..], &["doctor"]] {
            let output = run(folder.path(), &[verb, &["--device", device]].concat());
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{device} {verb:?}: {errors}");
            assert!(errors.starts_with("error: ") && errors.contains(says), "{errors}");
            assert!(!errors.contains("panicked") && !errors.contains("backtrace"), "{errors}");
        }
    }
}

#[test]
fn a_dry_run_says_what_the_run_would_take() {
    let folder = tempfile::tempdir().unwrap();
    recipe(folder.path());
    let output = run(folder.path(), &["train", "recipe.toml", "--dry-run", "--json", "--device", "cpu"]);
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let memory = &facts["memory"];
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    let parts = [
        "weights",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "workspace",
        "recordings",
        "data",
        "program",
    ];
    assert!(bytes("total") >= parts.map(bytes).iter().sum::<u64>());
    assert_eq!(bytes("optimizer"), 2 * bytes("adapter"));
    assert_eq!(bytes("recordings"), 0);
    let layers: u64 = memory["layers"].as_array().unwrap().iter().map(|layer| layer["bytes"].as_u64().unwrap()).sum();
    assert_eq!(layers, bytes("activations"));
    assert!(bytes("available") > bytes("total") && memory["fits"]["batch"].as_u64().unwrap() >= 4);

    let shown = run(folder.path(), &["train", "recipe.toml", "--dry-run", "--device", "cpu"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("memory: about") && shown.contains("activations"), "{shown}");
}
