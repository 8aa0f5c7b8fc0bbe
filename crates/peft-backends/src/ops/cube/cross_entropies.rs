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

/// `-log softmax(hidden W)[target]` of each row that has a target.
#[derive(Debug, Clone)]
pub(in crate::ops) struct CrossEntropies {
    /// Rows that have a target, and which.
    pub(in crate::ops) targets: Vec<(usize, usize)>,
    pub(in crate::ops) soft_cap: Option<f32>,
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Saved {
    /// The gradient of each row's loss by its hidden state.
    slopes: OnGpu,
    rows: IntTensor<Gpu>,
    /// Of all hidden states.
    shape: Shape,
}

fn indices(
    values: impl Iterator<Item = usize>,
    count: usize,
    device: &<Gpu as BackendTypes>::Device,
) -> IntTensor<Gpu> {
    let values: Vec<i32> = values.map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect();
    Gpu::int_from_data(TensorData::new(values, [count]), device)
}

fn rows_of(x: OnGpu, from: usize, to: usize) -> OnGpu {
    Gpu::float_slice(x, &[Slice::from(from..to), Slice::full()])
}

impl Node<Gpu, 2> for CrossEntropies {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 2], [needs_hidden, _]: [bool; 2]) -> (OnGpu, Saved) {
        let [hidden, weight] = all(inputs);
        let (device, shape) = (hidden.device(), hidden.shape());
        let count = self.targets.len();
        let rows = indices(self.targets.iter().map(|(row, _)| *row), count, &device);
        let hidden = Gpu::float_select(hidden, 0, rows.clone());
        let classes = weight.shape().last().copied().unwrap_or(1).max(1);
        let chunk = (LOGITS / classes).clamp(64, 4096);
        let (mut losses, mut slopes) = (Vec::new(), Vec::new());
        for (from, targets) in (0..count).step_by(chunk).zip(self.targets.chunks(chunk)) {
            let states = rows_of(hidden.clone(), from, from + targets.len());
            let logits = Gpu::float_matmul(states, weight.clone());
            let own = indices(targets.iter().map(|(_, target)| *target), targets.len(), &device);
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
        (losses, Saved { slopes, rows, shape })
    }

    fn backward(self, saved: Saved, grad: OnGpu, _: [bool; 2]) -> [Option<OnGpu>; 2] {
        let Saved { slopes, rows, shape } = saved;
        let dtype = slopes.dtype();
        let grad = Gpu::float_reshape(grad, [self.targets.len(), 1].into());
        let grad = if dtype == DType::F32 { grad } else { Gpu::float_cast(grad, FloatDType::from(dtype)) };
        let slopes = Gpu::float_mul(slopes, grad);
        let zeros = Gpu::float_zeros(shape, &slopes.device(), FloatDType::from(dtype));
        [Some(Gpu::float_select_assign(zeros, 0, rows, slopes, IndexingUpdateOp::Add)), None]
    }
}

/// The gradients of the losses, in the place of the logits if nobody else holds them, and the losses.
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
    let target = targets[row] as usize;
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
        losses[row] = most + sum.ln() - own;
    }
    let scale = 1.0f32 / sum;
    let mut class = UNIT_POS_X as usize;
    while class < width {
        let value = capped(f32::cast_from(logits[start + class]), cap, caps);
        let slope = (value - most).exp() * scale - select(class == target, 1.0f32, 0.0f32);
        logits[start + class] = F::cast_from(slope * slope_of_capped(value, cap, caps));
        class += UNITS as usize;
    }
}
