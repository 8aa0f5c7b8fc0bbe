//! The autodiff node of rotary position embeddings on the processor: the forward pass, what it keeps, and the backward pass.

use crate::{
    kernels::host::{self, Host},
    nodes::node::Fused,
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotate {
    pub(crate) half: usize,
}

impl Rotate {
    /// Turns forward with `sign` 1, back with -1.
    pub(crate) fn turn(self, x: Host, [cos, sin]: [&Host; 2], sign: f32) -> Host {
        let mut dims = [0; 4];
        dims.iter_mut().zip(x.layout().shape().as_slice()).for_each(|(to, from)| *to = *from);
        let [_, length, heads, dim] = dims;
        let (cos, sin, half) = (host::values(cos), host::values(sin), self.half);
        let (row, table) = (heads * dim, length * dim);
        // A table of one row serves all rows of the batch.
        let at = move |position: usize| position * dim % if cos.len() > table { usize::MAX } else { table };
        host::update(
            x,
            row,
            #[inline(always)]
            |start, piece| {
                for (index, heads) in piece.chunks_exact_mut(row).enumerate() {
                    let place = at(start / row + index);
                    let (cos, sin) = (host::part(cos, place, dim), host::part(sin, place, dim));
                    for head in heads.chunks_exact_mut(dim) {
                        let (pairs, beyond) = head.split_at_mut(2 * half);
                        let (first, second) = pairs.split_at_mut(half);
                        let tables = cos.iter().zip(sin).zip(cos.iter().skip(half).zip(sin.iter().skip(half)));
                        for ((a, b), ((cos_a, sin_a), (cos_b, sin_b))) in first.iter_mut().zip(second).zip(tables) {
                            // Going back the angles of the two swap as well: they are the same but for the table's rounding.
                            let (x, y) = (*a, *b);
                            *a = x * cos_a - sign * y * if sign > 0.0 { sin_a } else { sin_b };
                            *b = y * cos_b + sign * x * if sign > 0.0 { sin_b } else { sin_a };
                        }
                        for (x, cos) in beyond.iter_mut().zip(cos.iter().skip(2 * half)) {
                            *x *= cos;
                        }
                    }
                }
            },
        )
    }
}

impl Fused<3> for Rotate {
    type Saved = Option<[Host; 2]>;

    fn forward(&self, inputs: [Option<Host>; 3], needs: [bool; 3]) -> (Host, Option<[Host; 2]>) {
        let [x, cos, sin] = inputs.map(|x| host::whole(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0, 0, 0]))));
        let y = self.turn(x, [&cos, &sin], 1.0);
        (y, needs[0].then_some([cos, sin]))
    }

    fn backward(self, saved: Option<[Host; 2]>, grad: Host, _: [bool; 3]) -> [Option<Host>; 3] {
        let Some([cos, sin]) = saved else { return [None, None, None] };
        [Some(self.turn(grad, [&cos, &sin], -1.0)), None, None]
    }
}
