//! What goes into a model and what comes out, by the names that Transformers uses.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{DynTensor, Error, PastKeyValues, Result, WordLogits, finite::check_finite};

/// A model's inputs, on its device.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Token ids, `[batch, sequence]`.
    pub input_ids: Option<Tensor<2, Int>>,
    /// Embedded inputs in place of `input_ids`, `[batch, sequence, hidden]`.
    pub inputs_embeds: Option<Tensor<3>>,
    /// 1 where a position counts, 0 at padding, `[batch, sequence]`. Packed examples are numbered from 1: each sees itself. It may
    /// lie on the host, as [`collate`](crate::example::collate) has it: what it says decides what is computed.
    pub attention_mask: Option<Tensor<2, Int>>,
    /// Vectors before the embedded input, `[batch, virtual tokens, hidden]`: the prompt of prompt learning. `attention_mask` and
    /// `token_type_ids` cover them too.
    pub prompt: Option<Tensor<3>>,
    /// The same before the decoder's embedded input.
    pub decoder_prompt: Option<Tensor<3>>,
    /// The task of each row, `[batch]`, for prompts that are made by task.
    pub task_ids: Option<Tensor<1, Int>>,
    /// Segment of each token, `[batch, sequence]`.
    pub token_type_ids: Option<Tensor<2, Int>>,
    /// Position of each token, `[batch, sequence]`; counted from the left when absent.
    pub position_ids: Option<Tensor<2, Int>>,
    /// Decoder token ids, `[batch, target]`.
    pub decoder_input_ids: Option<Tensor<2, Int>>,
    /// Embedded decoder inputs in place of `decoder_input_ids`, `[batch, target, hidden]`.
    pub decoder_inputs_embeds: Option<Tensor<3>>,
    /// 1 where a decoder position counts, `[batch, target]`; on the model's device or on the host.
    pub decoder_attention_mask: Option<Tensor<2, Int>>,
    /// What the encoder made of the source, so that it does not run again, `[batch, sequence, hidden]`.
    pub encoder_outputs: Option<Tensor<3>>,
    /// What stands before the input (before the decoder's, where there is one). The attention mask covers it too:
    /// `[batch, past + sequence]`.
    pub past_key_values: Option<PastKeyValues>,
    /// How many layers, counted from the first that runs, keep their input alone and compute the rest anew when gradients are
    /// due: activation checkpointing. Heeded by models that say so ([`ModelInfo::forgets`](crate::ModelInfo::forgets)).
    pub forgetful_layers: usize,
}

impl Inputs {
    /// [`forgetful_layers`](Self::forgetful_layers), of which there are none behind keys and values from elsewhere: a layer that
    /// ran again would add its own to them twice, and they would get no gradient.
    pub fn forgetful_layers(&self) -> usize {
        if self.past_key_values.is_some() { 0 } else { self.forgetful_layers }
    }

    /// [`attention_mask`](Self::attention_mask) to compute with, on the model's device.
    pub fn attention_mask_on(&self, device: &Device) -> Option<Tensor<2, Int>> {
        let mask = self.attention_mask.clone()?;
        Some(if mask.device().inner() == *device { mask } else { Tensor::from_data(mask.into_data(), device) })
    }

    /// How many rows there are; none without input.
    pub fn batch(&self) -> Option<usize> {
        let ids = self.input_ids.as_ref().or(self.decoder_input_ids.as_ref()).map(|ids| ids.dims()[0]);
        let embedded = || self.inputs_embeds.as_ref().or(self.encoder_outputs.as_ref());
        ids.or_else(|| embedded().map(|embedded| embedded.dims()[0]))
    }
}

/// The right answers of a batch, on the host, by the names that Transformers uses (`labels`, `start_positions`, …).
#[derive(Debug, Clone, Default)]
pub struct Labels(pub BTreeMap<String, TensorData>);

impl Labels {
    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Data`] with the names that are there.
    pub fn get(&self, name: &str) -> Result<&TensorData> {
        self.0.get(name).ok_or_else(|| {
            let there: Vec<_> = self.0.keys().map(String::as_str).collect();
            Error::Data(format!("the batch has no `{name}` (it has: {})", there.join(", ")))
        })
    }

    /// Whether there is nothing to compute a loss from.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels of some of the rows of a batch.
    ///
    /// # Errors
    /// [`Error::Data`] if they are not one entry a row, or cannot be read.
    pub fn rows(&self, rows: &[usize], batch: usize) -> Result<Self> {
        let of = |(name, data): (&String, &TensorData)| {
            let mut shape = data.shape().as_slice().to_vec();
            let wrong =
                || Error::Data(format!("`{name}` is {shape:?}: labels of a batch of {batch} rows begin with the rows"));
            if shape.first() != Some(&batch) {
                return Err(wrong());
            }
            let width = shape.iter().skip(1).product::<usize>() * data.dtype().size();
            let bytes = data.as_bytes();
            let row = |row: &usize| bytes.get(row * width..(row + 1) * width);
            let taken = rows.iter().map(row).collect::<Option<Vec<_>>>().ok_or_else(wrong)?.concat();
            shape[0] = rows.len();
            Ok((name.clone(), TensorData::from_bytes_vec(taken, shape, data.dtype())))
        };
        self.0.iter().map(of).collect::<Result<_>>().map(Self)
    }

    /// The integer labels of that name, flattened.
    ///
    /// # Errors
    /// [`Error::Data`] if they are absent or not integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let data = self.get(name)?;
        if data.dtype().is_float() {
            return Err(Error::Data(format!("`{name}` holds floats where whole numbers are needed")));
        }
        data.clone().convert::<i64>().try_to_vec::<i64>().map_err(|e| Error::Data(format!("`{name}`: {e:?}")))
    }

    /// The labels of that name as floats, flattened.
    ///
    /// # Errors
    /// [`Error::Data`] if they are absent.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let data = self.get(name)?;
        data.clone().convert::<f32>().try_to_vec::<f32>().map_err(|e| Error::Data(format!("`{name}`: {e:?}")))
    }
}

/// Inputs and labels together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// What the model reads.
    pub inputs: Inputs,
    /// What it should say; may be empty.
    pub labels: Labels,
}

impl From<Inputs> for Batch {
    fn from(inputs: Inputs) -> Self {
        Self { inputs, labels: Labels::default() }
    }
}

/// A model's outputs by their Transformers names (`logits`, `last_hidden_state`, …), in the order of the model.
#[derive(Debug, Clone, Default)]
pub struct Outputs(Vec<(&'static str, Output)>);

#[derive(Debug, Clone)]
enum Output {
    Tensor(Box<DynTensor>),
    Words(Box<WordLogits>),
}

impl Output {
    fn tensor(&self) -> DynTensor {
        match self {
            Self::Tensor(tensor) => (**tensor).clone(),
            Self::Words(words) => DynTensor::R3(words.all()),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Words(words) => words.dims().to_vec(),
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

    /// Adds logits over a vocabulary, which are worked out only where they are asked for.
    #[must_use]
    pub fn with_words(mut self, name: &'static str, words: WordLogits) -> Self {
        self.0.push((name, Output::Words(Box::new(words))));
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

    /// The sizes of the output of that name and rank, without working it out.
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
        if let Some(words) = self.words(name) {
            return Ok(words.last());
        }
        let all = self.get::<3>(name)?;
        let positions = all.dims()[1];
        Ok(all.narrow(1, positions.saturating_sub(1), 1))
    }

    /// The logits of that name, where they are not worked out yet.
    pub fn words(&self, name: &str) -> Option<&WordLogits> {
        match self.find(name) {
            Some(Output::Words(words)) => Some(words),
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
            Output::Words(words) => Output::Words(Box::new(words.rows(rows))),
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
