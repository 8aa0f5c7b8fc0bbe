//! Float tensors and parameters whose rank is known only at run time, as in files and adapters.

use std::any::Any;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};

macro_rules! ranks {
    ($self:expr, $tensor:ident => $body:expr) => {
        match $self {
            Self::R1($tensor) => $body,
            Self::R2($tensor) => $body,
            Self::R3($tensor) => $body,
            Self::R4($tensor) => $body,
        }
    };
}

macro_rules! keep_rank {
    ($self:expr, $tensor:ident => $body:expr) => {
        match $self {
            Self::R1($tensor) => Self::R1($body),
            Self::R2($tensor) => Self::R2($body),
            Self::R3($tensor) => Self::R3($body),
            Self::R4($tensor) => Self::R4($body),
        }
    };
}

/// A float tensor of rank 1 to 4.
#[derive(Debug, Clone)]
pub enum DynTensor {
    /// Rank 1.
    R1(Tensor<1>),
    /// Rank 2.
    R2(Tensor<2>),
    /// Rank 3.
    R3(Tensor<3>),
    /// Rank 4.
    R4(Tensor<4>),
}

/// Casts a value to a type that it is known to have at run time; `None` if it has another.
pub(crate) fn cast<From: 'static, To: 'static>(value: From) -> Option<To> {
    (Box::new(value) as Box<dyn Any>).downcast::<To>().ok().map(|value| *value)
}

impl DynTensor {
    /// Puts data on a device; `None` if its rank is not 1 to 4.
    pub fn from_data(data: TensorData, device: &Device) -> Option<Self> {
        Some(match data.shape().num_dims() {
            1 => Self::R1(Tensor::from_data(data, device)),
            2 => Self::R2(Tensor::from_data(data, device)),
            3 => Self::R3(Tensor::from_data(data, device)),
            4 => Self::R4(Tensor::from_data(data, device)),
            _ => return None,
        })
    }

    /// Wraps a tensor; `None` if its rank is not 1 to 4.
    pub fn wrap<const D: usize>(tensor: Tensor<D>) -> Option<Self> {
        match D {
            1 => cast(tensor).map(Self::R1),
            2 => cast(tensor).map(Self::R2),
            3 => cast(tensor).map(Self::R3),
            4 => cast(tensor).map(Self::R4),
            _ => None,
        }
    }

    /// The tensor, if it has rank `D`.
    pub fn get<const D: usize>(&self) -> Option<Tensor<D>> {
        ranks!(self, tensor => cast(tensor.clone()))
    }

    /// Takes the gradient of a parameter of that rank, if there is one.
    pub fn take_gradient(gradients: &mut GradientsParams, id: ParamId, rank: usize) -> Option<Self> {
        match rank {
            1 => gradients.remove::<1>(id).map(Self::R1),
            2 => gradients.remove::<2>(id).map(Self::R2),
            3 => gradients.remove::<3>(id).map(Self::R3),
            4 => gradients.remove::<4>(id).map(Self::R4),
            _ => None,
        }
    }

    /// All elements in a row.
    pub fn flat(self) -> Tensor<1> {
        match self {
            Self::R1(tensor) => tensor,
            Self::R2(tensor) => tensor.flatten(0, 1),
            Self::R3(tensor) => tensor.flatten(0, 2),
            Self::R4(tensor) => tensor.flatten(0, 3),
        }
    }

    /// A row of elements in a shape that has as many; `None` if its rank is not 1 to 4.
    pub fn shaped(flat: Tensor<1>, shape: &[usize]) -> Option<Self> {
        Some(match *shape {
            [_] => Self::R1(flat),
            [a, b] => Self::R2(flat.reshape([a, b])),
            [a, b, c] => Self::R3(flat.reshape([a, b, c])),
            [a, b, c, d] => Self::R4(flat.reshape([a, b, c, d])),
            _ => return None,
        })
    }

    /// The sizes of the dimensions.
    pub fn shape(&self) -> Vec<usize> {
        ranks!(self, tensor => tensor.dims().to_vec())
    }

    /// The type of the values.
    pub fn dtype(&self) -> DType {
        ranks!(self, tensor => tensor.dtype())
    }

    /// Reads the values back, in the tensor's own type.
    pub fn to_data(&self) -> TensorData {
        ranks!(self, tensor => tensor.to_data())
    }

    /// The tensor without its autodiff graph.
    #[must_use]
    pub fn without_autodiff(self) -> Self {
        keep_rank!(self, tensor => tensor.without_autodiff())
    }

    /// The tensor in another type of float.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        keep_rank!(self, tensor => if tensor.dtype() == dtype { tensor } else { tensor.cast(FloatDType::from(dtype)) })
    }

    /// Some of the rows, in their order.
    #[must_use]
    pub fn rows(self, rows: &[usize]) -> Self {
        keep_rank!(self, tensor => select_rows(tensor, rows))
    }

    /// The tensor of rank 2 with its dimensions swapped; other ranks are returned as they are.
    #[must_use]
    pub fn transposed(self) -> Self {
        match self {
            Self::R2(tensor) => Self::R2(tensor.transpose()),
            other => other,
        }
    }
}

/// Entries of the first dimension; rows side by side are not copied.
pub(crate) fn select_rows<const D: usize>(tensor: Tensor<D>, rows: &[usize]) -> Tensor<D> {
    match rows {
        [first, .., last] if rows.is_sorted() && last - first + 1 == rows.len() => tensor.narrow(0, *first, rows.len()),
        [row] => tensor.narrow(0, *row, 1),
        rows => {
            let places: Vec<i64> = rows.iter().map(|row| i64::try_from(*row).unwrap_or(i64::MAX)).collect();
            let places = Tensor::<1, Int>::from_data(TensorData::new(places, [rows.len()]), &tensor.device().inner());
            tensor.select(0, places)
        }
    }
}

/// A parameter of rank 1 to 4.
#[derive(Debug, Clone)]
pub enum DynParam {
    /// Rank 1.
    R1(Param<Tensor<1>>),
    /// Rank 2.
    R2(Param<Tensor<2>>),
    /// Rank 3.
    R3(Param<Tensor<3>>),
    /// Rank 4.
    R4(Param<Tensor<4>>),
}

impl DynParam {
    /// A trainable parameter with this identity; `None` if the data's rank is not 1 to 4.
    ///
    /// The device must carry autodiff for the parameter to receive gradients.
    pub fn trainable(id: ParamId, data: TensorData, device: &Device) -> Option<Self> {
        Some(match DynTensor::from_data(data, device)? {
            DynTensor::R1(tensor) => Self::R1(tracked(id, tensor)),
            DynTensor::R2(tensor) => Self::R2(tracked(id, tensor)),
            DynTensor::R3(tensor) => Self::R3(tracked(id, tensor)),
            DynTensor::R4(tensor) => Self::R4(tracked(id, tensor)),
        })
    }

    /// A fixed parameter with this identity: part of the adapter, never trained.
    pub fn frozen(id: ParamId, data: TensorData, device: &Device) -> Option<Self> {
        Some(match DynTensor::from_data(data, &device.clone().inner())? {
            DynTensor::R1(tensor) => Self::R1(Param::initialized(id, tensor)),
            DynTensor::R2(tensor) => Self::R2(Param::initialized(id, tensor)),
            DynTensor::R3(tensor) => Self::R3(Param::initialized(id, tensor)),
            DynTensor::R4(tensor) => Self::R4(Param::initialized(id, tensor)),
        })
    }

    /// Wraps a parameter; `None` if its rank is not 1 to 4.
    pub fn wrap<const D: usize>(param: Param<Tensor<D>>) -> Option<Self> {
        match D {
            1 => cast(param).map(Self::R1),
            2 => cast(param).map(Self::R2),
            3 => cast(param).map(Self::R3),
            4 => cast(param).map(Self::R4),
            _ => None,
        }
    }

    /// The parameter, if it has rank `D`.
    pub fn get<const D: usize>(&self) -> Option<Param<Tensor<D>>> {
        ranks!(self, param => cast(param.clone()))
    }

    /// The value, if it has rank `D`.
    pub fn val<const D: usize>(&self) -> Option<Tensor<D>> {
        ranks!(self, param => cast(param.val()))
    }

    /// The value.
    pub fn tensor(&self) -> DynTensor {
        match self {
            Self::R1(param) => DynTensor::R1(param.val()),
            Self::R2(param) => DynTensor::R2(param.val()),
            Self::R3(param) => DynTensor::R3(param.val()),
            Self::R4(param) => DynTensor::R4(param.val()),
        }
    }

    /// The parameter of the same identity with another value, if that has its rank.
    pub(crate) fn with_value(self, value: DynTensor) -> Self {
        match (self, value) {
            (Self::R1(p), DynTensor::R1(t)) => Self::R1(Param::initialized(p.id, t)),
            (Self::R2(p), DynTensor::R2(t)) => Self::R2(Param::initialized(p.id, t)),
            (Self::R3(p), DynTensor::R3(t)) => Self::R3(Param::initialized(p.id, t)),
            (Self::R4(p), DynTensor::R4(t)) => Self::R4(Param::initialized(p.id, t)),
            (param, _) => param,
        }
    }

    /// The identity by which gradients and optimiser state are found.
    pub fn id(&self) -> ParamId {
        ranks!(self, param => param.id)
    }

    /// The sizes of the dimensions, without initialising a lazy parameter.
    pub fn shape(&self) -> Vec<usize> {
        ranks!(self, param => param.lazy_shape().to_vec())
    }

    /// Whether it receives gradients.
    pub fn is_trainable(&self) -> bool {
        ranks!(self, param => param.is_initialized() && param.base().is_require_grad())
    }

    /// This parameter's gradient, if there is one.
    pub fn gradient(&self, gradients: &GradientsParams) -> Option<DynTensor> {
        match self {
            Self::R1(param) => gradients.get::<1>(param.id).map(DynTensor::R1),
            Self::R2(param) => gradients.get::<2>(param.id).map(DynTensor::R2),
            Self::R3(param) => gradients.get::<3>(param.id).map(DynTensor::R3),
            Self::R4(param) => gradients.get::<4>(param.id).map(DynTensor::R4),
        }
    }

    pub(crate) fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        ranks!(self, param => param.visit(visitor));
    }

    // `Module::map`, not `Param::map`: the latter would drop a reparameterization.
    pub(crate) fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        keep_rank!(self, param => Module::map(param, mapper))
    }

    pub(crate) fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        ranks!(self, param => param.collect_devices(devices))
    }

    pub(crate) fn moved_to(self, device: &Device) -> Self {
        keep_rank!(self, param => param.to_device(device))
    }

    pub(crate) fn fork(self, device: &Device) -> Self {
        keep_rank!(self, param => param.fork(device))
    }

    pub(crate) fn valid(&self) -> Self {
        keep_rank!(self, param => param.valid())
    }

    pub(crate) fn train(self) -> Self {
        keep_rank!(self, param => Module::train(param))
    }
}

fn tracked<const D: usize>(id: ParamId, tensor: Tensor<D>) -> Param<Tensor<D>> {
    if tensor.is_autodiff() { Param::initialized(id, tensor.require_grad()) } else { Param::initialized(id, tensor) }
}
