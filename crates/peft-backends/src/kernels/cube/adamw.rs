//! AdamW: two launches for a dozen tensors, and nothing read back.
//!
//! The first adds up the squares of their gradients, the second clips by the norm of all, moves the moments and the values.
//! An adapter is hundreds of small tensors: with launches of their own most of the time would go in starting them.

use burn::backend::{Backend, ExtensionType, tensor::FloatTensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::cube::{
    launch,
    row::{UNITS, sum_of_cube},
};

/// Elements that one cube does.
const PART: usize = 1024;

/// Tensors that a [`Group`] holds.
pub(crate) const GROUP: usize = 12;

/// Buffers of a launch that are no tensor of a [`Group`]: the norm or the squares, and what CubeCL passes of its own.
const OTHER_BUFFERS: usize = 3;

/// Numbers of the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Formula {
    /// `1 - lr · decay`.
    pub(crate) keep: f32,
    pub(crate) betas: [f32; 2],
    /// `lr / (1 - β₁ᵗ)`.
    pub(crate) size: f32,
    /// `1 / √(1 - β₂ᵗ)`.
    pub(crate) scale: f32,
    pub(crate) epsilon: f32,
    /// All gradients together are scaled to at most this norm; zero leaves them as they are.
    pub(crate) max_norm: f32,
}

/// Tensors that one launch takes, at least one: the macro of extensions knows no lists, so the places are fields.
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Group<B: Backend>(
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
    #[extension_type] Place<B>,
);

/// A place of a [`Group`]; those that are taken come first.
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) enum Place<B: Backend> {
    /// Nothing is here.
    Empty,
    /// This is.
    Of(FloatTensor<B>),
}

impl<B: Backend> Group<B> {
    /// Of at most [`GROUP`] tensors.
    pub(crate) fn new(tensors: Vec<FloatTensor<B>>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().map_or(Place::Empty, Place::Of);
        Self(next(), next(), next(), next(), next(), next(), next(), next(), next(), next(), next(), next())
    }

    pub(crate) fn into_vec(self) -> Vec<FloatTensor<B>> {
        let Self(a, b, c, d, e, f, g, h, i, j, k, l) = self;
        let tensor = |place| match place {
            Place::Empty => None,
            Place::Of(tensor) => Some(tensor),
        };
        [a, b, c, d, e, f, g, h, i, j, k, l].into_iter().filter_map(tensor).collect()
    }
}

/// How many cubes do so many elements.
pub(crate) fn parts(elements: usize) -> usize {
    elements.div_ceil(PART)
}

/// The same of several tensors.
fn parts_of(tensors: &[CubeTensor]) -> usize {
    tensors.iter().map(|x| parts(x.meta.num_elements())).sum()
}

/// How many tensors a launch takes if each comes with so many buffers.
fn at_once(tensor: &CubeTensor, buffers: usize) -> usize {
    let most = usize::try_from(tensor.client.properties().hardware.max_bindings).unwrap_or(usize::MAX);
    (most.saturating_sub(OTHER_BUFFERS) / buffers).max(1)
}

/// The tensors as a kernel takes them.
fn sequence(tensors: &[CubeTensor]) -> SequenceArg<Box<[f32]>> {
    tensors.iter().map(|x| x.clone().into_buffer_arg()).collect()
}

/// `squares` with the sums of a few squares each in it, from a place on.
pub(crate) fn parts_of_squares(squares: CubeTensor, tensors: Vec<CubeTensor>, mut from: usize) -> CubeTensor {
    let squares = launch::own(squares);
    let tensors: Vec<CubeTensor> = tensors.into_iter().map(launch::whole).collect();
    for tensors in tensors.chunks(at_once(&squares, 1)) {
        let parts = parts_of(tensors);
        squares_kernel::launch(
            &squares.client,
            launch::cubes(parts),
            CubeDim::new_1d(UNITS),
            sequence(tensors),
            squares.clone().into_buffer_arg(),
            launch::small(from),
        );
        from += parts;
    }
    squares
}

/// Values and both moments after a step. The new values lie where the gradients were, for the model holds the old ones still, and
/// the moments where they were before, unless somebody else holds them.
pub(crate) fn step(
    [values, gradients, firsts, seconds]: [Vec<CubeTensor>; 4],
    norm: CubeTensor,
    formula: Formula,
) -> [Vec<CubeTensor>; 3] {
    let values: Vec<CubeTensor> = values.into_iter().map(launch::whole).collect();
    let [gradients, firsts, seconds]: [Vec<CubeTensor>; 3] =
        [gradients, firsts, seconds].map(|tensors| tensors.into_iter().map(launch::own).collect());
    let norm = launch::whole(norm);
    let Formula { keep, betas: [stay1, stay2], size, scale, epsilon, max_norm } = formula;
    let most = at_once(&norm, 4);
    let moments = firsts.chunks(most).zip(seconds.chunks(most));
    for ((values, gradients), (firsts, seconds)) in values.chunks(most).zip(gradients.chunks(most)).zip(moments) {
        step_kernel::launch(
            &norm.client,
            launch::cubes(parts_of(gradients)),
            CubeDim::new_1d(UNITS),
            sequence(values),
            sequence(gradients),
            sequence(firsts),
            sequence(seconds),
            norm.clone().into_buffer_arg(),
            NumbersLaunch::new(keep, stay1, stay2, size, scale, epsilon, max_norm),
        );
    }
    [gradients, firsts, seconds]
}

/// [`Formula`] as kernels take it.
#[derive(CubeLaunch, CubeType)]
struct Numbers {
    keep: f32,
    stay1: f32,
    stay2: f32,
    size: f32,
    scale: f32,
    epsilon: f32,
    max_norm: f32,
}

/// From where to where the cube does the elements of a tensor before which there are so many cubes; nothing if it is another's.
#[cube]
fn part(elements: usize, before: usize) -> (usize, usize) {
    let mut start = elements;
    if CUBE_POS >= before && CUBE_POS < before + elements.div_ceil(PART) {
        start = (CUBE_POS - before) * PART;
    }
    (start, min(start + PART, elements))
}

#[cube(launch)]
fn squares_kernel(tensors: &Sequence<Box<[f32]>>, squares: &mut [f32], from: u32) {
    let mut sum = 0.0f32;
    let mut before = 0usize;
    #[unroll]
    for which in 0..tensors.len() {
        let elements = tensors[which].len();
        let (start, end) = part(elements, before);
        let mut at = start + UNIT_POS_X as usize;
        while at < end {
            let value = tensors[which][at];
            sum += value * value;
            at += UNITS as usize;
        }
        before += elements.div_ceil(PART);
    }
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 && CUBE_POS < before {
        squares[from as usize + CUBE_POS] = sum;
    }
}

#[cube(launch)]
fn step_kernel(
    values: &Sequence<Box<[f32]>>,
    gradients: &mut Sequence<Box<[f32]>>,
    firsts: &mut Sequence<Box<[f32]>>,
    seconds: &mut Sequence<Box<[f32]>>,
    norm: &[f32],
    numbers: Numbers,
) {
    let mut factor = 1.0f32;
    if numbers.max_norm > 0.0f32 {
        let share = numbers.max_norm / (norm[0] + 1.0e-6f32);
        // Not `min`, which would make a one of what is no number.
        factor = select(share > 1.0f32, 1.0f32, share);
    }
    let mut before = 0usize;
    #[unroll]
    for which in 0..values.len() {
        let value = values.index(which);
        let into = gradients.index_mut(which);
        let first = firsts.index_mut(which);
        let second = seconds.index_mut(which);
        let elements = value.len();
        let (start, end) = part(elements, before);
        let mut at = start + UNIT_POS_X as usize;
        while at < end {
            let gradient = into[at] * factor;
            let moved = first[at] * numbers.stay1 + gradient * (1.0f32 - numbers.stay1);
            let squared = second[at] * numbers.stay2 + gradient * gradient * (1.0f32 - numbers.stay2);
            first[at] = moved;
            second[at] = squared;
            let deviation = squared.sqrt() * numbers.scale + numbers.epsilon;
            into[at] = value[at] * numbers.keep - moved / deviation * numbers.size;
            at += UNITS as usize;
        }
        before += elements.div_ceil(PART);
    }
}
