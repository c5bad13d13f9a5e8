//! What tests ask of the system about processes that are not their children. Included by several tests.

/// Whether a process lives. One that has ended and was not waited for yet does not.
#[cfg(unix)]
pub(crate) fn lives(pid: u32) -> bool {
    use rustix::process::{Pid, test_kill_process};

    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name in brackets.
        Ok(stat) => {
            let (_, state) = stat.rsplit_once(") ").unwrap();
            !state.starts_with(['Z', 'X'])
        }
        // There is no `/proc`, or no process.
        Err(_) => test_kill_process(Pid::from_raw(pid as i32).unwrap()).is_ok(),
    }
}

/// Ends a process by force. It may have ended before.
#[cfg(unix)]
pub(crate) fn kill(pid: u32) {
    use rustix::process::{Pid, Signal, kill_process};

    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
}

/// Whether a process lives.
#[cfg(windows)]
pub(crate) fn lives(pid: u32) -> bool {
    use winsafe::HPROCESS;
    use winsafe::co::{PROCESS, WAIT};

    HPROCESS::OpenProcess(PROCESS::SYNCHRONIZE, false, pid)
        .is_ok_and(|process| process.WaitForSingleObject(Some(0)) == Ok(WAIT::TIMEOUT))
}

/// Ends a process by force. It may have ended before.
#[cfg(windows)]
pub(crate) fn kill(pid: u32) {
    use winsafe::HPROCESS;
    use winsafe::co::PROCESS;

    if let Ok(process) = HPROCESS::OpenProcess(PROCESS::TERMINATE, false, pid) {
        let _ = process.TerminateProcess(1);
    }
}
