//! The losses that Transformers' heads compute.

use std::fmt;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData, activation::log_softmax};

use crate::{
    Error, Labels, Outputs, Result, batch::IGNORE, tensor::finite::check_finite, weight::vocabulary_logits::Targets,
};

/// The loss of a batch: a mean over what counts, and the weight of that mean.
///
/// The weight is known before the forward pass, so that the batches of an accumulated step can be weighted exactly; the mean is
/// computed from the outputs. Both come from the labels in one place and so cannot tell of different rows.
pub struct Loss<'a> {
    weight: f64,
    mean: Mean<'a>,
}

type Mean<'a> = Box<dyn FnOnce(&Outputs) -> Result<Tensor<1>> + 'a>;

impl<'a> Loss<'a> {
    /// Of losses that `weight` rows, or tokens that carry a label, sum up to, `[1]`.
    pub fn of_sum(weight: f64, sum: impl FnOnce(&Outputs) -> Result<Tensor<1>> + 'a) -> Self {
        Self::of_mean(weight, move |outputs| Ok(sum(outputs)?.div_scalar(weight)))
    }

    /// Of a mean over `weight` rows, `[1]`.
    pub fn of_mean(weight: f64, mean: impl FnOnce(&Outputs) -> Result<Tensor<1>> + 'a) -> Self {
        Self { weight, mean: Box::new(mean) }
    }

    /// What the loss is a mean of: rows, or tokens that carry a label; 0 where nothing counts.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean loss, `[1]`; NaN where nothing counts.
    ///
    /// # Errors
    /// [`Error::Data`] if the outputs do not go with the labels.
    pub fn mean(self, outputs: &Outputs) -> Result<Tensor<1>> {
        (self.mean)(outputs)
    }
}

impl fmt::Debug for Loss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loss").field("weight", &self.weight).finish_non_exhaustive()
    }
}

/// How many targets a loss counts.
pub fn counted<'a>(targets: impl IntoIterator<Item = &'a i64>) -> f64 {
    targets.into_iter().filter(|target| **target != IGNORE).count() as f64
}

/// Mean cross-entropy over the rows whose target is not [`IGNORE`]; 0/0, that is NaN, if there are none.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: one a row
/// - returned: `[1]`
///
/// # Errors
/// [`Error::Data`] if a target is not a class, or their number is not that of the rows.
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
/// [`Error::Data`] if a target is not a class, or their number is not that of the rows.
pub fn cross_entropies(logits: Tensor<2>, targets: &[i64]) -> Result<Tensor<1>> {
    let [rows, classes] = logits.dims();
    check_targets(targets, rows, classes)?;
    let counted: Vec<i64> = (0_i64..).zip(targets).filter(|(_, t)| **t != IGNORE).map(|(row, _)| row).collect();
    let classes: Vec<i64> = targets.iter().copied().filter(|t| *t != IGNORE).collect();
    let device = logits.device();
    let count = counted.len();
    // Rows that no loss counts go first, so that the rest of the work is not done for them.
    let logits = if count == rows { logits } else { logits.select(0, indices(&counted, &device)) };
    let picked = log_softmax(widened(logits), 1).gather(1, indices(&classes, &device).reshape([count, 1]));
    Ok(picked.neg().reshape([count]))
}

/// Whether there is a target for each row, [`IGNORE`] or a class.
///
/// # Errors
/// [`Error::Data`] if not.
pub fn check_targets(targets: &[i64], rows: usize, classes: usize) -> Result<()> {
    if targets.len() != rows {
        return Err(Error::Data(format!("{} labels for {rows} rows of logits", targets.len())));
    }
    let is_class = |target: i64| usize::try_from(target).is_ok_and(|t| t < classes);
    match targets.iter().find(|t| **t != IGNORE && !is_class(**t)) {
        Some(bad) => Err(Error::Data(format!("label {bad} is outside the model's {classes} classes"))),
        None => Ok(()),
    }
}

/// [`cross_entropies`] of an output `[batch, positions, classes]`, without its logits where the backend can do that.
///
/// # Shapes
/// - `targets`: one a position
/// - returned: `[counted positions]`
///
/// # Errors
/// [`Error::Data`] if there is no such output, a target is not a class, or their number is not that of the positions.
pub fn token_cross_entropies(outputs: &Outputs, name: &str, targets: &[i64]) -> Result<Tensor<1>> {
    let [batch, positions, classes] = outputs.dims::<3>(name)?;
    if let Some(logits) = outputs.vocabulary_logits(name) {
        check_targets(targets, batch * positions, classes)?;
        let targets: Vec<_> = targets.iter().map(|target| usize::try_from(*target).ok()).collect();
        if let Some(losses) = logits.cross_entropies(Targets::Known(&targets)) {
            return Ok(losses);
        }
    }
    cross_entropies(outputs.get::<3>(name)?.reshape([batch * positions, classes]), targets)
}

/// The mean of [`token_cross_entropies`], `[1]`; 0/0, that is NaN, if none is counted.
///
/// # Errors
/// [`Error::Data`] as in [`token_cross_entropies`].
pub fn token_cross_entropy(outputs: &Outputs, name: &str, targets: &[i64]) -> Result<Tensor<1>> {
    let losses = token_cross_entropies(outputs, name, targets)?;
    let [count] = losses.dims();
    Ok(losses.sum().div_scalar(count as f64))
}

/// [`token_cross_entropy`] for targets that lie on the model's device: nothing is read back, and what is computed follows from the
/// sizes alone. Judge the targets with
/// [`check_targets`] before they are brought there.
///
/// # Shapes
/// - the output of that name: `[batch, positions, classes]`
/// - `targets`: `[batch · positions]`, below zero where nothing counts
/// - returned: `[1]`
///
/// # Errors
/// [`Error::Data`] if there is no such output, or the number of targets is not that of the positions.
pub fn token_cross_entropy_on_device(outputs: &Outputs, name: &str, targets: &Tensor<1, Int>) -> Result<Tensor<1>> {
    let [batch, positions, classes] = outputs.dims::<3>(name)?;
    let rows = batch * positions;
    if targets.dims() != [rows] {
        return Err(Error::Data(format!("{} targets for {rows} rows of logits", targets.dims()[0])));
    }
    let is_missing = targets.clone().lower_elem(0);
    let fused = outputs.vocabulary_logits(name).and_then(|logits| logits.cross_entropies(Targets::OnDevice(targets)));
    let losses = match fused {
        Some(losses) => losses,
        None => {
            let logits = widened(outputs.get::<3>(name)?.reshape([rows, classes]));
            let own = log_softmax(logits, 1).gather(1, targets.clone().clamp_min(0).reshape([rows, 1]));
            own.neg().reshape([rows]).mask_fill(is_missing.clone(), 0.0)
        }
    };
    let count = is_missing.bool_not().int().sum().float().cast(FloatDType::from(losses.dtype()));
    Ok(losses.sum() / count)
}

/// The summed cross-entropy of each sequence and how many positions it counts, read back to the host.
///
/// # Shapes
/// - the output of that name: `[sequences, positions, classes]`
/// - `targets`: one list a sequence, no longer than `positions`; what is missing at its end counts as [`IGNORE`]
///
/// # Errors
/// [`Error::Data`] if there is no such output, a target is not a class, or the numbers of sequences or positions do not fit.
pub fn sequence_losses(outputs: &Outputs, name: &str, targets: &[Vec<i64>]) -> Result<Vec<(f64, usize)>> {
    let [_, positions, _] = outputs.dims::<3>(name)?;
    if let Some(long) = targets.iter().map(Vec::len).find(|length| *length > positions) {
        return Err(Error::Data(format!("{long} labels for a sequence of {positions} positions")));
    }
    let padded = targets.iter().flat_map(|t| t.iter().copied().chain(std::iter::repeat(IGNORE)).take(positions));
    let losses = token_cross_entropies(outputs, name, &padded.collect::<Vec<_>>())?;
    let losses =
        losses.try_to_vec_as::<f32>().map_err(|error| Error::Data(format!("cannot read the losses: {error}")))?;
    check_finite(&losses, name)?;
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

/// The labels of tokens with none for the virtual tokens that the outputs have in front, row after row.
///
/// # Shapes
/// - `labels`: `[batch, length]` or shorter
/// - returned: `batch · length` values
///
/// # Errors
/// [`Error::Data`] if there are more labels than outputs, or rows of unequal length.
pub fn after_prompt(labels: &Labels, batch: usize, length: usize) -> Result<Vec<i64>> {
    let values = labels.integers("labels")?;
    let width = values.len() / batch.max(1);
    let Some(front) = length.checked_sub(width).filter(|_| values.len() == width * batch) else {
        return Err(Error::Data(format!("{} labels for {batch} rows of {length} positions", values.len())));
    };
    if front == 0 {
        return Ok(values);
    }
    Ok(values.chunks(width.max(1)).flat_map(|row| [vec![IGNORE; front], row.to_vec()].concat()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [[f32; 2]; 3] = [[0.5, -1.0], [2.0, 0.0], [1.5, 0.25]];

    fn logits() -> Tensor<2> {
        Tensor::from_data(TensorData::from(LOGITS), &Device::default())
    }

    fn scalar(loss: Result<Tensor<1>>) -> f64 {
        f64::from(loss.unwrap().into_scalar::<f32>())
    }

    fn nll(row: [f32; 2], target: usize) -> f64 {
        let powers = row.map(|logit| f64::from(logit).exp());
        -(powers[target] / (powers[0] + powers[1])).ln()
    }

    #[test]
    fn ignored_rows_do_not_count() {
        let found = scalar(cross_entropy(logits(), &[0, IGNORE, 1]));
        assert!((found - (nll(LOGITS[0], 0) + nll(LOGITS[2], 1)) / 2.0).abs() < 1e-6, "{found}");
        assert!(scalar(cross_entropy(logits(), &[IGNORE; 3])).is_nan());
    }

    #[test]
    fn the_gradient_reaches_only_rows_that_count() {
        let logits = logits().autodiff().require_grad();
        let gradients = cross_entropy(logits.clone(), &[0, IGNORE, IGNORE]).unwrap().backward();
        let gradient = logits.grad(&gradients).unwrap().try_to_vec_as::<f32>().unwrap();
        let other = 1.0 - (-nll(LOGITS[0], 0)).exp();
        assert!((f64::from(gradient[0]) + other).abs() < 1e-6, "{gradient:?}");
        assert_eq!(gradient[2..], [0.0; 4]);
    }

    #[test]
    fn targets_on_the_device_give_the_same() {
        let outputs = |logits: Tensor<2>| Outputs::new().with("logits", logits.reshape([1, 3, 2]));
        for targets in [[0, IGNORE, 1], [IGNORE, IGNORE, 1]] {
            let leaf = [(); 2].map(|()| logits().autodiff().require_grad());
            let [known, there] = leaf.each_ref().map(|leaf| outputs(leaf.clone()));
            let known = token_cross_entropy(&known, "logits", &targets).unwrap();
            let targets = indices(&targets, &Device::default());
            let there = token_cross_entropy_on_device(&there, "logits", &targets).unwrap();
            let [known, there] = [(known, &leaf[0]), (there, &leaf[1])].map(|(loss, leaf)| {
                let gradients = loss.backward();
                (loss.without_autodiff().into_data(), leaf.grad(&gradients).unwrap().into_data())
            });
            assert_eq!(known, there);
        }
        assert!(
            token_cross_entropy_on_device(&outputs(logits()), "logits", &indices(&[0], &Device::default())).is_err()
        );
    }

    #[test]
    fn half_precision_is_widened() {
        let loss = cross_entropies(logits().cast(FloatDType::BF16), &[0, 0, 0]).unwrap();
        assert_eq!(loss.dtype(), DType::F32);
        let found = loss.try_to_vec_as::<f32>().unwrap();
        // These logits are exact in half precision, so that nothing is lost but what the loss itself would lose.
        assert!((f64::from(found[1]) - nll(LOGITS[1], 0)).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn sequences_are_summed_on_their_own() {
        let logits = logits().reshape([1, 3, 2]);
        let both = Tensor::cat(vec![logits.clone(), logits], 0);
        let both = Outputs::new().with("logits", both);
        let sums = sequence_losses(&both, "logits", &[vec![0, IGNORE], vec![1, 1, 0]]).unwrap();
        let second = nll(LOGITS[0], 1) + nll(LOGITS[1], 1) + nll(LOGITS[2], 0);
        assert_eq!((sums[0].1, sums[1].1), (1, 3));
        assert!((sums[0].0 - nll(LOGITS[0], 0)).abs() < 1e-6 && (sums[1].0 - second).abs() < 1e-6, "{sums:?}");
        assert!(sequence_losses(&both, "logits", &[vec![0; 4], vec![]]).is_err());
    }

    #[test]
    fn unfit_labels_are_refused() {
        let error = |targets: &[i64]| cross_entropy(logits(), targets).unwrap_err().to_string();
        assert_eq!(error(&[0, 0, 2]), "label 2 is outside the model's 2 classes");
        assert_eq!(error(&[0]), "1 labels for 3 rows of logits");
    }
}
