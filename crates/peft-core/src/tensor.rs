//! Tensors and parameters of any rank, the modules that hold them, and what fills them.

pub mod dyn_tensor;
pub mod finite;
pub mod fresh;
pub mod module_tree;
pub mod random;
