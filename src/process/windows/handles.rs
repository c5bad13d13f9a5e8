//! Keeping the standard handles of this process from its children. A child gets every handle that can be inherited, also one that
//! is not its own standard handle.

use std::io;
use std::os::windows::io::{AsRawHandle, IntoRawHandle};
use std::sync::{Once, mpsc};
use std::thread;
use std::time::Duration;

use filedescriptor::{FileDescriptor, StdioDescriptor};

/// How long the outputs are waited for. A write to a pipe that nobody reads holds up all other calls about the pipe.
const LIMIT: Duration = Duration::from_secs(1);

/// Replaces standard output and standard error with copies that no child inherits, once: a daemon would keep the pipe of its caller's
/// caller open, which waits for the end of that. Not standard input: a read in progress would hold that up.
pub(super) fn keep_outputs() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let (done, is_done) = mpsc::channel();
        let replacing = thread::Builder::new().spawn(move || {
            replace(&[StdioDescriptor::Stdout, StdioDescriptor::Stderr]);
            // Nobody may wait any more.
            let _ = done.send(());
        });
        if replacing.is_ok() {
            let _ = is_done.recv_timeout(LIMIT);
        }
    });
}

/// Replaces standard input, which must be a file, with a copy that no child inherits.
pub(super) fn keep_input() {
    replace(&[StdioDescriptor::Stdin]);
}

/// Replaces these. One that cannot be copied is none, most likely: a process may have no output.
fn replace(all: &[StdioDescriptor]) {
    // All are copied before any is closed: output and errors may be one handle.
    let copies: Vec<_> = all
        .iter()
        .filter_map(|&which| Some((which, copy(which).ok()?)))
        .collect();
    let mut replaced: Vec<FileDescriptor> = Vec::new();
    for (which, copy) in copies {
        let Ok(old) = FileDescriptor::redirect_stdio(&copy, which) else {
            continue;
        };
        let is_known = |known: &FileDescriptor| known.as_raw_handle() == old.as_raw_handle();
        match replaced.iter().any(is_known) {
            // It is closed once.
            true => drop(old.into_raw_handle()),
            false => replaced.push(old),
        }
    }
}

fn copy(which: StdioDescriptor) -> filedescriptor::Result<FileDescriptor> {
    match which {
        StdioDescriptor::Stdin => FileDescriptor::dup(&io::stdin()),
        StdioDescriptor::Stdout => FileDescriptor::dup(&io::stdout()),
        StdioDescriptor::Stderr => FileDescriptor::dup(&io::stderr()),
    }
}
