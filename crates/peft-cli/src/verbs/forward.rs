//! `peft forward`: tensors in, tensors out, for verification against other implementations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use clap::Args;
use peft::{
    Batch, CheckedBatch, Error, Inputs, Labels, Outputs, PeftModel,
    files::{TensorFile, check_output_file, write_safetensors},
    tensor::finite::check_finite,
};

use crate::{CliError, Globals, session::ModelArgs, terminal};

/// Run a model on tensors and write its outputs, loss and gradients
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft forward --model bert --adapter out --inputs in.safetensors --output out.safetensors --gradients"
)]
pub(crate) struct Forward {
    #[command(flatten)]
    model: ModelArgs,
    /// Safetensors file with Transformers' input names: input_ids, attention_mask, labels, …
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also write the gradient of the loss for each trainable tensor, as grad.KEY.
    #[arg(long, conflicts_with = "adapter_names")]
    gradients: bool,
    /// The adapter of each row of the batch, `__base__` for none, comma separated: PEFT's adapter_names.
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "active")]
    adapter_names: Vec<String>,
}

impl Forward {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        if self.gradients && self.model.adapters().is_empty() {
            return Err(CliError::Usage("--gradients needs an adapter: give --adapter ADAPTER".to_owned()));
        }
        check_output_file(&self.output, std::slice::from_ref(&self.inputs))?;
        let mut model = self.model.open(globals)?;
        let file = TensorFile::read(&self.inputs, "the model's inputs")?;
        let batch = model.check(batch(file)?).map_err(|error| in_file(error, &self.inputs))?;
        if !self.adapter_names.is_empty() {
            model.set_rows(&self.adapter_names.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let outputs = model.forward(&batch.inputs)?;
        let mut tensors = BTreeMap::new();
        keep(&mut tensors, "", &outputs)?;
        let loss = loss(&model, &outputs, &batch)?;
        if let Some(loss) = &loss {
            tensors.insert("loss".to_owned(), finite("loss", loss.clone().without_autodiff().to_data())?);
        }
        if self.gradients {
            let Some(loss) = &loss else {
                return Err(CliError::Usage("--gradients needs labels among the inputs".to_owned()));
            };
            let gradients = model.gradients(loss);
            let active = model.active().first().cloned().unwrap_or_default();
            let adapter = model.adapter(&active)?.clone();
            for tensor in model.trainable() {
                let gradient = match tensor.param.gradient(&gradients) {
                    Some(gradient) => tensor.oriented(gradient).to_data(),
                    None => TensorData::zeros::<f32, _>(tensor.to_file().shape()),
                };
                let name = format!("grad.{}", adapter.file_key(&tensor));
                let gradient = finite(&name, gradient)?;
                tensors.insert(name, gradient);
            }
        }
        // Under prompt learning the base model has outputs of other shapes.
        if model.info().virtual_tokens == 0 && !model.active().is_empty() {
            model.set_enabled(false);
            let outputs = model.forward(&batch.inputs)?;
            keep(&mut tensors, "base.", &outputs)?;
            if let Some(loss) = self::loss(&model, &outputs, &batch)? {
                tensors.insert("base.loss".to_owned(), finite("base.loss", loss.without_autodiff().to_data())?);
            }
        }
        write_safetensors(&self.output, &tensors)?;
        let names: Vec<_> = tensors.keys().collect();
        if globals.json {
            terminal::json(&serde_json::json!({ "output": self.output, "tensors": names }))
        } else {
            terminal::note(globals, format!("{}: {} tensors", self.output.display(), names.len()));
            Ok(())
        }
    }
}

fn keep(tensors: &mut BTreeMap<String, TensorData>, prefix: &str, outputs: &Outputs) -> Result<(), Error> {
    for (name, tensor) in outputs.iter() {
        let name = format!("{prefix}{name}");
        let data = finite(&name, tensor.without_autodiff().to_data())?;
        tensors.insert(name, data);
    }
    Ok(())
}

/// Values in single precision, all of which are numbers.
fn finite(name: &str, data: TensorData) -> Result<TensorData, Error> {
    let data = data.convert::<f32>();
    match data.as_slice::<f32>() {
        Ok(values) => check_finite(values, name).map(|()| data),
        Err(error) => Err(Error::Data(format!("cannot read `{name}`: {error:?}"))),
    }
}

/// The task's loss; where the model has none, the mean of the squared hidden states.
fn loss(model: &PeftModel, outputs: &Outputs, batch: &CheckedBatch) -> Result<Option<Tensor<1>>, CliError> {
    if let Ok(hidden) = outputs.get::<3>("last_hidden_state") {
        return Ok(Some(hidden.square().mean()));
    }
    match model.task()? {
        Some(task) if !batch.labels.is_empty() => Ok(Some(model.loss_of(outputs, &batch.labels, task)?)),
        _ => Ok(None),
    }
}

/// What is wrong with the inputs, and where they came from.
fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Data(problem) => Error::File { path: path.to_owned(), problem },
        other => other,
    }
}

fn batch(file: TensorFile) -> Result<Batch, CliError> {
    let path = file.path;
    let mut inputs = Inputs::default();
    let mut labels = BTreeMap::new();
    for (name, data) in file.tensors {
        let wrong = |problem: String| Error::File { path: path.clone(), problem: format!("`{name}`: {problem}") };
        let table = || -> Result<Option<Tensor<2, Int>>, Error> { integers(&data).map(Some).map_err(wrong) };
        match name.as_str() {
            "input_ids" => inputs.input_ids = table()?,
            "attention_mask" => inputs.attention_mask = table()?,
            "token_type_ids" => inputs.token_type_ids = table()?,
            "position_ids" => inputs.position_ids = table()?,
            "decoder_input_ids" => inputs.decoder_input_ids = table()?,
            "decoder_attention_mask" => inputs.decoder_attention_mask = table()?,
            "task_ids" => inputs.task_ids = Some(integers(&data).map_err(wrong)?),
            "labels" | "start_positions" | "end_positions" | "input_type_mask" => {
                labels.insert(name.clone(), data);
            }
            _ => return Err(wrong("no model takes this input".to_owned()).into()),
        }
    }
    if inputs.input_ids.is_none() {
        return Err(Error::File { path, problem: "has no `input_ids`".to_owned() }.into());
    }
    Ok(Batch { inputs, labels: Labels(labels) })
}

/// Whole numbers on the host, as wide as the file has them.
fn integers<const D: usize>(data: &TensorData) -> Result<Tensor<D, Int>, String> {
    if data.dtype().is_float() {
        return Err("must hold whole numbers".to_owned());
    }
    if data.shape().num_dims() != D {
        let wanted = if D == 1 { "[batch]" } else { "[batch, sequence]" };
        return Err(format!("must be {wanted}, is {:?}", data.shape().as_slice()));
    }
    let wide = data.dtype() == DType::U64 && data.iter::<u64>().any(|value| i64::try_from(value).is_err());
    if wide {
        return Err("holds a number beyond all that a model takes".to_owned());
    }
    Ok(Tensor::from_data(data.clone().convert::<i64>(), (&Device::flex(), DType::I64)))
}
