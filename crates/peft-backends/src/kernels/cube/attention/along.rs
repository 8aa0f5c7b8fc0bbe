//! What a weight's gradient is counted from in the pass back of a softmax.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::launch;

/// `Σ y · grad` over each vector.
pub(crate) fn along(y: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let [batch, heads, queries, _] = launch::dims(&y);
    let count = batch * heads * queries;
    let out = launch::empty(&y, [count], DType::F32);
    let client = y.client.clone();
    let (cubes, dim) = launch::units(&client, count);
    let element = launch::element(&y);
    along_kernel::launch(
        &client,
        cubes,
        dim,
        y.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_buffer_arg(),
        element,
    );
    out
}

#[cube(launch)]
fn along_kernel<F: Float>(y: &Tensor<F>, grad: &Tensor<F>, out: &mut [f32], #[define(F)] _dtype: ElemType) {
    let at = ABSOLUTE_POS;
    if at >= out.len() {
        terminate!();
    }
    let (heads, queries, width) = (y.shape(1), y.shape(2), y.shape(3));
    let (query, head, batch) = (at % queries, at / queries % heads, at / queries / heads);
    let start = batch * y.stride(0) + head * y.stride(1) + query * y.stride(2);
    let grad_start = batch * grad.stride(0) + head * grad.stride(1) + query * grad.stride(2);
    let mut sum = 0.0f32;
    for place in 0..width {
        let value = f32::cast_from(y[start + place * y.stride(3)]);
        sum += value * f32::cast_from(grad[grad_start + place * grad.stride(3)]);
    }
    out[at] = sum;
}
