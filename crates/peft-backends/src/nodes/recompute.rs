//! Activation checkpointing: a layer that keeps its input alone and computes the rest anew when its gradients are due.

use std::{fmt, marker::PhantomData};

#[cfg(feature = "gpu")]
use burn::tensor::Device;
use burn::{
    backend::{
        Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    module::{Module, ModuleMapper, Param},
    tensor::{Gradients as InnerGradients, Tensor},
};

#[cfg(feature = "gpu")]
use crate::kernels::cube::Gpu;
use crate::nodes::draws::{Draws, recorded, replayed};

/// `run(layer, hidden, others)` as one node of the graph. Going forward the layer runs without a graph; going back it runs
/// again with one, from its inputs and with the same dropout. The gradients are those that it would have given anyway, bit for
/// bit; only those of `others`, to which many layers add, may be added up in another order.
///
/// What `run` takes from elsewhere (masks, rotations) must be no part of a graph: it would get no gradient. A layer of which no
/// input is part of a graph (the lowest with something to train, and those below it) simply runs.
///
/// # Shapes
/// - `hidden`: `[batch, sequence, width]`, the layer's input
/// - `others`: at most two tensors that layers share, as an encoder's states are
/// - returned: `[batch, sequence, width]`
pub fn recomputed<M, F, const K: usize>(layer: &M, hidden: Tensor<3>, others: [Tensor<3>; K], run: F) -> Tensor<3>
where
    M: Module + 'static,
    F: Fn(&M, Tensor<3>, [Tensor<3>; K]) -> Tensor<3> + Clone + Send + 'static,
{
    const { assert!(K <= 2, "a node has three inputs") };
    #[cfg(feature = "gpu")]
    if hidden.device().inner() != Device::flex() {
        return recomputed_on::<Gpu, _, _, K>(layer, hidden, others, run);
    }
    recomputed_on::<Flex, _, _, K>(layer, hidden, others, run)
}

fn recomputed_on<B, M, F, const K: usize>(layer: &M, hidden: Tensor<3>, others: [Tensor<3>; K], run: F) -> Tensor<3>
where
    B: Backend,
    M: Module + 'static,
    F: Fn(&M, Tensor<3>, [Tensor<3>; K]) -> Tensor<3> + Clone + Send + 'static,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    let mut rest = others.clone().into_iter();
    let given = [Some(hidden.clone()), rest.next(), rest.next()];
    let needs = given.each_ref().map(|input| input.as_ref().is_some_and(is_tracked::<B, 3>));
    let inputs = given.clone().map(|input| input.map(Tensor::without_autodiff));
    // A constant stands for an input that is not there.
    let parents = given.map(|input| node::<B>(input.unwrap_or_else(|| hidden.clone().without_autodiff())));
    let (true, [Some(first), Some(second), Some(third)], Some((plain, plain_others))) =
        (needs.contains(&true), parents, split(inputs.clone()))
    else {
        return run(layer, hidden, others);
    };
    let frozen = layer.clone().map(&mut Freeze);
    drop((hidden, others));
    let (output, draws) = recorded(|| run(&frozen, plain, plain_others));
    let output = match output.without_autodiff().try_into_primitive::<B>() {
        Ok(output) => output,
        Err(error) => unreachable!("the layer's input is on this device: {error:?}"),
    };
    let state = Again { layer: layer.clone(), inputs, needs, run, draws };
    let step = Recompute::<M, F, K>(PhantomData);
    let output = match step.prepare::<NoCheckpointing>([first, second, third]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    Tensor::from_primitive::<Autodiff<B>>(output)
}

/// The first input and the `K` others.
fn split<const K: usize>([hidden, second, third]: [Option<Tensor<3>>; 3]) -> Option<(Tensor<3>, [Tensor<3>; K])> {
    let others: Vec<_> = [second, third].into_iter().flatten().collect();
    Some((hidden?, others.try_into().ok()?))
}

fn graph<B, const D: usize>(x: Tensor<D>) -> Option<FloatTensor<Autodiff<B>>>
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    x.autodiff().try_into_primitive::<Autodiff<B>>().ok()
}

fn is_tracked<B, const D: usize>(x: &Tensor<D>) -> bool
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    x.is_autodiff() && graph::<B, D>(x.clone()).is_some_and(|x| x.is_tracked())
}

fn node<B>(x: Tensor<3>) -> Option<NodeGuard>
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<Autodiff<B>>,
{
    graph::<B, 3>(x).map(|x| x.into_parts().1)
}

/// What the layer is run again from.
#[derive(Clone)]
struct Again<M, F> {
    layer: M,
    inputs: [Option<Tensor<3>>; 3],
    /// Which inputs get gradients.
    needs: [bool; 3],
    run: F,
    draws: Draws,
}

impl<M, F> fmt::Debug for Again<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// The step back of a layer of type `M`.
struct Recompute<M, F, const K: usize>(PhantomData<fn() -> (M, F)>);

impl<M, F, const K: usize> fmt::Debug for Recompute<M, F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recompute")
    }
}

impl<B, M, F, const K: usize> Backward<B, 3> for Recompute<M, F, K>
where
    B: Backend,
    M: Module + 'static,
    F: Fn(&M, Tensor<3>, [Tensor<3>; K]) -> Tensor<3> + Clone + Send + 'static,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    type State = Again<M, F>;

    fn backward(self, ops: Ops<Again<M, F>, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Tensor::<3>::from_primitive::<B>(grads.consume::<B>(&ops.node));
        let Again { layer, inputs, needs, run, draws } = ops.state;
        let mut anew = Anew::<B> { trained: Vec::new(), backend: PhantomData };
        // New leaves, so that this graph has no node of the one that is being walked through.
        let layer = layer.map(&mut anew);
        let mut tracked = needs.into_iter();
        let inputs = inputs.map(|input| match tracked.next() {
            Some(true) => input.map(|input| input.autodiff().require_grad()),
            _ => input,
        });
        let Some((hidden, others)) = split(inputs.clone()) else { return };
        let output = replayed(draws, || run(&layer, hidden, others));
        if !output.is_autodiff() {
            return;
        }
        let mut found = (output * grad).sum().backward();
        for ((parent, input), needed) in ops.parents.into_iter().zip(inputs).zip(needs) {
            let grad = input.filter(|_| needed).and_then(|input| input.grad_remove(&mut found));
            let grad = grad.and_then(|grad| grad.try_into_primitive::<B>().ok());
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
        for hand_over in anew.trained {
            hand_over(&mut found, grads);
        }
    }
}

/// Takes what is trained out of the graph.
struct Freeze;

impl ModuleMapper for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if is_trained(&param) { param.map(Tensor::without_autodiff) } else { param }
    }
}

/// Hands the gradient of a new leaf over to the one that it stands for.
type HandOver = Box<dyn FnOnce(&mut InnerGradients, &mut Gradients)>;

/// Puts new leaves in the place of what is trained.
struct Anew<B> {
    trained: Vec<HandOver>,
    backend: PhantomData<fn() -> B>,
}

impl<B> ModuleMapper for Anew<B>
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !is_trained(&param) {
            return param;
        }
        let Some(own) = graph::<B, D>(param.base()).map(|own| own.id()) else { return param };
        let leaf = param.base().without_autodiff().autodiff().require_grad();
        let kept = leaf.clone();
        self.trained.push(Box::new(move |found, grads| hand_over::<B, D>(own, &kept, found, grads)));
        param.map(|_| leaf)
    }
}

fn hand_over<B, const D: usize>(own: NodeId, leaf: &Tensor<D>, found: &mut InnerGradients, grads: &mut Gradients)
where
    B: Backend,
    DispatchTensor: DispatchKindConversion<B>,
{
    if let Some(grad) = leaf.grad_remove(found).and_then(|grad| grad.try_into_primitive::<B>().ok()) {
        grads.register::<B>(own, grad);
    }
}

fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    // Asked lazily: an untouched weight that is still to be read or drawn is not trained.
    param.is_initialized() && param.base().is_require_grad()
}
