//! `task_type` and `peft_type` of `adapter_config.json`: open strings with known constants.

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

            /// The name in the file.
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
    /// How a model is adapted: the name of the tuner. The constants are the names of PEFT 0.21.2; which of them are linked into a
    /// program, [`plugins`](crate::plugins::registry::plugins) says.
    PeftType {
        /// Low-rank adaptation (Hu et al. 2021).
        LORA,
        /// Prompt tuning (Lester et al. 2021).
        PROMPT_TUNING,
        /// P-tuning (Liu et al. 2021).
        P_TUNING,
        /// Prefix tuning (Li and Liang 2021).
        PREFIX_TUNING,
        /// Multitask prompt tuning (Wang et al. 2023).
        MULTITASK_PROMPT_TUNING,
        /// Context-aware prompt tuning (Blau et al. 2024).
        CPT,
        /// Selected rows of the token embeddings.
        TRAINABLE_TOKENS,
        /// AdaLoRA (Zhang et al. 2023).
        ADALORA,
        /// AdaMSS.
        ADAMSS,
        /// LLaMA-Adapter (Zhang et al. 2023).
        ADAPTION_PROMPT,
        /// Bias-efficient fine-tuning.
        BEFT,
        /// Orthogonal fine-tuning by butterfly factors (Liu et al. 2023).
        BOFT,
        /// Circular convolution adaptation.
        C3A,
        /// Cartridges.
        CARTRIDGE,
        /// DEFT.
        DEFT,
        /// DeLoRA.
        DELORA,
        /// FourierFT (Gao et al. 2024).
        FOURIERFT,
        /// FRoD.
        FROD,
        /// GLoRA (Chavan et al. 2023).
        GLORA,
        /// GraLoRA.
        GRALORA,
        /// HiRA.
        HIRA,
        /// Householder reflection adaptation (Yuan et al. 2024).
        HRA,
        /// (IA)³ (Liu et al. 2022).
        IA3,
        /// Lily.
        LILY,
        /// Layer norm tuning (Zhao et al. 2023).
        LN_TUNING,
        /// LoHa: low-rank Hadamard products (Hyeon-Woo et al. 2021).
        LOHA,
        /// LoKr: Kronecker products.
        LOKR,
        /// MiSS.
        MISS,
        /// Orthogonal fine-tuning (Qiu et al. 2023).
        OFT,
        /// Orthogonal subspace fine-tuning.
        OSF,
        /// PEANuT.
        PEANUT,
        /// Polytropon (Ponti et al. 2022).
        POLY,
        /// PSOFT.
        PSOFT,
        /// PVeRA.
        PVERA,
        /// RandLoRA.
        RANDLORA,
        /// RoAd.
        ROAD,
        /// Shadow.
        SHADOW,
        /// SHiRA.
        SHIRA,
        /// Supertuning.
        SUPERTUNING,
        /// TinyLoRA.
        TINYLORA,
        /// Uni-LoRA.
        UNILORA,
        /// VB-LoRA (Li et al. 2024).
        VBLORA,
        /// VeRA (Kopiczko et al. 2023).
        VERA,
        /// WaveFT.
        WAVEFT,
        /// X-LoRA (Buehler and Buehler 2024).
        XLORA,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_types_of_peft_are_known_by_the_names_on_disk() {
        let names: BTreeSet<_> = PeftType::KNOWN.iter().map(PeftType::as_str).collect();
        assert_eq!(names.len(), 45);
        let of_file: PeftType = serde_json::from_str("\"ADAPTION_PROMPT\"").unwrap();
        assert_eq!((of_file.to_string(), of_file), ("ADAPTION_PROMPT".to_owned(), PeftType::ADAPTION_PROMPT));
    }
}
