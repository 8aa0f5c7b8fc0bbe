//! The layer of Llama and its kin: a norm before the attention and one before the feed-forward block.

use burn::{module::Module, tensor::Tensor};

use super::{DecoderContext, DecoderLayer, GatedMlp, RmsNorm, RotaryAttention};

/// `h = x + attention(norm(x))`, `h + mlp(norm(h))`.
#[derive(Module, Debug)]
pub struct PreNormLayer {
    /// The attention.
    pub self_attn: RotaryAttention,
    /// The feed-forward block.
    pub mlp: GatedMlp,
    /// The norm before the attention.
    pub input_layernorm: RmsNorm,
    /// The norm before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
}

impl DecoderLayer for PreNormLayer {
    fn forward(&self, hidden: Tensor<3>, context: &DecoderContext) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.of_kept(hidden.clone()), context);
        let hidden = hidden + attended;
        hidden.clone() + self.mlp.forward(self.post_attention_layernorm.of_kept(hidden))
    }
}
