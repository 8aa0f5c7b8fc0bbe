//! The losses that Transformers' heads compute.

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};

use crate::{Error, Result, example::IGNORE};

/// Mean cross-entropy over the rows whose target is not [`IGNORE`]; 0/0, that is NaN, if there are none.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: one a row
/// - returned: `[1]`
///
/// # Errors
/// [`Error::Data`] if a target is no class, or their number is not that of the rows.
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64]) -> Result<Tensor<1>> {
    let [rows, classes] = logits.dims();
    if targets.len() != rows {
        return Err(Error::Data(format!("{} labels for {rows} rows of logits", targets.len())));
    }
    let is_class = |target: i64| usize::try_from(target).is_ok_and(|t| t < classes);
    if let Some(bad) = targets.iter().find(|t| **t != IGNORE && !is_class(**t)) {
        return Err(Error::Data(format!("label {bad} is outside the model's {classes} classes")));
    }
    let counted: Vec<i64> = (0_i64..).zip(targets).filter(|(_, t)| **t != IGNORE).map(|(row, _)| row).collect();
    let classes: Vec<i64> = targets.iter().copied().filter(|t| *t != IGNORE).collect();
    let device = logits.device();
    let logits = if counted.len() == rows { logits } else { logits.select(0, indices(&counted, &device)) };
    let count = counted.len();
    let picked = log_softmax(logits, 1).gather(1, indices(&classes, &device).reshape([count, 1]));
    Ok(picked.sum().neg().div_scalar(count as f64))
}

/// Mean squared error over all values.
///
/// # Shapes
/// - `predictions`: `[values]`
///
/// # Errors
/// [`Error::Data`] if the numbers of values differ.
pub fn mse(predictions: Tensor<1>, targets: &[f32]) -> Result<Tensor<1>> {
    let targets = like(&predictions, targets)?;
    Ok((predictions - targets).square().mean())
}

/// Binary cross-entropy of independent classes, the mean over all values.
///
/// `max(z, 0) - z t + log(1 + exp(-|z|))`, which does not overflow.
///
/// # Shapes
/// - `logits`: `[values]`
///
/// # Errors
/// [`Error::Data`] if the numbers of values differ.
pub fn binary_cross_entropy_with_logits(logits: Tensor<1>, targets: &[f32]) -> Result<Tensor<1>> {
    let targets = like(&logits, targets)?;
    let tail = logits.clone().abs().neg().exp().log1p();
    Ok((logits.clone().clamp_min(0.0) - logits * targets + tail).mean())
}

fn like(values: &Tensor<1>, targets: &[f32]) -> Result<Tensor<1>> {
    let [count] = values.dims();
    if targets.len() != count {
        return Err(Error::Data(format!("{} labels for {count} predictions", targets.len())));
    }
    Ok(Tensor::from_data(TensorData::new(targets.to_vec(), [count]), (&values.device(), values.dtype())))
}

fn indices(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
