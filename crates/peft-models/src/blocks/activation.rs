//! Activation functions by the names of `hidden_act`.

use burn::tensor::{Tensor, activation};
use peft_backends::ops::{self, Gate};

/// A function between the two matrices of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with the error function.
    Gelu,
    /// `x Φ(x)` with the hyperbolic tangent in place of the error function.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x σ(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
}

impl Activation {
    /// The names of Transformers that are known here, with what they mean.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("tanh", Self::Tanh),
    ];

    /// The function of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
    }

    /// Applies it to each element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => ops::gelu(x),
            Self::GeluTanh => ops::gelu_tanh(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => x.tanh(),
        }
    }

    /// The same as an operation on a gated block knows it, if one does.
    pub fn gate(self) -> Option<Gate> {
        match self {
            Self::Silu => Some(Gate::Silu),
            Self::GeluTanh => Some(Gate::GeluTanh),
            Self::Gelu | Self::Relu | Self::Tanh => None,
        }
    }

    /// Applies it to each element of `gate` and multiplies with that of `up`: the middle of a gated block.
    pub fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => ops::silu_gated(gate, up),
            Self::GeluTanh => ops::gelu_tanh_gated(gate, up),
            Self::Gelu | Self::Relu | Self::Tanh => self.forward(gate) * up,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Device, Tolerance};

    use super::*;

    #[test]
    fn values_are_those_of_pytorch() {
        let check = |name: &str, expected: [f32; 3]| {
            let x = Tensor::<1>::from_data([-1.5_f32, 0.3, 2.0], &Device::flex());
            let y = Activation::by_name(name).unwrap().forward(x).into_data();
            y.assert_approx_eq::<f32>(&expected.into(), Tolerance::absolute(2e-6));
        };
        check("gelu", [-0.100_210_8, 0.185_373_4, 1.954_499_7]);
        check("gelu_new", [-0.100_427_8, 0.185_370_8, 1.954_597_7]);
        check("relu", [0.0, 0.3, 2.0]);
        check("silu", [-0.273_638_3, 0.172_332_8, 1.761_594_2]);
        check("tanh", [-0.905_148_3, 0.291_312_6, 0.964_027_6]);
    }
}
