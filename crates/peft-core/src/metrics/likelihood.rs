//! How likely a language model finds a text.

use crate::metrics::Scores;

/// The negative log-likelihood of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Likelihood {
    /// Summed over the tokens, in nats.
    pub nll: f64,
    /// How many tokens.
    pub tokens: f64,
}

impl Likelihood {
    /// From scores of the form `[[nll, tokens]]`, added up; scores of another form are left out.
    pub fn of<'a>(scores: impl IntoIterator<Item = &'a Scores>) -> Self {
        scores.into_iter().flatten().fold(Self::default(), |sum, score| match score.as_slice() {
            [nll, tokens] => Self { nll: sum.nll + f64::from(*nll), tokens: sum.tokens + f64::from(*tokens) },
            _ => sum,
        })
    }

    /// The exponential of the mean negative log-likelihood; NaN for no tokens.
    pub fn perplexity(self) -> f64 {
        (self.nll / self.tokens).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_is_a_mean_over_tokens_not_texts() {
        let scores = [vec![vec![1.0, 1.0]], vec![vec![2.0, 3.0]]];
        let sum = Likelihood::of(&scores);
        assert_eq!(sum, Likelihood { nll: 3.0, tokens: 4.0 });
        assert!((sum.perplexity() - 0.75_f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn a_model_that_guesses_among_eight_has_perplexity_eight() {
        let guess = 8.0_f32.ln() * 5.0;
        assert!((Likelihood::of(&[vec![vec![guess, 5.0]]]).perplexity() - 8.0).abs() < 1e-5);
    }

    #[test]
    fn the_perplexity_of_nothing_is_not_a_number() {
        assert!(Likelihood::of(&[vec![]]).perplexity().is_nan());
    }
}
