//! Views of matrices in memory: rows, columns and strides.

use half::bf16;

use crate::kernels::host::Host;

/// A matrix somewhere in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, E = f32> {
    /// From its first element on.
    pub(crate) values: &'a [E],
    pub(crate) dims: [usize; 2],
    pub(crate) strides: [usize; 2],
}

impl<'a, E: Copy> Matrix<'a, E> {
    /// Row by row without gaps.
    pub(crate) fn new(values: &'a [E], dims: [usize; 2]) -> Self {
        Self::strided(values, dims, [dims[1], 1])
    }

    /// With that many elements from a row to the next and from a column to the next.
    pub(crate) fn strided(values: &'a [E], dims: [usize; 2], strides: [usize; 2]) -> Self {
        assert!(reach(dims, strides) <= values.len(), "a matrix of {dims:?} in {} elements", values.len());
        Self { values, dims, strides }
    }

    /// A tensor of two dimensions as it lies, transposed or not.
    pub(crate) fn laid(values: &'a [E], tensor: &'a Host) -> Self {
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
    pub(crate) fn t(self) -> Self {
        let ([rows, columns], [row, column]) = (self.dims, self.strides);
        Self { values: self.values, dims: [columns, rows], strides: [column, row] }
    }

    /// The rows of this range.
    pub(crate) fn rows(self, from: usize, to: usize) -> Self {
        let values = self.values.get(from * self.strides[0]..).unwrap_or_default();
        Self::strided(values, [to - from, self.dims[1]], self.strides)
    }

    /// The columns of this range.
    pub(crate) fn columns(self, from: usize, to: usize) -> Self {
        let values = self.values.get(from * self.strides[1]..).unwrap_or_default();
        Self::strided(values, [self.dims[0], to - from], self.strides)
    }

    /// A row whose elements lie side by side.
    #[inline(always)]
    pub(crate) fn row(self, at: usize) -> &'a [E] {
        let start = at * self.strides[0];
        self.values.get(start..start + self.dims[1]).unwrap_or_default()
    }

    pub(crate) fn dims(self) -> [usize; 2] {
        self.dims
    }

    pub(crate) fn strides(self) -> [usize; 2] {
        self.strides
    }
}

impl<'a> Matrix<'a, bf16> {
    /// A tensor in half precision.
    pub(crate) fn of_half(tensor: &'a Host) -> Self {
        Self::laid(tensor.storage::<bf16>(), tensor)
    }
}

impl<'a> Matrix<'a> {
    /// A tensor in single precision.
    pub(crate) fn of(tensor: &'a Host) -> Self {
        Self::laid(tensor.storage::<f32>(), tensor)
    }

    #[inline(always)]
    pub(crate) fn at(self, row: usize, column: usize) -> f32 {
        self.values.get(row * self.strides[0] + column * self.strides[1]).copied().unwrap_or_default()
    }
}

/// How many elements there are from the first to the last.
pub(crate) fn reach([rows, columns]: [usize; 2], [row, column]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row + (columns - 1) * column + 1 }
}
