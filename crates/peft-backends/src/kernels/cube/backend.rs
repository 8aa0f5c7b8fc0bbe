//! The kernels as operations of the backend.

use burn::{
    backend::{
        Backend, backend_extension,
        fusion::custom::TensorSpec,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use burn_cubecl::CubeBackend;

use crate::kernels::{
    cube::{
        activation::{self, Curve},
        adamw::{self, Formula, Group},
        attention::{
            self,
            scores::{Backward, Scores},
        },
        cross_entropies, dropout,
        low_rank_by_rows::{
            self,
            batch::{Batch, Side},
        },
        norm::{self, Kind},
        overwrite,
        product::{self, Drops, Onto},
        rotary, softmax,
        unpack::{self, Code},
        unpack_ggml,
    },
    dropout_mask::Keep,
    quantized::ggml::GgmlType,
};

/// What every CubeCL runtime does by a kernel of ours.
#[backend_extension(Cube, Fusion)]
pub(crate) trait Kernels: Backend {
    /// `curve(x)`.
    #[fusion(dtype = x, shape = x)]
    fn activation(x: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// `grad · curve'(x)`.
    #[fusion(dtype = x, shape = x)]
    fn activation_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// `curve(gate) · up`.
    #[fusion(dtype = gate, shape = gate)]
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;

    /// The gradients of `gate` and `up`.
    #[fusion(meta = |gate, up, _grad, _curve| (gate.clone(), up.clone()))]
    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// What dropout leaves of `x`.
    #[fusion(dtype = x, shape = x)]
    fn dropout(x: FloatTensor<Self>, keep: Keep) -> FloatTensor<Self>;

    /// What dropout leaves of `x`, and `residual`.
    #[fusion(dtype = x, shape = x)]
    fn dropout_add(x: FloatTensor<Self>, residual: FloatTensor<Self>, keep: Keep) -> FloatTensor<Self>;

    /// The normalisation over the last dimension, and each row's mean and inverse deviation, `[2, rows]`.
    #[fusion(meta = |z, _weight, _bias, _biased, _kind, _epsilon| (z.clone(), two_each(z)))]
    fn norm(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        biased: bool,
        kind: Kind,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradient of `z`.
    #[fusion(dtype = z, shape = z)]
    fn norm_backward(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self>;

    /// The gradients of the weight and of the bias.
    #[fusion(meta = |_z, weight, _rows, _grad, _kind| (weight.clone(), weight.clone()))]
    fn norm_backward_weights(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Kind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Softmax over the last dimension.
    #[fusion(dtype = x, shape = x)]
    fn row_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of its input.
    #[fusion(dtype = y, shape = y)]
    fn row_softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Rotary positions, or back.
    #[fusion(dtype = x, shape = x)]
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        half: usize,
        back: bool,
    ) -> FloatTensor<Self>;

    /// `scale · a b`, of which one side is thin.
    #[fusion(meta = |a, b, _scale, _drops, dtype| TensorSpec::new(Shape::new([a.shape[0], b.shape[1]]), *dtype))]
    fn thin_product(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        drops: Option<(Drops, Keep)>,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// `y + scale · a b`, in the place of `y` if nobody else holds it.
    #[fusion(dtype = y, shape = y)]
    fn add_thin_product(
        y: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        drops: Option<(Drops, Keep)>,
    ) -> FloatTensor<Self>;

    /// `scale · x F` of each adapter's rows, adapter by adapter, where the columns of the factors are ranks.
    #[fusion(meta = |_x, _factors, _table, batch, _side| TensorSpec::new(Shape::new(batch.inner()), DType::F32))]
    fn into_ranks(
        x: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        side: Side,
    ) -> FloatTensor<Self>;

    /// What the factors, whose rows are ranks, make of that; zeros in the rows of no adapter.
    #[fusion(meta = |_inner, factors, _table, batch, dtype| TensorSpec::new(Shape::new([batch.rows, factors.shape[1]]), *dtype))]
    fn out_of_ranks(
        inner: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The same added to `y`, in the place of `y` if nobody else holds it.
    #[fusion(dtype = y, shape = y)]
    fn add_out_of_ranks(
        y: FloatTensor<Self>,
        inner: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
    ) -> FloatTensor<Self>;

    /// The gradient of all adapters' first factors, or of their second.
    #[fusion(meta = |_inner, x, _table, batch, side, dtype| TensorSpec::new(Shape::new(batch.gradient(*side, x.shape[1])), *dtype))]
    fn sum_by_rank(
        inner: FloatTensor<Self>,
        x: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        side: Side,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The gradients of the losses by the logits, and the losses.
    #[fusion(meta = |logits, targets, _cap| (logits.clone(), TensorSpec::new(targets.shape.clone(), DType::F32)))]
    fn cross_entropy_rows(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        cap: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The result as `[batch, queries, heads, width]`, and the logarithms of the sums of the scores' powers.
    #[fusion(meta = |q, _k, v, _marks, _scores| (heads_last(q, v), one_each(q)))]
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        marks: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `Σ y · grad` over each vector.
    #[fusion(meta = |y, _grad| one_each(y))]
    fn attention_along(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The values of a packed matrix, `[d_out, d_in]`.
    #[fusion(meta = |_words, _table, _scales, _scale_words, _map, code, dtype| TensorSpec::new(Shape::new(code.dims), *dtype))]
    fn unpack(
        words: IntTensor<Self>,
        table: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        scale_words: IntTensor<Self>,
        map: FloatTensor<Self>,
        code: Code,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The values of a matrix in blocks as GGUF files have them, `[d_out, d_in]`.
    #[fusion(meta = |_words, _kind, dims, dtype| TensorSpec::new(Shape::new(*dims), *dtype))]
    fn unpack_ggml(words: IntTensor<Self>, kind: GgmlType, dims: [usize; 2], dtype: DType) -> FloatTensor<Self>;

    /// `squares` with the sums of the squares of a few elements each in it, from a place on.
    #[fusion(meta = |squares, _tensors, _from| squares.clone())]
    fn parts_of_squares(
        squares: FloatTensor<Self>,
        #[extension_type] tensors: Group<Self>,
        from: usize,
    ) -> FloatTensor<Self>;

    /// A step of AdamW: values and both moments.
    #[fusion(meta = |values, _gradients, firsts, seconds, _norm, _formula| (values.clone(), firsts.clone(), seconds.clone()))]
    fn adamw_step(
        #[extension_type] values: Group<Self>,
        #[extension_type] gradients: Group<Self>,
        #[extension_type] firsts: Group<Self>,
        #[extension_type] seconds: Group<Self>,
        norm: FloatTensor<Self>,
        formula: Formula,
    ) -> (Group<Self>, Group<Self>, Group<Self>);

    /// `values` in the memory of `place`, whoever else holds it.
    #[fusion(dtype = place, shape = place)]
    fn overwrite(place: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same of whole numbers.
    #[fusion(dtype = place, shape = place)]
    fn overwrite_ints(place: IntTensor<Self>, values: IntTensor<Self>) -> IntTensor<Self>;

    /// The gradients of `q`, `[batch, queries, heads, dim]`, and of `k` and `v`, `[batch, keys, key heads, ..]`.
    #[fusion(meta = |q, k, v, _grad, _log_sums, _along, _marks, _scores| (heads_last(q, q), heads_last(k, k), heads_last(v, v)))]
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        along: FloatTensor<Self>,
        marks: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

fn vectors(x: &TensorSpec) -> usize {
    x.shape.num_elements() / x.shape.last().copied().unwrap_or(1).max(1)
}

/// A number in single precision for each vector.
fn one_each(x: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([vectors(x)]), DType::F32)
}

fn two_each(x: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([2, vectors(x)]), DType::F32)
}

/// The shape of `x` with its second and third dimensions swapped, and the last of `like`.
fn heads_last(x: &TensorSpec, like: &TensorSpec) -> TensorSpec {
    let [batch, heads, positions, _] = x.shape.dims::<4>();
    let [.., width] = like.shape.dims::<4>();
    TensorSpec::new(Shape::new([batch, positions, heads, width]), x.dtype)
}

impl Kernels for CubeBackend {
    fn activation(x: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        activation::forward(x, curve)
    }

    fn activation_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        activation::backward(x, grad, curve)
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        activation::gated(gate, up, curve)
    }

    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        activation::gated_backward(gate, up, grad, curve)
    }

    fn dropout(x: FloatTensor<Self>, keep: Keep) -> FloatTensor<Self> {
        dropout::dropout(x, keep)
    }

    fn dropout_add(x: FloatTensor<Self>, residual: FloatTensor<Self>, keep: Keep) -> FloatTensor<Self> {
        norm::dropout_add(x, residual, keep)
    }

    fn norm(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        biased: bool,
        kind: Kind,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::forward(z, weight, bias, biased, kind, epsilon)
    }

    fn norm_backward(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        norm::backward(z, weight, rows, grad, kind)
    }

    fn norm_backward_weights(
        z: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Kind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward_weights(z, weight, rows, grad, kind)
    }

    fn row_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        softmax::forward(x)
    }

    fn row_softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        softmax::backward(y, grad)
    }

    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        half: usize,
        back: bool,
    ) -> FloatTensor<Self> {
        rotary::rotate(x, cos, sin, half, back)
    }

    fn thin_product(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        drops: Option<(Drops, Keep)>,
        dtype: DType,
    ) -> FloatTensor<Self> {
        product::product(a, b, scale, drops, Onto::New(dtype))
    }

    fn add_thin_product(
        y: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        drops: Option<(Drops, Keep)>,
    ) -> FloatTensor<Self> {
        product::product(a, b, scale, drops, Onto::Sum(y))
    }

    fn into_ranks(
        x: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        side: Side,
    ) -> FloatTensor<Self> {
        low_rank_by_rows::into_ranks(x, factors, table, batch, side)
    }

    fn out_of_ranks(
        inner: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        dtype: DType,
    ) -> FloatTensor<Self> {
        low_rank_by_rows::out_of_ranks(inner, factors, table, batch, dtype)
    }

    fn add_out_of_ranks(
        y: FloatTensor<Self>,
        inner: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
    ) -> FloatTensor<Self> {
        low_rank_by_rows::add_out_of_ranks(y, inner, factors, table, batch)
    }

    fn sum_by_rank(
        inner: FloatTensor<Self>,
        x: FloatTensor<Self>,
        table: IntTensor<Self>,
        batch: Batch,
        side: Side,
        dtype: DType,
    ) -> FloatTensor<Self> {
        low_rank_by_rows::sum_by_rank(inner, x, table, batch, side, dtype)
    }

    fn cross_entropy_rows(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        cap: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cross_entropies::rows(logits, targets, cap)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        marks: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward(q, k, v, marks, scores)
    }

    fn attention_along(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        attention::along::along(y, grad)
    }

    fn unpack(
        words: IntTensor<Self>,
        table: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        scale_words: IntTensor<Self>,
        map: FloatTensor<Self>,
        code: Code,
        dtype: DType,
    ) -> FloatTensor<Self> {
        unpack::run([words, table, scales, scale_words, map], code, dtype)
    }

    fn unpack_ggml(words: IntTensor<Self>, kind: GgmlType, dims: [usize; 2], dtype: DType) -> FloatTensor<Self> {
        unpack_ggml::run(words, kind, dims, dtype)
    }

    fn parts_of_squares(squares: FloatTensor<Self>, tensors: Group<Self>, from: usize) -> FloatTensor<Self> {
        adamw::parts_of_squares(squares, tensors.into_vec(), from)
    }

    fn adamw_step(
        values: Group<Self>,
        gradients: Group<Self>,
        firsts: Group<Self>,
        seconds: Group<Self>,
        norm: FloatTensor<Self>,
        formula: Formula,
    ) -> (Group<Self>, Group<Self>, Group<Self>) {
        let tensors = [values, gradients, firsts, seconds].map(Group::into_vec);
        adamw::step(tensors, norm, formula).map(Group::new).into()
    }

    fn overwrite(place: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self> {
        overwrite::in_place(place, values)
    }

    fn overwrite_ints(place: IntTensor<Self>, values: IntTensor<Self>) -> IntTensor<Self> {
        overwrite::in_place(place, values)
    }

    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        along: FloatTensor<Self>,
        marks: IntTensor<Self>,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        Backward { q, k, v, grad, log_sums, along, marks, scores }.run()
    }
}
