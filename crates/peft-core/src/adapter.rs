//! Adapters: the value, the folder that holds one, and the form in which it is attached to a parameter.

mod adapter_set;
mod folder;
mod model_card;
pub mod rows;
mod value;

pub use adapter_set::AdapterSet;
pub(crate) use adapter_set::Entry;
pub use folder::AdapterFolder;
pub use model_card::{is_own_model_card, model_card};
pub use value::{Adapter, AdapterTensor, KEY_PREFIX, PROMPT_KEY_PREFIX, Role, Tie};
