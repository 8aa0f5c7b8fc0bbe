//! The autodiff node of a gated feed-forward block with its adapters on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{
        self, Host,
        gate::Gate,
        product::{Before, Output},
    },
    nodes::{
        host::{
            origin::Origin,
            projection::{Back, Projection, SavedProjection},
        },
        node::{Fused, Kept},
    },
};

#[derive(Debug, Clone)]
pub(crate) struct GatedMlp {
    pub(crate) act: Gate,
    pub(crate) gate: Projection,
    pub(crate) up: Projection,
    pub(crate) down: Projection,
    /// What the input is made anew from.
    pub(crate) origin: Option<Origin>,
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// Only where a factor needs it and it cannot be made anew.
    x: Option<Host>,
    /// What gate and up put out; nothing if only the last layer's bias or outer factor is trained.
    middle: Option<[Host; 2]>,
    gate: SavedProjection,
    up: SavedProjection,
    down: SavedProjection,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        let layers = [&mut self.gate, &mut self.up, &mut self.down];
        let middle = self.middle.iter_mut().flatten();
        self.x.iter_mut().chain(middle).chain(layers.into_iter().flat_map(SavedProjection::tensors)).collect()
    }
}

/// What needs a gradient: the input, and weight, bias and both factors of each layer.
#[derive(Debug, Clone, Copy)]
struct Needs {
    x: bool,
    gate: [bool; 4],
    up: [bool; 4],
    down: [bool; 4],
}

impl Needs {
    pub(crate) fn new([x, g0, g1, g2, g3, u0, u1, u2, u3, d0, d1, d2, d3]: [bool; 13]) -> Self {
        Self { x, gate: [g0, g1, g2, g3], up: [u0, u1, u2, u3], down: [d0, d1, d2, d3] }
    }

    /// Whether gate or up have a gradient to hand on.
    pub(crate) fn middle(self) -> bool {
        self.x || self.gate.contains(&true) || self.up.contains(&true)
    }

    /// Whether an inner factor of gate or up is trained.
    pub(crate) fn first_inner(self) -> bool {
        Self::inner(self.gate) || Self::inner(self.up)
    }

    /// Whether the inner factor of a layer is trained.
    pub(crate) fn inner([_, _, a, _]: [bool; 4]) -> bool {
        a
    }
}

impl Fused<13> for GatedMlp {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 13], needs: [bool; 13]) -> (Host, Option<Saved>) {
        let [x, gw, gb, ga, gc, uw, ub, ua, uc, dw, db, da, dc] = inputs;
        let x = host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0])));
        let (gate, gate_layer) = self.gate.forward(host::values(&x), [gw, gb, ga, gc]);
        let (up, up_layer) = self.up.forward(host::values(&x), [uw, ub, ua, uc]);
        let keeps = needs.contains(&true);
        let needs = Needs::new(needs);
        let inner = self.act.product(host::values(&gate), host::values(&up));
        let middle = (needs.middle() || Needs::inner(needs.down)).then_some([gate, up]);
        let (y, down_layer) = self.down.forward(&inner, [dw, db, da, dc]);
        let saved = keeps.then(|| Saved {
            x: (needs.first_inner() && self.origin.is_none()).then_some(x),
            middle,
            gate: gate_layer,
            up: up_layer,
            down: down_layer,
        });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 13]) -> [Option<Host>; 13] {
        let Some(Saved { x, middle, gate, up, down }) = saved else { return [const { None }; 13] };
        let needs = Needs::new(needs);
        let grad = host::whole(grad);
        let grad = host::values(&grad);
        let [d_inner, d_out] = self.down.dims(&down);
        let tokens = grad.len() / d_out.max(1);
        let Some([mut gates, mut ups]) = middle else {
            let (Back { bias, b, .. }, _) = self.down.back(&down, grad, None, needs.down);
            return gradients(None, Layer::default(), Layer::default(), Layer { bias, a: None, b });
        };
        let mut back = Back::default();
        let mut inner = host::written(tokens * d_inner, |dinner| {
            let (found, dinner) = self.down.back(&down, grad, Some(Output::New(dinner)), needs.down);
            back = found;
            dinner
        });
        self.act.back(&mut inner, gates.storage_mut::<f32>(), ups.storage_mut::<f32>());
        let a = Needs::inner(needs.down).then(|| self.down.inner_gradient(&down, &inner, &back)).flatten();
        let of_down = Layer { bias: back.bias, a, b: back.b };
        drop(inner);
        let origin = self.origin.as_ref().filter(|_| needs.first_inner());
        let x = x.as_ref().or_else(|| origin.map(Origin::made)).map(host::values);
        let (mut of_gate, mut of_up) = (Layer::default(), Layer::default());
        let [d_in, _] = self.gate.dims(&gate);
        let dx = match needs.x {
            true => Some(host::written(tokens * d_in, |dx| {
                let (found, dx) = self.gate.layer(&gate, x, host::values(&gates), Some(Output::New(dx)), needs.gate);
                of_gate = found;
                let dx = Some(Output::Old(dx, Before::Kept));
                let (found, dx) = self.up.layer(&up, x, host::values(&ups), dx, needs.up);
                of_up = found;
                dx
            })),
            false => {
                of_gate = self.gate.layer(&gate, x, host::values(&gates), None, needs.gate).0;
                of_up = self.up.layer(&up, x, host::values(&ups), None, needs.up).0;
                None
            }
        };
        gradients(dx.map(|dx| host::tensor(dx, &[tokens, d_in])), of_gate, of_up, of_down)
    }
}

/// The gradients of a layer's bias and factors.
#[derive(Debug, Default)]
struct Layer {
    bias: Option<Host>,
    a: Option<Host>,
    b: Option<Host>,
}

impl Projection {
    /// [`back`](Self::back), and the inner factor's gradient.
    fn layer<'m>(
        &self,
        saved: &SavedProjection,
        x: Option<&[f32]>,
        grad: &[f32],
        dx: Option<Output<'m>>,
        needs: [bool; 4],
    ) -> (Layer, &'m mut [f32]) {
        let (back, dx) = self.back(saved, grad, dx, needs);
        let a = x.filter(|_| Needs::inner(needs)).and_then(|x| self.inner_gradient(saved, x, &back));
        (Layer { bias: back.bias, a, b: back.b }, dx)
    }
}

fn gradients(dx: Option<Host>, gate: Layer, up: Layer, down: Layer) -> [Option<Host>; 13] {
    let [g, u, d] = [gate, up, down];
    [dx, None, g.bias, g.a, g.b, None, u.bias, u.a, u.b, None, d.bias, d.a, d.b]
}
