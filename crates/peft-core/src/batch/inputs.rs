//! What goes into a model, by the names that Transformers uses.

use burn::tensor::{Device, Int, Tensor};

use super::past::PastKeyValues;

/// A model's inputs, on its device.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Token ids, `[batch, sequence]`.
    pub input_ids: Option<Tensor<2, Int>>,
    /// Embedded inputs in place of `input_ids`, `[batch, sequence, hidden]`.
    pub inputs_embeds: Option<Tensor<3>>,
    /// 1 where a position counts, 0 at padding, `[batch, sequence]`. Packed examples are numbered from 1: each sees itself. It may
    /// lie on the host, as [`collate`](crate::data::example::collate) has it: what it says decides what is computed.
    pub attention_mask: Option<Tensor<2, Int>>,
    /// Vectors before the embedded input, `[batch, virtual tokens, hidden]`: the prompt of prompt learning. `attention_mask` and
    /// `token_type_ids` cover them too.
    pub prompt: Option<Tensor<3>>,
    /// Vectors before the decoder's embedded input, `[batch, virtual tokens, hidden]`.
    pub decoder_prompt: Option<Tensor<3>>,
    /// The task of each row, `[batch]`, for prompts that are made by task.
    pub task_ids: Option<Tensor<1, Int>>,
    /// Segment of each token, `[batch, sequence]`.
    pub token_type_ids: Option<Tensor<2, Int>>,
    /// Position of each token, `[batch, sequence]`; counted from the left when absent.
    pub position_ids: Option<Tensor<2, Int>>,
    /// Decoder token ids, `[batch, target]`.
    pub decoder_input_ids: Option<Tensor<2, Int>>,
    /// Embedded decoder inputs in place of `decoder_input_ids`, `[batch, target, hidden]`.
    pub decoder_inputs_embeds: Option<Tensor<3>>,
    /// 1 where a decoder position counts, `[batch, target]`; on the model's device or on the host.
    pub decoder_attention_mask: Option<Tensor<2, Int>>,
    /// The encoder's last hidden states, so that it does not run again, `[batch, sequence, hidden]`.
    pub encoder_outputs: Option<Tensor<3>>,
    /// Keys and values of the tokens before the input (the decoder's, where there is one). The attention mask covers it too:
    /// `[batch, past + sequence]`.
    pub past_key_values: Option<PastKeyValues>,
    /// Activation checkpointing: how many layers, counted from the first that runs, keep only their input and recompute their
    /// activations in the backward pass. Has an effect in models that support it ([`ModelInfo::supports_checkpointing`](crate::ModelInfo::supports_checkpointing)).
    pub checkpointed_layers: usize,
}

impl Inputs {
    /// [`checkpointed_layers`](Self::checkpointed_layers), 0 where there are past keys and values: a layer that is
    /// recomputed would append to them twice, and they would get no gradient.
    pub fn checkpointed_layers(&self) -> usize {
        if self.past_key_values.is_some() { 0 } else { self.checkpointed_layers }
    }

    /// [`attention_mask`](Self::attention_mask) to compute with, on the model's device.
    pub fn attention_mask_on(&self, device: &Device) -> Option<Tensor<2, Int>> {
        let mask = self.attention_mask.clone()?;
        Some(if mask.device().inner() == *device { mask } else { Tensor::from_data(mask.into_data(), device) })
    }

    /// How many rows there are; none without input.
    pub fn batch(&self) -> Option<usize> {
        let ids = self.input_ids.as_ref().or(self.decoder_input_ids.as_ref()).map(|ids| ids.dims()[0]);
        let embedded = || self.inputs_embeds.as_ref().or(self.encoder_outputs.as_ref());
        ids.or_else(|| embedded().map(|embedded| embedded.dims()[0]))
    }
}
