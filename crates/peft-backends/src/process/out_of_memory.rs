//! An end with a message where the system refuses memory: Rust's own is an abort, which no script can tell from a crash.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, Ordering},
};

/// The system's allocator, which ends the process with one line on stderr and exit code 5 when there is no memory left.
///
/// A program makes it its `#[global_allocator]`. Nothing is unwound and nothing is flushed: files that matter are written
/// under another name and renamed, so that none is left half written.
#[derive(Debug)]
pub struct ExitWhenOutOfMemory;

/// The exit code of a device that fails or has not enough memory.
const EXIT_CODE: i32 = 5;

// SAFETY: every call is handed on to the system's allocator as it is; where that gives nothing, nothing is returned.
#[expect(unsafe_code, reason = "the argument stands above")]
unsafe impl GlobalAlloc for ExitWhenOutOfMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is handed on.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is handed on.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises about `block`, `layout` and `size` are handed on.
        given(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises about `block` and `layout` are handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[inline(always)]
fn given(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        exhausted(size);
    }
    block
}

/// Says so and exits. Nothing here may allocate, nor wait for a lock that the thread in trouble may hold.
#[cold]
#[inline(never)]
fn exhausted(size: usize) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    let is_first = !ENDING.swap(true, Ordering::SeqCst);
    let mut digits = [0; 20];
    let parts: [&[u8]; 3] = [
        b"error: out of memory: no room for another ",
        decimal(size, &mut digits),
        b" bytes; take a smaller per_device_train_batch_size, max_length, r or model, or pack the weights (load_in_4bit)\n",
    ];
    end(is_first, parts);
}

#[cfg(unix)]
fn end(is_first: bool, parts: [&[u8]; 3]) {
    if !is_first {
        // Another thread is saying it.
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
    let mut line = [0_u8; 256];
    let mut length = 0;
    for (slot, byte) in line.iter_mut().zip(parts.into_iter().flatten()) {
        *slot = *byte;
        length += 1;
    }
    // SAFETY: `line` has at least `length` bytes. `_exit` runs nothing of the program's any more.
    #[expect(unsafe_code, reason = "the argument stands above")]
    unsafe {
        // A reader that went away does not matter: the exit code says it too.
        let _written = libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        libc::_exit(EXIT_CODE);
    }
}

/// The standard library's own message and abort.
#[cfg(not(unix))]
fn end(_is_first: bool, _parts: [&[u8]; 3]) {}

/// The digits of a number.
fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first = at;
        if number == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_without_allocating() {
        for (number, text) in [(0, "0"), (7, "7"), (1200, "1200"), (usize::MAX, "18446744073709551615")] {
            assert_eq!(decimal(number, &mut [0; 20]), text.as_bytes());
        }
    }
}
