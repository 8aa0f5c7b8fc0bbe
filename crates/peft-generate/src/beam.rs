//! Beam search: the most probable whole answers among several that are followed at once, or some that are drawn.

use peft_core::{Error, Result, tensor::random::ChaCha12Rng};

use crate::{
    EarlyStopping, Generated, Watch, Written,
    decoder::Decoder,
    generate::Run,
    logits::{log_softmax, process},
    sample::{draws, uniform},
};

/// What makes a candidate lose to all that may be chosen.
const OUT: f32 = -1.0e9;

#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f32,
    /// The row that the decoder knows it by.
    row: usize,
    is_finished: bool,
    /// Whether it is finished because it came to an end.
    ended: bool,
}

/// The beams of one prompt.
struct Hypotheses {
    running: Vec<Beam>,
    finished: Vec<Beam>,
    can_improve: bool,
    /// Whether no candidate of the last step can go on.
    all_ended: bool,
}

/// Follows `num_beams` answers to each prompt until none can become better.
pub(crate) fn search(
    run: &Run<'_>,
    decoder: &mut Decoder<'_>,
    scores: Vec<Vec<f32>>,
    watch: &mut dyn Watch,
) -> Result<Vec<Generated>> {
    let beams = run.config.num_beams;
    let rows: Vec<usize> = (0..scores.len()).flat_map(|row| std::iter::repeat_n(row, beams)).collect();
    decoder.select(&rows);
    let mut scores: Vec<Vec<f32>> = rows.iter().filter_map(|row| scores.get(*row).cloned()).collect();
    let start = |prompt: usize| {
        let beam = |at: usize, score: f32| Beam {
            tokens: Vec::new(),
            score,
            row: prompt * beams + at,
            is_finished: false,
            ended: false,
        };
        Hypotheses {
            // All beams are alike at first: only one of them may be continued.
            running: (0..beams).map(|at| beam(at, if at == 0 { 0.0 } else { OUT })).collect(),
            finished: (0..beams).map(|at| beam(at, OUT)).collect(),
            can_improve: true,
            all_ended: false,
        }
    };
    let mut prompts: Vec<Hypotheses> = (0..run.read.len()).map(start).collect();
    let mut draws = draws(run.config.seed, prompts.len());
    for new in 1.. {
        for ((prompt, hypotheses), draw) in prompts.iter_mut().enumerate().zip(&mut draws) {
            hypotheses.step(run, prompt, &mut scores, new, draw)?;
        }
        let full = prompts.iter().all(|p| p.finished.iter().all(|beam| beam.is_finished));
        let is_over = !prompts.iter().any(|p| p.can_improve)
            || full && run.config.early_stopping == EarlyStopping::When(true)
            || prompts.iter().all(|p| p.all_ended);
        if is_over {
            break;
        }
        let running = || prompts.iter().flat_map(|p| &p.running);
        decoder.select(&running().map(|beam| beam.row).collect::<Vec<_>>());
        let next: Vec<u32> = running().filter_map(|beam| beam.tokens.last().copied()).collect();
        scores = decoder.read(&next)?;
        for (row, beam) in prompts.iter_mut().flat_map(|p| &mut p.running).enumerate() {
            beam.row = row;
        }
    }
    let best = prompts.into_iter().flat_map(|p| p.finished.into_iter().take(run.config.num_return_sequences));
    let answers: Vec<_> =
        best.map(|beam| Generated { tokens: beam.tokens, score: Some(beam.score), ended: beam.ended }).collect();
    for (at, answer) in answers.iter().enumerate() {
        answer.tokens.iter().for_each(|token| watch.token(at, *token));
    }
    Ok(answers)
}

impl Hypotheses {
    /// One more token, the `new`th, for each running beam.
    fn step(
        &mut self,
        run: &Run<'_>,
        prompt: usize,
        scores: &mut [Vec<f32>],
        new: usize,
        draw: &mut ChaCha12Rng,
    ) -> Result<()> {
        let (config, beams) = (run.config, run.config.num_beams);
        let read = run.read.get(prompt).map(Vec::as_slice).unwrap_or_default();
        let padding = run.padding.get(prompt).copied().unwrap_or_default();
        let mut candidates: Vec<(f32, usize, usize)> = Vec::new();
        for (at, beam) in self.running.iter().enumerate() {
            let Some(scores) = scores.get_mut(beam.row) else { continue };
            *scores = log_softmax(scores);
            let tokens = [read, &beam.tokens].concat();
            process(
                config,
                Written { tokens: &tokens, padding, prompt: run.prompt, max_length: run.max_length },
                scores,
            );
            candidates.extend(scores.iter().enumerate().map(|(token, score)| (score + beam.score, at, token)));
        }
        // As many beams must be able to go on where every end comes first.
        let kept = beams * (1 + config.eos_token_id.len()).max(2);
        if config.do_sample {
            candidates = drawn(candidates, kept, draw);
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(kept);
        let mut continued = Vec::with_capacity(kept);
        for (score, at, token) in candidates {
            let (Some(beam), Ok(token)) = (self.running.get(at), u32::try_from(token)) else { continue };
            if score.is_nan() {
                return Err(Error::NotFiniteOutput { output: "logits".to_owned() });
            }
            let tokens = [beam.tokens.as_slice(), &[token]].concat();
            let ended = run.ends(&[read.get(padding..).unwrap_or_default(), &tokens].concat());
            let is_finished = ended || run.prompt + new >= run.max_length;
            continued.push(Beam { tokens, score, row: beam.row, is_finished, ended });
        }
        self.all_ended = continued.iter().all(|beam| beam.is_finished);
        let is_closed =
            config.early_stopping == EarlyStopping::When(true) && self.finished.iter().all(|beam| beam.is_finished);
        let ended = continued.iter().enumerate().map(|(place, beam)| {
            let is_finished = beam.is_finished && place < beams;
            let mut score = beam.score / (new as f64).powf(config.length_penalty) as f32;
            for is_out in [is_closed, !self.can_improve, !is_finished] {
                score += if is_out { OUT } else { 0.0 };
            }
            Beam { score, is_finished, ..beam.clone() }
        });
        let ended: Vec<Beam> = ended.collect();
        self.finished.extend(ended);
        best(&mut self.finished, beams);
        for beam in continued.iter_mut().filter(|beam| beam.is_finished) {
            beam.score += OUT;
        }
        best(&mut continued, beams);
        self.running = continued;
        self.can_improve &= self.may_improve(run, new);
        Ok(())
    }

    /// Whether the best running beam could beat the worst finished one.
    fn may_improve(&self, run: &Run<'_>, new: usize) -> bool {
        let config = run.config;
        let is_never = matches!(config.early_stopping, EarlyStopping::Never(_));
        let length = if is_never && config.length_penalty > 0.0 { run.max_length - run.prompt } else { new };
        let most =
            self.running.first().map_or(OUT, |beam| beam.score) / (length as f64).powf(config.length_penalty) as f32;
        let least = self.finished.iter().map(|beam| beam.score).fold(f32::INFINITY, f32::min);
        self.finished.iter().any(|beam| most > if beam.is_finished { least } else { OUT })
    }
}

/// Draws `count` candidates without putting any back, by the probabilities that their scores are the logarithms of.
///
/// The largest of `score + G`, where each `G` is Gumbel distributed, are such a draw.
fn drawn(candidates: Vec<(f32, usize, usize)>, count: usize, draw: &mut ChaCha12Rng) -> Vec<(f32, usize, usize)> {
    let lots = candidates.into_iter().map(|one| (f64::from(one.0) - (-uniform(draw).ln()).ln(), one));
    let mut lots: Vec<_> = lots.collect();
    lots.sort_by(|a, b| b.0.total_cmp(&a.0));
    lots.into_iter().take(count).map(|(_, one)| one).collect()
}

/// Leaves the `count` best, in order.
fn best(beams: &mut Vec<Beam>, count: usize) {
    beams.sort_by(|a, b| b.score.total_cmp(&a.score));
    beams.truncate(count);
}
