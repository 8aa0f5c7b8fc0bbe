//! One token after the other: the most probable one, or one that is drawn.

use peft_core::{
    Error, Result,
    metrics::classification::argmax,
    tensor::random::{ChaCha12Rng, seeded},
};
use rand::Rng;

use crate::{
    Generated, Watch, Written,
    decoder::Decoder,
    generate::Run,
    logits::{process, softmax},
};

/// Writes until each row has ended or is full.
pub(crate) fn search(
    run: &Run<'_>,
    decoder: &mut Decoder<'_>,
    scores: Vec<Vec<f32>>,
    pad: u32,
    watch: &mut dyn Watch,
) -> Result<Vec<Generated>> {
    let config = run.config;
    let rows: Vec<usize> =
        (0..scores.len()).flat_map(|row| std::iter::repeat_n(row, config.num_return_sequences)).collect();
    let mut scores: Vec<Vec<f32>> = rows.iter().filter_map(|row| scores.get(*row).cloned()).collect();
    if config.num_return_sequences > 1 {
        decoder.select(&rows);
    }
    let mut read: Vec<Vec<u32>> = rows.iter().filter_map(|row| run.read.get(*row).cloned()).collect();
    let padding: Vec<usize> = rows.iter().filter_map(|row| run.padding.get(*row).copied()).collect();
    let mut draws = draws(config.seed, rows.len());
    let mut answers = vec![Generated { tokens: Vec::new(), score: None, ended: false }; rows.len()];
    let mut ended = vec![false; rows.len()];
    loop {
        let mut next = vec![pad; rows.len()];
        let state = scores.iter_mut().zip(&mut read).zip(&padding).zip(&mut draws).zip(&mut answers).zip(&mut ended);
        for (at, (((((scores, read), padding), draw), answer), ended)) in state.enumerate() {
            let mut token = pad;
            if !*ended {
                let (prompt, max_length) = (run.prompt, run.max_length);
                process(config, Written { tokens: read, padding: *padding, prompt, max_length }, scores);
                token = pick(scores, config.do_sample.then_some(draw))?;
                answer.tokens.push(token);
                watch.token(at, token);
            }
            read.push(token);
            if !*ended {
                *ended = run.ends(read.get(*padding..).unwrap_or_default());
                answer.ended = *ended;
            }
            if let Some(slot) = next.get_mut(at) {
                *slot = token;
            }
        }
        let length = read.first().map_or(0, Vec::len);
        if length >= run.max_length || ended.iter().all(|ended| *ended) {
            return Ok(answers);
        }
        scores = decoder.read(&next)?;
    }
}

fn pick(scores: &[f32], draw: Option<&mut ChaCha12Rng>) -> Result<u32> {
    // What is forbidden is minus infinity.
    if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
        return Err(Error::NotFiniteOutput { output: "logits".to_owned() });
    }
    let unfit = || Error::Data("all tokens are forbidden, so that none can be the next".to_owned());
    let best =
        argmax(scores).filter(|best| scores.get(*best).is_some_and(|score| score.is_finite())).ok_or_else(unfit)?;
    let mut chosen = best;
    if let Some(draw) = draw {
        let probabilities = softmax(scores);
        let mut left = uniform(draw);
        for (at, probability) in probabilities.iter().enumerate().filter(|(_, probability)| **probability > 0.0) {
            left -= f64::from(*probability);
            if left < 0.0 {
                chosen = at;
                break;
            }
        }
    }
    u32::try_from(chosen).map_err(|_| unfit())
}

/// Random numbers for each of `count` rows.
pub(crate) fn draws(seed: u64, count: usize) -> Vec<ChaCha12Rng> {
    (0_u64..).take(count).map(|row| seeded(seed ^ row.rotate_left(32))).collect()
}

/// A number in [0, 1).
pub(crate) fn uniform(draw: &mut ChaCha12Rng) -> f64 {
    // 53 random bits.
    (draw.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_no_number_is_passed_over_by_no_search() {
        for broken in [f32::NAN, f32::INFINITY] {
            let scores = [0.5, broken, 0.25];
            let mut draws = draws(1, 1);
            for draw in [None, draws.first_mut()] {
                assert!(matches!(pick(&scores, draw), Err(Error::NotFiniteOutput { .. })), "{broken}");
            }
        }
        assert_eq!(pick(&[0.5, f32::NEG_INFINITY, 0.75], None).unwrap(), 2);
    }
}
