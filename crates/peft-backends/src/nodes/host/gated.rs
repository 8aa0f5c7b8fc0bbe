//! The autodiff node of gated activations on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{self, Host, gate::Gate, part},
    nodes::node::Fused,
};

impl Fused<2> for Gate {
    type Saved = Option<[Host; 2]>;

    fn forward(&self, inputs: [Option<Host>; 2], needs: [bool; 2]) -> (Host, Option<[Host; 2]>) {
        let [gate, up] = inputs.map(|x| host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]))));
        let y = self.product(host::values(&gate), host::values(&up));
        let y = host::tensor(y, gate.layout().shape().as_slice());
        let saved = needs.contains(&true).then_some([gate, up]);
        (y, saved)
    }

    fn backward(self, saved: Option<[Host; 2]>, grad: Host, [needs_gate, needs_up]: [bool; 2]) -> [Option<Host>; 2] {
        let Some([gate, up]) = saved else { return [None, None] };
        let (gates, ups) = (host::values(&gate), host::values(&up));
        let mut dgate = host::whole(grad);
        let dims = gate.layout().shape().as_slice().to_vec();
        // The gradient of the result becomes that of the gate in its place.
        let dup = host::written(gates.len(), |dup| {
            host::new_pieces_beside(
                dgate.storage_mut::<f32>(),
                dup,
                #[inline(always)]
                |start, grad, dup| {
                    let both = part(gates, start, grad.len()).iter().zip(part(ups, start, dup.len()));
                    let all = grad.iter_mut().zip(dup).zip(both);
                    match self {
                        Self::Silu => {
                            for ((grad, dup), (gate, up)) in all {
                                let [y, slope] = Self::Silu.at(*gate);
                                *dup = *grad * y;
                                *grad *= up * slope;
                            }
                        }
                        Self::GeluTanh => {
                            for ((grad, dup), (gate, up)) in all {
                                let [y, slope] = Self::GeluTanh.at(*gate);
                                *dup = *grad * y;
                                *grad *= up * slope;
                            }
                        }
                    }
                },
            )
        });
        [needs_gate.then_some(dgate), needs_up.then(|| host::tensor(dup, &dims))]
    }
}
