//! A tokenizer whose token ids can be worked out by hand.

use peft_core::{
    Error, Result,
    data::tokenizer::{Encoding, Tokenizer},
};

/// Cuts texts into pieces of so many characters; the id of a piece is the code point of its first character.
#[derive(Debug, Clone, Copy)]
pub struct FakeTokenizer {
    piece: usize,
    special: Option<[u32; 2]>,
    eos: Option<u32>,
}

/// A token that is to be: its id, its text (0 or 1; none for special tokens), its word, and where it stands.
type Token = (u32, Option<usize>, Option<usize>, (usize, usize));

impl FakeTokenizer {
    /// Pieces of `piece` characters (at least one), no special tokens.
    pub const fn new(piece: usize) -> Self {
        let piece = if piece == 0 { 1 } else { piece };
        Self { piece, special: None, eos: None }
    }

    /// With `[CLS]` before the first text and `[SEP]` after each.
    pub const fn with_special_tokens(self, cls: u32, sep: u32) -> Self {
        Self { special: Some([cls, sep]), ..self }
    }

    /// With a token that ends a text; [`encode`](Tokenizer::encode) does not add it.
    pub const fn with_eos_token(self, eos: u32) -> Self {
        Self { eos: Some(eos), ..self }
    }

    fn pieces(self, text: &str, sequence: usize, word: Option<usize>) -> Vec<Token> {
        let letters: Vec<char> = text.chars().collect();
        let pieces = letters.chunks(self.piece).enumerate().map(|(at, piece)| {
            let start = at * self.piece;
            let id = piece.first().copied().map_or(0, u32::from);
            (id, Some(sequence), word, (start, start + piece.len()))
        });
        pieces.collect()
    }

    fn cls(self) -> Option<Token> {
        self.special.map(|[cls, _]| (cls, None, None, (0, 0)))
    }

    fn sep(self) -> Option<Token> {
        self.special.map(|[_, sep]| (sep, None, None, (0, 0)))
    }
}

fn encoding(tokens: impl IntoIterator<Item = Token>) -> Encoding {
    let mut encoding = Encoding::default();
    add(&mut encoding, tokens);
    encoding
}

fn add(encoding: &mut Encoding, tokens: impl IntoIterator<Item = Token>) {
    for (id, sequence, word, offsets) in tokens {
        encoding.ids.push(id);
        encoding.sequences.push(sequence);
        encoding.words.push(word);
        encoding.offsets.push(offsets);
    }
}

impl Tokenizer for FakeTokenizer {
    /// The end is cut off where there is no room, special tokens included.
    fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding> {
        let first = self.cls().into_iter().chain(self.pieces(text, 0, None)).chain(self.sep());
        let second: Vec<Token> = match pair {
            Some(pair) => self.pieces(pair, 1, None).into_iter().chain(self.sep()).collect(),
            None => Vec::new(),
        };
        let lengths = (first.size_hint().0, second.len());
        let mut encoding = encoding(first.chain(second));
        if self.special.is_some() {
            encoding.type_ids = [vec![0; lengths.0], vec![1; lengths.1]].concat();
        }
        encoding.truncate(max_length);
        Ok(encoding)
    }

    fn encode_words(&self, words: &[String], max_length: usize) -> Result<Encoding> {
        let pieces = words.iter().enumerate().flat_map(|(at, word)| self.pieces(word, 0, Some(at)));
        let mut encoding = encoding(self.cls().into_iter().chain(pieces));
        encoding.truncate(max_length.saturating_sub(usize::from(self.special.is_some())));
        add(&mut encoding, self.sep());
        Ok(encoding)
    }

    fn encode_windows(&self, question: &str, context: &str, max_length: usize, stride: usize) -> Result<Vec<Encoding>> {
        let around: Vec<Token> =
            self.cls().into_iter().chain(self.pieces(question, 0, None)).chain(self.sep()).collect();
        let pieces = self.pieces(context, 1, None);
        let taken = around.len() + usize::from(self.special.is_some());
        let room = max_length.checked_sub(taken).filter(|room| *room > stride);
        let Some(room) = room else {
            return Err(Error::Data("no room for the context".to_owned()));
        };
        let starts = (0..pieces.len()).step_by(room - stride);
        let starts = starts.take_while(|start| *start == 0 || start + stride < pieces.len());
        let window = |start: usize| {
            let within = pieces.iter().skip(start).take(room);
            encoding(around.iter().chain(within).copied().chain(self.sep()))
        };
        Ok(starts.map(window).collect())
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(encoding(self.pieces(text, 0, None)).ids)
    }

    /// The first characters of the pieces; ids that are no code point are left out, as special tokens are.
    fn decode(&self, ids: &[u32]) -> Result<String> {
        let is_special = |id: &u32| self.eos == Some(*id) || self.special.is_some_and(|special| special.contains(id));
        Ok(ids.iter().filter(|id| !is_special(id)).filter_map(|id| char::from_u32(*id)).collect())
    }

    fn pad_id(&self) -> u32 {
        0
    }

    fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        token.chars().next().map(u32::from)
    }
}
