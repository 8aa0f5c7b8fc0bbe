//! A single file that a program writes: never over a model's weights, an adapter's, or a file of another kind.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{ADAPTER_CONFIG, MANIFEST};
use crate::{Error, Result};

/// Says whether tensors may be written to a path: it is new, or a safetensors file that is no part of a model and none of `inputs`.
///
/// # Errors
/// [`Error::Output`].
pub fn check_output_file(path: &Path, inputs: &[PathBuf]) -> Result<()> {
    let refuse =
        |problem: &str| Err(Error::Output { path: path.to_owned(), problem: format!("{problem}; name another file") });
    if path.is_dir() {
        return refuse("is a folder, and a file is written");
    }
    let Ok(found) = path.canonicalize() else { return Ok(()) };
    if inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == found)) {
        return refuse("is what is read, and would be lost");
    }
    let is_of_a_model =
        |folder: &Path| ["config.json", ADAPTER_CONFIG, MANIFEST].iter().any(|name| folder.join(name).exists());
    if [path, &found].iter().filter_map(|path| path.parent()).any(is_of_a_model) {
        return refuse("is a file of a model or an adapter, and would be lost");
    }
    if !is_safetensors(&found) {
        return refuse("is no safetensors file, and would be lost");
    }
    Ok(())
}

/// Whether a file begins as safetensors files do: the length of a header, and the header.
fn is_safetensors(path: &Path) -> bool {
    let mut start = [0; 9];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start[8] == b'{'
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{collections::BTreeMap, fs};

    use burn::tensor::TensorData;

    use super::*;
    use crate::files::write_safetensors;

    #[test]
    fn tensors_are_not_written_over_inputs_weights_or_files_of_another_kind() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir(path("model")).unwrap();
        fs::write(path("model/config.json"), "{}").unwrap();
        fs::write(path("notes.txt"), "a long enough text").unwrap();
        let tensors = BTreeMap::from([("x".to_owned(), TensorData::from([1.0_f32]))]);
        for name in ["inputs.safetensors", "outputs.safetensors", "model/model.safetensors"] {
            write_safetensors(&path(name), &tensors).unwrap();
        }
        for (name, says) in [
            ("inputs.safetensors", "is what is read"),
            ("model/model.safetensors", "of a model"),
            ("model/config.json", "of a model"),
            ("notes.txt", "no safetensors file"),
            ("model", "a folder"),
        ] {
            let message = check_output_file(&path(name), &[path("inputs.safetensors")]).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        for name in ["outputs.safetensors", "new.safetensors", "model/new.safetensors"] {
            check_output_file(&path(name), &[path("inputs.safetensors")]).unwrap();
        }
    }
}
