//! Keeping the standard handles of this process from its children.

use std::io;
use std::os::windows::io::{AsRawHandle, IntoRawHandle};
use std::sync::Once;

use filedescriptor::{FileDescriptor, StdioDescriptor};

/// Replaces the standard handles of this process with copies that no child inherits. A child gets every handle that can be
/// inherited: a daemon would keep the pipe of its caller's caller open, which waits for the end of that.
pub(super) fn keep() {
    static KEPT: Once = Once::new();
    // A handle that cannot be copied is none, most likely: a process may have no output.
    KEPT.call_once(|| drop(replace()));
}

fn replace() -> filedescriptor::Result<()> {
    // All are copied before any is closed: output and errors may be one handle.
    let copies = [
        (StdioDescriptor::Stdin, FileDescriptor::dup(&io::stdin())?),
        (StdioDescriptor::Stdout, FileDescriptor::dup(&io::stdout())?),
        (StdioDescriptor::Stderr, FileDescriptor::dup(&io::stderr())?),
    ];
    let mut replaced: Vec<FileDescriptor> = Vec::new();
    for (which, copy) in copies {
        let old = FileDescriptor::redirect_stdio(&copy, which)?;
        let is_known = |known: &FileDescriptor| known.as_raw_handle() == old.as_raw_handle();
        match replaced.iter().any(is_known) {
            // It is closed once.
            true => drop(old.into_raw_handle()),
            false => replaced.push(old),
        }
    }
    Ok(())
}
