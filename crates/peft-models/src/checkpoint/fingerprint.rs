//! Whether a checkpoint is the one that it was, without reading all of it.

use std::path::Path;

use peft_core::{Result, files::hex};
use sha2::{Digest, Sha256};

use super::{
    read_config,
    shards::{Place, Shards},
};

/// Pieces of a tensor that are looked at, evenly spread over it, and the bytes of each.
const PIECES: usize = 16;
const PIECE: usize = 64;

/// The SHA-256, in hexadecimal, of a model's configuration and of every tensor's name, type, shape and up to 1 KiB of its values,
/// taken from sixteen places. Training moves every value of a tensor, so that it moves the hash; a change of a few values between
/// those places does not. Of PyTorch's own files, whose values cannot be read in part, values are left out.
///
/// # Errors
/// As [`read_config`](super::read_config), and if there are no weights.
pub fn fingerprint(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(serde_json::to_string(&read_config(folder)?).unwrap_or_default().as_bytes());
    let shards = Shards::open(folder)?;
    for name in shards.names() {
        let Some(stored) = shards.get(name) else { continue };
        add(name.as_bytes());
        add(stored.dtype.label().as_bytes());
        stored.shape.iter().for_each(|size| add(&(*size as u64).to_le_bytes()));
        if let (Place::Mapped(..), Some(values)) = (&stored.place, shards.values(name)?) {
            pieces(&values).for_each(&mut add);
        }
    }
    Ok(hex(&hash.finalize()))
}

fn pieces(values: &[u8]) -> impl Iterator<Item = &[u8]> {
    let last = values.len().saturating_sub(PIECE);
    let starts = (0..PIECES).map(move |at| last / (PIECES - 1) * at);
    starts.filter_map(move |start| values.get(start..values.len().min(start + PIECE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_reach_from_the_first_value_to_the_last() {
        let values: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let found: Vec<&[u8]> = pieces(&values).collect();
        assert_eq!((found.len(), found[0]), (PIECES, &values[..PIECE]));
        assert!(found.iter().all(|piece| piece.len() == PIECE));
        assert!(pieces(&values[..10]).all(|piece| piece == &values[..10]));
        assert!(pieces(&[]).all(<[u8]>::is_empty));
    }
}
