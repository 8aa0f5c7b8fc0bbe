//! Which layers of a decoder look at everything before a token, and which at a window of it only.

use peft_core::Result;

use super::Fields;

/// What the attention of a layer looks at, by the names of `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// `full_attention`: all tokens before.
    Full,
    /// `sliding_attention`: the last `sliding_window` tokens.
    Sliding,
}

impl LayerType {
    /// Sliding where that holds, else full.
    pub fn sliding_if(slides: bool) -> Self {
        if slides { Self::Sliding } else { Self::Full }
    }

    /// The type of each of `count` layers: from `layer_types`, else as the family has it by default.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] for another type, another number of them, or sliding layers without a window.
    pub fn read(
        fields: Fields<'_>,
        count: usize,
        window: Option<usize>,
        default: impl Fn(usize) -> Self,
    ) -> Result<Vec<Self>> {
        let key = "layer_types";
        let Some(names) = fields.texts(key)? else { return Ok((0..count).map(default).collect()) };
        if names.len() != count {
            let problem = format!("has {} entries for the {count} num_hidden_layers", names.len());
            return Err(Fields::error(key, problem));
        }
        let read = |name: &str| match name {
            "full_attention" => Ok(Self::Full),
            "sliding_attention" if window.is_some() => Ok(Self::Sliding),
            "sliding_attention" => Err(Fields::error(key, "has sliding_attention, but there is no sliding_window")),
            other => {
                let problem = format!("`{other}` is not supported (supported: full_attention, sliding_attention)");
                Err(Fields::error(key, problem))
            }
        };
        names.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn layers_are_as_listed_or_as_the_family_has_them() {
        let read = |config: serde_json::Value, window| {
            LayerType::read(Fields(config.as_object().unwrap()), 2, window, |at| LayerType::sliding_if(at == 1))
        };
        let listed = json!({"layer_types": ["sliding_attention", "full_attention"]});
        assert_eq!(read(listed.clone(), Some(4)).unwrap(), [LayerType::Sliding, LayerType::Full]);
        assert_eq!(read(json!({}), Some(4)).unwrap(), [LayerType::Full, LayerType::Sliding]);
        let error = |config, window| read(config, window).unwrap_err().to_string();
        assert!(error(listed, None).contains("no sliding_window"));
        assert!(error(json!({"layer_types": ["full_attention"]}), None).contains("1 entries for the 2"));
        assert!(
            error(json!({"layer_types": ["full_attention", "linear_attention"]}), None).contains("`linear_attention`")
        );
    }
}
