//! What a row of a causal model's data looks like, told from its columns.

use std::fmt;

use peft_core::{
    BadRows, Error, Result,
    data::example::{EncodeContext, Row},
};

/// The shape of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `messages`: a conversation, objects with `role` and `content`.
    Messages,
    /// `conversations`: the same as ShareGPT writes it, objects with `from` and `value`.
    Conversations,
    /// `prompt` and `completion`: texts, or conversations.
    Prompt,
    /// `instruction`, perhaps `input`, and `output`: as Alpaca writes it.
    Instruction,
    /// `text`: a whole text.
    Text,
}

const ALL: [Shape; 5] = [Shape::Messages, Shape::Conversations, Shape::Prompt, Shape::Instruction, Shape::Text];

impl Shape {
    /// The role of the column that tells the shape.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Conversations => "conversations",
            Self::Prompt => "prompt",
            Self::Instruction => "instruction",
            Self::Text => "text",
        }
    }

    /// The shape of a row: that of a column which the recipe names, else the first whose column is there.
    pub(crate) fn of(row: &Row, context: &EncodeContext<'_>) -> Result<Self> {
        let named = ALL.into_iter().find(|shape| context.names(shape.role()));
        if let Some(shape) = named {
            return match context.optional(shape.role(), row) {
                Some(_) => Ok(shape),
                None => Err(row.missing(context.column(shape.role()))),
            };
        }
        ALL.into_iter().find(|shape| context.optional(shape.role(), row).is_some()).ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|shape| format!("`{}`", context.column(shape.role()))).collect();
            let there: Vec<_> = row.fields.keys().map(String::as_str).collect();
            row.error(format!("no column {} (columns: {})", known.join(" or "), there.join(", ")))
        })
    }

    fn is_conversation(self) -> bool {
        matches!(self, Self::Messages | Self::Conversations)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.role())
    }
}

/// Judges that all rows have the shape of the first.
pub(crate) fn check(rows: &[Row], context: &EncodeContext<'_>) -> Result<()> {
    let (mut bad, mut shape) = (BadRows::default(), None);
    for row in rows {
        let Some(found) = bad.take(Shape::of(row, context))? else { continue };
        let (first, expected) = *shape.get_or_insert((row, found));
        if found != expected {
            let problem = format!("a row of shape {found} among rows of shape {expected} (as {})", first.place());
            bad.push(row.error(problem));
        }
    }
    bad.finish()?;
    let answers = match shape {
        Some((_, Shape::Prompt)) => Some("completion"),
        Some((_, Shape::Instruction)) => Some("output"),
        _ => None,
    };
    if let (Some(role), Some(first), true) = (answers, rows.first(), context.labelled)
        && rows.iter().all(|row| context.optional(role, row).is_none())
    {
        let there: Vec<_> = first.fields.keys().map(String::as_str).collect();
        let problem = format!(
            "no column `{}` (columns: {}); name what is to be learnt: {role} = \"NAME\" in [data] of the recipe, or --column \
             {role}=NAME on the command line",
            context.column(role),
            there.join(", ")
        );
        return Err(Error::File { path: first.file.to_path_buf(), problem });
    }
    match shape {
        Some((_, shape)) if context.options.assistant_only_loss && !shape.is_conversation() => Err(Error::config(
            "assistant_only_loss",
            format!("needs conversations (`messages` or `conversations`); the rows have the shape {shape}"),
        )),
        _ => Ok(()),
    }
}
