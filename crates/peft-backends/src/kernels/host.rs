//! How the processor's versions walk over tensors: contiguous pieces, one thread each, with the widest vectors there are.

pub(crate) mod attention;
pub(crate) mod few_rows;
pub(crate) mod gate;
pub(crate) mod gelu;
pub(crate) mod half_precision;
pub(crate) mod matrix;
pub(crate) mod product;
pub(crate) mod vector_math;

use std::{
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, Ordering},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Elements that one thread takes at a time: enough to outweigh handing them over, few enough to stay in its cache.
pub(crate) const PIECE: usize = 1 << 14;

static FUSED: AtomicBool = AtomicBool::new(true);

/// Whether this process computes by the fused operations, as it does if nothing else is said, or by the plain ones alone.
///
/// For comparing the two, and for finding out whether a fused operation is at fault. To be set before anything is computed.
pub fn set_fused(fused: bool) {
    FUSED.store(fused, Ordering::Relaxed);
}

/// Whether [`set_fused`] has not said no.
#[cfg(feature = "gpu")]
pub(crate) fn is_fused() -> bool {
    FUSED.load(Ordering::Relaxed)
}

/// Whether the processor's version can take the tensor: others go through the plain operations.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    FUSED.load(Ordering::Relaxed)
        && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && (device == Device::flex() || device == Device::flex().autodiff())
}

/// The tensor in one piece that is all of its memory; a copy only if it is not so already.
pub(crate) fn whole(tensor: Host) -> Host {
    let layout = tensor.layout();
    let fills = layout.num_elements() * size_of::<f32>() == tensor.bytes().len();
    // Borrowed and copied only where it must be: a second handle would make every later change in place a copy.
    if layout.is_contiguous() && layout.start_offset() == 0 && fills { tensor } else { tensor.to_contiguous() }
}

/// The elements of a [`whole`] tensor.
pub(crate) fn values(tensor: &Host) -> &[f32] {
    tensor.storage::<f32>()
}

/// The width of its rows, which is that of its last dimension.
pub(crate) fn width(tensor: &Host) -> usize {
    tensor.layout().shape().as_slice().last().copied().unwrap_or(1).max(1)
}

/// A tensor of these elements.
pub(crate) fn tensor(elements: Vec<f32>, dims: &[usize]) -> Host {
    Host::from_data(TensorData::new(elements, dims.to_vec()))
}

/// Memory of that many elements to which nothing was written; `write` gives it back with all of them written, which it can by
/// [`new_pieces`] and its like, or by a product. Zeroing it first would cost as much as many an operation.
pub(crate) fn written(
    elements: usize,
    write: impl for<'m> FnOnce(&'m mut [MaybeUninit<f32>]) -> &'m mut [f32],
) -> Vec<f32> {
    let mut memory = Box::new_uninit_slice(elements);
    let start = memory.as_ptr().cast::<f32>();
    let filled = write(&mut memory);
    assert!(filled.len() == elements && std::ptr::eq(filled.as_ptr(), start), "only a part of the memory was written");
    // SAFETY: the same memory stood as a slice of numbers before us, so that all of them are initialised.
    #[expect(unsafe_code, reason = "the argument stands above")]
    let memory = unsafe { memory.assume_init() };
    memory.into_vec()
}

/// The same memory, zero everywhere.
#[inline(always)]
pub(crate) fn zeroed(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    memory.fill(MaybeUninit::new(0.0));
    // SAFETY: each element was written just now.
    #[expect(unsafe_code, reason = "the argument stands above")]
    unsafe {
        memory.assume_init_mut()
    }
}

/// Runs `f` as compiled for the widest vectors that the processor has; `f` and what it calls must be `#[inline(always)]`.
///
/// A closure that can be called more than once becomes one that is called once by a function of the compiler's, which it does not
/// inline: the loops inside would be compiled for the oldest processor of the family. Called by reference it is inlined.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnMut() -> R) -> R {
    struct ByReference<F>(F);
    impl<R, F: FnMut() -> R> NullaryFnOnce for ByReference<F> {
        type Output = R;

        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(ByReference(f))
}

/// How many elements of whole rows make a piece.
fn piece(row: usize) -> usize {
    (PIECE / row.max(1)).max(1) * row.max(1)
}

/// Calls `f` on pieces of `out`, in parallel, with the place of each piece's first element; pieces are made of whole rows.
pub(crate) fn pieces(out: &mut [f32], row: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let piece = piece(row);
    out.par_chunks_mut(piece).enumerate().for_each(|(index, out)| {
        vectorised(
            #[inline(always)]
            || f(index * piece, out),
        );
    });
}

/// Like [`pieces`], of memory to which nothing was written: `f` finds zeros, which are written while the piece is in the cache.
pub(crate) fn new_pieces(out: &mut [MaybeUninit<f32>], row: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> &mut [f32] {
    let piece = piece(row);
    out.par_chunks_mut(piece).enumerate().for_each(|(index, out)| {
        vectorised(
            #[inline(always)]
            || f(index * piece, zeroed(out)),
        );
    });
    all_written(out)
}

/// Memory of which every piece was zeroed.
fn all_written(out: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    // SAFETY: only the functions beside this one call it, each after it has zeroed all pieces of `out`.
    #[expect(unsafe_code, reason = "the argument stands above")]
    unsafe {
        out.assume_init_mut()
    }
}

/// Like [`new_pieces`], beside a buffer of the same length that is there already.
pub(crate) fn new_pieces_beside<'m>(
    a: &mut [f32],
    b: &'m mut [MaybeUninit<f32>],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> &'m mut [f32] {
    assert_eq!(a.len(), b.len());
    a.par_chunks_mut(PIECE).zip(b.par_chunks_mut(PIECE)).enumerate().for_each(|(index, (a, b))| {
        vectorised(
            #[inline(always)]
            || f(index * PIECE, a, zeroed(b)),
        );
    });
    all_written(b)
}

/// Like [`pieces`], of three buffers of the same length.
pub(crate) fn piece_triples([a, b, c]: [&mut [f32]; 3], f: impl Fn(&mut [f32], &mut [f32], &mut [f32]) + Sync) {
    let pieces = a.par_chunks_mut(PIECE).zip(b.par_chunks_mut(PIECE)).zip(c.par_chunks_mut(PIECE));
    pieces.for_each(|((a, b), c)| {
        vectorised(
            #[inline(always)]
            || f(a, b, c),
        );
    });
}

/// Like [`new_pieces`], with what is to be found out of each row.
pub(crate) fn new_pieces_and_rows<'m, T: Send>(
    out: &'m mut [MaybeUninit<f32>],
    row: usize,
    rows: &mut [T],
    f: impl Fn(usize, &mut [f32], &mut [T]) + Sync,
) -> &'m mut [f32] {
    let (piece, row) = (piece(row), row.max(1));
    assert_eq!(out.len().div_ceil(row), rows.len());
    out.par_chunks_mut(piece).zip(rows.par_chunks_mut(piece / row)).enumerate().for_each(|(index, (out, rows))| {
        vectorised(
            #[inline(always)]
            || f(index * piece, zeroed(out), rows),
        );
    });
    all_written(out)
}

/// Like [`new_pieces_and_rows`], beside a buffer of the same length that is there already.
pub(crate) fn new_pieces_beside_and_rows<'m, T: Send>(
    a: &mut [f32],
    b: &'m mut [MaybeUninit<f32>],
    row: usize,
    rows: &mut [T],
    f: impl Fn(usize, &mut [f32], &mut [f32], &mut [T]) + Sync,
) -> &'m mut [f32] {
    let (piece, row) = (piece(row), row.max(1));
    assert!(a.len() == b.len() && b.len().div_ceil(row) == rows.len());
    let both = a.par_chunks_mut(piece).zip(b.par_chunks_mut(piece)).zip(rows.par_chunks_mut(piece / row));
    both.enumerate().for_each(|(index, ((a, b), rows))| {
        vectorised(
            #[inline(always)]
            || f(index * piece, a, zeroed(b), rows),
        );
    });
    all_written(b)
}

/// Changes a tensor in place, piece by piece, or a copy if others hold it.
///
/// `f` gets the place of the piece's first element and the piece, which is made of whole rows of `row` elements.
pub(crate) fn update(tensor: Host, row: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Host {
    let tensor = whole(tensor);
    let mut tensor = tensor;
    if let Some(out) = tensor.try_storage_mut::<f32>() {
        pieces(out, row, f);
        return tensor;
    }
    let source = values(&tensor);
    let copy = written(source.len(), |out| {
        new_pieces(
            out,
            row,
            #[inline(always)]
            |start, out| {
                out.copy_from_slice(source.get(start..start + out.len()).unwrap_or_default());
                f(start, out);
            },
        )
    });
    self::tensor(copy, tensor.layout().shape().as_slice())
}

/// Like [`update`], with the elements of another tensor of the same shape at hand.
pub(crate) fn combine(into: Host, other: &Host, row: usize, f: impl Fn(&mut [f32], &[f32]) + Sync) -> Host {
    let other = whole(other.clone());
    let other = values(&other);
    update(
        into,
        row,
        #[inline(always)]
        |start, out| f(out, part(other, start, out.len())),
    )
}

/// `length` elements from `start` on.
#[inline(always)]
pub(crate) fn part(values: &[f32], start: usize, length: usize) -> &[f32] {
    values.get(start..start + length).unwrap_or_default()
}

/// A sum of rows, by parts of fixed size in fixed order: the same bits on any number of threads.
///
/// `f` adds what rows `start..end` give to the part's own sums, of which there are `width`.
pub(crate) fn row_sums(rows: usize, width: usize, f: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
    /// Rows of a part.
    const ROWS: usize = 256;
    let parts: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|part| {
            let mut sums = vec![0.0; width];
            vectorised(
                #[inline(always)]
                || f(part * ROWS, rows.min((part + 1) * ROWS), &mut sums),
            );
            sums
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| vec![0.0; width]);
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}

/// The sum of all rows of this width.
pub(crate) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    row_sums(
        values.len() / width,
        width,
        #[inline(always)]
        |from, to, sums| {
            for row in part(values, from * width, (to - from) * width).chunks_exact(width) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += x;
                }
            }
        },
    )
}

/// A reduction in sixteen lanes, which the compiler may keep in one vector: one lane would have to go one by one.
#[inline(always)]
pub(crate) fn lanes(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut all = [start; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(start, |a, x| f(a, *x));
    for chunk in chunks {
        for (a, x) in all.iter_mut().zip(chunk) {
            *a = f(*a, *x);
        }
    }
    all.into_iter().fold(rest, f)
}

/// The sum of `f` over two rows, in sixteen lanes.
#[inline(always)]
pub(crate) fn lanes2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut all = [0.0_f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest = a.remainder().iter().zip(b.remainder()).fold(0.0, |sum, (a, b)| sum + f(*a, *b));
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in all.iter_mut().zip(a).zip(b) {
            *sum += f(*a, *b);
        }
    }
    all.into_iter().fold(rest, |sum, x| sum + x)
}

/// A tensor in the processor's memory.
pub(crate) type Host = burn::backend::flex::FlexTensor;
