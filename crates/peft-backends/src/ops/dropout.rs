//! Dropout that keeps no mask: the backward pass works it out again.

use std::{cell::RefCell, collections::VecDeque};

use burn::tensor::{Device, Distribution, Tensor};

#[cfg(feature = "gpu")]
use super::{cube, node::apply};
use super::{
    host,
    node::{Fused, Host, Input, run},
};

/// Sets each element to zero with probability `drop` and divides the rest by `1 - drop` (Srivastava et al. 2014).
///
/// What is dropped follows from the state of the device's random numbers alone.
pub fn dropout<const D: usize>(x: Tensor<D>, drop: f64) -> Tensor<D> {
    if drop <= 0.0 {
        return x;
    }
    #[cfg(feature = "gpu")]
    if cube::takes(&x) {
        let keep = Keep::draw(drop);
        return apply(cube::Dropout(keep), [Input::new(x)]);
    }
    if !host::takes(&x) {
        let keep = 1.0 - drop;
        // The mask is scaled, not the product: that keeps one operation out of the backward pass.
        let mask = || x.clone().without_autodiff().random_like(Distribution::Bernoulli(keep)).flatten(0, D - 1);
        let draw = || Draw::Mask(Box::new(mask()));
        return match drawn(draw) {
            Draw::Mask(mask) => {
                let mask = mask.reshape(x.dims()) / keep;
                x * mask
            }
            Draw::Seed(_) => unreachable!("a layer that runs again draws in the order that it drew in"),
        };
    }
    let keep = Keep::draw(drop);
    kept(x, keep)
}

/// What `keep` leaves of a tensor that [`takes`](host::takes) has said yes to.
pub(super) fn kept<const D: usize>(x: Tensor<D>, keep: Keep) -> Tensor<D> {
    run(Dropout(keep), [Input::new(x)])
}

/// What dropout drew while a layer ran, so that the layer can run again with the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draws(VecDeque<Draw>);

#[derive(Debug, Clone)]
enum Draw {
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

fn drawn(draw: impl FnOnce() -> Draw) -> Draw {
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

/// Which elements are kept, and what they are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Keep {
    low: u32,
    high: u32,
    /// The share of all 32-bit numbers that drops an element.
    bound: u32,
    scale: f32,
}

impl Keep {
    /// Draws what is kept of one tensor from the processor's random numbers: a GPU's own would have to be waited for.
    pub(super) fn draw(drop: f64) -> Self {
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

    /// What is kept follows from the seed alone.
    pub(super) fn new(seed: u64, drop: f64) -> Self {
        Self {
            low: seed as u32,
            high: (seed >> 32) as u32,
            bound: (drop * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - drop)) as f32,
        }
    }

    /// What the element at this place is multiplied with: 0 or the scale.
    #[inline(always)]
    pub(super) fn factor(self, place: u32) -> f32 {
        let kept = mix(mix(place ^ self.low).wrapping_add(self.high)) >= self.bound;
        if kept { self.scale } else { 0.0 }
    }

    /// Drops from elements that begin at place `start`.
    #[inline(always)]
    pub(super) fn apply(self, start: usize, piece: &mut [f32]) {
        // Places repeat after 2³² elements, which no tensor here has.
        let start = start as u32;
        for (offset, x) in piece.iter_mut().enumerate() {
            *x *= self.factor(start.wrapping_add(offset as u32));
        }
    }
}

#[cfg(feature = "gpu")]
impl Keep {
    /// The numbers that a kernel takes: the seed's halves, the bound and the scale.
    pub(super) fn parts(self) -> (u32, u32, u32, f32) {
        (self.low, self.high, self.bound, self.scale)
    }
}

impl Keep {
    /// [`apply`](Self::apply) for callers that have not chosen vector instructions.
    pub(super) fn apply_vectorised(self, start: usize, piece: &mut [f32]) {
        host::vectorised(
            #[inline(always)]
            || self.apply(start, piece),
        );
    }
}

#[derive(Debug, Clone, Copy)]
struct Dropout(Keep);

impl Dropout {
    fn apply(self, x: Host) -> Host {
        host::update(
            x,
            1,
            #[inline(always)]
            |start, piece| self.0.apply(start, piece),
        )
    }
}

impl Fused<1> for Dropout {
    type Saved = ();

    fn forward(&self, [x]: [Option<Host>; 1], _: [bool; 1]) -> (Host, ()) {
        (self.apply(x.unwrap_or_else(|| host::tensor(Vec::new(), &[0]))), ())
    }

    fn backward(self, (): (), grad: Host, _: [bool; 1]) -> [Option<Host>; 1] {
        [Some(self.apply(grad))]
    }
}

/// Spreads each bit of a number over all 32 (Wellons, "Prospecting for hash functions", 2018).
#[inline(always)]
fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::Device;

    use super::*;

    #[test]
    fn drops_the_share_asked_for_and_keeps_the_mean() {
        let device = Device::flex();
        for drop in [0.0, 0.1, 0.5, 0.9] {
            let y = dropout(Tensor::<2>::ones([300, 1000], &device), drop).into_data().try_to_vec::<f32>().unwrap();
            let zeros = y.iter().filter(|y| **y == 0.0).count() as f64 / 3e5;
            assert!((zeros - drop).abs() < 0.005, "{zeros} of {drop}");
            assert!(y.iter().all(|y| *y == 0.0 || (f64::from(*y) * (1.0 - drop) - 1.0).abs() < 1e-6));
            // Neighbours drop independently of each other.
            let pairs = y.windows(2).filter(|pair| *pair == [0.0, 0.0]).count() as f64 / 3e5;
            assert!((pairs - drop * drop).abs() < 0.005, "{pairs}");
        }
    }

    #[test]
    fn gradients_pass_where_elements_passed() {
        let leaf = Tensor::<2>::ones([70, 999], &Device::flex()).autodiff().require_grad();
        let y = dropout(leaf.clone(), 0.3);
        let gradients = y.clone().sum().backward();
        let passed = leaf.grad(&gradients).unwrap().into_data();
        passed.assert_eq(&y.without_autodiff().into_data(), true);
    }

    #[test]
    fn what_was_drawn_is_drawn_again() {
        let device = Device::flex();
        let double = Tensor::<2>::ones([70, 9], (&device, burn::tensor::DType::F64));
        let both = || {
            assert!(runs_twice());
            let single = dropout(Tensor::<2>::ones([70, 9], &device), 0.3);
            [single.into_data(), dropout(double.clone(), 0.3).into_data(), dropout(double.clone(), 0.3).into_data()]
        };
        let (first, draws) = recorded(both);
        assert_ne!(first[1], first[2]);
        assert_eq!(replayed(draws, both), first);
        assert!(!runs_twice());
    }

    #[test]
    fn two_calls_drop_different_elements() {
        let x = Tensor::<1>::ones([4096], &Device::flex());
        let (a, b) = (dropout(x.clone(), 0.5), dropout(x, 0.5));
        let same = a.equal(b).int().sum().into_scalar::<i64>();
        assert!((1800..2300).contains(&same), "{same}");
    }
}
