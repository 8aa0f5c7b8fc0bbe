//! The output layer over a vocabulary and the loss on it, a few rows at a time.

use burn::{
    backend::{
        BackendTypes, TensorMetadata,
        ops::{FloatTensorOps, IntTensorOps},
        tensor::IntTensor,
    },
    tensor::{DType, FloatDType, IndexingUpdateOp, Shape, Slice, TensorData},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{
    Gpu, Kernels, OnGpu, all, launch,
    row::{UNITS, most_of_cube, sum_of_cube},
    soft_cap::{capped, slope_of_capped},
};
use crate::ops::node::Node;

/// Logits in memory at a time: 256 MiB in single precision.
const LOGITS: usize = 1 << 26;

/// `-log softmax(hidden W)[target]` of rows.
#[derive(Debug, Clone)]
pub(in crate::ops) struct CrossEntropies {
    pub(in crate::ops) targets: Targets,
    pub(in crate::ops) soft_cap: Option<f32>,
}

/// What rows should say.
#[derive(Debug, Clone)]
pub(in crate::ops) enum Targets {
    /// Of the rows that have a target, which: the others are left out.
    OfSome(Vec<(usize, usize)>),
    /// Of each row, in 32 bits; below zero there is none, and the row costs nothing.
    OfEach(IntTensor<Gpu>),
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Saved {
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

/// The gradients of the losses, in the place of the logits if nobody else holds them, and the losses; zeros where there is no
/// target.
pub(super) fn rows(logits: CubeTensor, targets: CubeTensor, cap: f32) -> (CubeTensor, CubeTensor) {
    let logits = launch::own(logits);
    let width = launch::width(&logits);
    let count = logits.meta.num_elements() / width;
    let losses = launch::empty(&logits, [count], DType::F32);
    rows_kernel::launch(
        &losses.client,
        launch::cubes(count),
        CubeDim::new_1d(UNITS),
        logits.clone().into_buffer_arg(),
        launch::whole(targets).into_buffer_arg(),
        losses.clone().into_buffer_arg(),
        launch::small(width),
        cap,
        cap > 0.0,
        launch::element(&logits),
    );
    (logits, losses)
}

#[cube(launch)]
fn rows_kernel<F: Float>(
    logits: &mut [F],
    targets: &[i32],
    losses: &mut [f32],
    width: u32,
    cap: f32,
    #[comptime] caps: bool,
    #[define(F)] _dtype: ElemType,
) {
    let (row, width) = (CUBE_POS, width as usize);
    if row >= losses.len() {
        terminate!();
    }
    let start = row * width;
    // A row without a target goes through the motions of one with the first class: all units take one way.
    let is_counted = targets[row] >= 0;
    let target = max(targets[row], 0) as usize;
    let mut most = f32::new(-3.0e38_f32);
    let mut class = UNIT_POS_X as usize;
    while class < width {
        most = max(most, capped(f32::cast_from(logits[start + class]), cap, caps));
        class += UNITS as usize;
    }
    let most = most_of_cube(most);
    let own = capped(f32::cast_from(logits[start + target]), cap, caps);
    let mut sum = 0.0f32;
    let mut class = UNIT_POS_X as usize;
    while class < width {
        sum += (capped(f32::cast_from(logits[start + class]), cap, caps) - most).exp();
        class += UNITS as usize;
    }
    // All units have read the target's own before one of them writes over it.
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 {
        losses[row] = select(is_counted, most + sum.ln() - own, 0.0f32);
    }
    let scale = 1.0f32 / sum;
    let mut class = UNIT_POS_X as usize;
    while class < width {
        let value = capped(f32::cast_from(logits[start + class]), cap, caps);
        let slope = (value - most).exp() * scale - select(class == target, 1.0f32, 0.0f32);
        let slope = slope * slope_of_capped(value, cap, caps);
        logits[start + class] = F::cast_from(select(is_counted, slope, 0.0f32));
        class += UNITS as usize;
    }
}
