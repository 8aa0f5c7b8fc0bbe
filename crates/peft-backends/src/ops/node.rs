//! One node of the graph for an operation on the processor: a pass forward over host memory and a pass back.

use std::fmt::Debug;

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
    tensor::Tensor,
};

/// A tensor in the processor's memory.
pub(super) type Host = FloatTensor<Flex>;

/// An operation of `N` inputs, some of which may be absent.
pub(super) trait Fused<const N: usize>: Debug + Clone + Send + 'static {
    /// What the pass back needs of the pass forward.
    type Saved: Debug + Clone + Send + 'static;

    /// The result, and what to keep; `needs` says which inputs will be asked for their gradients.
    fn forward(&self, inputs: [Option<Host>; N], needs: [bool; N]) -> (Host, Self::Saved);

    /// The gradients of the inputs that need them; what others get is dropped.
    fn backward(self, saved: Self::Saved, grad: Host, needs: [bool; N]) -> [Option<Host>; N];
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
            Self::Absent => (None, constant(Host::zeros([0].into(), burn::tensor::DType::F32)).node()),
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
        return Tensor::from_primitive::<Flex>(op.forward(inputs, [false; N]).0);
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
    let output = match Step(op.clone()).prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = op.forward(values, needs);
            prep.finish(saved, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(op.forward(values, needs).0),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

#[derive(Debug)]
struct Step<F, const N: usize>(F);

impl<F: Fused<N>, const N: usize> Backward<Flex, N> for Step<F, N> {
    type State = F::Saved;

    fn backward(self, ops: Ops<F::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let needs = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward(ops.state, grad, needs);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}
