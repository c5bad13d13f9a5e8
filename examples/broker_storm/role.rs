//! What the broker, client and backend processes have in common: how they speak to their parent, and how they end.

use std::fmt::Display;
use std::io::{Read, Write};

use tokio::sync::oneshot;

/// Says a line to the parent process.
pub(crate) fn say(line: impl Display) {
    // Not `println`, which panics if the parent is gone. That is heard of below.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Returns when standard input ends. The parent holds its other end, so that is when the parent wants this process to end,
/// or is gone itself, however that came.
pub(crate) async fn parent_gone() {
    let (sender, receiver) = oneshot::channel::<()>();
    // A thread and not tokio's own standard input: a read that is pending there would hold up the end of the runtime.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(sender);
    });
    let _ = receiver.await;
}

/// Leaves Ctrl-C to the director. A terminal sends it to all processes, but those below end when the director ends them.
pub(crate) fn leave_ctrl_c_to_the_director() {
    tokio::spawn(tokio::signal::ctrl_c());
}
