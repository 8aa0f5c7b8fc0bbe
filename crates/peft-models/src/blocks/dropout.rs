//! Dropout that asks its own flag only.

use burn::{nn::Dropout, tensor::Tensor};
use peft_backends::ops;

/// Sets elements to zero with the module's probability and scales up the rest, while it is in training mode.
///
/// `Dropout::forward` would let plain tensors through, and those are what frozen layers below the lowest adapter compute.
pub fn dropout<const D: usize>(dropout: &Dropout, x: Tensor<D>) -> Tensor<D> {
    if !dropout.training.is_enabled() || dropout.prob == 0.0 {
        return x;
    }
    ops::dropout(x, dropout.prob)
}

#[cfg(test)]
mod tests {
    use burn::{module::Param, tensor::Device};

    use super::*;

    #[test]
    fn plain_tensors_are_dropped_too_and_only_in_training() {
        let x = Tensor::<1>::ones([4096], &Device::flex());
        let module = |training| Dropout { prob: 0.25, training: Param::from_bool(training) };
        let zeros = |x: Tensor<1>| x.equal_scalar(0.0).int().sum().into_scalar::<i64>();
        assert_eq!(zeros(dropout(&module(false), x.clone())), 0);
        let dropped = dropout(&module(true), x);
        assert!((dropped.clone().mean().into_scalar::<f32>() - 1.0).abs() < 0.1);
        assert!((800..1250).contains(&zeros(dropped)));
    }
}
