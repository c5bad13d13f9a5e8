//! Other processes: this program again, in a role, told line by line what to do.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The first argument of this program when it plays a role.
pub const ROLE: &str = "role";

/// What a role says first, once it is ready.
pub const READY: &str = "ready";

/// Returns the command that is this program in `role`; with `wrapper`, under that program.
///
/// # Panics
///
/// If this program has no path.
pub fn in_role(role: &str, directory: &Path, wrapper: &[&str]) -> Command {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = match wrapper {
        [] => Command::new(program),
        [wrapper, arguments @ ..] => {
            let mut command = Command::new(wrapper);
            command.args(arguments).arg(program);
            command
        }
    };
    command.args([ROLE, role]).arg(directory);
    command
}

/// Another process, started and waiting for its first line.
pub struct Other {
    process: Child,
    lines_to: Option<ChildStdin>,
    lines_from: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts this program in `role`; with `wrapper`, under that program.
    ///
    /// # Panics
    ///
    /// If the wrapper, or this program, cannot be started again.
    pub fn start(role: &str, directory: &Path, wrapper: &[&str]) -> Self {
        let started = in_role(role, directory, wrapper)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = started.expect("a process is started");
        let lines_to = process.stdin.take();
        let lines_from = process.stdout.take().expect("its output is a pipe");
        let mut other = Self {
            process,
            lines_to,
            lines_from: BufReader::new(lines_from).lines(),
        };
        assert_eq!(other.hear(), READY);
        other
    }

    /// Tells it to do something.
    ///
    /// # Panics
    ///
    /// If it is gone.
    pub fn tell(&mut self, line: &str) {
        let lines_to = self.lines_to.as_mut().expect("it is not told to end yet");
        writeln!(lines_to, "{line}").expect("the other process listens");
    }

    /// Waits for what it says next.
    ///
    /// # Panics
    ///
    /// If it is gone.
    pub fn hear(&mut self) -> String {
        let line = self.lines_from.next();
        let line = line.expect("the other process goes on");
        line.expect("the other process speaks in text")
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // The end of its input is the end of its role.
        self.lines_to = None;
        // It was ours to wait for; how it ended was judged by what it said.
        let _ = self.process.wait();
    }
}

/// Plays a role to its end: `act` is called with each line, and what it returns is said.
///
/// # Panics
///
/// If the process that started this one is gone, in which case there is no more to do.
pub fn play(mut act: impl FnMut(&str) -> String) {
    println!("{READY}");
    for line in std::io::stdin().lines() {
        println!("{}", act(&line.expect("lines are text")));
    }
}
