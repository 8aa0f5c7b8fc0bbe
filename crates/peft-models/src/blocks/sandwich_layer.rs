//! The layer of Gemma 2 and 3: norms before and after both of its blocks.

use burn::{module::Module, tensor::Tensor};

use super::{DecoderContext, DecoderLayer, GatedMlp, RmsNorm, RotaryAttention};

/// `h = x + norm(attention(norm(x)))`, `h + norm(mlp(norm(h)))`.
#[derive(Module, Debug)]
pub struct SandwichLayer {
    /// The attention.
    pub self_attn: RotaryAttention,
    /// The feed-forward block.
    pub mlp: GatedMlp,
    /// The norm before the attention.
    pub input_layernorm: RmsNorm,
    /// The norm after the attention: unlike Llama's of this name.
    pub post_attention_layernorm: RmsNorm,
    /// The norm before the feed-forward block.
    pub pre_feedforward_layernorm: RmsNorm,
    /// The norm after the feed-forward block.
    pub post_feedforward_layernorm: RmsNorm,
}

impl DecoderLayer for SandwichLayer {
    fn forward(&self, hidden: Tensor<3>, context: &DecoderContext) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.of_kept(hidden.clone()), context);
        let hidden = hidden + self.post_attention_layernorm.forward(attended);
        let inner = self.mlp.forward(self.pre_feedforward_layernorm.of_kept(hidden.clone()));
        hidden + self.post_feedforward_layernorm.forward(inner)
    }
}
