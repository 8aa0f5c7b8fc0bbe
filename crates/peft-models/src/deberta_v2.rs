//! DeBERTa-v2 and v3: attention that scores contents against contents and, apart from them, contents against distances.

use burn::{
    module::Module,
    nn::{
        Dropout, Embedding, Linear, PaddingConfig1d,
        conv::{Conv1d, Conv1dConfig},
    },
    tensor::{Bool, DType, Device, Int, Tensor, TensorData},
};
use peft_core::{
    ArchitecturePlugin, AutoClass, BaseModel, Forward, FreshValues, Inputs, ModelInfo, Outputs, Result,
    adapted_embedding, inventory,
};
use serde_json::{Map, Value};

use crate::blocks::{
    Activation, AttentionMask, BertFeedForward, BertOutput, BertSizes, Encoder, EncoderModel, Fields, LayerNorm,
    Layers, Scores, adapted_linear, attend, dropout, embed, first_token, positions,
};

inventory::submit! {
    ArchitecturePlugin {
        name: "deberta-v2",
        classes: &[
            AutoClass::MODEL,
            AutoClass::SEQUENCE_CLASSIFICATION,
            AutoClass::TOKEN_CLASSIFICATION,
            AutoClass::QUESTION_ANSWERING,
        ],
        build,
        summary: "DeBERTa-v2 and DeBERTa-v3, mDeBERTa",
    }
}

/// The backbone: `DebertaV2Model`.
#[derive(Module, Debug)]
struct Deberta {
    embeddings: DebertaEmbeddings,
    encoder: DebertaEncoder,
}

#[derive(Module, Debug)]
struct DebertaEmbeddings {
    word_embeddings: Embedding,
    position_embeddings: Option<Embedding>,
    token_type_embeddings: Option<Embedding>,
    embed_proj: Option<Linear>,
    layer_norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Module, Debug)]
struct DebertaEncoder {
    layer: Vec<DebertaLayer>,
    rel_embeddings: Option<Embedding>,
    layer_norm: Option<LayerNorm>,
    conv: Option<ConvLayer>,
    #[module(skip)]
    distances: Distances,
}

#[derive(Module, Debug)]
struct DebertaLayer {
    attention: DebertaAttention,
    intermediate: BertFeedForward,
    output: BertOutput,
}

#[derive(Module, Debug)]
struct DebertaAttention {
    self_attention: DisentangledSelfAttention,
    output: BertOutput,
}

/// Where a distance has no projection of its own it takes that of the contents: `share_att_key`.
#[derive(Module, Debug)]
struct DisentangledSelfAttention {
    query_proj: Linear,
    key_proj: Linear,
    value_proj: Linear,
    pos_key_proj: Option<Linear>,
    pos_query_proj: Option<Linear>,
    pos_dropout: Dropout,
    dropout: Dropout,
    #[module(skip)]
    sizes: BertSizes,
    #[module(skip)]
    kinds: Kinds,
}

/// A convolution beside the first layer.
#[derive(Module, Debug)]
struct ConvLayer {
    conv: Conv1d,
    layer_norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

/// The head for sequences: the first token through two layers.
#[derive(Module, Debug)]
struct SequenceClassifier {
    backbone: Deberta,
    pooler: ContextPooler,
    dropout: Dropout,
    classifier: Linear,
}

#[derive(Module, Debug)]
struct ContextPooler {
    dense: Linear,
    dropout: Dropout,
    #[module(skip)]
    activation: Activation,
}

/// Which scores are added to those of contents against contents: `pos_att_type`.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    /// `c2p`: the query's content against the distance to the key.
    content_to_position: bool,
    /// `p2c`: the distance from the query against the key's content.
    position_to_content: bool,
}

impl Kinds {
    /// How many products a score is the sum of.
    fn count(self) -> usize {
        1 + usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }
}

/// How a distance between two tokens becomes a row of the table of distances.
#[derive(Debug, Clone, Copy)]
struct Distances {
    /// Rows to either side of distance 0.
    span: usize,
    /// The greatest distance, where far ones share rows: `max_relative_positions` under `position_buckets`.
    shared_up_to: Option<usize>,
}

impl Distances {
    fn read(fields: Fields<'_>, positions: usize) -> Result<Self> {
        let most = fields.positive("max_relative_positions")?.unwrap_or(positions);
        let Some(buckets) = fields.positive("position_buckets")? else {
            return Ok(Self { span: most, shared_up_to: None });
        };
        if buckets < 2 || most <= buckets / 2 + 1 {
            let problem =
                format!("{buckets} cannot divide {most} distances: it takes at least 2, and fewer than these");
            return Err(Fields::error("position_buckets", problem));
        }
        Ok(Self { span: buckets, shared_up_to: Some(most) })
    }

    /// The row of a distance. Near ones have their own; then rows get wider by a constant factor.
    fn row(self, distance: i64) -> i64 {
        let span = i64::try_from(self.span).unwrap_or(i64::MAX / 2);
        let near = span / 2;
        let bucket = match self.shared_up_to {
            Some(most) if distance.abs() > near => {
                // In single precision, as PyTorch has it: at the border of two rows the rounding decides.
                let [distance, middle, last] = [distance.abs() as f32, near as f32, (most - 1) as f32];
                let share = (distance / middle).ln() / (last / middle).ln();
                (share * (middle - 1.0)).ceil() as i64 + near
            }
            _ => distance.abs(),
        };
        (distance.signum() * bucket + span).clamp(0, 2 * span - 1)
    }

    /// The rows of distances, each one away from the last, from that of the first two tokens on.
    fn rows(self, length: usize, towards: Towards, device: &Device) -> Tensor<1, Int> {
        let length = i64::try_from(length).unwrap_or(i64::MAX / 2);
        let distance = |step: i64| match towards {
            Towards::Keys => length - 1 - step,
            Towards::Queries => step - (length - 1),
        };
        let rows: Vec<i64> = (0..2 * length).map(|step| self.row(distance(step))).collect();
        let count = rows.len();
        Tensor::from_data(TensorData::new(rows, [count]), device)
    }
}

/// From which end of a distance the content is scored.
#[derive(Debug, Clone, Copy)]
enum Towards {
    Keys,
    Queries,
}

/// What all layers of one forward pass share.
struct Context {
    padding: Option<Padding>,
    relative: Option<Relative>,
}

/// Where there is padding.
struct Padding {
    /// 1 at a token, 0 at padding, `[batch, sequence, 1]`.
    is_token: Tensor<3>,
    /// True where the query or the key is padding, `[batch, 1, sequence, sequence]`.
    hidden: Tensor<4, Bool>,
}

/// The table of distances, and the rows of it that this length of input needs.
struct Relative {
    table: Tensor<2>,
    towards_keys: Tensor<1, Int>,
    towards_queries: Tensor<1, Int>,
}

impl Context {
    fn new(encoder: &DebertaEncoder, inputs: &Inputs, hidden: &Tensor<3>) -> Self {
        let length = hidden.dims()[1];
        let device = hidden.device().inner();
        let relative = encoder.rel_embeddings.as_ref().map(|embedding| {
            let table = embedding.weight.val();
            Relative {
                table: match &encoder.layer_norm {
                    Some(norm) => norm.forward(table),
                    None => table,
                },
                towards_keys: encoder.distances.rows(length, Towards::Keys, &device),
                towards_queries: encoder.distances.rows(length, Towards::Queries, &device),
            }
        });
        let padding = inputs.attention_mask_on(&device).map(|mask| {
            let [batch, length] = mask.dims();
            let seen = mask.clone().reshape([batch, 1, length, 1]) * mask.clone().reshape([batch, 1, 1, length]);
            Padding { is_token: is_token(&mask, hidden.dtype()), hidden: seen.equal_scalar(0) }
        });
        Self { padding, relative }
    }
}

impl Encoder for Deberta {
    fn encode(&self, inputs: &Inputs) -> Option<Tensor<3>> {
        let words = embed(&self.embeddings.word_embeddings, inputs)?;
        let mask = inputs.attention_mask_on(&words.device().inner());
        let is_token = mask.map(|mask| is_token(&mask, words.dtype()));
        let embedded = self.embeddings.forward(words, inputs, is_token.as_ref());
        let context = Context::new(&self.encoder, inputs, &embedded);
        let mut hidden = embedded.clone();
        for (at, layer) in self.encoder.layer.iter().enumerate() {
            hidden = layer.forward(hidden, &context);
            if let (0, Some(conv)) = (at, &self.encoder.conv) {
                hidden = conv.forward(embedded.clone(), hidden, is_token.as_ref());
            }
        }
        Some(hidden)
    }
}

impl DebertaEmbeddings {
    fn forward(&self, words: Tensor<3>, inputs: &Inputs, is_token: Option<&Tensor<3>>) -> Tensor<3> {
        let mut sum = words;
        if let Some(table) = &self.position_embeddings {
            sum = sum.clone() + adapted_embedding(table, positions(inputs, &sum));
        }
        if let Some(table) = &self.token_type_embeddings {
            let types = inputs.token_type_ids.clone();
            let types = types.unwrap_or_else(|| Tensor::<2, Int>::zeros([1, 1], &sum.device().inner()));
            sum = sum + adapted_embedding(table, types);
        }
        if let Some(project) = &self.embed_proj {
            sum = adapted_linear(project, sum);
        }
        dropout(&self.dropout, masked(self.layer_norm.forward(sum), is_token))
    }
}

/// 1 at a token, 0 at padding, `[batch, sequence, 1]`.
fn is_token(attention_mask: &Tensor<2, Int>, dtype: DType) -> Tensor<3> {
    attention_mask.clone().float().cast(dtype).unsqueeze_dim(2)
}

/// Zeros at padding.
fn masked(hidden: Tensor<3>, is_token: Option<&Tensor<3>>) -> Tensor<3> {
    match is_token {
        Some(is_token) => hidden * is_token.clone(),
        None => hidden,
    }
}

impl ConvLayer {
    fn forward(&self, embedded: Tensor<3>, hidden: Tensor<3>, is_token: Option<&Tensor<3>>) -> Tensor<3> {
        let out = self.conv.forward(embedded.swap_dims(1, 2)).swap_dims(1, 2);
        let out = self.activation.forward(dropout(&self.dropout, masked(out, is_token)));
        masked(self.layer_norm.forward(hidden + out), is_token)
    }
}

impl DebertaLayer {
    fn forward(&self, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        let attended = self.attention.self_attention.forward(hidden.clone(), context);
        let hidden = self.attention.output.forward(attended, hidden);
        self.output.forward(self.intermediate.forward(hidden.clone()), hidden)
    }
}

impl DisentangledSelfAttention {
    fn forward(&self, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        let heads = self.sizes.heads;
        let project = |linear| adapted_linear(linear, hidden.clone());
        // A query that is padding scores 0 everywhere: it looks at all tokens alike and teaches nothing.
        let is_token = context.padding.as_ref().map(|padding| &padding.is_token);
        let q = heads.split(masked(project(&self.query_proj), is_token));
        let (k, v) = (heads.split(project(&self.key_proj)), heads.split(project(&self.value_proj)));
        let scale = ((heads.dim * self.kinds.count()) as f64).powf(-0.5);
        let relative = context.relative.as_ref().and_then(|relative| self.by_distance(&q, &k, relative));
        let bias = match (relative.map(|scores| scores * scale), &context.padding) {
            (Some(scores), Some(Padding { hidden, .. })) => {
                let all = scores.dims();
                Some(scores.clone().mask_fill(hidden.clone().expand(all), least(scores.dtype())))
            }
            (Some(scores), None) => Some(scores),
            (None, Some(Padding { hidden, .. })) => {
                let zeros = Tensor::zeros(hidden.dims(), (&hidden.device(), q.dtype()));
                Some(zeros.mask_fill(hidden.clone(), least(q.dtype())))
            }
            (None, None) => None,
        };
        let scores = Scores { scale: Some(scale), bias, ..Scores::default() };
        heads.merge(attend(q, k, v, &AttentionMask::bidirectional(None, &hidden), &self.dropout, &scores))
    }

    /// The scores that have to do with distances, before scaling, `[batch, heads, sequence, sequence]`.
    fn by_distance(&self, q: &Tensor<4>, k: &Tensor<4>, relative: &Relative) -> Option<Tensor<4>> {
        let table = dropout(&self.pos_dropout, relative.table.clone());
        let project = |rows: &Tensor<1, Int>, linear| {
            let rows = table.clone().select(0, rows.clone()).unsqueeze::<3>();
            self.sizes.heads.split(adapted_linear(linear, rows)).swap_dims(2, 3)
        };
        let to_position = self.kinds.content_to_position.then(|| {
            let keys = project(&relative.towards_keys, self.pos_key_proj.as_ref().unwrap_or(&self.key_proj));
            by_place(q.clone().matmul(keys))
        });
        let to_content = self.kinds.position_to_content.then(|| {
            let linear = self.pos_query_proj.as_ref().unwrap_or(&self.query_proj);
            by_place(k.clone().matmul(project(&relative.towards_queries, linear))).swap_dims(2, 3)
        });
        match (to_position, to_content) {
            (Some(to_position), Some(to_content)) => Some(to_position + to_content),
            (one, other) => one.or(other),
        }
    }
}

/// What hides a key: the least finite number.
fn least(dtype: DType) -> f64 {
    dtype.finfo().map_or(f64::from(f32::MIN), |info| info.min)
}

/// From scores by distance to scores by place: each row begins one distance after the one above it.
///
/// Read row after row, what a place takes lies a row and one value behind what the place above takes, so two cuts and two
/// reshapes do it, where a gather would have to scatter its gradient.
///
/// # Shapes
/// - `scores`: `[batch, heads, sequence, 2 · sequence]`
/// - returned: `[batch, heads, sequence, sequence]`
fn by_place(scores: Tensor<4>) -> Tensor<4> {
    let [batch, heads, length, width] = scores.dims();
    let values = scores.reshape([batch, heads, length * width]);
    let values = values.narrow(2, length - 1, length * (width - 1));
    values.reshape([batch, heads, length, width - 1]).narrow(3, 0, length)
}

impl Forward for Deberta {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        self.outputs(inputs)
    }
}

impl Forward for SequenceClassifier {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let Some(hidden) = self.backbone.encode(inputs) else { return Outputs::new() };
        let first = dropout(&self.pooler.dropout, first_token(&hidden));
        let pooled = self.pooler.activation.forward(adapted_linear(&self.pooler.dense, first));
        Outputs::new().with("logits", adapted_linear(&self.classifier, dropout(&self.dropout, pooled)))
    }
}

fn build(config: &Map<String, Value>, class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let fields = Fields(config);
    let layers = Layers::new(fields, device)?;
    let sizes = BertSizes {
        types: Some(fields.count_or("type_vocab_size", 0)?).filter(|types| *types > 0),
        epsilon: fields.epsilon_or("layer_norm_eps", 1e-7)?,
        ..BertSizes::read(fields)?
    };
    let width = sizes.hidden;
    fields.only("pooler_hidden_size", &width.into())?;
    fields.only("attention_head_size", &sizes.heads.dim.into())?;
    let activation = fields.activation_or("pooler_hidden_act", "gelu")?;
    let context_drop = fields.probability_or("pooler_dropout", 0.0)?;
    let drop = fields.probability_or("cls_dropout", sizes.dropout)?;
    let model = EncoderModel {
        family: "DebertaV2",
        backbone: Deberta {
            embeddings: embeddings(fields, &layers, &sizes)?,
            encoder: encoder(fields, &layers, &sizes)?,
        },
        info: ModelInfo {
            model_type: "deberta-v2".to_owned(),
            config: config.clone(),
            segments: &[("backbone", "deberta"), ("self_attention", "self"), ("layer_norm", "LayerNorm")],
            base_model_prefix: "deberta",
            input_embedding: Some("embeddings.word_embeddings".to_owned()),
            ignored_tensors: &["position_ids", "position_embeddings.weight"],
            fresh: FreshValues::default().with_zero_row("word_embeddings.weight", fields.padding_row(Some(0))?),
            max_positions: Some(sizes.positions),
            ..ModelInfo::custom()
        },
        width,
        token_dropout: sizes.dropout,
        span_dropout: 0.0,
    };
    Ok(model.with_head(class, &layers, &["pooler", "classifier"], |backbone, labels| SequenceClassifier {
        backbone,
        pooler: ContextPooler {
            dense: layers.linear(width, width, true),
            dropout: layers.dropout(context_drop),
            activation,
        },
        dropout: layers.dropout(drop),
        classifier: layers.linear(width, labels, true),
    }))
}

fn embeddings(fields: Fields<'_>, layers: &Layers<'_>, sizes: &BertSizes) -> Result<DebertaEmbeddings> {
    let width = fields.optional_size("embedding_size")?.unwrap_or(sizes.hidden);
    let has_positions = fields.flag_or("position_biased_input", true)?;
    Ok(DebertaEmbeddings {
        word_embeddings: layers.embedding(sizes.vocab, width),
        position_embeddings: has_positions.then(|| layers.embedding(sizes.positions, width)),
        token_type_embeddings: sizes.types.map(|types| layers.embedding(types, width)),
        embed_proj: (width != sizes.hidden).then(|| layers.linear(width, sizes.hidden, false)),
        layer_norm: layers.layer_norm(sizes.hidden, sizes.epsilon),
        dropout: layers.dropout(sizes.dropout),
    })
}

fn encoder(fields: Fields<'_>, layers: &Layers<'_>, sizes: &BertSizes) -> Result<DebertaEncoder> {
    let width = sizes.hidden;
    let kinds = kinds(fields)?;
    let is_relative = fields.flag_or("relative_attention", false)?;
    let owns = is_relative && !fields.flag_or("share_att_key", false)?;
    let distances = Distances::read(fields, sizes.positions)?;
    let normed = fields.text_or("norm_rel_ebd", "none")?.to_lowercase();
    let is_normed = normed.split('|').any(|word| word.trim() == "layer_norm");
    let projection = || layers.linear(width, width, true);
    let layer = |_| DebertaLayer {
        attention: DebertaAttention {
            self_attention: DisentangledSelfAttention {
                query_proj: projection(),
                key_proj: projection(),
                value_proj: projection(),
                pos_key_proj: (owns && kinds.content_to_position).then(projection),
                pos_query_proj: (owns && kinds.position_to_content).then(projection),
                pos_dropout: layers.dropout(sizes.dropout),
                dropout: layers.dropout(sizes.attention_dropout),
                sizes: *sizes,
                kinds,
            },
            output: BertOutput::new(layers, sizes, width),
        },
        intermediate: BertFeedForward::new(layers, sizes),
        output: BertOutput::new(layers, sizes, sizes.inner),
    };
    let kernel = fields.count_or("conv_kernel_size", 0)?;
    Ok(DebertaEncoder {
        layer: (0..sizes.layers).map(layer).collect(),
        rel_embeddings: is_relative.then(|| layers.embedding(2 * distances.span, width)),
        layer_norm: is_normed.then(|| layers.layer_norm(width, sizes.epsilon)),
        conv: if kernel > 0 { Some(conv(fields, layers, sizes, kernel)?) } else { None },
        distances,
    })
}

/// `pos_att_type`: a list, or one text with bars between.
fn kinds(fields: Fields<'_>) -> Result<Kinds> {
    let key = "pos_att_type";
    let words: Vec<String> = match fields.get(key) {
        Some(Value::String(text)) => text.split('|').map(|word| word.trim().to_lowercase()).collect(),
        _ => fields.texts(key)?.unwrap_or_default().into_iter().map(str::to_owned).collect(),
    };
    if let Some(other) = words.iter().find(|word| !["c2p", "p2c", ""].contains(&word.as_str())) {
        return Err(Fields::error(key, format!("`{other}` is not supported (supported: c2p, p2c)")));
    }
    let has = |kind: &str| words.iter().any(|word| word == kind);
    Ok(Kinds { content_to_position: has("c2p"), position_to_content: has("p2c") })
}

fn conv(fields: Fields<'_>, layers: &Layers<'_>, sizes: &BertSizes, kernel: usize) -> Result<ConvLayer> {
    let width = sizes.hidden;
    let groups = fields.optional_size("conv_groups")?.unwrap_or(1);
    if kernel.is_multiple_of(2) || !width.is_multiple_of(groups) {
        let problem =
            format!("needs an odd conv_kernel_size and conv_groups that divide {width}, found {kernel} and {groups}");
        return Err(Fields::error("conv_kernel_size", problem));
    }
    let padding = PaddingConfig1d::Explicit(kernel / 2, kernel / 2);
    let mut conv =
        Conv1dConfig::new(width, width, kernel).with_groups(groups).with_padding(padding).init(layers.device);
    conv.weight = conv.weight.set_require_grad(false);
    conv.bias = conv.bias.map(|bias| bias.set_require_grad(false));
    Ok(ConvLayer {
        conv,
        layer_norm: layers.layer_norm(width, sizes.epsilon),
        dropout: layers.dropout(sizes.dropout),
        activation: fields.activation_or("conv_act", "tanh")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn distances(buckets: i64, most: i64) -> Result<Distances> {
        let config = json!({"position_buckets": buckets, "max_relative_positions": most});
        Distances::read(Fields(config.as_object().unwrap()), 512)
    }

    #[test]
    fn rows_are_those_of_pytorch() {
        // Weighted by their place, so that two rows that change places show.
        let check = |buckets: i64, most: i64, sum: i64, weighted: i64| {
            let distances = distances(buckets, most).unwrap();
            let rows: Vec<i64> = (1 - most..most).map(|distance| distances.row(distance)).collect();
            assert_eq!(rows.iter().sum::<i64>(), sum);
            assert_eq!(rows.iter().zip(0..).map(|(row, at)| row * at).sum::<i64>(), weighted);
        };
        check(256, 512, 261_888, 188_739_194);
        check(32, 128, 8160, 1_488_974);
        check(4, 24, 188, 5972);
    }

    #[test]
    fn without_buckets_each_distance_has_a_row_up_to_the_last() {
        let distances = distances(-1, 3).unwrap();
        assert_eq!([-9, -3, -2, 0, 2, 3, 9].map(|distance| distances.row(distance)), [0, 0, 1, 3, 5, 5, 5]);
    }

    #[test]
    fn buckets_that_cannot_divide_the_distances_are_refused() {
        let text = distances(32, 17).unwrap_err().to_string();
        assert!(text.contains("`position_buckets`") && text.contains("17"), "{text}");
    }

    #[test]
    fn scores_by_distance_come_to_their_places() {
        // The score of distance d is d itself: keys come from n - 1 down.
        let scores = Tensor::<4>::from_data([[[[2.0, 1.0, 0.0, -1.0, -2.0, -3.0]; 3]]], &Device::flex());
        let placed = by_place(scores).into_data();
        assert_eq!(placed, TensorData::from([[[[0.0_f32, -1.0, -2.0], [1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]]]));
        let one = Tensor::<4>::from_data([[[[7.0, 8.0]]]], &Device::flex());
        assert_eq!(by_place(one).into_data(), TensorData::from([[[[7.0_f32]]]]));
    }
}
