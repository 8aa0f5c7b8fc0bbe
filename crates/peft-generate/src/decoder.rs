//! A model that reads prompts once and then one token of each row a step.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_core::{Error, Inputs, Outputs, PastKeyValues, Result, RunningModel};

/// The model of a run and how it reads.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    pub(crate) model: &'a RunningModel,
    pub(crate) device: Device,
    /// Whether keys and values are kept from step to step.
    pub(crate) use_cache: bool,
}

/// A model in the middle of its answers.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    reader: Reader<'a>,
    past: Option<PastKeyValues>,
    /// The encoder's states, where there is an encoder.
    states: Option<Tensor<3>>,
    /// 1 where a token counts: of the source, or of what the decoder has read.
    mask: Vec<Vec<i64>>,
    /// What the decoder has read, padding included.
    read: Vec<Vec<u32>>,
}

impl<'a> Decoder<'a> {
    /// Reads the prompts, padded to the left (`mask` 0 there): the decoder, and the scores of each row's next token.
    pub(crate) fn causal(
        reader: Reader<'a>,
        prompts: Vec<Vec<u32>>,
        mask: Vec<Vec<i64>>,
    ) -> Result<(Self, Vec<Vec<f32>>)> {
        let past = reader.use_cache.then(PastKeyValues::new);
        let decoder = Self { reader, past, states: None, mask, read: prompts };
        let scores = decoder.scores(decoder.everything())?;
        Ok((decoder, scores))
    }

    /// Encodes the sources, padded to the right, and reads each row's first token.
    pub(crate) fn crossed(
        reader: Reader<'a>,
        sources: &[Vec<u32>],
        mask: Vec<Vec<i64>>,
        start: u32,
    ) -> Result<(Self, Vec<Vec<f32>>)> {
        let past = reader.use_cache.then(PastKeyValues::new);
        let mut decoder = Self { reader, past, states: None, mask, read: vec![vec![start]; sources.len()] };
        let inputs = Inputs {
            input_ids: Some(table(&ids(sources))),
            attention_mask: Some(table(&decoder.mask)),
            decoder_input_ids: Some(table(&ids(&decoder.read))),
            past_key_values: decoder.past.clone(),
            ..Inputs::default()
        };
        let outputs = decoder.forward(inputs)?;
        decoder.states = Some(outputs.get::<3>("encoder_last_hidden_state")?);
        let scores = last(&outputs)?;
        Ok((decoder, scores))
    }

    /// Puts other rows in the place of the rows.
    pub(crate) fn select(&mut self, rows: &[usize]) {
        let indices: Vec<i64> = rows.iter().map(|row| i64::try_from(*row).unwrap_or(i64::MAX)).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.reader.device);
        if let Some(past) = &self.past {
            past.select(&indices);
        }
        self.states = self.states.take().map(|states| states.select(0, indices));
        self.mask = rows.iter().filter_map(|row| self.mask.get(*row).cloned()).collect();
        self.read = rows.iter().filter_map(|row| self.read.get(*row).cloned()).collect();
    }

    /// Reads one more token of each row: the scores of the next.
    pub(crate) fn read(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let before = self.read.first().map_or(0, Vec::len);
        self.read.iter_mut().zip(tokens).for_each(|(row, token)| row.push(*token));
        if self.states.is_none() {
            self.mask.iter_mut().for_each(|row| row.push(1));
        }
        if self.past.is_some()
            && self.reader.model.info().rereads_after == Some(before + self.reader.model.info().virtual_tokens)
        {
            self.past = Some(PastKeyValues::new());
            return self.scores(self.everything());
        }
        let inputs = if self.past.is_some() { self.newest() } else { self.everything() };
        self.scores(inputs)
    }

    /// The last token of each row.
    fn newest(&self) -> Inputs {
        let column: Vec<Vec<u32>> = self.read.iter().map(|row| row.last().copied().into_iter().collect()).collect();
        let places = self.mask.iter().map(|row| vec![row.iter().sum::<i64>() - 1]).collect::<Vec<_>>();
        self.inputs(&column, &places)
    }

    /// All tokens of each row.
    fn everything(&self) -> Inputs {
        let places = |row: &Vec<i64>| {
            let count = row.iter().scan(0, |sum, counts| {
                *sum += counts;
                Some((*sum - 1).max(0))
            });
            count.collect::<Vec<i64>>()
        };
        self.inputs(&self.read, &self.mask.iter().map(places).collect::<Vec<_>>())
    }

    /// Tokens and their places, which a decoder beside an encoder counts by itself.
    fn inputs(&self, tokens: &[Vec<u32>], places: &[Vec<i64>]) -> Inputs {
        let tokens = Some(table(&ids(tokens)));
        let shared =
            Inputs { attention_mask: Some(table(&self.mask)), past_key_values: self.past.clone(), ..Inputs::default() };
        match &self.states {
            Some(states) => Inputs { decoder_input_ids: tokens, encoder_outputs: Some(states.clone()), ..shared },
            None => Inputs { input_ids: tokens, position_ids: Some(table(places)), ..shared },
        }
    }

    fn scores(&self, inputs: Inputs) -> Result<Vec<Vec<f32>>> {
        last(&self.forward(inputs)?)
    }

    fn forward(&self, inputs: Inputs) -> Result<Outputs> {
        let Reader { model, device, .. } = &self.reader;
        model.forward(&model.check(inputs)?.on(device))
    }
}

/// Rows of numbers on the host, where they are checked.
fn table(rows: &[Vec<i64>]) -> Tensor<2, Int> {
    let width = rows.first().map_or(0, Vec::len);
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), width]), (&Device::flex(), DType::I64))
}

fn ids(rows: &[Vec<u32>]) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row.iter().map(|id| i64::from(*id)).collect()).collect()
}

/// The scores at each row's last position.
fn last(outputs: &Outputs) -> Result<Vec<Vec<f32>>> {
    let scores = outputs.last("logits")?;
    let [_, _, vocab] = scores.dims();
    let scores = scores.try_to_vec_as::<f32>();
    let scores = scores.map_err(|error| Error::Data(format!("cannot read `logits`: {error}")))?;
    Ok(scores.chunks(vocab.max(1)).map(<[f32]>::to_vec).collect())
}
