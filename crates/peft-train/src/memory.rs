//! What a run needs of a device's memory, by an estimate before its first step, and what would fit.

use std::{collections::BTreeSet, fmt};

use burn::tensor::Device;
use peft_backends::{
    capture::is_recordable,
    device::is_host,
    memory::{capacity, resident},
};
use peft_core::{
    ModuleTree, Plan,
    model::explain,
    tensor::module_tree::{num_values, sum_values},
};
use serde::Serialize;

use crate::{
    Error, Prepared, Recipe, Result,
    activations::{Activations, Kept, KeptPerToken, kept, lengths},
    captured_steps,
    recipe::WeightType,
    report::peak_rss_bytes,
};

/// Logits that the loss over a vocabulary has in memory at a time on the processor, and on a GPU.
const LOGITS: [u64; 2] = [32 << 20, 256 << 20];

/// The highest rank that is looked at.
const MOST_RANK: usize = 4096;

/// The share of what there is above which training warns.
const NEAR: f64 = 0.9;

/// What a run needs at its highest, in bytes, by what it is for.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// The weights of the base model, packed ones as they are.
    pub weights: u64,
    /// The adapter's tensors.
    pub adapter: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimiser's two moments.
    pub optimizer: u64,
    /// What the layers keep of a batch until the pass back.
    pub activations: u64,
    /// The same by layer.
    pub layers: Vec<LayerMemory>,
    /// Logits of the loss.
    pub logits: u64,
    /// What the pass back works with: gradients of a layer's values, and weights in half precision widened.
    pub workspace: u64,
    /// What recorded passes keep beyond the largest one's, with `captured_steps` on a GPU: each of another length has a pass's
    /// memory and the adapter's gradients for itself, and all read a copy of the adapter.
    pub recordings: u64,
    /// Examples on the host; nothing on another device.
    pub data: u64,
    /// The program itself, its tokenizer and what it has loaded; measured, and nothing on another device.
    pub program: u64,
    /// All of it, or the peak of loading if that was higher.
    pub total: u64,
    /// The most that the program may hold; none where nobody says.
    pub available: Option<u64>,
    /// What would fit in that; none where nobody says.
    pub fits: Option<Fits>,
}

/// What a layer keeps.
#[derive(Debug, Clone, Serialize)]
pub struct LayerMemory {
    /// Its name.
    pub layer: String,
    /// Bytes.
    pub bytes: u64,
}

/// The most of one thing that fits while the others stay as they are; none if not even 1 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fits {
    /// `per_device_train_batch_size`.
    pub batch: Option<usize>,
    /// Tokens of the longest example, no more than the model has positions.
    pub length: Option<usize>,
    /// `r`, for a method that has one.
    pub rank: Option<usize>,
}

/// A batch and an adapter, of which some part may be another than the recipe's.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    lengths: [usize; 2],
    /// Values of the adapter that are trained.
    trained: u64,
}

impl Memory {
    /// The estimate for a recipe that is prepared, its weights loaded.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn estimate(
        recipe: &Recipe,
        prepared: &Prepared,
        chosen: Option<&Activations>,
        device: &Device,
    ) -> Result<Self> {
        let plan = explain::plan(&prepared.base, &recipe.adapter)?;
        let tree = prepared.base.tree();
        let data = &prepared.train;
        let size = Size {
            rows: (recipe.training.per_device_train_batch_size.saturating_mul(data.group_size))
                .min(data.examples.len()),
            lengths: lengths(recipe, prepared),
            trained: trained(&plan, &tree),
        };
        let checkpointed = chosen.map_or(0, |chosen| chosen.checkpointed_layers);
        let may =
            recipe.training.captured_steps && captured_steps::hindrance(recipe).is_none() && is_recordable(device);
        let recorded = if may { prepared.padded_lengths(recipe.training.multiple(true)) } else { BTreeSet::new() };
        let layers = kept(recipe, prepared, &plan, &tree);
        let run = Run { recipe, prepared, tree, layers, checkpointed, recorded, device };
        let mut memory = run.of(size);
        memory.available = capacity(device);
        memory.fits = memory.available.map(|available| run.fits(size, available));
        Ok(memory)
    }

    /// Whether it is more than there is.
    pub fn exceeds(&self) -> bool {
        self.available.is_some_and(|available| self.total > available)
    }

    /// What to say before a run that nearly fills the memory.
    pub fn warning(&self) -> Option<String> {
        let available = self.available?;
        (self.total as f64 > NEAR * available as f64).then(|| self.verdict())
    }

    /// The error of a run that would not fit.
    ///
    /// # Errors
    /// [`Error::Memory`] if the estimate exceeds what there is.
    pub fn check(&self) -> Result<()> {
        if self.exceeds() { Err(Error::Memory { problem: self.verdict() }) } else { Ok(()) }
    }

    /// How the need and what there is compare, and what would fit.
    pub fn verdict(&self) -> String {
        let Some(available) = self.available else { return format!("about {} MB are needed", megabytes(self.total)) };
        let mut text = format!("about {} MB are needed, {} MB are there", megabytes(self.total), megabytes(available));
        let Some(fits) = &self.fits else { return text };
        let parts =
            [("per_device_train_batch_size", fits.batch), ("examples of tokens", fits.length), ("r", fits.rank)];
        let found: Vec<String> =
            parts.into_iter().filter_map(|(what, most)| Some(format!("{what} up to {}", most?))).collect();
        match found.is_empty() {
            true => text.push_str("; no batch fits: pack the weights (load_in_4bit), or take a smaller model"),
            false => text.push_str(&format!("; would fit with any one of: {}", found.join(", "))),
        }
        text
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory: {}", self.verdict())?;
        let parts = [
            ("weights", self.weights),
            ("adapter", self.adapter),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("logits", self.logits),
            ("workspace", self.workspace),
            ("recordings", self.recordings),
            ("data", self.data),
            ("program", self.program),
        ];
        let lines: Vec<_> =
            parts.iter().map(|(what, bytes)| format!("  {what:<12}{:>8} MB", megabytes(*bytes))).collect();
        f.write_str(&lines.join("\n"))
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

/// A product of what may be any number that a configuration says; `u64::MAX` stands for more than there is anywhere.
fn times(a: u64, b: u64) -> u64 {
    a.saturating_mul(b)
}

fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Values that an adapter trains.
fn trained(plan: &Plan, tree: &ModuleTree) -> u64 {
    let adapted = plan.tuned().flat_map(|adapted| adapted.layer.tensors());
    let prompt = plan.prompt.iter().flat_map(|prompt| prompt.tuner.tensors(&prompt.shape));
    let own = adapted.chain(prompt).filter(|spec| spec.trainable).map(|spec| num_values(&spec.shape));
    let copied = plan.saved_params(tree).into_iter().chain(plan.biases.iter().cloned());
    let sizes: std::collections::HashMap<String, usize> =
        tree.params().map(|(name, param)| (name, num_values(&param.shape))).collect();
    sum_values(own.chain(copied.filter_map(|name| sizes.get(&name).copied()))) as u64
}

struct Run<'a> {
    recipe: &'a Recipe,
    prepared: &'a Prepared,
    tree: ModuleTree,
    layers: Vec<KeptPerToken>,
    checkpointed: usize,
    /// Lengths of rows whose passes are recorded.
    recorded: BTreeSet<usize>,
    device: &'a Device,
}

impl Run<'_> {
    fn of(&self, size: Size) -> Memory {
        let Self { recipe, prepared, tree, .. } = self;
        let info = &prepared.base.info;
        let on_host = is_host(&self.device.clone().inner());
        let is_half = matches!(recipe.model.dtype, Some(WeightType::Bf16 | WeightType::F16));
        let width = if is_half { 2 } else { 4 };
        let is_own = |name: &String| {
            !info.tied.iter().any(|(copy, _)| copy == name) && prepared.base.quantized.get(name).is_none()
        };
        let dense = tree.params().filter(|(name, _)| is_own(name));
        let dense = sum_values(dense.map(|(_, param)| num_values(&param.shape)));
        let weights = times(dense as u64, width).saturating_add(prepared.base.quantized.bytes() as u64);

        let tokens = size.lengths.map(|length| times(size.rows as u64, length as u64));
        let most = tokens[0].max(tokens[1]);
        let layers = self.layers.iter().enumerate().map(|(at, layer)| {
            let Kept { all, input } = layer.of(tokens);
            let bytes = input.filter(|_| at < self.checkpointed).unwrap_or(all);
            LayerMemory { layer: layer.layer.clone(), bytes }
        });
        let layers: Vec<LayerMemory> = layers.collect();
        let activations = sum(layers.iter().map(|layer| layer.bytes));

        let linear = tree.modules.iter().filter(|module| module.kind.is_linear());
        let dims: Vec<(String, [u64; 2])> = linear
            .filter_map(|module| Some((module.name.clone(), module.weight_dims()?)))
            .map(|(name, (d_in, d_out))| (name, [d_in as u64, d_out as u64]))
            .collect();
        let is_words = |name: &String| info.output_embedding.as_ref() == Some(name);
        let vocab = dims.iter().find(|(name, _)| is_words(name)).map_or(0, |(_, [_, vocab])| *vocab);
        let logits = times(times(most, vocab), 4).min(if on_host { LOGITS[0] } else { LOGITS[1] });
        let widest = dims.iter().filter(|(name, _)| !is_words(name)).map(|(_, dims)| dims[0].max(dims[1])).max();
        // The gradients of a layer's widest values, single precision whatever the model's.
        let values = times(times(most, widest.unwrap_or(0)), 16);
        let largest = dims.iter().map(|(_, [d_in, d_out])| times(*d_in, *d_out)).max().unwrap_or(0);
        let widened = if is_half && on_host { times(largest, 4) } else { 0 };
        let data = if on_host { data_bytes(prepared) } else { 0 };
        let program = if on_host { resident().unwrap_or(0).saturating_sub(weights.saturating_add(data)) } else { 0 };
        let [adapter, optimizer] = [4, 8].map(|bytes| times(size.trained, bytes));
        let workspace = values.saturating_add(widened);
        let recordings = recordings(&self.recorded, sum([activations, logits, workspace]), adapter);
        let total =
            sum([weights, adapter, adapter, optimizer, activations, logits, workspace, recordings, data, program]);
        let loading = if on_host { peak_rss_bytes().unwrap_or(0) } else { 0 };
        Memory {
            weights,
            adapter,
            gradients: adapter,
            optimizer,
            activations,
            layers,
            logits,
            workspace,
            recordings,
            data,
            program,
            total: total.max(loading),
            available: None,
            fits: None,
        }
    }

    fn fits(&self, size: Size, available: u64) -> Fits {
        let fits = |size: Size| self.of(size).total <= available;
        let group_size = self.prepared.train.group_size.max(1);
        let room = self.prepared.info.room().unwrap_or(1 << 20);
        let batch = most(1 << 16, |batch| fits(Size { rows: batch.saturating_mul(group_size), ..size }));
        let length = most(room, |length| fits(Size { lengths: [length, length.min(size.lengths[1].max(1))], ..size }));
        let option = self.recipe.adapter.tuner().ok().and_then(|tuner| tuner.rank_option());
        let rank = option.and_then(|option| {
            let at = |rank: usize| {
                let config = self.recipe.adapter.clone().with(option, rank).ok()?;
                let plan = explain::plan(&self.prepared.base, &config).ok()?;
                Some(trained(&plan, &self.tree))
            };
            let (one, two) = (at(1)?, at(2)?);
            let values =
                |rank: usize| one.saturating_add(times(two.saturating_sub(one), (rank as u64).saturating_sub(1)));
            most(MOST_RANK, |rank| fits(Size { trained: values(rank), ..size }))
        });
        Fits { batch, length, rank }
    }
}

/// The greatest number up to `limit` for which `fits`, which holds for all smaller ones then.
fn most(limit: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut good, mut bad) = (0, limit + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    (good > 0).then_some(good)
}

/// What the recordings of passes keep beyond the longest one's pass, of which `pass` and `adapter` are the bytes.
fn recordings(lengths: &BTreeSet<usize>, pass: u64, adapter: u64) -> u64 {
    let Some(longest) = lengths.last().map(|longest| (*longest).max(1) as u64) else { return 0 };
    let kept = lengths.iter().rev().take(captured_steps::MOST).map(|length| *length as u64);
    let each = kept.map(|length| u128::from(pass) * u128::from(length) / u128::from(longest) + u128::from(adapter));
    let all = each.sum::<u128>() + u128::from(adapter);
    u64::try_from(all.saturating_sub(u128::from(pass))).unwrap_or(u64::MAX)
}

fn data_bytes(prepared: &Prepared) -> u64 {
    let examples = prepared.train.examples.iter().chain(prepared.eval.iter().flat_map(|eval| &eval.examples));
    // Ids, segments and labels, four bytes each, and what a row and its maps take.
    examples.map(|example| 512 + 12 * example.input_ids.len() as u64).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn memory(total: u64, available: Option<u64>, batch: Option<usize>) -> Memory {
        let fits = available.map(|_| Fits { batch, length: None, rank: None });
        Memory {
            weights: total,
            adapter: 0,
            gradients: 0,
            optimizer: 0,
            activations: 0,
            layers: Vec::new(),
            logits: 0,
            workspace: 0,
            recordings: 0,
            data: 0,
            program: 0,
            total,
            available,
            fits,
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let error = memory(3_000_000_000, Some(2_000_000_000), Some(4)).check().unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let message = error.to_string();
        for says in
            ["3000 MB are needed", "2000 MB are there", "per_device_train_batch_size up to 4", "--no-memory-check"]
        {
            assert!(message.contains(says), "{message}");
        }
        assert!(memory(3, Some(2), None).verdict().contains("load_in_4bit"));
        assert!(memory(19, Some(20), Some(1)).check().is_ok() && memory(19, Some(20), Some(1)).warning().is_some());
        assert!(memory(17, Some(20), Some(1)).warning().is_none() && memory(17, None, None).warning().is_none());
    }

    #[test]
    fn a_recording_of_each_length_keeps_a_pass() {
        assert_eq!(recordings(&BTreeSet::new(), 1000, 10), 0);
        assert_eq!(recordings(&[128].into(), 1000, 10), 20);
        assert_eq!(recordings(&[64, 128].into(), 1000, 10), 530);
        let many = recordings(&(1..=100).collect(), 1000, 0);
        assert_eq!(many, [99, 98, 97, 96, 95, 94, 93].map(|length| 10 * length).iter().sum::<u64>());
    }

    #[test]
    fn the_most_that_fits_is_found() {
        assert_eq!(most(100, |n| n <= 37), Some(37));
        assert_eq!(most(100, |_| true), Some(100));
        assert_eq!(most(100, |_| false), None);
    }
}
