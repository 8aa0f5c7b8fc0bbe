//! Memory of a GPU through which new values reach a computation that was recorded with it.

#[cfg(feature = "gpu")]
mod gpu;

use std::marker::PhantomData;

use burn::tensor::{DType, Device, Float, Int, IntDType, Tensor, TensorData};
#[cfg(not(feature = "gpu"))]
use without_gpu::{Memory, memory, overwrite};

#[cfg(feature = "gpu")]
use self::gpu::overwrite;
#[cfg(feature = "gpu")]
use crate::kernels::cube::{Memory, memory};
use crate::kernels::host::half_precision::of_type;

/// The memory of a tensor on a GPU, to be written over for all who hold the tensor: the one exception to tensors being values.
///
/// It is written by a launch on the tensor's stream, in order with what was launched before and what will be. What Burn's fusion
/// has queued and not launched yet stands outside of that order: [`Captured`](crate::Captured) has it launched.
#[derive(Debug)]
pub struct Slot<K> {
    pub(crate) place: Memory,
    pub(crate) dtype: DType,
    pub(crate) count: usize,
    pub(crate) device: Device,
    /// What the last launch returned: fusion may leave out what nobody holds the result of.
    pub(crate) written: Option<Memory>,
    pub(crate) kind: PhantomData<K>,
}

impl Slot<Float> {
    /// New memory on a GPU and the tensor in it; none on another device.
    pub fn new<const D: usize>(values: TensorData, device: &Device) -> Option<(Self, Tensor<D>)> {
        let (device, dtype) = (device.clone().inner(), values.dtype());
        let tensor = Tensor::from_data(values, (&device, dtype));
        Some((Self::at(memory(tensor.clone())?, dtype, tensor.dims(), device), tensor))
    }

    /// Writes as many values over those that are there.
    pub fn write<const D: usize>(&mut self, values: Tensor<D>) {
        let values = of_type(values.without_autodiff().to_device(&self.device), self.dtype);
        self.overwrite(values.dims(), memory(values));
    }
}

impl Slot<Int> {
    /// New memory on a GPU and the tensor in it, of 32 bits a number; none on another device.
    pub fn new<const D: usize>(values: TensorData, device: &Device) -> Option<(Self, Tensor<D, Int>)> {
        let (device, dtype) = (device.clone().inner(), DType::I32);
        let tensor = Tensor::from_data(values, (&device, dtype));
        Some((Self::at(memory(tensor.clone())?, dtype, tensor.dims(), device), tensor))
    }

    /// Writes as many values over those that are there.
    pub fn write<const D: usize>(&mut self, values: Tensor<D, Int>) {
        let values = values.to_device(&self.device);
        let values = if values.dtype() == self.dtype { values } else { values.cast(IntDType::I32) };
        self.overwrite(values.dims(), memory(values));
    }
}

impl<K> Slot<K> {
    pub(crate) fn at<const D: usize>(place: Memory, dtype: DType, dims: [usize; D], device: Device) -> Self {
        Self { place, dtype, count: dims.iter().product(), device, written: None, kind: PhantomData }
    }

    pub(crate) fn overwrite<const D: usize>(&mut self, dims: [usize; D], values: Option<Memory>) {
        assert_eq!(self.count, dims.iter().product::<usize>(), "a slot takes as many values as it has");
        self.written = values.map(|values| overwrite(self.place.clone(), values));
    }
}

/// Without a GPU there is no such memory.
#[cfg(not(feature = "gpu"))]
mod without_gpu {
    use burn::tensor::{Tensor, kind::Basic};

    #[derive(Debug, Clone)]
    pub(crate) struct Memory;

    pub(crate) fn memory<const D: usize, K: Basic>(_: Tensor<D, K>) -> Option<Memory> {
        None
    }

    pub(crate) fn overwrite(_: Memory, values: Memory) -> Memory {
        values
    }
}
