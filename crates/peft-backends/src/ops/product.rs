//! Products of matrices by the kernels that Flex uses, on memory that is already there.

use std::{marker::PhantomData, mem::MaybeUninit};

use gemm::Parallelism;
use half::bf16;

use super::{few_rows, host, node::Host};

/// A matrix somewhere in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a, E = f32> {
    /// From its first element on.
    values: &'a [E],
    dims: [usize; 2],
    strides: [usize; 2],
}

impl<'a, E: Copy> Matrix<'a, E> {
    /// Row by row without gaps.
    pub(super) fn new(values: &'a [E], dims: [usize; 2]) -> Self {
        Self::strided(values, dims, [dims[1], 1])
    }

    /// With that many elements from a row to the next and from a column to the next.
    pub(super) fn strided(values: &'a [E], dims: [usize; 2], strides: [usize; 2]) -> Self {
        assert!(reach(dims, strides) <= values.len(), "a matrix of {dims:?} in {} elements", values.len());
        Self { values, dims, strides }
    }

    /// A tensor of two dimensions as it lies, transposed or not.
    fn laid(values: &'a [E], tensor: &'a Host) -> Self {
        let layout = tensor.layout();
        match (layout.shape().as_slice(), layout.strides()) {
            ([rows, columns], [row, column]) if *row >= 0 && *column >= 0 => {
                let values = values.get(layout.start_offset()..).unwrap_or_default();
                Self::strided(values, [*rows, *columns], [row.unsigned_abs(), column.unsigned_abs()])
            }
            (dims, strides) => unreachable!("a matrix of {dims:?} with strides {strides:?}"),
        }
    }

    /// Rows and columns swapped.
    pub(super) fn t(self) -> Self {
        let ([rows, columns], [row, column]) = (self.dims, self.strides);
        Self { values: self.values, dims: [columns, rows], strides: [column, row] }
    }

    /// The rows of this range.
    pub(super) fn rows(self, from: usize, to: usize) -> Self {
        let values = self.values.get(from * self.strides[0]..).unwrap_or_default();
        Self::strided(values, [to - from, self.dims[1]], self.strides)
    }

    /// The columns of this range.
    pub(super) fn columns(self, from: usize, to: usize) -> Self {
        let values = self.values.get(from * self.strides[1]..).unwrap_or_default();
        Self::strided(values, [self.dims[0], to - from], self.strides)
    }

    /// A row whose elements lie side by side.
    #[inline(always)]
    pub(super) fn row(self, at: usize) -> &'a [E] {
        let start = at * self.strides[0];
        self.values.get(start..start + self.dims[1]).unwrap_or_default()
    }

    pub(super) fn dims(self) -> [usize; 2] {
        self.dims
    }

    pub(super) fn strides(self) -> [usize; 2] {
        self.strides
    }
}

impl<'a> Matrix<'a, bf16> {
    /// A tensor in half precision.
    pub(super) fn of_half(tensor: &'a Host) -> Self {
        Self::laid(tensor.storage::<bf16>(), tensor)
    }
}

impl<'a> Matrix<'a> {
    /// A tensor in single precision.
    pub(super) fn of(tensor: &'a Host) -> Self {
        Self::laid(tensor.storage::<f32>(), tensor)
    }

    #[inline(always)]
    pub(super) fn at(self, row: usize, column: usize) -> f32 {
        self.values.get(row * self.strides[0] + column * self.strides[1]).copied().unwrap_or_default()
    }
}

/// How many elements there are from the first to the last.
fn reach([rows, columns]: [usize; 2], [row, column]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row + (columns - 1) * column + 1 }
}

/// Memory of which several threads write different parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a pointer to memory that is borrowed for `'a`; who makes a `Target` of a part answers for that part.
#[expect(unsafe_code, reason = "the argument stands above")]
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the argument stands above")]
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(memory: &'a mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr(), length: memory.len(), life: PhantomData }
    }

    /// The matrix that begins at element `at`, with `stride` elements from a row to the next.
    ///
    /// # Safety
    /// As long as the result is there nothing else reads or writes its elements.
    #[expect(unsafe_code, reason = "the caller has to see to it that parts do not overlap")]
    pub(super) unsafe fn part(self, at: usize, dims: [usize; 2], stride: usize) -> Target<'a> {
        assert!(at + reach(dims, [stride, 1]) <= self.length, "{dims:?} at {at} of {}", self.length);
        Target { start: self.start.wrapping_add(at), dims, stride, life: PhantomData }
    }
}

/// A matrix that a product is written to.
#[derive(Debug)]
pub(super) struct Target<'a> {
    start: *mut f32,
    dims: [usize; 2],
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// Row by row without gaps.
    pub(super) fn new(memory: &'a mut [f32], dims: [usize; 2]) -> Self {
        assert!(reach(dims, [dims[1], 1]) <= memory.len(), "{dims:?} in {} elements", memory.len());
        Self { start: memory.as_mut_ptr(), dims, stride: dims[1], life: PhantomData }
    }
}

impl Target<'_> {
    /// Writes a matrix without gaps, or adds it.
    fn take(self, before: Before, factor: f32, found: &[f32]) {
        let [_, columns] = self.dims;
        for (row, found) in found.chunks_exact(columns.max(1)).enumerate() {
            let start = self.start.wrapping_add(row * self.stride);
            // SAFETY: all elements of the target were checked against its memory when it was made, and it is borrowed mutably.
            // What was there is read only where it is kept, so that it was written.
            #[expect(unsafe_code, reason = "the argument stands above")]
            unsafe {
                match before {
                    Before::Lost => {
                        let out = std::slice::from_raw_parts_mut(start.cast::<MaybeUninit<f32>>(), columns);
                        for (out, found) in out.iter_mut().zip(found) {
                            out.write(factor * found);
                        }
                    }
                    Before::Kept => {
                        let out = std::slice::from_raw_parts_mut(start, columns);
                        for (out, found) in out.iter_mut().zip(found) {
                            *out += factor * found;
                        }
                    }
                }
            }
        }
    }
}

/// Memory that a whole product goes to.
#[derive(Debug)]
pub(super) enum Output<'m> {
    /// Nothing was written to it yet.
    New(&'m mut [MaybeUninit<f32>]),
    /// There is something in it.
    Old(&'m mut [f32], Before),
}

impl<'m> Output<'m> {
    /// The memory for parts of a product, and what becomes of what is there.
    pub(super) fn shared(&mut self) -> (Shared<'_>, Before) {
        match self {
            Self::New(memory) => {
                let (start, length) = (memory.as_mut_ptr().cast(), memory.len());
                (Shared { start, length, life: PhantomData }, Before::Lost)
            }
            Self::Old(memory, before) => (Shared::new(memory), *before),
        }
    }

    /// `factor · a b`, or that added to what was there.
    pub(super) fn of_product(mut self, factor: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) -> &'m mut [f32] {
        let dims = [a.dims[0], b.dims[1]];
        let (memory, before) = self.shared();
        // SAFETY: `self` is borrowed mutably, and this is the only part of it that is there.
        #[expect(unsafe_code, reason = "the argument stands above")]
        let target = unsafe { memory.part(0, dims, dims[1]) };
        product(target, before, factor, a, b, threads);
        // SAFETY: the target had no gaps, and a product writes all of it.
        #[expect(unsafe_code, reason = "the argument stands above")]
        unsafe {
            self.written(dims[0] * dims[1])
        }
    }

    /// The memory as numbers, with zeros where nothing was written.
    pub(super) fn zeroed(self) -> (&'m mut [f32], Before) {
        match self {
            Self::New(memory) => (host::zeroed(memory), Before::Lost),
            Self::Old(memory, before) => (memory, before),
        }
    }

    /// The memory as numbers.
    ///
    /// # Safety
    /// Its first `elements` were written.
    #[expect(unsafe_code, reason = "the caller has to have written the elements")]
    pub(super) unsafe fn written(self, elements: usize) -> &'m mut [f32] {
        match self {
            Self::New(memory) => {
                assert_eq!(memory.len(), elements, "a product of another size than its memory");
                // SAFETY: as the caller says.
                unsafe { memory.assume_init_mut() }
            }
            Self::Old(memory, _) => memory,
        }
    }
}

/// What becomes of what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// It is written over, and not read.
    Lost,
    /// The product is added to it.
    Kept,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The calling thread.
    One,
    /// All of them, if it is worth it.
    All,
}

/// `out = factor · a b`, or that added to it.
pub(super) fn product(out: Target<'_>, before: Before, factor: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    let ([m, k], [inner, n]) = (a.dims, b.dims);
    assert!(inner == k && out.dims == [m, n], "{:?} of {:?} and {:?}", out.dims, a.dims, b.dims);
    if threads == Threads::All && few_rows::are_few(m, b.dims) && b.strides.contains(&1) {
        let found = few_rows::product(a, b);
        return out.take(before, factor, &found);
    }
    // Below this handing out the work costs more than it saves.
    let many = threads == Threads::All && m * n * k >= 128 * 128 * 128;
    let stride = |stride: usize| isize::try_from(stride).unwrap_or(isize::MAX);
    // SAFETY: sizes and strides of all three were checked against their memory when they were made, and above against each
    // other; `out` is borrowed mutably, so that it overlaps neither `a` nor `b`.
    #[expect(unsafe_code, reason = "the argument stands above")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.start,
            1,
            stride(out.stride),
            before == Before::Kept,
            a.values.as_ptr(),
            stride(a.strides[1]),
            stride(a.strides[0]),
            b.values.as_ptr(),
            stride(b.strides[1]),
            stride(b.strides[0]),
            1.0_f32,
            factor,
            false,
            false,
            false,
            if many { Parallelism::Rayon(0) } else { Parallelism::None },
        );
    }
}
