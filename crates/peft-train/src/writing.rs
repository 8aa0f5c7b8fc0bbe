//! Answers that a model writes: what each row asks for, judged before the first forward pass, and how they are written.

use std::{collections::HashSet, ops::Range};

use burn::tensor::Device;
use peft_core::{
    BadRows, Error as PeftError, TaskPlugin,
    data::example::EncodeContext,
    metrics::{Metrics, texts::compare},
    plugins::task::GenerationPrompt,
};
use peft_generate::{GenerationConfig, Generator, before_stop, check};

use crate::{Dataset, Event, Observer, Result, row_adapters::Runner};

/// What the rows of a data set ask to be written, and how it is.
#[derive(Debug)]
pub struct Writing {
    /// The options of generation.
    pub config: GenerationConfig,
    /// What each row asks for, in the order of the rows; none for a row that asks for nothing.
    pub asked: Vec<Option<GenerationPrompt>>,
}

impl Writing {
    /// Asks every row. One that asks for nothing has none; so has a whole data set.
    ///
    /// # Errors
    /// With file and line of a row whose prompt the model cannot take, or that lacks what is wanted.
    pub fn new(
        data: &Dataset,
        task: &TaskPlugin,
        context: &EncodeContext<'_>,
        mut config: GenerationConfig,
    ) -> Result<Option<Self>> {
        if config.eos_token_id.is_empty() {
            config.eos_token_id.extend(context.tokenizer.eos_id());
        }
        config.num_return_sequences = 1;
        let (mut bad, mut asked) = (BadRows::default(), Vec::with_capacity(data.rows.len()));
        let kept: HashSet<usize> = data.examples.iter().map(|example| example.row).collect();
        for (index, row) in data.rows.iter().enumerate() {
            if !kept.contains(&index) {
                // `overflow = "drop"` leaves it out.
                asked.push(None);
                continue;
            }
            let judged = task.task.asks(row, context).and_then(|one| {
                let prompt = one.as_ref().map_or(Ok(()), |one| check(context.info, &one.prompt, &config));
                prompt.map(|()| one).map_err(|error| match error {
                    PeftError::Data(problem) => row.error(problem),
                    other => other,
                })
            });
            asked.push(bad.take(judged)?.flatten());
        }
        bad.finish()?;
        let asks = asked.iter().any(Option::is_some);
        Ok(asks.then_some(Self { config, asked }))
    }

    /// What writes the answers, some rows after others.
    pub(crate) fn writer<'a>(
        &'a self,
        device: &'a Device,
        context: &'a EncodeContext<'a>,
        batch_size: usize,
    ) -> Writer<'a> {
        Writer { writing: self, device, context, batch_size, done: 0, cut: 0 }
    }

    /// What was written against what was wanted: see [`compare`].
    pub fn metrics(&self, written: &[Option<String>]) -> Metrics {
        let wanted = self.asked.iter().map(|one| one.as_ref()?.reference.as_deref());
        let pairs = written.iter().zip(wanted).filter_map(|(written, wanted)| Some((written.as_deref()?, wanted?)));
        let (written, wanted): (Vec<&str>, Vec<&str>) = pairs.unzip();
        compare(&written, &wanted)
    }
}

/// Writes answers to rows.
pub(crate) struct Writer<'a> {
    writing: &'a Writing,
    device: &'a Device,
    context: &'a EncodeContext<'a>,
    batch_size: usize,
    /// Answers that are written.
    done: usize,
    /// Those of them that reached the greatest length.
    cut: usize,
}

impl Writer<'_> {
    /// Writes an answer to each of these rows that asks for one.
    ///
    /// # Errors
    /// If the model's scores are no numbers, or a token is none of the tokenizer's.
    pub(crate) fn write(
        &mut self,
        runner: &mut Runner<'_>,
        rows: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Option<String>>> {
        let Writing { config, asked } = self.writing;
        let of = asked.get(rows.clone()).unwrap_or_default();
        let mut prompts: Vec<(usize, &[u32])> = Vec::new();
        prompts.extend(rows.clone().zip(of).filter_map(|(row, one)| Some((row, one.as_ref()?.prompt.as_slice()))));
        // Prompts of one length need no padding.
        prompts.sort_by_key(|(_, prompt)| prompt.len());
        let mut written = vec![None; of.len()];
        for batch in prompts.chunks(self.batch_size.max(1)) {
            // Batches that draw, draw different numbers.
            let config = GenerationConfig { seed: config.seed.wrapping_add(self.done as u64), ..config.clone() };
            let tokens: Vec<Vec<u32>> = batch.iter().map(|(_, prompt)| prompt.to_vec()).collect();
            let rows_of: Vec<usize> = batch.iter().map(|(row, _)| *row).collect();
            let model = runner.model(&rows_of, config.num_beams.max(config.num_return_sequences))?;
            let generator = Generator { model, device: self.device, tokenizer: Some(self.context.tokenizer) };
            let answers = generator.generate(&tokens, &config, &mut ())?;
            for ((row, _), answer) in batch.iter().zip(answers) {
                self.cut += usize::from(!answer.ended);
                let text = self.context.tokenizer.decode(&answer.tokens)?;
                if let Some(slot) = row.checked_sub(rows.start).and_then(|at| written.get_mut(at)) {
                    *slot = Some(before_stop(&text, &config.stop_strings).to_owned());
                }
            }
            self.done += batch.len();
            let total = asked.iter().flatten().count();
            observer.observe(&Event::Evaluating { done: self.done, total });
        }
        Ok(written)
    }

    /// Tells how many answers reached the greatest length.
    pub(crate) fn finish(self, observer: &mut dyn Observer) {
        if self.cut > 0 {
            observer.observe(&Event::Note(&format!(
                "{} of {} answers did not end before they were as long as they may be: see generation_max_length, \
                 max_new_tokens",
                self.cut, self.done
            )));
        }
    }
}
