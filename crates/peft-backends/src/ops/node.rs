//! One node of the graph for an operation on the processor: a pass forward over host memory and a pass back.

use std::{fmt::Debug, sync::Arc};

use burn::{
    backend::{
        Autodiff, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{DType, Tensor},
};

use super::half_precision::{is_half, narrowed, widened};

/// A tensor in the processor's memory.
pub(super) type Host = burn::backend::flex::FlexTensor;

/// An operation of `N` inputs, some of which may be absent.
///
/// It sees single precision only. Inputs in half precision are widened before and results rounded after; what is kept in
/// between is kept in half precision, an input as the tensor that came in.
pub(super) trait Fused<const N: usize>: Debug + Clone + Send + 'static {
    /// What the pass back needs of the pass forward.
    type Saved: Kept;

    /// The type of the result, where the first input has this one.
    fn result(&self, input: DType) -> DType {
        input
    }

    /// The result, and what to keep; `needs` says which inputs will be asked for their gradients.
    fn forward(&self, inputs: [Option<Host>; N], needs: [bool; N]) -> (Host, Self::Saved);

    /// The gradients of the inputs that need them; what others get is dropped.
    fn backward(self, saved: Self::Saved, grad: Host, needs: [bool; N]) -> [Option<Host>; N];
}

/// What an operation keeps, as tensors and whatever else.
pub(super) trait Kept: Debug + Clone + Send + 'static {
    /// The tensors among it.
    fn tensors(&mut self) -> Vec<&mut Host>;
}

impl Kept for () {
    fn tensors(&mut self) -> Vec<&mut Host> {
        Vec::new()
    }
}

impl Kept for Host {
    fn tensors(&mut self) -> Vec<&mut Host> {
        vec![self]
    }
}

impl Kept for [Host; 2] {
    fn tensors(&mut self) -> Vec<&mut Host> {
        self.iter_mut().collect()
    }
}

impl<K: Kept> Kept for Option<K> {
    fn tensors(&mut self) -> Vec<&mut Host> {
        self.as_mut().map(K::tensors).unwrap_or_default()
    }
}

/// An input of an operation.
#[derive(Debug)]
pub(super) enum Input {
    /// There is none.
    Absent,
    /// A constant.
    Plain(Host),
    /// Part of a graph.
    Graph(FloatTensor<Autodiff<Flex>>),
}

impl Input {
    /// A tensor that [`takes`](super::host::takes) has said yes to.
    pub(super) fn new<const D: usize>(x: Tensor<D>) -> Self {
        let input = match x.is_autodiff() {
            true => x.try_into_primitive::<Autodiff<Flex>>().map(Self::Graph),
            false => x.try_into_primitive::<Flex>().map(Self::Plain),
        };
        match input {
            Ok(input) => input,
            Err(error) => unreachable!("asked for before: {error:?}"),
        }
    }

    pub(super) fn optional<const D: usize>(x: Option<Tensor<D>>) -> Self {
        x.map_or(Self::Absent, Self::new)
    }

    fn needs_gradient(&self) -> bool {
        matches!(self, Self::Graph(x) if x.is_tracked())
    }

    fn into_parts(self) -> (Option<Host>, NodeGuard) {
        let constant = |x| FloatTensor::<Autodiff<Flex>>::new(x);
        match self {
            Self::Absent => (None, constant(Host::zeros([0].into(), DType::F32)).node()),
            Self::Plain(x) => {
                let (x, guard) = constant(x).into_parts();
                (Some(x), guard)
            }
            Self::Graph(x) => {
                let (x, guard) = x.into_parts();
                (Some(x), guard)
            }
        }
    }
}

/// Does the operation, and makes it part of the graph if one of its inputs is.
pub(super) fn run<const N: usize, const D: usize, F: Fused<N>>(op: F, inputs: [Input; N]) -> Tensor<D> {
    if !inputs.iter().any(|input| matches!(input, Input::Graph(_))) {
        let inputs = inputs.map(|input| match input {
            Input::Plain(x) => Some(x),
            Input::Absent | Input::Graph(_) => None,
        });
        return Tensor::from_primitive::<Flex>(forward(&op, inputs, [false; N]).0);
    }
    let needs = inputs.each_ref().map(Input::needs_gradient);
    let mut values: [Option<Host>; N] = std::array::from_fn(|_| None);
    let mut places = values.iter_mut();
    let guards = inputs.map(|input| {
        let (value, guard) = input.into_parts();
        if let Some(place) = places.next() {
            *place = value;
        }
        guard
    });
    let dtypes = values.each_ref().map(|value| value.as_ref().map_or(DType::F32, Host::dtype));
    let output = match Step(op.clone(), dtypes).prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = forward(&op, values, needs);
            prep.finish(saved, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(&op, values, needs).0),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// The pass forward of an operation, whatever the precision of its inputs.
pub(super) fn forward<const N: usize, F: Fused<N>>(
    op: &F,
    inputs: [Option<Host>; N],
    needs: [bool; N],
) -> (Host, F::Saved) {
    if !inputs.iter().flatten().any(|input| is_half(input.dtype())) {
        return op.forward(inputs, needs);
    }
    let dtype = inputs.iter().flatten().next().map_or(DType::F32, Host::dtype);
    let wide = inputs.each_ref().map(|input| input.as_ref().map(widened));
    // A second handle keeps an operation from changing an input in its place, by which it is known again.
    let (output, mut saved) = op.forward(wide.clone(), needs);
    for kept in saved.tensors() {
        let input = wide
            .iter()
            .zip(&inputs)
            .find_map(|(wide, input)| wide.as_ref().filter(|wide| is_same(wide, kept)).and(input.clone()));
        *kept = input.unwrap_or_else(|| narrowed(kept.clone(), dtype));
    }
    (narrowed(output, op.result(dtype)), saved)
}

fn is_same(a: &Host, b: &Host) -> bool {
    Arc::ptr_eq(&a.data_arc(), &b.data_arc()) && a.layout() == b.layout()
}

/// The operation, and the types of its inputs.
#[derive(Debug)]
struct Step<F, const N: usize>(F, [DType; N]);

impl<F: Fused<N>, const N: usize> Backward<Flex, N> for Step<F, N> {
    type State = F::Saved;

    fn backward(self, ops: Ops<F::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Self(op, dtypes) = self;
        let grad = widened(&grads.consume::<Flex>(&ops.node));
        let needs = ops.parents.each_ref().map(Option::is_some);
        let mut saved = ops.state;
        for kept in saved.tensors().into_iter().filter(|kept| is_half(kept.dtype())) {
            *kept = widened(kept);
        }
        let found = op.backward(saved, grad, needs);
        for ((parent, grad), dtype) in ops.parents.into_iter().zip(found).zip(dtypes) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, narrowed(grad, dtype));
            }
        }
    }
}
