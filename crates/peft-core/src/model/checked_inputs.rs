//! What a model is given, checked in one place before it runs.

use std::ops::Deref;

use burn::tensor::{Device, Int, Tensor};

use crate::{Batch, Error, Inputs, Labels, ModelInfo, Result, Task};

/// Where the model says nothing: the largest value that an index may have on every device.
const ANY: usize = 0x7fff_ffff;

/// Inputs that a model can take: shapes agree, ids have embeddings, positions are inside the table, masks are masks.
///
/// Only checking makes them, so a forward pass cannot be given others. Checking reads the values: make the inputs on the host
/// ([`Device::flex`]), check them there and bring them to the model's device with [`on`](Self::on), and no device is waited for.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use peft_core::{CheckedInputs, Inputs, ModelInfo};
///
/// let mut info = ModelInfo::custom();
/// info.config.insert("vocab_size".to_owned(), 100.into());
/// let ids = |ids: [[i64; 2]; 1]| Inputs { input_ids: Some(Tensor::from_data(ids, &Device::flex())), ..Inputs::default() };
/// assert!(CheckedInputs::new(ids([[1, 99]]), &info).is_ok());
/// let error = CheckedInputs::new(ids([[1, 100]]), &info).unwrap_err();
/// assert_eq!(error.to_string(), "input_ids[0, 1] is 100: the model has ids 0 to 99");
/// ```
#[derive(Debug, Clone)]
pub struct CheckedInputs {
    inputs: Inputs,
    /// What they were checked against: another model checks them again.
    limits: Limits,
}

impl CheckedInputs {
    /// Checks inputs for a model.
    ///
    /// # Errors
    /// [`Error::Data`] that names the input, and the position and value that are wrong.
    pub fn new(inputs: Inputs, info: &ModelInfo) -> Result<Self> {
        let limits = Limits::of(info);
        limits.check(&inputs)?;
        Ok(Self { inputs, limits })
    }

    /// The inputs, checked again only if they were checked for a model with other limits.
    pub(crate) fn for_model(&self, info: &ModelInfo) -> Result<()> {
        let limits = Limits::of(info);
        if limits == self.limits { Ok(()) } else { limits.check(&self.inputs) }
    }

    /// The inputs on another device; masks stay where they are, see [`Inputs::attention_mask`].
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        self.map(|inputs| Inputs {
            input_ids: inputs.input_ids.map(|ids| moved(ids, device)),
            token_type_ids: inputs.token_type_ids.map(|ids| moved(ids, device)),
            position_ids: inputs.position_ids.map(|ids| moved(ids, device)),
            decoder_input_ids: inputs.decoder_input_ids.map(|ids| moved(ids, device)),
            task_ids: inputs.task_ids.map(|ids| moved(ids, device)),
            ..inputs
        })
    }

    /// The inputs with so many [`checkpointed_layers`](Inputs::checkpointed_layers).
    #[must_use]
    pub fn with_checkpointed_layers(self, checkpointed_layers: usize) -> Self {
        self.map(|inputs| Inputs { checkpointed_layers, ..inputs })
    }

    /// The inputs, to be changed and checked again.
    pub fn into_inputs(self) -> Inputs {
        self.inputs
    }

    /// What a change that keeps them fit makes of them.
    pub(crate) fn map(self, change: impl FnOnce(Inputs) -> Inputs) -> Self {
        Self { inputs: change(self.inputs), limits: self.limits }
    }
}

impl Deref for CheckedInputs {
    type Target = Inputs;

    fn deref(&self) -> &Inputs {
        &self.inputs
    }
}

/// Checked inputs and their labels.
#[derive(Debug, Clone)]
pub struct CheckedBatch {
    /// What the model reads.
    pub inputs: CheckedInputs,
    /// What it should say; may be empty.
    pub labels: Labels,
}

impl CheckedBatch {
    /// Adds the inputs that follow from the labels, as the task has them ([`Task::complete`]), and checks them all.
    ///
    /// # Errors
    /// [`Error::Data`] as [`CheckedInputs::new`], and if the labels are unfit.
    pub fn new(batch: Batch, task: Option<&dyn Task>, info: &ModelInfo) -> Result<Self> {
        let Batch { inputs, labels } = match task {
            Some(task) => task.complete(batch, info)?,
            None => batch,
        };
        Ok(Self { inputs: CheckedInputs::new(inputs, info)?, labels })
    }

    /// The batch on another device, see [`CheckedInputs::on`].
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        Self { inputs: self.inputs.on(device), labels: self.labels }
    }
}

/// What a model can take.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limits {
    class_name: String,
    vocab: Option<usize>,
    decoder_vocab: Option<usize>,
    types: Option<usize>,
    tasks: Option<usize>,
    positions: Option<usize>,
    position_rows: Option<usize>,
    virtual_tokens: usize,
    virtual_outputs: usize,
    has_padding_token: bool,
    pools_last_token: bool,
    pooled_token: Option<i64>,
}

impl Limits {
    fn of(info: &ModelInfo) -> Self {
        let vocab = info.number("vocab_size");
        Self {
            class_name: info.class_name.clone(),
            vocab,
            decoder_vocab: info.number("decoder_vocab_size").or(vocab),
            types: info.num_types(),
            tasks: info.num_tasks,
            positions: info.max_positions,
            position_rows: info.position_rows.or(info.max_positions),
            virtual_tokens: info.virtual_tokens,
            virtual_outputs: info.virtual_outputs,
            has_padding_token: info.pad_token_id().is_some(),
            pools_last_token: info.pools_last_token,
            pooled_token: info.pooled_token,
        }
    }

    fn check(&self, inputs: &Inputs) -> Result<()> {
        let past = inputs.past_key_values.as_ref().map_or(0, crate::PastKeyValues::length);
        // A prompt is the first thing in the past, and neither ids nor masks know of it.
        let read = past.saturating_sub(self.virtual_tokens);
        let source = Read::source(inputs, self.virtual_outputs)?;
        let [rows, width] = source.dims;
        let target = Read::target(inputs)?;
        let is_crossed = target.is_some() || inputs.encoder_outputs.is_some();
        if let Some(ids) = &inputs.input_ids {
            let values = values("input_ids", ids)?;
            below("input_ids", &values, width, self.vocab, "ids")?;
            self.check_pooled(&values, width)?;
        }
        self.check_padding(inputs, rows)?;
        self.check_length(source.name, if is_crossed { 0 } else { past }, width)?;
        let masked = if is_crossed { width } else { read + width };
        check_mask("attention_mask", inputs.attention_mask.as_ref(), rows, &[masked])?;
        if let Some(ids) = &inputs.token_type_ids {
            check_dims("token_type_ids", &ids.dims(), &[rows, width], source.name)?;
            below("token_type_ids", &values("token_type_ids", ids)?, width, self.types, "segments")?;
        }
        if let Some(ids) = &inputs.position_ids {
            // One row of positions does for all.
            let own = if ids.dims()[0] == 1 { 1 } else { rows };
            check_dims("position_ids", &ids.dims(), &[own, width], source.name)?;
            let most = self.position_rows.map(|most| most.saturating_sub(self.virtual_tokens));
            below("position_ids", &values("position_ids", ids)?, width, most, "positions")?;
        }
        if let Some(tasks) = &inputs.task_ids {
            check_dims("task_ids", &tasks.dims(), &[rows], source.name)?;
            below("task_ids", &values("task_ids", tasks)?, 0, self.tasks, "tasks")?;
        }
        for (name, prompt) in [("prompt", &inputs.prompt), ("decoder_prompt", &inputs.decoder_prompt)] {
            if let Some(prompt) = prompt {
                let [_, tokens, wide] = prompt.dims();
                check_dims(name, &prompt.dims(), &[rows, tokens, wide], source.name)?;
            }
        }
        if let Some(target) = &target {
            check_dims(target.name, &target.dims, &[rows, target.dims[1]], source.name)?;
            self.check_length(target.name, past, target.dims[1])?;
        }
        if let Some(ids) = &inputs.decoder_input_ids {
            let width = ids.dims()[1];
            below("decoder_input_ids", &values("decoder_input_ids", ids)?, width, self.decoder_vocab, "ids")?;
        }
        let width = target.map_or(width, |target| target.dims[1]);
        // Of a prompt that stands before the source alone the decoder's past has nothing.
        check_mask(
            "decoder_attention_mask",
            inputs.decoder_attention_mask.as_ref(),
            rows,
            &[read + width, past + width],
        )
    }

    fn check_pooled(&self, ids: &[i64], width: usize) -> Result<()> {
        let Some(token) = self.pooled_token else { return Ok(()) };
        match ids.chunks(width.max(1)).position(|row| !row.contains(&token)) {
            Some(row) => Err(Error::Data(format!(
                "input_ids[{row}] has no token {token}: {} reads the state of each row's last one",
                self.class_name
            ))),
            None => Ok(()),
        }
    }

    fn check_padding(&self, inputs: &Inputs, rows: usize) -> Result<()> {
        let tells_padding = self.has_padding_token || inputs.attention_mask.is_some();
        if !self.pools_last_token || rows <= 1 || tells_padding || inputs.input_ids.is_none() {
            return Ok(());
        }
        Err(Error::Data(format!(
            "a batch of {rows} rows: {} reads each row's last token, and neither a `pad_token_id` in config.json nor an \
             attention mask tells which that is; give one or take one row at a time",
            self.class_name
        )))
    }

    fn check_length(&self, name: &str, past: usize, width: usize) -> Result<()> {
        // In the past the virtual tokens are there already.
        let taken = if past > 0 { past } else { self.virtual_tokens };
        let Some(most) = self.positions.filter(|most| taken.saturating_add(width) > *most) else { return Ok(()) };
        let positions = match (past, taken) {
            (0, 0) => format!("{most} positions"),
            (0, _) => format!("{} positions left beside {taken} virtual tokens", most.saturating_sub(taken)),
            _ => format!("{} positions left behind the {past} before them", most.saturating_sub(taken)),
        };
        Err(Error::Data(format!("{name} has {width} tokens a row: the model has {positions}")))
    }
}

/// What a half of the model reads.
struct Read {
    name: &'static str,
    /// `[rows, tokens]`.
    dims: [usize; 2],
}

impl Read {
    /// What the model reads, or its encoder.
    fn source(inputs: &Inputs, virtual_outputs: usize) -> Result<Self> {
        let Some(source) = Self::one_of(
            ("input_ids", inputs.input_ids.as_ref().map(Tensor::dims)),
            ("inputs_embeds", inputs.inputs_embeds.as_ref().map(Tensor::dims)),
        )?
        else {
            // What an encoder made of the source has the virtual tokens in front.
            let states = inputs.encoder_outputs.as_ref().map(Tensor::dims);
            let states = states.map(|[rows, width, _]| [rows, width.saturating_sub(virtual_outputs)]);
            return states
                .map(|dims| Self { name: "encoder_outputs", dims })
                .ok_or_else(|| Error::Data("the batch has neither `input_ids` nor `inputs_embeds`".to_owned()));
        };
        Ok(source)
    }

    /// The inputs of the decoder of an encoder-decoder model.
    fn target(inputs: &Inputs) -> Result<Option<Self>> {
        Self::one_of(
            ("decoder_input_ids", inputs.decoder_input_ids.as_ref().map(Tensor::dims)),
            ("decoder_inputs_embeds", inputs.decoder_inputs_embeds.as_ref().map(Tensor::dims)),
        )
    }

    fn one_of(
        ids: (&'static str, Option<[usize; 2]>),
        embedded: (&'static str, Option<[usize; 3]>),
    ) -> Result<Option<Self>> {
        let read = match (ids.1, embedded.1) {
            (Some(_), Some(_)) => {
                return Err(Error::Data(format!("both `{}` and `{}`: give one of them", ids.0, embedded.0)));
            }
            (Some(dims), None) => Self { name: ids.0, dims },
            (None, Some([rows, width, _])) => Self { name: embedded.0, dims: [rows, width] },
            (None, None) => return Ok(None),
        };
        if read.dims.contains(&0) {
            let Self { name, dims } = read;
            return Err(Error::Data(format!("`{name}` is {dims:?}: give at least one row of at least one token")));
        }
        Ok(Some(read))
    }
}

fn moved<const D: usize>(ids: Tensor<D, Int>, device: &Device) -> Tensor<D, Int> {
    // On the host the values may be wider than what the device computes with.
    let is_there = ids.device() == *device && *device != Device::flex();
    if is_there { ids } else { Tensor::from_data(ids.into_data(), device) }
}

fn values<const D: usize>(name: &str, tensor: &Tensor<D, Int>) -> Result<Vec<i64>> {
    let values = tensor.clone().into_data().convert::<i64>().try_to_vec::<i64>();
    values.map_err(|error| Error::Data(format!("`{name}` cannot be read: {error:?}")))
}

fn check_dims(name: &str, found: &[usize], wanted: &[usize], beside: &str) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::Data(format!("`{name}` is {found:?} where {wanted:?} goes with `{beside}`")))
}

fn below(name: &str, values: &[i64], width: usize, limit: Option<usize>, what: &str) -> Result<()> {
    let most = limit.unwrap_or(ANY);
    let Some((place, found)) = first_outside(values, width, most) else { return Ok(()) };
    let says = match limit {
        Some(most) => format!("the model has {what} 0 to {}", most.saturating_sub(1)),
        None => format!("it should be one of the {what} from 0 on"),
    };
    Err(Error::Data(format!("{name}[{place}] is {found}: {says}")))
}

/// Whether each position counts or does not, or has the number of the packed example that it belongs to.
fn check_mask(name: &str, mask: Option<&Tensor<2, Int>>, rows: usize, widths: &[usize]) -> Result<()> {
    let Some(mask) = mask else { return Ok(()) };
    let found @ [own, width] = mask.dims();
    if own != rows || !widths.contains(&width) {
        let wanted = [rows, widths.first().copied().unwrap_or_default()];
        return Err(Error::Data(format!("`{name}` is {found:?}, and the tokens that it is for are {wanted:?}")));
    }
    match first_outside(&values(name, mask)?, width, width.saturating_add(1)) {
        Some((place, found)) => Err(Error::Data(format!(
            "{name}[{place}] is {found}: it should be 1 where a token counts and 0 at padding"
        ))),
        None => Ok(()),
    }
}

/// The position of the first value outside `0..limit`, as messages say it, and the value; a width of 0 is that of a list.
fn first_outside(values: &[i64], width: usize, limit: usize) -> Option<(String, i64)> {
    let is_outside = |value: &i64| usize::try_from(*value).map_or(true, |value| value >= limit);
    let at = values.iter().position(is_outside)?;
    let place = match width {
        0 => at.to_string(),
        _ => format!("{}, {}", at / width, at % width),
    };
    Some((place, values.get(at).copied()?))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, TensorData};

    use super::*;
    use crate::PastKeyValues;

    fn info() -> ModelInfo {
        let mut info = ModelInfo { max_positions: Some(6), num_tasks: Some(2), ..ModelInfo::custom() };
        info.config.insert("vocab_size".to_owned(), 10.into());
        info.config.insert("type_vocab_size".to_owned(), 2.into());
        info
    }

    fn table(values: &[&[i64]]) -> Option<Tensor<2, Int>> {
        let width = values.first().map_or(5, |row| row.len());
        let data = TensorData::new(values.concat(), [values.len(), width]);
        Some(Tensor::from_data(data, (&Device::flex(), DType::I64)))
    }

    fn states(dims: [usize; 3]) -> Option<Tensor<3>> {
        Some(Tensor::zeros(dims, &Device::flex()))
    }

    fn refused(inputs: Inputs, says: &str) {
        let error = CheckedInputs::new(inputs, &info()).unwrap_err().to_string();
        assert!(error.contains(says), "{error} / {says}");
    }

    #[test]
    fn what_the_model_cannot_take_is_refused_by_name() {
        let ids = || Inputs { input_ids: table(&[&[1, 2, 3], &[4, 5, 6]]), ..Inputs::default() };
        assert!(CheckedInputs::new(ids(), &info()).is_ok());
        for (inputs, says) in [
            (Inputs::default(), "neither `input_ids` nor `inputs_embeds`"),
            (Inputs { input_ids: table(&[]), ..Inputs::default() }, "`input_ids` is [0, 5]"),
            (Inputs { input_ids: table(&[&[]]), ..Inputs::default() }, "`input_ids` is [1, 0]"),
            (Inputs { input_ids: table(&[&[1, 10]]), ..Inputs::default() }, "input_ids[0, 1] is 10"),
            (Inputs { input_ids: table(&[&[-1]]), ..Inputs::default() }, "input_ids[0, 0] is -1"),
            (Inputs { input_ids: table(&[&[1; 7]]), ..Inputs::default() }, "the model has 6 positions"),
            (Inputs { inputs_embeds: states([2, 3, 4]), ..ids() }, "both `input_ids` and `inputs_embeds`"),
            (Inputs { attention_mask: table(&[&[1, 1, 1]]), ..ids() }, "`attention_mask` is [1, 3]"),
            (Inputs { attention_mask: table(&[&[1, 1, 1], &[1, 1, 1 << 40]]), ..ids() }, "attention_mask[1, 2]"),
            (Inputs { token_type_ids: table(&[&[0, 1, 2], &[0; 3]]), ..ids() }, "token_type_ids[0, 2] is 2"),
            (Inputs { token_type_ids: table(&[&[0; 2], &[0; 2]]), ..ids() }, "`token_type_ids` is [2, 2]"),
            (Inputs { position_ids: table(&[&[0, 1, 6]]), ..ids() }, "position_ids[0, 2] is 6"),
            (Inputs { position_ids: table(&[&[0, 1], &[0, 1]]), ..ids() }, "`position_ids` is [2, 2]"),
            (Inputs { decoder_input_ids: table(&[&[1, 2]]), ..ids() }, "`decoder_input_ids` is [1, 2]"),
            (Inputs { decoder_input_ids: table(&[&[1], &[1 << 33]]), ..ids() }, "decoder_input_ids[1, 0]"),
            (Inputs { decoder_input_ids: table(&[&[], &[]]), ..ids() }, "`decoder_input_ids` is [2, 0]"),
            (Inputs { decoder_inputs_embeds: states([3, 2, 4]), ..ids() }, "`decoder_inputs_embeds` is [3, 2]"),
            (
                Inputs {
                    decoder_input_ids: table(&[&[1], &[2]]),
                    decoder_attention_mask: table(&[&[1, 1], &[1, 1]]),
                    ..ids()
                },
                "`decoder_attention_mask` is [2, 2]",
            ),
            (
                Inputs { task_ids: Some(Tensor::from_data([0, 2], &Device::flex())), ..ids() },
                "task_ids[1] is 2: the model has tasks 0 to 1",
            ),
            (Inputs { task_ids: Some(Tensor::from_data([0], &Device::flex())), ..ids() }, "`task_ids` is [1]"),
        ] {
            refused(inputs, says);
        }
    }

    #[test]
    fn what_was_read_before_counts() {
        let keys = || Tensor::<4>::zeros([1, 1, 4, 2], &Device::flex());
        let past = || Some(PastKeyValues::filled(vec![(keys(), keys())]));
        let next = |width: usize, mask: usize| Inputs {
            input_ids: table(&[&vec![1; width]]),
            attention_mask: table(&[&vec![1; mask]]),
            past_key_values: past(),
            ..Inputs::default()
        };
        assert!(CheckedInputs::new(next(2, 6), &info()).is_ok());
        refused(next(2, 2), "`attention_mask` is [1, 2], and the tokens that it is for are [1, 6]");
        refused(next(3, 7), "2 positions left behind the 4 before them");
        // Two of the four are a prompt's, of which the mask knows nothing.
        let prompted = ModelInfo { virtual_tokens: 2, ..info() };
        assert!(CheckedInputs::new(next(2, 4), &prompted).is_ok());
        // A decoder's past says nothing of the source.
        let crossed = Inputs {
            encoder_outputs: states([1, 3, 8]),
            attention_mask: table(&[&[1, 1, 0]]),
            decoder_input_ids: table(&[&[1]]),
            past_key_values: past(),
            ..Inputs::default()
        };
        assert!(CheckedInputs::new(crossed, &info()).is_ok());
    }

    #[test]
    fn inputs_of_another_model_are_checked_again() {
        let inputs = Inputs { input_ids: table(&[&[1, 9]]), ..Inputs::default() };
        let checked = CheckedInputs::new(inputs, &info()).unwrap();
        assert!(checked.for_model(&info()).is_ok());
        let mut smaller = info();
        smaller.config.insert("vocab_size".to_owned(), 9.into());
        assert!(checked.for_model(&smaller).is_err());
    }
}
