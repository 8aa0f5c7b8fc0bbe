//! Signals of Unix that a program which trains or writes large files answers in its own way.

use std::sync::{Arc, atomic::AtomicBool};

/// Beyond the shell's limit of file size (`ulimit -f`) writing fails, where the system would end the program.
pub fn fail_beyond_the_file_size_limit() {
    #[cfg(unix)]
    unix::set(libc::SIGXFSZ, libc::SIG_IGN);
}

/// How the end of the terminal is answered: found out before anything else takes the signal.
#[derive(Debug, Clone, Copy)]
pub struct Hangup {
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no such signal"))]
    is_ignored: bool,
}

impl Hangup {
    /// As the program was started: `nohup` has the signal ignored.
    pub fn inherited() -> Self {
        #[cfg(unix)]
        return Self { is_ignored: unix::is_ignored(libc::SIGHUP) };
        #[cfg(not(unix))]
        Self { is_ignored: false }
    }

    /// Sets a flag when the terminal goes away, however often that is said; nothing happens where it is to be ignored.
    pub fn sets(self, flag: Arc<AtomicBool>) {
        #[cfg(unix)]
        unix::set(libc::SIGHUP, if self.is_ignored { libc::SIG_IGN } else { unix::handler(flag) });
        #[cfg(not(unix))]
        drop(flag);
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        mem, ptr,
        sync::{
            Arc, OnceLock,
            atomic::{AtomicBool, Ordering},
        },
    };

    static HUNG_UP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

    extern "C" fn hung_up(_signal: libc::c_int) {
        // Nothing but atomic operations, as a handler must.
        if let Some(flag) = HUNG_UP.get() {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// What handles the signal by setting the flag; the first one that is given.
    pub(super) fn handler(flag: Arc<AtomicBool>) -> libc::sighandler_t {
        HUNG_UP.get_or_init(|| flag);
        hung_up as extern "C" fn(libc::c_int) as libc::sighandler_t
    }

    pub(super) fn set(signal: libc::c_int, handler: libc::sighandler_t) {
        // SAFETY: a `sigaction` of zeros is valid, and says no flags but those that are set.
        #[expect(unsafe_code, reason = "the argument stands above")]
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action is whole, and its handler is one of the system's or does atomic operations alone.
        #[expect(unsafe_code, reason = "the argument stands above")]
        let _done = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }

    pub(super) fn is_ignored(signal: libc::c_int) -> bool {
        // SAFETY: as in `set`; without a new action the call only writes the present one.
        #[expect(unsafe_code, reason = "the argument stands above")]
        let mut now: libc::sigaction = unsafe { mem::zeroed() };
        #[expect(unsafe_code, reason = "the argument stands above")]
        let done = unsafe { libc::sigaction(signal, ptr::null(), &raw mut now) };
        done == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}
