//! Stops a process for a while (SIGSTOP), as a debugger or a laptop's lid would.
//!
//! This is a process of its own for the sake of the end: a stopped process does not notice that its parent is gone. The
//! stopper does, and lets it go on, so that it can end, too.

use rustix::process::{Pid, Signal, kill_process};
use spawn_gate::BoxError;

use crate::role;

pub(crate) async fn run(pid: i32) -> Result<(), BoxError> {
    let pid = Pid::from_raw(pid).ok_or("not a process number")?;
    kill_process(pid, Signal::STOP)?;
    role::say("stopped");
    role::parent_gone().await;
    Ok(kill_process(pid, Signal::CONT)?)
}
