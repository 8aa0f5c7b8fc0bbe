//! A model whose batches have an adapter for each row.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::PeftModel;
use crate::{
    Adapter, CheckedBatch, CheckedInputs, Error, ModuleKind, Outputs, Result,
    adapter::rows::{AdapterRows, BASE},
};

/// What a batch says of one of the adapters that its rows use.
#[derive(Debug)]
pub struct AdapterLoss {
    /// The adapter.
    pub adapter: String,
    /// The task's mean loss over the adapter's rows alone, `[1]`.
    pub loss: Tensor<1>,
    /// What it is a mean of: rows, or tokens that carry a label.
    pub weight: f64,
}

impl PeftModel {
    /// Names the adapter of each row of the batches that follow, [`BASE`] for none: PEFT's `adapter_names`, which the active
    /// adapters have no say in. Unlike PEFT's it works in training too: the rows' adapters all get their gradients.
    ///
    /// A batch of another number of rows is refused; so is what layers cannot do by row, which shows when they run.
    ///
    /// # Errors
    /// [`Error::Adapter`] without names, for a name that is unknown, and for an adapter that cannot act on some rows alone.
    pub fn set_rows(&mut self, names: &[&str]) -> Result<()> {
        self.set_rows_of_beams(names, 1)
    }

    /// One adapter for each row, where each row may be repeated `beams` times, side by side, as beam search does.
    ///
    /// # Errors
    /// As [`set_rows`](Self::set_rows).
    pub fn set_rows_of_beams(&mut self, names: &[&str], beams: usize) -> Result<()> {
        if names.is_empty() {
            return Err(Error::Adapter("no adapter names: give one for each row of the batch".to_owned()));
        }
        let mut judged: Vec<&str> = vec![BASE];
        for name in names {
            if judged.contains(name) {
                continue;
            }
            judged.push(name);
            let adapter = self.adapters.get(*name).ok_or_else(|| self.unknown(name))?;
            if let Some(problem) = self.refuses_rows(adapter) {
                return Err(Error::Adapter(format!(
                    "`{name}` cannot be one of several adapters in a batch: it {problem}"
                )));
            }
        }
        self.sync();
        self.rows = Some(Arc::new(AdapterRows::new(names, beams)));
        self.reattach();
        Ok(())
    }

    /// Lets the active adapters act on all rows again.
    pub fn clear_rows(&mut self) {
        self.sync();
        self.rows = None;
        self.reattach();
    }

    /// Runs a batch whose rows use these adapters: PEFT's `model(…, adapter_names=…)`.
    ///
    /// # Errors
    /// As [`set_rows`](Self::set_rows) and [`forward`](Self::forward).
    pub fn forward_by_rows(&mut self, inputs: &CheckedInputs, names: &[&str]) -> Result<Outputs> {
        let before = self.rows.clone();
        self.set_rows(names)?;
        let outputs = self.forward(inputs);
        self.sync();
        self.rows = before;
        self.reattach();
        outputs
    }

    /// Runs a batch and computes each adapter's loss over its own rows, for the rows named before; rows of no adapter and
    /// adapters whose rows have no label are left out.
    ///
    /// The gradients of their sum are those that each adapter would get by itself.
    ///
    /// # Errors
    /// As [`loss`](Self::loss); [`Error::Adapter`] if no rows were named.
    pub fn losses_by_adapter(&self, batch: &CheckedBatch) -> Result<(Vec<AdapterLoss>, Outputs)> {
        let Some(rows) = &self.rows else {
            return Err(Error::Adapter("no adapters are named for the rows of the batch".to_owned()));
        };
        let Some(task) = self.task()? else {
            return Err(Error::Adapter("the default wrapper has no loss: give the adapters a task_type".to_owned()));
        };
        let outputs = self.forward(&batch.inputs)?;
        let mut losses = Vec::new();
        for (adapter, own) in rows.by_adapter() {
            let labels = batch.labels.rows(&own, rows.count())?;
            let loss = self.loss_for(task.task, &labels)?;
            let weight = loss.weight();
            if weight > 0.0 {
                let loss = loss.mean(&outputs.rows(&own, rows.count()))?;
                losses.push(AdapterLoss { adapter: adapter.to_string(), loss, weight });
            }
        }
        Ok((losses, outputs))
    }

    /// Why an adapter cannot act on some rows alone, if it cannot.
    pub(super) fn refuses_rows(&self, adapter: &Adapter) -> Option<String> {
        let plan = &adapter.plan;
        if plan.prompt.is_some() {
            return Some("is a prompt, which stands before all rows".to_owned());
        }
        if plan.in_place {
            return Some("trains every weight of the model".to_owned());
        }
        if let Some((module, reason)) = plan.tuned().find_map(|a| Some((&a.module, a.layer.refuses_rows()?))) {
            return Some(format!("{reason} (on `{module}`)"));
        }
        let by_row = [ModuleKind::Linear, ModuleKind::Conv1D, ModuleKind::Embedding];
        let is_by_row = |parameter: &str| {
            let module = parameter.rsplit_once('.').map_or("", |(module, _)| module);
            self.tree.get(module).is_some_and(|info| by_row.contains(&info.kind))
        };
        let whole = plan.saved_params(&self.tree).into_iter().find(|parameter| !is_by_row(parameter))?;
        Some(format!(
            "has a trained copy of `{whole}`, which acts on whole batches: only linear layers and embeddings do not"
        ))
    }
}
