//! Ctrl-C and SIGTERM as a flag that the training loop looks at between updates, so that it can write a checkpoint
//! before it stops. A second Ctrl-C does not wait for that: the process ends at once with code 130.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that arrived first, or 0.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`, or a batch system whose time is up.
    Terminate,
}

impl Signal {
    /// Exit code of a program that a signal stopped: 128 and its number.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 128 + libc::SIGINT,
            Self::Terminate => 128 + libc::SIGTERM,
        }
    }

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "Ctrl-C",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// Starts to listen; may be called again. From here on a file that outgrows the largest size allowed (`ulimit -f`) is
/// an error of that write, not the end of the process.
///
/// # Errors
/// The operating system refuses.
pub fn install() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask), and every field that matters is set.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = handle;
        action.sa_sigaction = handler as libc::sighandler_t;
        // Without SA_RESTART, a write of a checkpoint could fail halfway with EINTR.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised; the handler only does what signal handlers may: atomics and _exit.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: no handler of ours is involved.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int) {
    let first = RECEIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    if first.is_err() && signal == libc::SIGINT {
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { libc::_exit(128 + libc::SIGINT) }
    }
}

/// The request to stop that came first, if any did.
pub fn received() -> Option<Signal> {
    match RECEIVED.load(Ordering::SeqCst) {
        libc::SIGINT => Some(Signal::Interrupt),
        libc::SIGTERM => Some(Signal::Terminate),
        _ => None,
    }
}

/// Forgets the request, as a program that goes on with something else after a run does.
pub fn clear() {
    RECEIVED.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, ExitStatus};

    const ROLE: &str = "ENGINE_TEST_SIGNAL_CHILD";

    /// Signals go to whole processes, so each case runs in a process of its own: this very test, with a role.
    fn run_child(role: &str) -> ExitStatus {
        let program = std::env::current_exe().expect("the test program");
        Command::new(program)
            .args(["--exact", "train::signals::tests::child", "--test-threads=1"])
            .env(ROLE, role)
            .output()
            .expect("a child process")
            .status
    }

    fn raise(signal: libc::c_int) {
        // SAFETY: sends a signal to this thread; its handler is ours.
        unsafe { libc::raise(signal) };
    }

    #[test]
    fn child() {
        let Ok(role) = std::env::var(ROLE) else { return };
        install().expect("installed");
        assert_eq!(received(), None);
        match role.as_str() {
            "interrupt" => raise(libc::SIGINT),
            "terminate" => raise(libc::SIGTERM),
            "interrupt twice" => {
                raise(libc::SIGINT);
                raise(libc::SIGINT);
            }
            "terminate thrice" => (0..3).for_each(|_| raise(libc::SIGTERM)),
            "terminate, interrupt" => {
                raise(libc::SIGTERM);
                raise(libc::SIGINT);
            }
            "clear" => {
                raise(libc::SIGTERM);
                clear();
                raise(libc::SIGINT);
            }
            other => panic!("no such role: {other}"),
        }
        std::process::exit(received().expect("a signal was received").exit_code() + 50);
    }

    /// The children add 50 to the code, to tell an orderly stop from one inside the handler.
    #[test]
    fn the_first_signal_sets_a_flag_and_the_process_goes_on() {
        assert_eq!(run_child("interrupt").code(), Some(130 + 50));
        assert_eq!(run_child("terminate").code(), Some(143 + 50));
        assert_eq!(run_child("terminate thrice").code(), Some(143 + 50));
    }

    #[test]
    fn a_second_interrupt_ends_the_process_at_once() {
        assert_eq!(run_child("interrupt twice").code(), Some(130));
        assert_eq!(run_child("terminate, interrupt").code(), Some(130));
    }

    #[test]
    fn a_cleared_signal_is_forgotten() {
        assert_eq!(run_child("clear").code(), Some(130 + 50));
    }
}
