//! The autodiff node of the LM head with the cross-entropy on it on a GPU: the kernels of the forward and the backward pass.

use burn::{
    backend::{
        BackendTypes, TensorMetadata,
        ops::{FloatTensorOps, IntTensorOps},
        tensor::IntTensor,
    },
    tensor::{DType, FloatDType, IndexingUpdateOp, Shape, Slice, TensorData},
};

use crate::{
    kernels::cube::{Gpu, OnGpu, backend::Kernels},
    nodes::{gpu::all, node::Node},
};

/// Logits in memory at a time: 256 MiB in single precision.
const LOGITS: usize = 1 << 26;

/// `-log softmax(hidden W)[target]` of rows.
#[derive(Debug, Clone)]
pub(crate) struct CrossEntropies {
    pub(crate) targets: Targets,
    pub(crate) soft_cap: Option<f32>,
}

/// What rows should say.
#[derive(Debug, Clone)]
pub(crate) enum Targets {
    /// Of the rows that have a target, which: the others are left out.
    OfSome(Vec<(usize, usize)>),
    /// Of each row, in 32 bits; below zero there is none, and the row costs nothing.
    OfEach(IntTensor<Gpu>),
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// The gradient of each row's loss by its hidden state.
    slopes: OnGpu,
    /// Which rows these are, and the shape of all; none if they are all.
    among: Option<(IntTensor<Gpu>, Shape)>,
}

fn indices(
    values: impl Iterator<Item = usize>,
    count: usize,
    device: &<Gpu as BackendTypes>::Device,
) -> IntTensor<Gpu> {
    let values: Vec<i32> = values.map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect();
    Gpu::int_from_data(TensorData::new(values, [count]), device)
}

impl Node<Gpu, 2> for CrossEntropies {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 2], [needs_hidden, _]: [bool; 2]) -> (OnGpu, Saved) {
        let [hidden, weight] = all(inputs);
        let (hidden, targets, among) = match &self.targets {
            Targets::OfEach(targets) => (hidden, targets.clone(), None),
            Targets::OfSome(targets) => {
                let (device, shape) = (hidden.device(), hidden.shape());
                let rows = indices(targets.iter().map(|(row, _)| *row), targets.len(), &device);
                let own = indices(targets.iter().map(|(_, target)| *target), targets.len(), &device);
                (Gpu::float_select(hidden, 0, rows.clone()), own, Some((rows, shape)))
            }
        };
        let (count, classes) = (hidden.shape()[0], weight.shape().last().copied().unwrap_or(1).max(1));
        let chunk = (LOGITS / classes).clamp(64, 4096);
        let (mut losses, mut slopes) = (Vec::new(), Vec::new());
        for from in (0..count).step_by(chunk) {
            let part = Slice::from(from..count.min(from + chunk));
            let states = Gpu::float_slice(hidden.clone(), &[part, Slice::full()]);
            let logits = Gpu::float_matmul(states, weight.clone());
            let own = Gpu::int_slice(targets.clone(), &[part]);
            let (dlogits, loss) = Gpu::cross_entropy_rows(logits, own, self.soft_cap.unwrap_or_default());
            losses.push(loss);
            if needs_hidden {
                slopes.push(Gpu::float_matmul(dlogits, Gpu::float_swap_dims(weight.clone(), 0, 1)));
            }
        }
        let joined = |mut parts: Vec<OnGpu>| match parts.len() {
            1 => parts.swap_remove(0),
            _ => Gpu::float_cat(parts, 0),
        };
        let losses = joined(losses);
        let slopes = if needs_hidden { joined(slopes) } else { losses.clone() };
        (losses, Saved { slopes, among })
    }

    fn backward(self, saved: Saved, grad: OnGpu, _: [bool; 2]) -> [Option<OnGpu>; 2] {
        let Saved { slopes, among } = saved;
        let dtype = slopes.dtype();
        let count = slopes.shape()[0];
        let grad = Gpu::float_reshape(grad, [count, 1].into());
        let grad = if dtype == DType::F32 { grad } else { Gpu::float_cast(grad, FloatDType::from(dtype)) };
        let slopes = Gpu::float_mul(slopes, grad);
        let Some((rows, shape)) = among else { return [Some(slopes), None] };
        let zeros = Gpu::float_zeros(shape, &slopes.device(), FloatDType::from(dtype));
        [Some(Gpu::float_select_assign(zeros, 0, rows, slopes, IndexingUpdateOp::Add)), None]
    }
}
