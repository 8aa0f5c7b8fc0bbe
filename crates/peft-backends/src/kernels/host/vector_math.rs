//! `exp`, `erf` and `tanh` without branches and calls, so that a loop over them becomes vector instructions.
//!
//! Sums of products are fused ones, which the compiler does not make by itself: half the instructions, and one rounding less.

/// `eˣ` to two units in the last place; 0 where it would be no normal number, which processors are slow with.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.3;
    /// Adding it leaves the nearest whole number in the low bits of a float.
    const ROUND: f32 = 12_582_912.0;
    let vanishes = x < LEAST;
    let x = x.clamp(LEAST, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    // ln 2 in two parts: the first has so few bits that its product with a whole number is exact.
    let r = whole.mul_add(2.121_944_4e-4, whole.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = p.mul_add(r * r, r + 1.0) * power;
    if vanishes { 0.0 } else { y }
}

/// The error function to 5e-7, as the quotient of two polynomials.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10_f32;
    let p = p.mul_add(s, 2.770_681_3e-8);
    let p = p.mul_add(s, -2.101_024e-6);
    let p = p.mul_add(s, -5.692_506_3e-5);
    let p = p.mul_add(s, -7.349_906_4e-4);
    let p = p.mul_add(s, -2.954_600_1e-3);
    let p = p.mul_add(s, -1.609_603_2e-2);
    let q = -1.456_607_2e-5_f32;
    let q = q.mul_add(s, -2.133_740_6e-4);
    let q = q.mul_add(s, -1.682_827_e-3);
    let q = q.mul_add(s, -7.373_329_3e-3);
    let q = q.mul_add(s, -1.426_473_9e-2);
    x * p / q
}

/// The hyperbolic tangent to 2e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let x = x.clamp(-9.0, 9.0);
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_and_sigmoid_are_theirs() {
        for step in -4000..4000 {
            let x = step as f32 / 100.0;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "{x}");
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() < 2e-7, "{x}");
        }
    }

    #[test]
    fn exp_is_exp() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!([exp(-87.4), exp(f32::MIN), exp(f32::NEG_INFINITY)], [0.0; 3]);
    }

    #[test]
    fn erf_is_erf() {
        // By Simpson's rule from 0, in f64.
        let mut integral = 0.0_f64;
        let density = |x: f64| std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp();
        for step in 0..500 {
            let (a, b) = (f64::from(step) / 100.0, f64::from(step + 1) / 100.0);
            assert!((f64::from(erf(a as f32)) - integral).abs() < 5e-7, "{a}");
            assert!((f64::from(erf(-a as f32)) + integral).abs() < 5e-7, "{a}");
            integral += (density(a) + 4.0 * density((a + b) / 2.0) + density(b)) * (b - a) / 6.0;
        }
    }
}
