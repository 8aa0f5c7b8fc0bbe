//! Products of matrices by the kernels that Flex uses, on memory that is already there.

use std::{marker::PhantomData, mem::MaybeUninit};

use gemm::Parallelism;

use crate::kernels::host::{
    self, few_rows,
    matrix::{Matrix, reach},
};

/// Memory of which several threads write different parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) start: *mut f32,
    pub(crate) length: usize,
    pub(crate) life: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a pointer to memory that is borrowed for `'a`; who makes a `Target` of a part answers for that part.
#[expect(unsafe_code, reason = "the argument stands above")]
unsafe impl Send for Shared<'_> {}

// SAFETY: as above.
#[expect(unsafe_code, reason = "the argument stands above")]
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(memory: &'a mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr(), length: memory.len(), life: PhantomData }
    }

    /// The matrix that begins at element `at`, with `stride` elements from a row to the next.
    ///
    /// # Safety
    /// As long as the result is there nothing else reads or writes its elements.
    #[expect(unsafe_code, reason = "the caller has to see to it that parts do not overlap")]
    pub(crate) unsafe fn part(self, at: usize, dims: [usize; 2], stride: usize) -> Target<'a> {
        assert!(at + reach(dims, [stride, 1]) <= self.length, "{dims:?} at {at} of {}", self.length);
        Target { start: self.start.wrapping_add(at), dims, stride, life: PhantomData }
    }
}

/// A matrix that a product is written to.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) start: *mut f32,
    pub(crate) dims: [usize; 2],
    pub(crate) stride: usize,
    pub(crate) life: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// Row by row without gaps.
    pub(crate) fn new(memory: &'a mut [f32], dims: [usize; 2]) -> Self {
        assert!(reach(dims, [dims[1], 1]) <= memory.len(), "{dims:?} in {} elements", memory.len());
        Self { start: memory.as_mut_ptr(), dims, stride: dims[1], life: PhantomData }
    }
}

impl Target<'_> {
    /// Writes a matrix without gaps, or adds it.
    pub(crate) fn take(self, before: Before, factor: f32, found: &[f32]) {
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
pub(crate) enum Output<'m> {
    /// Nothing was written to it yet.
    New(&'m mut [MaybeUninit<f32>]),
    /// There is something in it.
    Old(&'m mut [f32], Before),
}

impl<'m> Output<'m> {
    /// The memory for parts of a product, and what becomes of what is there.
    pub(crate) fn shared(&mut self) -> (Shared<'_>, Before) {
        match self {
            Self::New(memory) => {
                let (start, length) = (memory.as_mut_ptr().cast(), memory.len());
                (Shared { start, length, life: PhantomData }, Before::Lost)
            }
            Self::Old(memory, before) => (Shared::new(memory), *before),
        }
    }

    /// `factor · a b`, or that added to what was there.
    pub(crate) fn of_product(mut self, factor: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) -> &'m mut [f32] {
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
    pub(crate) fn zeroed(self) -> (&'m mut [f32], Before) {
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
    pub(crate) unsafe fn written(self, elements: usize) -> &'m mut [f32] {
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
pub(crate) enum Before {
    /// It is written over, and not read.
    Lost,
    /// The product is added to it.
    Kept,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread.
    One,
    /// All of them, if it is worth it.
    All,
}

/// `out = factor · a b`, or that added to it.
pub(crate) fn product(out: Target<'_>, before: Before, factor: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
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
