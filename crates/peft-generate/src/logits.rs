//! Scores of the next token, changed as a [`GenerationConfig`] says, in the order of Transformers' processors.

use crate::GenerationConfig;

/// What a row has so far.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// The tokens that the decoder read and wrote, padding on the left included.
    pub tokens: &'a [u32],
    /// How many of them are padding.
    pub padding: usize,
    /// How many of them were there at the start.
    pub prompt: usize,
    /// Most tokens there may be.
    pub max_length: usize,
}

/// Changes the scores of the next token, `[vocabulary]`: first what forbids and penalises, then what narrows the draw.
pub fn process(config: &GenerationConfig, written: Written<'_>, scores: &mut [f32]) {
    let length = written.tokens.len();
    if config.repetition_penalty != 1.0 {
        penalize(written.tokens.get(written.padding..).unwrap_or_default(), config.repetition_penalty, scores);
    }
    if config.no_repeat_ngram_size > 0 {
        forbid(&repeated(written.tokens, config.no_repeat_ngram_size), scores);
    }
    for word in &config.bad_words_ids {
        let Some((last, before)) = word.split_last() else { continue };
        let is_end = before.is_empty() && config.eos_token_id.contains(last);
        if !is_end && written.tokens.ends_with(before) {
            forbid(&[*last], scores);
        }
    }
    let least = config.min_new_tokens.map_or(config.min_length, |new| new + written.prompt);
    if length < least {
        forbid(&config.eos_token_id, scores);
    }
    if let Some(first) = config.forced_bos_token_id
        && length == 1
    {
        force(&[first], scores);
    }
    if !config.forced_eos_token_id.is_empty() && length + 1 == written.max_length {
        force(&config.forced_eos_token_id, scores);
    }
    forbid(&config.suppress_tokens, scores);
    let begin = written.prompt + usize::from(written.prompt == 1 && config.forced_bos_token_id.is_some());
    if length == begin {
        forbid(&config.begin_suppress_tokens, scores);
    }
    if config.do_sample {
        narrow(config, scores);
    }
}

/// Temperature, top-k, top-p and min-p.
fn narrow(config: &GenerationConfig, scores: &mut [f32]) {
    if config.temperature != 1.0 {
        scores.iter_mut().for_each(|score| *score /= config.temperature);
    }
    // A beam that ends must not leave the search without one that goes on.
    let kept = if config.num_beams > 1 { config.eos_token_id.len().max(1) + 1 } else { 1 };
    if config.top_k > 0 {
        let order = descending(scores);
        if let Some(least) = order.get(config.top_k.max(kept) - 1).map(|at| scores[*at]) {
            scores.iter_mut().filter(|score| **score < least).for_each(|score| *score = f32::NEG_INFINITY);
        }
    }
    if config.top_p < 1.0 {
        let (probabilities, order) = (softmax(scores), descending(scores));
        let mut sum = 0.0;
        for at in order.into_iter().skip(kept).rev() {
            sum += probabilities[at];
            if sum > 1.0 - config.top_p {
                break;
            }
            scores[at] = f32::NEG_INFINITY;
        }
    }
    if let Some(min_p) = config.min_p {
        let (probabilities, order) = (softmax(scores), descending(scores));
        let most = order.first().map_or(0.0, |best| probabilities[*best]);
        for at in order.into_iter().skip(kept).filter(|at| probabilities[*at] < min_p * most) {
            scores[at] = f32::NEG_INFINITY;
        }
    }
}

/// Places by their scores, the best first.
fn descending(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

/// `exp(score) / Σ exp(score)`.
pub(crate) fn softmax(scores: &[f32]) -> Vec<f32> {
    log_softmax(scores).into_iter().map(f32::exp).collect()
}

/// `score - ln Σ exp(score)`.
pub(crate) fn log_softmax(scores: &[f32]) -> Vec<f32> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from(score - most).exp()).sum();
    let sum = sum.ln() as f32;
    scores.iter().map(|score| score - most - sum).collect()
}

fn penalize(tokens: &[u32], penalty: f32, scores: &mut [f32]) {
    let mut tokens = tokens.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(score) = score_of(token, scores) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// The tokens that would complete a run of `size` tokens which occurred before.
fn repeated(tokens: &[u32], size: usize) -> Vec<u32> {
    let Some(from) = (tokens.len() + 1).checked_sub(size) else { return Vec::new() };
    let suffix = tokens.get(from..).unwrap_or_default();
    tokens
        .windows(size)
        .filter_map(|run| run.split_last())
        .filter(|(_, run)| *run == suffix)
        .map(|(last, _)| *last)
        .collect()
}

fn forbid(tokens: &[u32], scores: &mut [f32]) {
    for token in tokens {
        if let Some(score) = score_of(*token, scores) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn force(tokens: &[u32], scores: &mut [f32]) {
    scores.fill(f32::NEG_INFINITY);
    for token in tokens {
        if let Some(score) = score_of(*token, scores) {
            *score = 0.0;
        }
    }
}

fn score_of(token: u32, scores: &mut [f32]) -> Option<&mut f32> {
    usize::try_from(token).ok().and_then(|token| scores.get_mut(token))
}
