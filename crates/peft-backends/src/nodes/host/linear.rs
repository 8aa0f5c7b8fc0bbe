//! The autodiff node of a linear layer with its low-rank adapter on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{
        self, Host,
        matrix::Matrix,
        product::{Output, Threads},
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
pub(crate) struct Linear {
    pub(crate) layer: Projection,
    /// What the input is made anew from.
    pub(crate) origin: Option<Origin>,
}

impl Linear {
    pub(crate) fn new(layer: Projection) -> Self {
        Self { layer, origin: None }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// Only where a gradient needs it and it cannot be made anew.
    x: Option<Host>,
    layer: SavedProjection,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        self.x.iter_mut().chain(self.layer.tensors()).collect()
    }
}

impl Fused<5> for Linear {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 5], needs: [bool; 5]) -> (Host, Option<Saved>) {
        let [x, weight, bias, a, b] = inputs;
        let x = host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0])));
        let (y, layer) = self.layer.forward(host::values(&x), [weight, bias, a, b]);
        let [_, needs_weight, _, needs_a, _] = needs;
        let keeps_x = (needs_weight || needs_a) && self.origin.is_none();
        let saved = needs.contains(&true).then(|| Saved { x: keeps_x.then_some(x), layer });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 5]) -> [Option<Host>; 5] {
        let Some(Saved { x, layer }) = saved else { return [const { None }; 5] };
        let grad = host::whole(grad);
        let [d_in, d_out] = self.layer.dims(&layer);
        let values = host::values(&grad);
        let tokens = values.len() / d_out;
        let [needs_x, needs_weight, needs_bias, needs_a, needs_b] = needs;
        let needs = [needs_weight, needs_bias, needs_a, needs_b];
        let mut back = Back::default();
        let dx = needs_x.then(|| {
            host::written(tokens * d_in, |dx| {
                let (found, dx) = self.layer.back(&layer, values, Some(Output::New(dx)), needs);
                back = found;
                dx
            })
        });
        if !needs_x {
            back = self.layer.back(&layer, values, None, needs).0;
        }
        let x = x.as_ref().or_else(|| self.origin.as_ref().filter(|_| needs_a).map(Origin::made)).map(host::values);
        let da = x.filter(|_| needs_a).and_then(|x| self.layer.inner_gradient(&layer, x, &back));
        let dw = x.filter(|_| needs_weight).map(|x| {
            let (x, dy) = (Matrix::new(x, [tokens, d_in]), Matrix::new(values, [tokens, d_out]));
            let dw = host::written(d_in * d_out, |dw| Output::New(dw).of_product(1.0, x.t(), dy, Threads::All));
            host::tensor(dw, &[d_in, d_out])
        });
        [dx.map(|dx| host::tensor(dx, &[tokens, d_in])), dw, back.bias, da, back.b]
    }
}
