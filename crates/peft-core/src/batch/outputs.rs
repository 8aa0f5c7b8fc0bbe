//! What comes out of a model, by the names that Transformers uses.

use burn::tensor::Tensor;

use crate::{DynTensor, Error, Result, VocabularyLogits, tensor::finite::check_finite};

/// A model's outputs by their Transformers names (`logits`, `last_hidden_state`, …), in the order of the model.
#[derive(Debug, Clone, Default)]
pub struct Outputs(Vec<(&'static str, Output)>);

#[derive(Debug, Clone)]
enum Output {
    Tensor(Box<DynTensor>),
    Vocabulary(Box<VocabularyLogits>),
}

impl Output {
    fn tensor(&self) -> DynTensor {
        match self {
            Self::Tensor(tensor) => (**tensor).clone(),
            Self::Vocabulary(logits) => DynTensor::R3(logits.all()),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Vocabulary(logits) => logits.dims().to_vec(),
        }
    }
}

impl Outputs {
    /// No outputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an output of rank 1 to 4; a tensor of another rank is left out.
    #[must_use]
    pub fn with<const D: usize>(mut self, name: &'static str, tensor: Tensor<D>) -> Self {
        if let Some(tensor) = DynTensor::wrap(tensor) {
            self.0.push((name, Output::Tensor(Box::new(tensor))));
        }
        self
    }

    /// Adds logits over the vocabulary, which are computed on demand.
    #[must_use]
    pub fn with_vocabulary_logits(mut self, name: &'static str, logits: VocabularyLogits) -> Self {
        self.0.push((name, Output::Vocabulary(Box::new(logits))));
        self
    }

    /// The output of that name and rank.
    ///
    /// # Errors
    /// [`Error::Data`] if the model has no such output.
    pub fn get<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        self.find(name)
            .filter(|output| output.shape().len() == D)
            .and_then(|output| output.tensor().get())
            .ok_or_else(|| self.lacks(name, D))
    }

    /// The sizes of the output of that name and rank, without computing it.
    ///
    /// # Errors
    /// [`Error::Data`] if the model has no such output.
    pub fn dims<const D: usize>(&self, name: &str) -> Result<[usize; D]> {
        let dims = self.find(name).and_then(|output| output.shape().try_into().ok());
        dims.ok_or_else(|| self.lacks(name, D))
    }

    /// The output `[batch, positions, classes]` of that name at each row's last position, `[batch, 1, classes]`.
    ///
    /// # Errors
    /// [`Error::Data`] if the model has no such output.
    pub fn last(&self, name: &str) -> Result<Tensor<3>> {
        if let Some(logits) = self.vocabulary_logits(name) {
            return Ok(logits.last());
        }
        let all = self.get::<3>(name)?;
        let positions = all.dims()[1];
        Ok(all.narrow(1, positions.saturating_sub(1), 1))
    }

    /// The logits of that name, if they are computed on demand.
    pub fn vocabulary_logits(&self, name: &str) -> Option<&VocabularyLogits> {
        match self.find(name) {
            Some(Output::Vocabulary(logits)) => Some(logits),
            _ => None,
        }
    }

    /// The output of that name and rank on the host: its values in row-major order, and its sizes.
    ///
    /// # Errors
    /// [`Error::Data`] if the model has no such output or it cannot be read back; [`Error::NotFiniteOutput`] if a value is NaN or an
    /// infinity, which no answer can be made of.
    pub fn read<const D: usize>(&self, name: &str) -> Result<(Vec<f32>, [usize; D])> {
        let tensor = self.get::<D>(name)?;
        let values = tensor.try_to_vec_as::<f32>();
        let values = values.map_err(|error| Error::Data(format!("cannot read `{name}`: {error}")))?;
        check_finite(&values, name)?;
        Ok((values, tensor.dims()))
    }

    /// The outputs for some of the rows of a batch; what does not begin with the rows stays as it is.
    #[must_use]
    pub fn rows(&self, rows: &[usize], batch: usize) -> Self {
        let of = |output: &Output| match output {
            _ if output.shape().first() != Some(&batch) => output.clone(),
            Output::Tensor(tensor) => Output::Tensor(Box::new((**tensor).clone().rows(rows))),
            Output::Vocabulary(logits) => Output::Vocabulary(Box::new(logits.rows(rows))),
        };
        Self(self.0.iter().map(|(name, output)| (*name, of(output))).collect())
    }

    /// All outputs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, DynTensor)> {
        self.0.iter().map(|(name, output)| (*name, output.tensor()))
    }

    fn find(&self, name: &str) -> Option<&Output> {
        self.0.iter().find(|(own, _)| *own == name).map(|(_, output)| output)
    }

    fn lacks(&self, name: &str, rank: usize) -> Error {
        let there: Vec<_> = self.0.iter().map(|(name, output)| format!("{name} {:?}", output.shape())).collect();
        Error::Data(format!("the model gives no `{name}` of rank {rank} (it gives: {})", there.join(", ")))
    }
}
