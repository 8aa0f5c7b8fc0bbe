//! A file as a slice, without reading it: checkpoints are larger than what is needed of them at a time.

use std::{fs::File, io, ops::Range, path::Path};

use memmap2::Mmap;

/// A read-only memory map of a whole file.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the file.
    ///
    /// # Errors
    /// What the operating system says of opening or mapping it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and lives as long as `self`. What Rust cannot rule out is another process that
        // changes or truncates the file meanwhile: changed bytes would be read as other numbers (every bit pattern is a
        // valid byte), and reading beyond a new end stops the program with SIGBUS. Checkpoints are published by renaming
        // (`peft_core::files` does, and so does the Hub's cache), so a name is replaced and never its contents.
        #[expect(unsafe_code, reason = "mapping a file is unsafe; the argument stands above")]
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }

    /// Gives back the memory that a part of the file was read into. Bytes that are looked at again are read again.
    pub fn forget(&self, part: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and of a file, so that its pages hold nothing but what is in the file, and what comes
            // back after them is the same. That no other process changes the file is what `open` asks for already.
            #[expect(unsafe_code, reason = "the argument stands above")]
            let forgotten =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) };
            // A system that keeps the memory does no harm.
            drop(forgotten);
        }
        #[cfg(not(unix))]
        drop(part);
    }

    /// The file's bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_mapped_file_holds_what_was_written() {
        let path = std::env::temp_dir().join(format!("peft-mapped-{}", std::process::id()));
        std::fs::write(&path, b"tensor").unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        assert_eq!(mapped.as_slice(), b"tensor");
        mapped.forget(1..4);
        assert_eq!(mapped.as_slice(), b"tensor");
        std::fs::remove_file(&path).unwrap();
        assert!(MappedFile::open(&path).is_err());
    }
}
