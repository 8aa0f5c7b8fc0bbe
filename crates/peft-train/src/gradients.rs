//! Gradients of all trained tensors together: their sum over micro-batches and their global norm.

use burn::{
    module::ParamId,
    optim::GradientsParams,
    tensor::{FloatDType, Tensor},
};
use peft::adapter::AdapterTensor;

/// The identity and rank of each trained tensor, by which its gradient is found.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Vec<(ParamId, usize)>);

macro_rules! by_rank {
    ($rank:expr, $function:ident $arguments:tt) => {
        match $rank {
            1 => $function::<1> $arguments,
            2 => $function::<2> $arguments,
            3 => $function::<3> $arguments,
            _ => $function::<4> $arguments,
        }
    };
}

impl Slots {
    pub(crate) fn of(tensors: &[AdapterTensor]) -> Self {
        Self(tensors.iter().map(|tensor| (tensor.param.id(), tensor.param.shape().len())).collect())
    }

    /// Adds `more` to `sum`.
    pub(crate) fn accumulate(&self, mut sum: GradientsParams, mut more: GradientsParams) -> GradientsParams {
        for (id, rank) in &self.0 {
            by_rank!(rank, add(&mut sum, &mut more, *id));
        }
        sum
    }

    /// The Euclidean norm of all gradients together, `[1]`; none if there are no gradients.
    pub(crate) fn norm(&self, gradients: &GradientsParams) -> Option<Tensor<1>> {
        let squares = self.0.iter().filter_map(|(id, rank)| by_rank!(rank, square_sum(gradients, *id)));
        squares.reduce(|sum, square| sum + square).map(Tensor::sqrt)
    }

    /// Scales all gradients so that their norm is at most `max_norm`, as PyTorch's `clip_grad_norm_`. Nothing is read back.
    pub(crate) fn clip(&self, mut gradients: GradientsParams, norm: &Tensor<1>, max_norm: f64) -> GradientsParams {
        let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
        for (id, rank) in &self.0 {
            by_rank!(rank, scale(&mut gradients, *id, &factor));
        }
        gradients
    }
}

fn add<const D: usize>(sum: &mut GradientsParams, more: &mut GradientsParams, id: ParamId) {
    let Some(more) = more.remove::<D>(id) else { return };
    let total = match sum.remove::<D>(id) {
        Some(sum) => sum + more,
        None => more,
    };
    sum.register(id, total);
}

fn square_sum<const D: usize>(gradients: &GradientsParams, id: ParamId) -> Option<Tensor<1>> {
    Some(gradients.get::<D>(id)?.cast(FloatDType::F32).square().sum())
}

fn scale<const D: usize>(gradients: &mut GradientsParams, id: ParamId, factor: &Tensor<1>) {
    let Some(gradient) = gradients.remove::<D>(id) else { return };
    let factor: Tensor<D> = factor.clone().reshape([1; D]).cast(FloatDType::from(gradient.dtype()));
    gradients.register(id, gradient * factor);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn gradients(first: [f32; 2], second: [[f32; 1]; 2]) -> (Slots, GradientsParams) {
        let device = Device::flex();
        let ids = (ParamId::from(1), ParamId::from(2));
        let mut gradients = GradientsParams::new();
        gradients.register(ids.0, Tensor::<1>::from_data(TensorData::from(first), &device));
        gradients.register(ids.1, Tensor::<2>::from_data(TensorData::from(second), &device));
        (Slots(vec![(ids.0, 1), (ids.1, 2)]), gradients)
    }

    fn values(gradients: &GradientsParams) -> Vec<f32> {
        let first = gradients.get::<1>(ParamId::from(1)).unwrap().try_to_vec_as::<f32>().unwrap();
        let second = gradients.get::<2>(ParamId::from(2)).unwrap().try_to_vec_as::<f32>().unwrap();
        [first, second].concat()
    }

    #[test]
    fn the_norm_is_that_of_all_tensors_together() {
        let (slots, gradients) = gradients([1.0, 2.0], [[2.0], [4.0]]);
        assert_eq!(slots.norm(&gradients).unwrap().into_scalar::<f32>(), 5.0);
    }

    #[test]
    fn clipping_scales_all_tensors_by_one_factor() {
        let (slots, large) = gradients([1.0, 2.0], [[2.0], [4.0]]);
        let norm = slots.norm(&large).unwrap();
        let clipped = slots.clip(large, &norm, 1.0);
        for (found, expected) in values(&clipped).into_iter().zip([0.2, 0.4, 0.4, 0.8]) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    #[test]
    fn small_gradients_are_not_touched() {
        let (slots, small) = gradients([0.1, 0.2], [[0.2], [0.4]]);
        let norm = slots.norm(&small).unwrap();
        assert_eq!(values(&slots.clip(small, &norm, 1.0)), [0.1, 0.2, 0.2, 0.4]);
    }

    #[test]
    fn micro_batches_add_up() {
        let (slots, first) = gradients([1.0, 2.0], [[3.0], [4.0]]);
        let (_, second) = gradients([0.5, 0.5], [[0.5], [0.5]]);
        let sum = slots.accumulate(slots.accumulate(GradientsParams::new(), first), second);
        assert_eq!(values(&sum), [1.5, 2.5, 3.5, 4.5]);
    }
}
