//! The seeds of dropout: drawn once by a node, and found again when a checkpointed layer is recomputed.

use std::{cell::RefCell, collections::VecDeque};

use burn::tensor::{Device, Distribution, Tensor};

use crate::kernels::dropout_mask::Keep;

/// What dropout drew while a layer ran, so that the layer can run again with the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draws(pub(crate) VecDeque<Draw>);

#[derive(Debug, Clone)]
pub(crate) enum Draw {
    Seed(u64),
    /// Zeros and ones, where a mask does not follow from a seed alone.
    Mask(Box<Tensor<1>>),
}

/// Where draws go to or come from.
enum Tape {
    Recorded(Draws),
    Replayed(Draws),
}

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Runs `f`; also what dropout drew meanwhile.
pub(crate) fn recorded<R>(f: impl FnOnce() -> R) -> (R, Draws) {
    let (result, tape) = with_tape(Tape::Recorded(Draws::default()), f);
    match tape {
        Some(Tape::Recorded(draws)) => (result, draws),
        _ => (result, Draws::default()),
    }
}

/// Runs `f`; also whether dropout drew random numbers meanwhile, in layers that keep what they compute.
pub fn is_random<R>(f: impl FnOnce() -> R) -> (R, bool) {
    let (result, draws) = recorded(f);
    (result, !draws.0.is_empty())
}

/// Runs `f`, in which dropout draws the same again.
pub(crate) fn replayed<R>(draws: Draws, f: impl FnOnce() -> R) -> R {
    with_tape(Tape::Replayed(draws), f).0
}

fn with_tape<R>(tape: Tape, f: impl FnOnce() -> R) -> (R, Option<Tape>) {
    let before = TAPE.replace(Some(tape));
    let result = f();
    (result, TAPE.replace(before))
}

/// Whether a layer runs that runs twice: without a graph now and with one later, or the other way round. What would be computed
/// one way without a graph and another way with one has to be computed as with one both times.
pub fn runs_twice() -> bool {
    TAPE.with_borrow(Option::is_some)
}

pub(crate) fn drawn(draw: impl FnOnce() -> Draw) -> Draw {
    let again = TAPE.with_borrow_mut(|tape| match tape {
        Some(Tape::Replayed(draws)) => draws.0.pop_front(),
        _ => None,
    });
    let draw = again.unwrap_or_else(draw);
    TAPE.with_borrow_mut(|tape| {
        if let Some(Tape::Recorded(draws)) = tape {
            draws.0.push_back(draw.clone());
        }
    });
    draw
}

impl Keep {
    /// Draws what is kept of one tensor from the processor's random numbers: a GPU's own would have to be waited for.
    pub(crate) fn draw(drop: f64) -> Self {
        let draw = || {
            let draw = Tensor::<1>::random([2], Distribution::Uniform(0.0, 1.0), &Device::flex());
            let draw = draw.into_data().try_to_vec::<f32>().unwrap_or_default();
            Draw::Seed(draw.iter().fold(0, |seed, part| seed << 24 | (f64::from(*part) * f64::from(1 << 24)) as u64))
        };
        match drawn(draw) {
            Draw::Seed(seed) => Self::new(seed, drop),
            Draw::Mask(_) => unreachable!("a layer that runs again draws in the order that it drew in"),
        }
    }
}
