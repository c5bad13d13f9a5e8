//! A process that asks for the backend and uses it: this test binary in a role.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::Stdio;

use spawn_gate::How;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::program::Program;
use crate::scene::{KEY, LIMIT, Place, chain, within};

const PROGRAM: &str = "PROGRAMS_TEST_PROGRAM";
const DIRECTORY: &str = "PROGRAMS_TEST_DIRECTORY";
const PORT: &str = "PROGRAMS_TEST_PORT";

/// Stands before what a caller says. The test harness prints on the same output.
const MARK: &str = "@@ ";

/// A running caller. Dropping it kills it.
pub(crate) struct Caller {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What a caller got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) has_led: bool,
    pub(crate) pid: u32,
    pub(crate) launch: u64,
}

impl Caller {
    pub(crate) fn start(place: &Place) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["role", "--exact", "--nocapture"])
            .env(PROGRAM, place.program.name)
            .env(DIRECTORY, &place.directory)
            .env(PORT, place.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            input,
            output,
        }
    }

    /// Waits until it has its gate and only has to be told.
    pub(crate) async fn at_the_gate(&mut self) {
        assert_eq!(self.said().await, "at the gate");
    }

    pub(crate) async fn go_on(&mut self) {
        self.input.write_all(b"go on\n").await.unwrap();
    }

    /// What it got. It has used the backend, and ended, once this returns.
    pub(crate) async fn answer(mut self) -> Answer {
        let said = self.said().await;
        let mut words = said.split(' ');
        let answer = Answer {
            has_led: words.next() == Some("led"),
            pid: words.next().unwrap().parse().unwrap(),
            launch: words.next().unwrap().parse().unwrap(),
        };
        assert!(within(self.child.wait()).await.unwrap().success());
        answer
    }

    async fn said(&mut self) -> String {
        loop {
            let line = within(self.output.next_line()).await.unwrap();
            let line = line.expect("the caller ended without an answer");
            if let Some((_, said)) = line.split_once(MARK) {
                return said.to_owned();
            }
        }
    }
}

/// Plays the caller if the environment asks for it.
pub(crate) fn play_if_asked() {
    let variable = |name| std::env::var_os(name);
    let (Some(program), Some(directory), Some(port)) =
        (variable(PROGRAM), variable(DIRECTORY), variable(PORT))
    else {
        return;
    };
    let place = Place {
        program: Program::named(program.to_str().unwrap()),
        directory: PathBuf::from(directory),
        port: port.to_str().unwrap().parse().unwrap(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let said = runtime.block_on(play(&place));
    println!("{MARK}{said}");
    // Its backend lives on.
    std::process::exit(0);
}

async fn play(place: &Place) -> String {
    let (gate, launcher) = place.gate();
    println!("{MARK}at the gate");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let launching = gate.launch(KEY, launcher);
    let launched = tokio::time::timeout(LIMIT, launching).await;
    let launched = match launched.expect("it took too long") {
        Ok(launched) => launched,
        Err(error) => panic!("{}", chain(&error)),
    };
    place.use_it(&launched.value).await;
    let how = match launched.how {
        How::Led => "led",
        _ => "found",
    };
    format!("{how} {} {}", launched.value.pid, launched.value.launch)
}
