//! Linear layers and embeddings on quantized weights, and quantizing them.

use burn::tensor::{FloatDType, Int, Tensor, TensorData, module};

use crate::{
    kernels::{quantized::reader::HostPacked, quantized_matrix::PackedMatrix},
    ops::{
        linear_cross_entropies::{packed_cross_entropies, packed_cross_entropies_of_each},
        lora_linear::{LowRank, packed_linear},
    },
};

impl PackedMatrix {
    /// `x W + b`; nothing dense is kept for the pass back.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    pub fn linear(&self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        if let Some(y) = packed_linear(&x, self, bias.as_ref(), None) {
            return y;
        }
        let weight = self.dense();
        let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(FloatDType::from(x.dtype())) };
        module::linear(x, weight, bias)
    }

    /// Rows of what is packed, `[d_out, d_in]`: the matrix as a table of words.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - returned: `[batch, sequence, d_in]`
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let ([batch, sequence], [d_out, d_in]) = (ids.dims(), self.dims);
        let Some(packed) = HostPacked::new(self) else { return module::embedding(self.unpacked().transpose(), ids) };
        let (device, reader) = (ids.device().inner(), packed.reader());
        let ids = ids.into_data().convert::<i64>().try_into_vec::<i64>().unwrap_or_default();
        let mut rows = vec![0.0; ids.len() * d_in];
        for (row, id) in rows.chunks_mut(d_in.max(1)).zip(&ids) {
            let id = usize::try_from(*id).unwrap_or(usize::MAX);
            assert!(id < d_out, "word {id} of a table of {d_out}");
            reader.read(id * d_in, row);
        }
        Tensor::<1>::from_data(TensorData::new(rows, [ids.len() * d_in]), &device).reshape([batch, sequence, d_in])
    }

    /// [`linear_cross_entropies`](super::linear_cross_entropies) on it; none where that is none.
    pub fn cross_entropies(
        &self,
        hidden: &Tensor<2>,
        targets: &[Option<usize>],
        soft_cap: Option<f64>,
    ) -> Option<Tensor<1>> {
        packed_cross_entropies(hidden, self, targets, soft_cap)
    }

    /// [`linear_cross_entropies_of_each`](super::linear_cross_entropies_of_each) on it; none where that is none.
    pub fn cross_entropies_of_each(
        &self,
        hidden: &Tensor<2>,
        targets: &Tensor<1, Int>,
        soft_cap: Option<f64>,
    ) -> Option<Tensor<1>> {
        packed_cross_entropies_of_each(hidden, self, targets, soft_cap)
    }

    /// [`lora_linear`](super::lora_linear) on it; none where that is none.
    pub fn lora_linear(&self, x: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank) -> Option<Tensor<2>> {
        packed_linear(x, self, bias, Some(lora))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Device, Distribution, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        kernels::quantized::{
            codebook::FourBit,
            ggml::GgmlType,
            parts::{PackedParts, Packing},
            quantize::quantize,
        },
        ops::lora_linear,
    };

    const PACKINGS: [Packing; 5] = [
        Packing::FourBit { codes: FourBit::Nf4, nested: false },
        Packing::FourBit { codes: FourBit::Nf4, nested: true },
        Packing::FourBit { codes: FourBit::Fp4, nested: false },
        Packing::FourBit { codes: FourBit::Fp4, nested: true },
        Packing::Int8,
    ];

    fn random(dims: [usize; 2]) -> Tensor<2> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn packed([d_in, d_out]: [usize; 2], packing: Packing) -> PackedMatrix {
        let values = random([d_out, d_in]).into_data().try_into_vec::<f32>().unwrap();
        PackedMatrix::new(quantize(&values, [d_out, d_in], packing).unwrap(), &Device::flex()).unwrap()
    }

    fn close(fast: &TensorData, slow: &TensorData) {
        fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-3));
    }

    /// The packed operations against the same on the unpacked weight.
    fn check([tokens, d_in, d_out, rank]: [usize; 4], packing: Packing, biased: bool, adapted: bool) {
        check_matrix(&packed([d_in, d_out], packing), [tokens, d_in, d_out, rank], biased, adapted);
    }

    fn check_matrix(matrix: &PackedMatrix, [tokens, d_in, d_out, rank]: [usize; 4], biased: bool, adapted: bool) {
        let (x, bias, upstream) =
            (random([tokens, d_in]), random([1, d_out]).reshape([d_out]), random([tokens, d_out]));
        let (a, b) = (random([rank, d_in]), random([d_out, rank]));
        let bias = biased.then_some(bias);
        let run = |dense: bool| {
            let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
            let (x, a, b) = (leaf(&x), leaf(&a), leaf(&b));
            let lora = adapted.then(|| LowRank { a: a.clone(), b: b.clone(), scale: 0.5, drop: 0.0 });
            let y = match (dense, lora) {
                (false, None) => matrix.linear(x.clone(), bias.clone()),
                (false, Some(lora)) => matrix.lora_linear(&x, bias.as_ref(), lora).unwrap(),
                (true, None) => module::linear(x.clone(), matrix.unpacked(), bias.clone()),
                (true, Some(lora)) => lora_linear(&x, &matrix.unpacked(), bias.as_ref(), lora).unwrap(),
            };
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let grads = [x, a, b].map(|x| x.grad(&gradients).map(Tensor::into_data));
            (y.without_autodiff().into_data(), grads)
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(false), run(true));
        close(&fast, &slow);
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            assert_eq!(fast.is_some(), slow.is_some());
            fast.iter().zip(slow).for_each(|(fast, slow)| close(fast, slow));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_unpacked_weight(
            sizes in [1..300_usize, 1..150_usize, 1..150_usize, 1..10_usize],
            few in 1..20_usize,
            packing in 0..5_usize,
            biased: bool,
            adapted: bool,
        ) {
            let [tokens, d_in, d_out, rank] = sizes;
            let packing = *PACKINGS.get(packing).unwrap();
            check([tokens, d_in, d_out, rank], packing, biased, adapted);
            check([few, d_in, d_out, rank], packing, biased, adapted);
        }

        #[test]
        fn reading_anywhere_gives_the_same_values(
            sizes in [1..40_usize, 1..150_usize],
            packing in 0..5_usize,
            from in 0..200_usize,
            length in 0..300_usize,
        ) {
            let matrix = packed(sizes, *PACKINGS.get(packing).unwrap());
            let host = HostPacked::new(&matrix).unwrap();
            let all = matrix.unpacked().transpose().into_data().try_into_vec::<f32>().unwrap();
            let from = from.min(all.len());
            let length = length.min(all.len() - from);
            let mut part = vec![f32::NAN; length];
            host.reader().read(from, &mut part);
            let whole = all.get(from..from + length).unwrap();
            prop_assert!(part.iter().zip(whole).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{part:?} {whole:?}");
        }
    }

    #[test]
    fn blocks_of_gguf_are_multiplied() {
        for (kind, bytes) in [(GgmlType::Q4_1, 20), (GgmlType::Q8_0, 34)] {
            // Scales of one hundredth, and other bytes as they come.
            let scale = half::f16::from_f32(0.01).to_le_bytes();
            let block = |block: usize| {
                (0..bytes)
                    .map(move |at| if at < 4 && at < bytes - 16 { scale[at % 2] } else { (block * 31 + at * 7) as u8 })
            };
            let [d_out, d_in] = [30, 64];
            let codes: Vec<u8> = (0..d_out * d_in / 32).flat_map(block).collect();
            let parts = PackedParts::of_blocks(kind, [d_out, d_in], codes);
            let matrix = PackedMatrix::new(parts.clone(), &Device::flex()).unwrap();
            check_matrix(&matrix, [40, d_in, d_out, 4], true, true);
            check_matrix(&matrix, [3, d_in, d_out, 4], false, false);
            let host = HostPacked::new(&matrix).unwrap();
            let all = kind.dequantize(&parts.codes);
            let mut part = vec![f32::NAN; 100];
            host.reader().read(77, &mut part);
            assert_eq!(part, all.get(77..177).unwrap());
            assert!(PackedMatrix::new(PackedParts { dims: [60, 32 - 1], ..parts }, &Device::flex()).is_err());
        }
    }

    #[test]
    fn more_than_one_band_is_multiplied() {
        for packing in PACKINGS {
            check([40, 700, 2000, 3], packing, true, true);
        }
    }

    #[test]
    fn packed_again_the_values_stay() {
        for packing in [Packing::FourBit { codes: FourBit::Nf4, nested: false }, Packing::Int8] {
            let matrix = packed([96, 40], packing);
            let values = matrix.dense().transpose().into_data().try_into_vec::<f32>().unwrap();
            let again = quantize(&values, [40, 96], packing).unwrap();
            assert_eq!(again.codes, matrix.parts().codes);
        }
    }

    #[test]
    fn sizes_are_four_and_a_half_bits_and_less() {
        let bits = |packing| packed([512, 1024], packing).bytes() as f64 * 8.0 / (512.0 * 1024.0);
        assert_eq!(PACKINGS.map(|packing| (bits(packing) * 100.0).round()), [450.0, 414.0, 450.0, 414.0, 806.0]);
    }
}
