//! One node of the graph for an operation with a pass forward and a pass back, on whatever backend.

use std::{fmt::Debug, sync::Arc};

use burn::{
    backend::{
        Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{DType, Tensor},
};

use crate::kernels::host::{
    Host,
    half_precision::{is_half, narrowed, widened},
};

/// An operation of `N` inputs, some of which may be absent.
///
/// It sees single precision only. Inputs in half precision are widened before and results rounded after; what is kept in
/// between is kept in half precision, an input as the tensor that came in.
pub(crate) trait Fused<const N: usize>: Debug + Clone + Send + 'static {
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
pub(crate) trait Kept: Debug + Clone + Send + 'static {
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

/// An operation of `N` inputs, some of which may be absent, on the primitives of a backend.
pub(crate) trait Node<B: Backend, const N: usize>: Debug + Clone + Send + 'static {
    /// What the pass back needs of the pass forward.
    type Saved: Debug + Clone + Send + 'static;

    /// The result, and what to keep; `needs` says which inputs will be asked for their gradients.
    fn forward(&self, inputs: [Option<FloatTensor<B>>; N], needs: [bool; N]) -> (FloatTensor<B>, Self::Saved);

    /// The gradients of the inputs that need them; what others get is dropped.
    fn backward(self, saved: Self::Saved, grad: FloatTensor<B>, needs: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

/// An input of an operation.
#[derive(Debug)]
pub(crate) enum Input<B: Backend = Flex> {
    /// There is none.
    Absent,
    /// A constant.
    Plain(FloatTensor<B>),
    /// Part of a graph.
    Graph(FloatTensor<Autodiff<B>>),
}

impl<B: Backend> Input<B>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    /// A tensor that is known to be on this backend.
    pub(crate) fn new<const D: usize>(x: Tensor<D>) -> Self {
        let input = match x.is_autodiff() {
            true => x.try_into_primitive::<Autodiff<B>>().map(Self::Graph),
            false => x.try_into_primitive::<B>().map(Self::Plain),
        };
        match input {
            Ok(input) => input,
            Err(error) => unreachable!("asked for before: {error:?}"),
        }
    }

    pub(crate) fn optional<const D: usize>(x: Option<Tensor<D>>) -> Self {
        x.map_or(Self::Absent, Self::new)
    }
}

impl<B: Backend> Input<B> {
    pub(crate) fn needs_gradient(&self) -> bool {
        matches!(self, Self::Graph(x) if x.is_tracked())
    }

    /// Any primitive at all, to make a node of where there is no input.
    pub(crate) fn primitive(&self) -> Option<FloatTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Plain(x) => Some(x.clone()),
            Self::Graph(x) => Some(x.clone().into_primitive()),
        }
    }

    pub(crate) fn into_parts(self, other: &FloatTensor<B>) -> (Option<FloatTensor<B>>, NodeGuard) {
        let constant = |x| FloatTensor::<Autodiff<B>>::new(x);
        match self {
            Self::Absent => (None, constant(other.clone()).node()),
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

/// Does the operation of the processor, and makes it part of the graph if one of its inputs is.
pub(crate) fn run<const N: usize, const D: usize, F: Fused<N>>(op: F, inputs: [Input; N]) -> Tensor<D> {
    apply(InSingle(op), inputs)
}

/// Does the operation, and makes it part of the graph if one of its inputs is.
pub(crate) fn apply<B, const N: usize, const D: usize, F>(op: F, inputs: [Input<B>; N]) -> Tensor<D>
where
    B: Backend,
    F: Node<B, N>,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    if !inputs.iter().any(|input| matches!(input, Input::Graph(_))) {
        let inputs = inputs.map(|input| match input {
            Input::Plain(x) => Some(x),
            Input::Absent | Input::Graph(_) => None,
        });
        return Tensor::from_primitive::<B>(op.forward(inputs, [false; N]).0);
    }
    let needs = inputs.each_ref().map(Input::needs_gradient);
    let Some(some) = inputs.iter().find_map(Input::primitive) else { unreachable!("one of them is part of a graph") };
    let mut values: [Option<FloatTensor<B>>; N] = std::array::from_fn(|_| None);
    let mut places = values.iter_mut();
    let guards = inputs.map(|input| {
        let (value, guard) = input.into_parts(&some);
        if let Some(place) = places.next() {
            *place = value;
        }
        guard
    });
    // A second handle would make a change in place a copy.
    drop(some);
    let output = match Step(op.clone()).prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = op.forward(values, needs);
            prep.finish(saved, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(op.forward(values, needs).0),
    };
    Tensor::from_primitive::<Autodiff<B>>(output)
}

/// An operation as a step of the pass back.
#[derive(Debug)]
struct Step<F>(F);

impl<B: Backend, F: Node<B, N>, const N: usize> Backward<B, N> for Step<F> {
    type State = F::Saved;

    fn backward(self, ops: Ops<F::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let needs = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward(ops.state, grad, needs);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// An operation of the processor as it sees its inputs: in single precision.
#[derive(Debug, Clone)]
struct InSingle<F>(F);

impl<const N: usize, F: Fused<N>> Node<Flex, N> for InSingle<F> {
    /// What the operation keeps, and the types of its inputs.
    type Saved = (F::Saved, [DType; N]);

    fn forward(&self, inputs: [Option<Host>; N], needs: [bool; N]) -> (Host, Self::Saved) {
        let Self(op) = self;
        let dtypes = inputs.each_ref().map(|value| value.as_ref().map_or(DType::F32, Host::dtype));
        if !inputs.iter().flatten().any(|input| is_half(input.dtype())) {
            let (output, saved) = op.forward(inputs, needs);
            return (output, (saved, dtypes));
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
        (narrowed(output, op.result(dtype)), (saved, dtypes))
    }

    fn backward(self, (mut saved, dtypes): Self::Saved, grad: Host, needs: [bool; N]) -> [Option<Host>; N] {
        let grad = widened(&grad);
        for kept in saved.tensors().into_iter().filter(|kept| is_half(kept.dtype())) {
            *kept = widened(kept);
        }
        let mut dtypes = dtypes.into_iter();
        self.0.backward(saved, grad, needs).map(|grad| {
            let dtype = dtypes.next().unwrap_or(DType::F32);
            grad.map(|grad| narrowed(grad, dtype))
        })
    }
}

/// The pass forward of an operation outside of any graph, whatever the precision of its inputs.
pub(crate) fn forward<const N: usize, F: Fused<N>>(op: &F, inputs: [Option<Host>; N]) -> Host {
    InSingle(op.clone()).forward(inputs, [false; N]).0
}

fn is_same(a: &Host, b: &Host) -> bool {
    Arc::ptr_eq(&a.data_arc(), &b.data_arc()) && a.layout() == b.layout()
}
