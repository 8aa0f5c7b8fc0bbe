//! The words of `adapter_config.json` that decide: `task_type` and `peft_type`, as open strings with known constants.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

macro_rules! open_string {
    ($(#[$doc:meta])* $name:ident { $($(#[$constant_doc:meta])* $constant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Cow<'static, str>);

        impl $name {
            $($(#[$constant_doc])* pub const $constant: Self = Self::new(stringify!($constant));)+

            /// The constants that Hugging Face PEFT knows.
            pub const KNOWN: &'static [Self] = &[$(Self::$constant),+];

            /// A value known at compile time; an outside plugin declares its own this way.
            pub const fn new(name: &'static str) -> Self {
                Self(Cow::Borrowed(name))
            }

            /// The word as it stands in the file.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(Cow::Owned(name))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

open_string! {
    /// What the adapted model is for; decides the wrapper, the heads and the virtual tokens.
    TaskType {
        /// Sequence classification and regression.
        SEQ_CLS,
        /// Sequence-to-sequence language modelling.
        SEQ_2_SEQ_LM,
        /// Causal language modelling.
        CAUSAL_LM,
        /// Token classification.
        TOKEN_CLS,
        /// Extractive question answering.
        QUESTION_ANS,
        /// Hidden states as features.
        FEATURE_EXTRACTION,
    }
}

open_string! {
    /// How a model is adapted: the name of the tuner.
    PeftType {
        /// Low-rank adaptation (Hu et al. 2021).
        LORA,
    }
}
