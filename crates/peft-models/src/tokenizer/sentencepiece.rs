//! A SentencePiece model: the few fields of its protocol buffer that a tokenizer is made from.

/// What kind of piece one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Other,
    Control,
    UserDefined,
}

/// A piece of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SentencePiece {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) is_unigram: bool,
    pub(crate) byte_fallback: bool,
    /// The ids of the unknown piece, of the beginning and of the end; negative where there is none.
    pub(crate) unk_id: i64,
    pub(crate) bos_id: i64,
    pub(crate) eos_id: i64,
    pub(crate) unk_piece: String,
    pub(crate) bos_piece: String,
    pub(crate) eos_piece: String,
    /// The table of characters that the normalizer replaces; empty where there is none.
    pub(crate) table: Vec<u8>,
}

impl SentencePiece {
    /// Reads a model's bytes.
    ///
    /// # Errors
    /// With what is broken.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            is_unigram: true,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            unk_piece: "<unk>".to_owned(),
            bos_piece: "<s>".to_owned(),
            eos_piece: "</s>".to_owned(),
            table: Vec::new(),
        };
        for field in fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.pieces.push(read_piece(piece)?),
                (2, Field::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => {
                    for field in fields(normalizer) {
                        if let (2, Field::Bytes(table)) = field? {
                            model.table = table.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() { Err("it has no pieces".to_owned()) } else { Ok(model) }
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in fields(bytes) {
            match field? {
                (3, Field::Number(kind)) => self.is_unigram = kind == 1,
                (35, Field::Number(flag)) => self.byte_fallback = flag != 0,
                (40, Field::Number(id)) => self.unk_id = id.cast_signed(),
                (41, Field::Number(id)) => self.bos_id = id.cast_signed(),
                (42, Field::Number(id)) => self.eos_id = id.cast_signed(),
                (45, Field::Bytes(piece)) => self.unk_piece = text(piece)?,
                (46, Field::Bytes(piece)) => self.bos_piece = text(piece)?,
                (47, Field::Bytes(piece)) => self.eos_piece = text(piece)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Other };
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(bytes)) => piece.text = text(bytes)?,
            (2, Field::Float(score)) => piece.score = score,
            (3, Field::Number(3)) => piece.kind = PieceKind::Control,
            (3, Field::Number(4)) => piece.kind = PieceKind::UserDefined,
            _ => {}
        }
    }
    Ok(piece)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| format!("a piece is no text: {error}"))
}

/// The value of a field, by its wire type.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message: their numbers and values. After an error there are none.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes).ok_or_else(|| "it ends in the middle of a field".to_owned());
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = number(bytes)?;
    let value = match key & 7 {
        0 => Field::Number(number(bytes)?),
        1 => taken(bytes, 8).map(|_| Field::Other)?,
        2 => {
            let length = usize::try_from(number(bytes)?).ok()?;
            Field::Bytes(taken(bytes, length)?)
        }
        5 => Field::Float(f32::from_le_bytes(taken(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((key >> 3, value))
}

/// A number of up to ten bytes, seven bits each.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..10 {
        let byte = *taken(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7f).checked_shl(place * 7)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn taken<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_model_that_is_cut_or_changed_anywhere_is_read_or_refused() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/tokenizers/files/llama.model");
        let bytes = std::fs::read(file).unwrap();
        let model = SentencePiece::read(&bytes).unwrap();
        assert!(model.byte_fallback && !model.is_unigram && model.pieces.len() > 256);
        for at in 0..bytes.len() {
            _ = SentencePiece::read(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            _ = SentencePiece::read(&changed);
        }
        assert!(SentencePiece::read(&bytes[..bytes.len() - 1]).unwrap_err().contains("in the middle"));
        assert!(SentencePiece::read(&[]).unwrap_err().contains("no pieces"));
    }
}
