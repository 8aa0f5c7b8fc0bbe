//! Packed values as the processor reads them: any run of a matrix's elements, row by row as in files.

use crate::kernels::{
    host::Host,
    quantized::{codebook::Pairs, ggml::GgmlType, parts::Packing, quantize::BLOCK},
};

/// What `SCB` is divided by.
pub(crate) const INT8_STEP: f32 = 1.0 / 127.0;

/// A packed matrix in the processor's memory.
#[derive(Debug, Clone)]
pub(crate) struct HostPacked {
    /// `[d_out, d_in]`.
    pub(crate) dims: [usize; 2],
    pub(crate) packing: Packing,
    pub(crate) block: usize,
    pub(crate) codes: Host,
    pub(crate) scales: HostScales,
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one for a layer")]
pub(crate) enum HostScales {
    Plain(Host),
    Nested { codes: Host, absmax: Host, map: Host, block: usize, offset: f32 },
}

impl HostPacked {
    pub(crate) fn reader(&self) -> Reader<'_> {
        let scales = match &self.scales {
            HostScales::Plain(scales) => ReadScales::Plain(scales.storage()),
            HostScales::Nested { codes, absmax, map, block, offset } => ReadScales::Nested {
                codes: codes.storage(),
                absmax: absmax.storage(),
                map: map.storage(),
                block: *block,
                offset: *offset,
            },
        };
        // A row of eight bits has one scale.
        let (kind, block) = match self.packing {
            Packing::FourBit { codes, .. } => (Kind::FourBit(codes.pairs()), self.block),
            Packing::Int8 => (Kind::Int8, self.dims[1]),
            Packing::Ggml(kind) => (Kind::Ggml(kind), kind.block()),
        };
        Reader { codes: self.codes.storage(), kind, scales, block }
    }
}

/// The numbers of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    codes: &'a [u8],
    kind: Kind,
    scales: ReadScales<'a>,
    /// Elements that share a scale.
    block: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    FourBit(&'static Pairs),
    Int8,
    Ggml(GgmlType),
}

#[derive(Debug, Clone, Copy)]
enum ReadScales<'a> {
    Plain(&'a [f32]),
    Nested { codes: &'a [u8], absmax: &'a [f32], map: &'a [f32], block: usize, offset: f32 },
}

impl ReadScales<'_> {
    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales.get(at).copied().unwrap_or_default(),
            Self::Nested { codes, absmax, map, block, offset } => {
                let code = codes.get(at).copied().unwrap_or_default();
                let value = map.get(usize::from(code)).copied().unwrap_or_default();
                value * absmax.get(at / block).copied().unwrap_or_default() + offset
            }
        }
    }
}

impl Reader<'_> {
    /// Writes the elements from `start` on, as many as fit.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, out: &mut [f32]) {
        if let Kind::Ggml(kind) = self.kind {
            return self.read_ggml(kind, start, out);
        }
        let (mut at, mut left) = (start, out);
        // Whole blocks from the beginning of one, as far as they go.
        if let Kind::FourBit(pairs) = self.kind
            && self.block == BLOCK
            && at.is_multiple_of(BLOCK)
        {
            let (blocks, rest) = left.as_chunks_mut::<BLOCK>();
            let bytes = self.codes.get(at / 2..).unwrap_or_default().as_chunks::<{ BLOCK / 2 }>().0;
            for (index, (block, bytes)) in blocks.iter_mut().zip(bytes).enumerate() {
                let scale = self.scales.get(at / BLOCK + index);
                for (pair, byte) in block.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = pairs[usize::from(*byte)];
                }
                for x in block {
                    *x *= scale;
                }
            }
            (at, left) = (at + blocks.len() * BLOCK, rest);
        }
        while !left.is_empty() {
            let length = (self.block - at % self.block).min(left.len());
            let (now, rest) = left.split_at_mut(length);
            let scale = self.scales.get(at / self.block);
            match self.kind {
                Kind::FourBit(pairs) => self.read_four_bit(pairs, at, scale, now),
                Kind::Ggml(_) | Kind::Int8 => {
                    let codes = self.codes.get(at..at + length).unwrap_or_default();
                    for (x, code) in now.iter_mut().zip(codes) {
                        *x = f32::from(code.cast_signed()) * scale * INT8_STEP;
                    }
                }
            }
            (at, left) = (at + length, rest);
        }
    }

    #[inline(always)]
    pub(crate) fn read_ggml(&self, kind: GgmlType, start: usize, out: &mut [f32]) {
        /// Values of the largest block.
        const MOST: usize = 256;
        let bytes = |from: usize, to: usize| {
            let place = |block: usize| kind.bytes(block * self.block).unwrap_or_default();
            self.codes.get(place(from)..place(to)).unwrap_or_default()
        };
        // Blocks that are not wanted whole go through a block of our own.
        let mut own = [0.0; MOST];
        let (first, skip) = (start / self.block, start % self.block);
        let head = if skip == 0 { 0 } else { (self.block - skip).min(out.len()) };
        let (head, rest) = out.split_at_mut(head);
        if !head.is_empty() {
            kind.read(bytes(first, first + 1), &mut own);
            head.copy_from_slice(own.get(skip..skip + head.len()).unwrap_or_default());
        }
        let first = start.div_ceil(self.block);
        let count = rest.len() / self.block;
        let (whole, tail) = rest.split_at_mut(count * self.block);
        kind.read(bytes(first, first + count), whole);
        if !tail.is_empty() {
            kind.read(bytes(first + count, first + count + 1), &mut own);
            tail.copy_from_slice(own.get(..tail.len()).unwrap_or_default());
        }
    }

    #[inline(always)]
    pub(crate) fn read_four_bit(&self, pairs: &Pairs, at: usize, scale: f32, out: &mut [f32]) {
        // A byte that begins with the end of another run.
        let (odd, out) = if at % 2 == 1 { out.split_at_mut(1) } else { out.split_at_mut(0) };
        let bytes = self.codes.get(at / 2..).unwrap_or_default();
        if let ([x], Some(byte)) = (&mut *odd, bytes.first()) {
            *x = pairs[usize::from(*byte)][1] * scale;
        }
        let bytes = bytes.get(odd.len()..).unwrap_or_default();
        let (whole, last) = out.as_chunks_mut::<2>();
        // Looked up in one loop and multiplied in another, which then takes whole vectors.
        for (pair, byte) in whole.iter_mut().zip(bytes) {
            *pair = pairs[usize::from(*byte)];
        }
        for x in whole.as_flattened_mut() {
            *x *= scale;
        }
        if let ([x], Some(byte)) = (last, bytes.get(whole.len())) {
            *x = pairs[usize::from(*byte)][0] * scale;
        }
    }
}
