//! The losses that Transformers' heads compute.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData, activation::log_softmax};

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
    let losses = cross_entropies(logits, targets)?;
    let [count] = losses.dims();
    Ok(losses.sum().div_scalar(count as f64))
}

/// The cross-entropy of each row whose target is not [`IGNORE`], `-log softmax(logits)[target]`, in single precision or better.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: one a row
/// - returned: `[counted rows]`
///
/// # Errors
/// [`Error::Data`] if a target is no class, or their number is not that of the rows.
pub fn cross_entropies(logits: Tensor<2>, targets: &[i64]) -> Result<Tensor<1>> {
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
    let count = counted.len();
    // Rows that no loss counts go first, so that the rest of the work is not done for them.
    let logits = if count == rows { logits } else { logits.select(0, indices(&counted, &device)) };
    let picked = log_softmax(widened(logits), 1).gather(1, indices(&classes, &device).reshape([count, 1]));
    Ok(picked.neg().reshape([count]))
}

/// The summed cross-entropy of each sequence and how many positions it counts, read back to the host.
///
/// # Shapes
/// - `logits`: `[sequences, positions, classes]`
/// - `targets`: one list a sequence, no longer than `positions`; what is missing at its end counts as [`IGNORE`]
///
/// # Errors
/// [`Error::Data`] if a target is no class, or the numbers of sequences or positions do not fit.
pub fn sequence_losses(logits: Tensor<3>, targets: &[Vec<i64>]) -> Result<Vec<(f64, usize)>> {
    let [sequences, positions, classes] = logits.dims();
    if let Some(long) = targets.iter().map(Vec::len).find(|length| *length > positions) {
        return Err(Error::Data(format!("{long} labels for a sequence of {positions} positions")));
    }
    let padded = targets.iter().flat_map(|t| t.iter().copied().chain(std::iter::repeat(IGNORE)).take(positions));
    let losses = cross_entropies(logits.reshape([sequences * positions, classes]), &padded.collect::<Vec<_>>())?;
    let losses =
        losses.try_to_vec_as::<f32>().map_err(|error| Error::Data(format!("cannot read the losses: {error}")))?;
    let mut losses = losses.into_iter();
    let sums = targets.iter().map(|targets| {
        let count = targets.iter().filter(|target| **target != IGNORE).count();
        (losses.by_ref().take(count).map(f64::from).sum(), count)
    });
    Ok(sums.collect())
}

/// Mean squared error over all values.
///
/// # Shapes
/// - `predictions`: `[values]`
///
/// # Errors
/// [`Error::Data`] if the numbers of values differ.
pub fn mse(predictions: Tensor<1>, targets: &[f32]) -> Result<Tensor<1>> {
    let predictions = widened(predictions);
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
    let logits = widened(logits);
    let targets = like(&logits, targets)?;
    let tail = logits.clone().abs().neg().exp().log1p();
    Ok((logits.clone().clamp_min(0.0) - logits * targets + tail).mean())
}

// A sum of many half-precision logarithms would lose what the loss is looked at for.
fn widened<const D: usize>(values: Tensor<D>) -> Tensor<D> {
    match values.dtype() {
        DType::F16 | DType::BF16 => values.cast(FloatDType::F32),
        _ => values,
    }
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
