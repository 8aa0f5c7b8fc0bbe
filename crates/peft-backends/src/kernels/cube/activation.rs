//! Activations, and the products of gated feed-forward blocks.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::launch;

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Curve {
    /// `x Φ(x)`.
    Gelu,
    /// The same by the hyperbolic tangent.
    GeluTanh,
    /// `x σ(x)`.
    Silu,
}

pub(crate) fn forward(x: CubeTensor, curve: Curve) -> CubeTensor {
    let x = launch::whole(x);
    let (y, vector, dtype) = (launch::empty_like(&x), launch::vector_size(&x), dtype_to_storage_type(x.dtype));
    let client = x.client.clone();
    let (count, dim) = launch::units(&client, x.meta.num_elements() / vector);
    forward_kernel::launch(&client, count, dim, vector, x.into_buffer_arg(), y.clone().into_buffer_arg(), curve, dtype);
    y
}

pub(crate) fn backward(x: CubeTensor, grad: CubeTensor, curve: Curve) -> CubeTensor {
    let (x, grad) = (launch::whole(x), launch::whole(grad));
    let (dx, vector, dtype) = (launch::empty_like(&x), launch::vector_size(&x), dtype_to_storage_type(x.dtype));
    let client = x.client.clone();
    let (count, dim) = launch::units(&client, x.meta.num_elements() / vector);
    let (x, grad, out) = (x.into_buffer_arg(), grad.into_buffer_arg(), dx.clone().into_buffer_arg());
    backward_kernel::launch(&client, count, dim, vector, x, grad, out, curve, dtype);
    dx
}

pub(crate) fn gated(gate: CubeTensor, up: CubeTensor, curve: Curve) -> CubeTensor {
    let (gate, up) = (launch::whole(gate), launch::whole(up));
    let (y, vector, dtype) = (launch::empty_like(&gate), launch::vector_size(&gate), dtype_to_storage_type(gate.dtype));
    let client = gate.client.clone();
    let (count, dim) = launch::units(&client, gate.meta.num_elements() / vector);
    let (gate, up, out) = (gate.into_buffer_arg(), up.into_buffer_arg(), y.clone().into_buffer_arg());
    gated_kernel::launch(&client, count, dim, vector, gate, up, out, curve, dtype);
    y
}

pub(crate) fn gated_backward(
    gate: CubeTensor,
    up: CubeTensor,
    grad: CubeTensor,
    curve: Curve,
) -> (CubeTensor, CubeTensor) {
    let (gate, up, grad) = (launch::whole(gate), launch::whole(up), launch::whole(grad));
    let (dgate, dup) = (launch::empty_like(&gate), launch::empty_like(&up));
    let (vector, dtype) = (launch::vector_size(&gate), dtype_to_storage_type(gate.dtype));
    let client = gate.client.clone();
    let (count, dim) = launch::units(&client, gate.meta.num_elements() / vector);
    gated_backward_kernel::launch(
        &client,
        count,
        dim,
        vector,
        gate.into_buffer_arg(),
        up.into_buffer_arg(),
        grad.into_buffer_arg(),
        dgate.clone().into_buffer_arg(),
        dup.clone().into_buffer_arg(),
        curve,
        dtype,
    );
    (dgate, dup)
}

#[cube(launch)]
fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let value = at(Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]), curve);
    y[ABSOLUTE_POS] = Vector::cast_from(value);
}

#[cube(launch)]
fn backward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= dx.len() {
        terminate!();
    }
    let slope = slope(Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]), curve);
    dx[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]) * slope);
}

#[cube(launch)]
fn gated_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let value = at(Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]), curve);
    y[ABSOLUTE_POS] = Vector::cast_from(value * Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]));
}

#[cube(launch)]
fn gated_backward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    #[comptime] curve: Curve,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= dup.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    dgate[ABSOLUTE_POS] = Vector::cast_from(grad * Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]) * slope(x, curve));
    dup[ABSOLUTE_POS] = Vector::cast_from(grad * at(x, curve));
}

/// `√(2/π)`.
const SLOPE: f32 = 0.797_884_6;

const CUBIC: f32 = 0.044_715;

/// `1 / √(2π)`, the height of the normal density.
const HEIGHT: f32 = 0.398_942_3;

#[cube]
fn at<N: Size>(x: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    match curve {
        Curve::Gelu => x * normal(x),
        Curve::GeluTanh => {
            let t = tanh(Vector::new(SLOPE) * x * (Vector::new(1.0f32) + Vector::new(CUBIC) * x * x));
            x * (Vector::new(0.5f32) + Vector::new(0.5f32) * t)
        }
        Curve::Silu => x * sigmoid(x),
    }
}

#[cube]
fn slope<N: Size>(x: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    match curve {
        Curve::Gelu => normal(x) + x * Vector::new(HEIGHT) * (Vector::new(-0.5f32) * x * x).exp(),
        Curve::GeluTanh => {
            let one = Vector::new(1.0f32);
            let half = Vector::new(0.5f32);
            let t = tanh(Vector::new(SLOPE) * x * (one + Vector::new(CUBIC) * x * x));
            let inner = Vector::new(SLOPE) * (one + Vector::new(3.0f32 * CUBIC) * x * x);
            half + half * t + half * x * (one - t * t) * inner
        }
        Curve::Silu => {
            let one = Vector::new(1.0f32);
            let sigma = sigmoid(x);
            sigma * (one + x * (one - sigma))
        }
    }
}

/// The share of a normal distribution below `x`.
#[cube]
fn normal<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(0.5f32) + Vector::new(0.5f32) * (x * Vector::new(core::f32::consts::FRAC_1_SQRT_2)).erf()
}

/// Without the overflow that some APIs' own has.
#[cube]
fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let two = Vector::new(2.0f32);
    let bounded = max(min(x, Vector::new(20.0f32)), Vector::new(-20.0f32));
    one - two / (one + (two * bounded).exp())
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let bounded = max(x, Vector::new(-80.0f32));
    one / (one + (Vector::new(0.0f32) - bounded).exp())
}
