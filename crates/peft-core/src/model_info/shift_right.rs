//! Decoder input ids in training: the labels, shifted right by one.

use burn::tensor::{Int, Tensor};

use crate::batch::IGNORE;

/// The first token of the decoder's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderStart {
    /// The same token always: `decoder_start_token_id`.
    Token(i64),
    /// The row's own last token, which is its language in mBART.
    LastToken,
}

/// How decoder input ids are made from labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShiftRight {
    /// The first token.
    pub start: DecoderStart,
    /// The replacement of [`IGNORE`]: `pad_token_id`.
    pub pad_token_id: i64,
}

impl ShiftRight {
    /// The input that goes with a target.
    ///
    /// # Shapes
    /// - `target`, returned: `[batch, length]`
    pub fn apply(&self, target: Tensor<2, Int>) -> Tensor<2, Int> {
        let [batch, length] = target.dims();
        let is_ignored = target.clone().equal_scalar(IGNORE);
        let ids = target.mask_fill(is_ignored, self.pad_token_id);
        let first = ids.clone().slice([0..batch, 0..length.min(1)]);
        let start = match self.start {
            DecoderStart::Token(token) => first.full_like(token),
            DecoderStart::LastToken => {
                let tokens = ids.clone().not_equal_scalar(self.pad_token_id).int().sum_dim(1);
                ids.clone().gather(1, (tokens - 1).clamp_min(0))
            }
        };
        if length < 2 {
            return start;
        }
        Tensor::cat(vec![start, ids.slice([0..batch, 0..length - 1])], 1)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn check(start: DecoderStart, expected: [[i64; 3]; 2]) {
        let target = Tensor::from_data([[7, 8, 9], [5, IGNORE, IGNORE]], &Device::flex());
        let shifted = ShiftRight { start, pad_token_id: 1 }.apply(target).into_data().convert::<i64>();
        assert_eq!(shifted.try_to_vec::<i64>().ok(), Some(expected.concat()));
    }

    #[test]
    fn targets_move_one_place_to_the_right() {
        check(DecoderStart::Token(2), [[2, 7, 8], [2, 5, 1]]);
        check(DecoderStart::LastToken, [[9, 7, 8], [5, 5, 1]]);
    }

    #[test]
    fn a_single_token_leaves_only_the_start() {
        let shift = ShiftRight { start: DecoderStart::Token(2), pad_token_id: 1 };
        assert_eq!(shift.apply(Tensor::from_data([[7], [8]], &Device::flex())).dims(), [2, 1]);
    }
}
