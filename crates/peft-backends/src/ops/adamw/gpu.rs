//! AdamW on a GPU: what is launched for which tensors.

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps},
    tensor::{DType, Shape, Tensor},
};

use crate::kernels::cube::{
    Gpu, OnGpu,
    adamw::{Formula, GROUP, Group, parts},
    backend::Kernels,
    primitive,
};

/// A tensor on a GPU and what belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct OnDevice {
    pub(crate) value: Tensor<1>,
    pub(crate) gradient: Tensor<1>,
    pub(crate) moments: [Tensor<1>; 2],
    pub(crate) formula: Formula,
}

/// Tensors of the same formula, as many as a [`Group`] holds.
#[derive(Debug)]
struct Batch {
    formula: Formula,
    values: Vec<OnGpu>,
    gradients: Vec<OnGpu>,
    moments: [Vec<OnGpu>; 2],
}

impl Batch {
    fn new(formula: Formula) -> Self {
        Self { formula, values: Vec::new(), gradients: Vec::new(), moments: [Vec::new(), Vec::new()] }
    }

    fn takes(&self, formula: Formula) -> bool {
        self.formula == formula && self.values.len() < GROUP
    }

    fn push(&mut self, OnDevice { value, gradient, moments: [first, second], .. }: OnDevice) {
        let [firsts, seconds] = &mut self.moments;
        self.values.push(primitive(value));
        self.gradients.push(primitive(gradient));
        firsts.push(primitive(first));
        seconds.push(primitive(second));
    }
}

/// New values and moments in this order, and the norm of all gradients, `[1]`.
pub(crate) fn adamw(tensors: Vec<OnDevice>) -> (Vec<(Tensor<1>, [Tensor<1>; 2])>, Tensor<1>) {
    let mut updated = Vec::with_capacity(tensors.len());
    let batches = batches(tensors);
    let norm = norm(&batches);
    let back = Tensor::from_primitive::<Gpu>;
    for Batch { formula, values, gradients, moments: [firsts, seconds] } in batches {
        let [values, gradients, firsts, seconds] = [values, gradients, firsts, seconds].map(Group::new);
        let (values, firsts, seconds) = Gpu::adamw_step(values, gradients, firsts, seconds, norm.clone(), formula);
        let [values, firsts, seconds] = [values, firsts, seconds].map(Group::into_vec);
        let all = values.into_iter().zip(firsts).zip(seconds);
        updated.extend(all.map(|((value, first), second)| (back(value), [back(first), back(second)])));
    }
    (updated, back(norm))
}

fn batches(tensors: Vec<OnDevice>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for tensor in tensors {
        match batches.last_mut().filter(|batch| batch.takes(tensor.formula)) {
            Some(batch) => batch.push(tensor),
            None => {
                let mut batch = Batch::new(tensor.formula);
                batch.push(tensor);
                batches.push(batch);
            }
        }
    }
    batches
}

/// The Euclidean norm of all gradients together, `[1]`.
fn norm(batches: &[Batch]) -> OnGpu {
    let sizes = |batch: &Batch| batch.gradients.iter().map(|x| parts(x.shape().num_elements())).sum::<usize>();
    let sizes: Vec<usize> = batches.iter().map(sizes).collect();
    let device = match batches.first().and_then(|batch| batch.gradients.first()) {
        Some(gradient) => gradient.device(),
        None => unreachable!("somebody looked before"),
    };
    let mut squares = Gpu::float_empty(Shape::new([sizes.iter().sum()]), &device, DType::F32.into());
    let mut from = 0;
    for (batch, size) in batches.iter().zip(sizes) {
        squares = Gpu::parts_of_squares(squares, Group::new(batch.gradients.clone()), from);
        from += size;
    }
    Gpu::float_sqrt(Gpu::float_sum(squares))
}
