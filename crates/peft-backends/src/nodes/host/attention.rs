//! The autodiff node of attention on the processor: the forward pass, what it keeps, and the backward pass.

use rayon::prelude::*;

use crate::{
    kernels::host::{
        self, Host,
        attention::{Attention, Heads, Places, RowBackward, Tile, to_weights},
        lanes2,
        matrix::Matrix,
        product::{Before, Shared, Target, Threads, product},
    },
    nodes::node::{Fused, Kept},
};

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    q: Host,
    k: Host,
    v: Host,
    output: Host,
    /// `[batch · heads · queries]`.
    log_sums: Vec<f32>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        vec![&mut self.q, &mut self.k, &mut self.v, &mut self.output]
    }
}

impl Fused<3> for Attention {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 3], needs: [bool; 3]) -> (Host, Option<Saved>) {
        let [q, k, v] = inputs.map(|x| Heads::ready(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0, 0, 0]))));
        let (queries, keys, values) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let [batch, heads, count, _] = queries.dims;
        let [_, key_heads, key_count, _] = keys.dims;
        let places = Places::of([batch, heads, count, values.dims[3]]);
        let group = heads / key_heads;
        let blind: Vec<Vec<bool>> = (0..batch).map(|row| self.sight.blind(row, count, key_count)).collect();
        let tile_rows = self.tile_rows(key_count);
        let mut log_sums = vec![0.0; batch * heads * count];
        let output = host::written(batch * count * places.stride(), |output| {
            // Zero, for a tile without any key writes nothing.
            let memory = host::new_pieces(output, 1, |_, _| ());
            let output = Shared::new(memory);
            let work = log_sums.par_chunks_mut(count).enumerate();
            work.for_each_init(Vec::new, |scratch, (index, log_sums)| {
                let (row, head) = (index / heads, index % heads);
                let (queries, keys) = (queries.head(row, head), keys.head(row, head / group));
                let values = values.head(row, head / group);
                let blind = blind.get(row).map(Vec::as_slice).unwrap_or_default();
                for (from, log_sums) in (0..count).step_by(tile_rows).zip(log_sums.chunks_mut(tile_rows)) {
                    let to = from + log_sums.len();
                    let range = self.tile_range(from, to, count, key_count, blind);
                    let width = range[1] - range[0];
                    scratch.resize(tile_rows * width, 0.0);
                    let row_keys = self.sight.keys_of_row(row, key_count);
                    let queries = queries.rows(from, to);
                    let tile = Tile { queries, keys, range, first: from, count, row: row_keys, blind };
                    self.scores(&tile, scratch);
                    host::vectorised(
                        #[inline(always)]
                        || {
                            for (at, (scores, log_sum)) in
                                scratch.chunks_exact_mut(width).zip(log_sums.iter_mut()).enumerate()
                            {
                                *log_sum = to_weights(scores);
                                if let Some(keep) = self.keep {
                                    keep.apply((index * count + from + at) * key_count + range[0], scores);
                                }
                            }
                        },
                    );
                    // SAFETY: no other head and no other tile writes these positions.
                    #[expect(unsafe_code, reason = "the argument stands above")]
                    let target =
                        unsafe { output.part(places.at(row, head, from), [to - from, places.dim], places.stride()) };
                    let weights = Matrix::new(scratch, [to - from, width]);
                    product(target, Before::Lost, 1.0, weights, values.rows(range[0], range[1]), Threads::One);
                }
            });
            memory
        });
        let output = places.tensor(output, batch);
        let saved = needs.contains(&true).then(|| Saved { q, k, v, output: output.clone(), log_sums });
        (output, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 3]) -> [Option<Host>; 3] {
        let Some(Saved { q, k, v, output, log_sums }) = saved else { return [const { None }; 3] };
        let grad = Heads::ready(grad);
        let (queries, keys, values) = (Heads::of(&q), Heads::of(&k), Heads::of(&v));
        let (outputs, grads) = (Heads::of(&output), Heads::of(&grad));
        let [batch, heads, count, _] = queries.dims;
        let [_, key_heads, key_count, _] = keys.dims;
        let group = heads / key_heads;
        let (q_places, k_places, v_places) = (Places::of(queries.dims), Places::of(keys.dims), Places::of(values.dims));
        let zeros = |needed: bool, places: Places| {
            vec![0.0_f32; if needed { batch * places.positions * places.stride() } else { 0 }]
        };
        let [needs_q, needs_k, needs_v] = needs;
        let mut dq = zeros(needs_q, q_places);
        let mut dk = zeros(needs_k, k_places);
        let mut dv = zeros(needs_v, v_places);
        let (to_q, to_k, to_v) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
        let blind: Vec<Vec<bool>> = (0..batch).map(|row| self.sight.blind(row, count, key_count)).collect();
        let tile_rows = self.tile_rows(key_count);
        (0..batch * key_heads).into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |(scratch, dscratch), index| {
                let (row, key_head) = (index / key_heads, index % key_heads);
                let (keys, values) = (keys.head(row, key_head), values.head(row, key_head));
                let blind = blind.get(row).map(Vec::as_slice).unwrap_or_default();
                for head in key_head * group..(key_head + 1) * group {
                    let (queries, outputs, grads) =
                        (queries.head(row, head), outputs.head(row, head), grads.head(row, head));
                    for from in (0..count).step_by(tile_rows) {
                        let to = count.min(from + tile_rows);
                        let range @ [first, end] = self.tile_range(from, to, count, key_count, blind);
                        let width = end - first;
                        scratch.resize(tile_rows * width, 0.0);
                        dscratch.resize(tile_rows * width, 0.0);
                        let row_keys = self.sight.keys_of_row(row, key_count);
                        let tile_queries = queries.rows(from, to);
                        let tile =
                            Tile { queries: tile_queries, keys, range, first: from, count, row: row_keys, blind };
                        self.scores(&tile, scratch);
                        let tile_grads = grads.rows(from, to);
                        let dims = [to - from, width];
                        let seen = values.rows(first, end);
                        let target = Target::new(dscratch, dims);
                        product(target, Before::Lost, 1.0, tile_grads, seen.t(), Threads::One);
                        host::vectorised(
                            #[inline(always)]
                            || {
                                let rows = scratch.chunks_exact_mut(width).zip(dscratch.chunks_exact_mut(width));
                                for (query, (scores, grads_of_weights)) in (from..to).zip(rows) {
                                    let place = (row * heads + head) * count + query;
                                    let backward = RowBackward {
                                        log_sum: log_sums.get(place).copied().unwrap_or_default(),
                                        along: lanes2(outputs.row(query), grads.row(query), |o, g| o * g),
                                        soft_cap: self.soft_cap,
                                        keep: self.keep,
                                        place: (place * key_count + first) as u32,
                                    };
                                    backward.apply(scores, grads_of_weights);
                                }
                            },
                        );
                        let weights = Matrix::new(scratch, dims);
                        let dscores = Matrix::new(dscratch, dims);
                        let dim = q_places.dim;
                        // SAFETY: no other task has this row and key head, nor the query heads that share it.
                        #[expect(unsafe_code, reason = "the argument stands above")]
                        unsafe {
                            if needs_v {
                                let at = v_places.at(row, key_head, first);
                                let target = to_v.part(at, [width, v_places.dim], v_places.stride());
                                product(target, Before::Kept, 1.0, weights.t(), tile_grads, Threads::One);
                            }
                            if needs_q {
                                let target =
                                    to_q.part(q_places.at(row, head, from), [to - from, dim], q_places.stride());
                                product(target, Before::Lost, self.scale, dscores, keys.rows(first, end), Threads::One);
                            }
                            if needs_k {
                                let at = k_places.at(row, key_head, first);
                                let target = to_k.part(at, [width, dim], k_places.stride());
                                product(target, Before::Kept, self.scale, dscores.t(), tile_queries, Threads::One);
                            }
                        }
                    }
                }
            },
        );
        [
            needs_q.then(|| q_places.tensor(dq, batch)),
            needs_k.then(|| k_places.tensor(dk, batch)),
            needs_v.then(|| v_places.tensor(dv, batch)),
        ]
    }
}
