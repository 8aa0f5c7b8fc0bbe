//! One look-up for the three kinds of plugin: tasks, tuners and architectures.
//!
//! Plugins register themselves with [`inventory`] from wherever they are linked; iteration order is unspecified, so it is
//! sorted here, and a name registered twice is an error at the first look-up.

use crate::{Error, Result, error::nearest};

/// A kind of plugin that is found by name.
pub trait Plugin: inventory::Collect {
    /// What error messages call it.
    const KIND: &'static str;

    /// The word in a configuration that selects it.
    fn name(&self) -> &'static str;
}

/// Every plugin of a kind that is linked into the program, by name.
pub fn plugins<P: Plugin>() -> Vec<&'static P> {
    let mut all: Vec<&'static P> = inventory::iter::<P>.into_iter().collect();
    all.sort_by_key(|plugin| plugin.name());
    all
}

/// The plugin of that name.
///
/// # Errors
/// [`Error::UnknownPlugin`] with the names that are linked, [`Error::DuplicatePlugin`] if two crates claim one name.
pub fn find<P: Plugin>(name: &str) -> Result<&'static P> {
    let all = plugins::<P>();
    if let Some([twin, _]) = all.array_windows().find(|[a, b]| a.name() == b.name()) {
        return Err(Error::DuplicatePlugin { kind: P::KIND, name: twin.name().to_owned() });
    }
    all.iter().copied().find(|plugin| plugin.name() == name).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|plugin| plugin.name()).collect();
        let mut linked = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        if let Some(near) = nearest(name, names.iter().copied()) {
            linked.push_str(&format!("; did you mean `{near}`?"));
        }
        Error::UnknownPlugin { kind: P::KIND, name: name.to_owned(), linked }
    })
}
