//! A model that reads prompts once and then one token of each row a step.

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::{DynModule, Error, Inputs, PastKeyValues, Result};

/// A model in the middle of its answers.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    module: &'a dyn DynModule,
    device: Device,
    past: PastKeyValues,
    /// The encoder's states, where there is an encoder.
    states: Option<Tensor<3>>,
    /// 1 where a token counts: of the source, or of what the decoder has read.
    mask: Vec<Vec<i64>>,
}

impl<'a> Decoder<'a> {
    /// Reads the prompts, padded to the left (`mask` 0 there): the decoder, and the scores of each row's next token.
    pub(crate) fn causal(
        module: &'a dyn DynModule,
        device: Device,
        prompts: &[Vec<u32>],
        mask: Vec<Vec<i64>>,
    ) -> Result<(Self, Vec<Vec<f32>>)> {
        let decoder = Self { module, device, past: PastKeyValues::new(), states: None, mask };
        let places = |row: &Vec<i64>| {
            let count = row.iter().scan(0, |sum, counts| {
                *sum += counts;
                Some((*sum - 1).max(0))
            });
            count.collect::<Vec<i64>>()
        };
        let inputs = Inputs {
            input_ids: Some(decoder.table(&ids(prompts))),
            attention_mask: Some(decoder.table(&decoder.mask)),
            position_ids: Some(decoder.table(&decoder.mask.iter().map(places).collect::<Vec<_>>())),
            past_key_values: Some(decoder.past.clone()),
            ..Inputs::default()
        };
        let scores = last(&decoder.module.forward(&inputs).get::<3>("logits")?)?;
        Ok((decoder, scores))
    }

    /// Encodes the sources, padded to the right, and reads each row's first token.
    pub(crate) fn crossed(
        module: &'a dyn DynModule,
        device: Device,
        sources: &[Vec<u32>],
        mask: Vec<Vec<i64>>,
        start: u32,
    ) -> Result<(Self, Vec<Vec<f32>>)> {
        let mut decoder = Self { module, device, past: PastKeyValues::new(), states: None, mask };
        let inputs = Inputs {
            input_ids: Some(decoder.table(&ids(sources))),
            attention_mask: Some(decoder.table(&decoder.mask)),
            decoder_input_ids: Some(decoder.table(&vec![vec![i64::from(start)]; sources.len()])),
            past_key_values: Some(decoder.past.clone()),
            ..Inputs::default()
        };
        let outputs = decoder.module.forward(&inputs);
        decoder.states = Some(outputs.get::<3>("encoder_last_hidden_state")?);
        let scores = last(&outputs.get::<3>("logits")?)?;
        Ok((decoder, scores))
    }

    /// Puts other rows in the place of the rows.
    pub(crate) fn select(&mut self, rows: &[usize]) {
        let indices: Vec<i64> = rows.iter().map(|row| i64::try_from(*row).unwrap_or(i64::MAX)).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.device);
        self.past.select(&indices);
        self.states = self.states.take().map(|states| states.select(0, indices));
        self.mask = rows.iter().filter_map(|row| self.mask.get(*row).cloned()).collect();
    }

    /// Reads one more token of each row: the scores of the next.
    pub(crate) fn read(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let column: Vec<Vec<u32>> = tokens.iter().map(|token| vec![*token]).collect();
        let column = self.table(&ids(&column));
        let mut inputs = Inputs { past_key_values: Some(self.past.clone()), ..Inputs::default() };
        if let Some(states) = &self.states {
            inputs.decoder_input_ids = Some(column);
            inputs.encoder_outputs = Some(states.clone());
        } else {
            let places: Vec<Vec<i64>> = self.mask.iter().map(|row| vec![row.iter().sum()]).collect();
            self.mask.iter_mut().for_each(|row| row.push(1));
            inputs.input_ids = Some(column);
            inputs.position_ids = Some(self.table(&places));
        }
        inputs.attention_mask = Some(self.table(&self.mask));
        last(&self.module.forward(&inputs).get::<3>("logits")?)
    }

    fn table(&self, rows: &[Vec<i64>]) -> Tensor<2, Int> {
        let width = rows.first().map_or(0, Vec::len);
        Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), width]), &self.device)
    }
}

fn ids(rows: &[Vec<u32>]) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row.iter().map(|id| i64::from(*id)).collect()).collect()
}

/// The scores at the last position, `[batch, sequence, vocabulary]`.
fn last(logits: &Tensor<3>) -> Result<Vec<Vec<f32>>> {
    let [batch, length, vocab] = logits.dims();
    let scores = logits.clone().slice([0..batch, length.saturating_sub(1)..length, 0..vocab]);
    let scores = scores.try_to_vec_as::<f32>();
    let scores = scores.map_err(|error| Error::Data(format!("cannot read `logits`: {error}")))?;
    Ok(scores.chunks(vocab.max(1)).map(<[f32]>::to_vec).collect())
}
