//! What a GPU's kernels leave for the next run: which was the fastest for a shape, and what they were compiled to.
//!
//! CubeCL keeps both in one database. Its own default is a folder below the working directory's `Cargo.toml`, and to keep
//! measurements alone.

use std::{env, fs, path::PathBuf, sync::Once};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use toml::Table;

/// The database, whether or not it is there yet.
pub(crate) fn file() -> PathBuf {
    set_up();
    cubecl::environment::path()
}

/// Has CubeCL keep both in the user's cache folder, unless a `cubecl.toml` or `burn.toml` says otherwise or something was
/// computed on a GPU before.
pub(crate) fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        CubeClRuntimeConfig::try_set(kept(config, &said(), folder()));
    });
}

/// `peft` in the user's cache folder, of which CubeCL knows where the platform has it.
fn folder() -> PathBuf {
    CacheConfig::Global.root().with_file_name("peft")
}

/// The configuration with what the user has not said.
fn kept(mut config: CubeClRuntimeConfig, said: &Table, folder: PathBuf) -> CubeClRuntimeConfig {
    let says = |section: &str, key: &str| said.get(section).and_then(|section| section.get(key)).is_some();
    if !says("compilation", "cache") {
        config.compilation.cache = true;
    }
    if !says("environment", "path") {
        config.environment.path = CacheConfig::Directory(folder);
    }
    config
}

/// What the file says that CubeCL reads: the first above the working directory that is one. A default cannot be told from a
/// word of the user's once it is read.
fn said() -> Table {
    let here = env::current_dir().unwrap_or_default();
    let read = |file: PathBuf| fs::read_to_string(file).ok()?.parse::<Table>().ok();
    let found = here.ancestors().find_map(|folder| {
        let whole = CubeClRuntimeConfig::file_names().iter().find_map(|name| read(folder.join(name)));
        let part = |(name, section): &(&str, &str)| read(folder.join(name))?.get(*section)?.as_table().cloned();
        whole.or_else(|| CubeClRuntimeConfig::section_file_names().iter().find_map(part))
    });
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_the_user_says_stands() {
        let check = |text: &str, caches: bool, path: &str| {
            let config = kept(toml::from_str(text).unwrap(), &text.parse().unwrap(), "/cache/peft".into());
            assert_eq!((config.compilation.cache, config.environment.path.root()), (caches, path.into()), "{text}");
        };
        check("", true, "/cache/peft");
        check("[autotune]\nlevel = \"minimal\"", true, "/cache/peft");
        check("[compilation]\ncache = false", false, "/cache/peft");
        check("[environment]\nname = \"h100\"", true, "/cache/peft");
        check("[environment]\npath = { directory = \"/own\" }", true, "/own");
    }
}
