//! A backend that ends before it is ready: an error with its status and its own last words.

use std::fs;

use spawn_gate::How;
use spawn_gate::process::{ProcessError, Ready};

use crate::kit::{Scene, lives, sh, until_nobody_is_there};
use crate::roles::{Caller, cause, end, outcome, steps};
use crate::scenes::{assert_nothing_left, file_of_a, number_in};

const LINE: &str = "never written";

#[tokio::test]
async fn a_backend_that_ends_before_it_is_ready_is_an_error_with_its_status_and_last_words() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "echo reading the index; echo the index is gone >&2; exit 3";
        Ok((sh(script), Ready::line(LINE)))
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let ProcessError::Ended {
        pid,
        status,
        words,
        log,
    } = cause(&error)
    else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(3));
    assert_eq!(words, "reading the index | the index is gone");
    assert_eq!(*log, file_of_a(&scene, "log"));
    assert!(!lives(*pid));
    assert_eq!(
        format!("{error:#}"),
        format!(
            "attempt 1 to launch a failed: process {pid} ended before it was ready: exit status: 3: {words}"
        )
    );
    until_nobody_is_there(&launcher).await;
}

#[tokio::test]
async fn a_backend_that_a_signal_ends_before_it_is_ready_is_an_error_with_the_signal() {
    use std::os::unix::process::ExitStatusExt;

    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((sh("kill -KILL $$"), Ready::line(LINE))));
    let error = scene.gate.launch("a", launcher).await.unwrap_err();
    let ProcessError::Ended { status, words, .. } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().signal(), Some(9));
    assert_eq!(words, "");
    let log = file_of_a(&scene, "log");
    let silent = format!(
        "signal: 9 (SIGKILL) (it wrote nothing to {})",
        log.display()
    );
    assert!(format!("{error:#}").ends_with(&silent), "{error:#}");
}

#[tokio::test]
async fn last_words_are_those_of_this_launch_only() {
    let scene = Scene::new();
    let launcher = scene.launcher(|launch| {
        let script = format!("echo words of launch {}; exit 1", launch.fencing_token);
        Ok((sh(&script), Ready::line(LINE)))
    });
    for _ in 0..2 {
        let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
        let ProcessError::Ended { words, log, .. } = cause(&error) else {
            panic!("{error:?}");
        };
        let all = fs::read_to_string(log).unwrap();
        assert_eq!(all.lines().last(), Some(words.as_str()));
        assert!(words.starts_with("words of launch"), "{words}");
    }
}

#[tokio::test]
async fn a_backend_that_writes_its_line_and_ends_at_once_has_been_ready() {
    for status in [0, 3] {
        let scene = Scene::new();
        let script = format!("echo is ready; exit {status}");
        let launcher = scene.launcher(move |_| Ok((sh(&script), Ready::line("is ready"))));
        let launched = scene.gate.launch("a", launcher).await.unwrap();
        assert_eq!(launched.how, How::Led);
    }
}

#[tokio::test]
async fn the_line_of_an_earlier_launch_does_not_make_one_that_ends_ready() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "[ -e again ] && exit 3; touch again; echo is ready; exec sleep 60";
        Ok((sh(script), Ready::line("is ready")))
    });
    let first = launcher.get_or_launch("a").await.unwrap().value;
    end(&launcher, &first).await;
    let error = launcher.get_or_launch("a").await.unwrap_err();
    let ProcessError::Ended { status, .. } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(3));
}

#[tokio::test]
async fn a_program_that_fails_is_an_error_at_once_and_what_it_started_is_ended() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "sleep 60 & echo $! >child; exit 3";
        Ok((sh(script), Ready::line(LINE)))
    });
    let error = launcher.get_or_launch("a").await.unwrap_err();
    let ProcessError::Ended { status, .. } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(3));
    assert!(!lives(number_in(&scene, "child").await));
}

#[tokio::test]
async fn last_words_of_a_panic_are_without_the_note_about_a_backtrace() {
    for backtrace in ["0", "1"] {
        let scene = Scene::new();
        let launcher = scene.launcher(move |_| {
            let mut backend = steps(&["panic the index is gone"]);
            backend.env("RUST_BACKTRACE", backtrace);
            Ok((backend, Ready::notify()))
        });
        let error = scene.gate.launch("a", launcher).await.unwrap_err();
        let ProcessError::Ended { words, log, .. } = cause(&error) else {
            panic!("{error:?}");
        };
        assert!(fs::read_to_string(log).unwrap().contains("RUST_BACKTRACE"));
        assert!(!words.contains("RUST_BACKTRACE"), "{words}");
        if backtrace == "0" {
            assert!(words.ends_with(" | the index is gone"), "{words}");
        }
    }
}

#[tokio::test]
async fn last_words_come_also_if_the_caller_was_started_with_sigchld_ignored() {
    let scene = Scene::new();
    let caller = Caller::new(&scene, "echo the index is gone; exit 3");
    let mut caller = caller
        .in_shell(r#"trap '' CHLD; exec "$@""#)
        .spawn()
        .unwrap();
    let outcome = outcome(&scene).await;
    assert!(outcome.contains("ended before it was ready"), "{outcome}");
    assert!(outcome.ends_with(": the index is gone\n"), "{outcome}");
    caller.wait().unwrap();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_said_and_nothing_is_started_or_charged() {
    let scene = Scene::new();
    let log = file_of_a(&scene, "log");
    fs::create_dir(&log).unwrap();
    let outer = scene.temporary.path().to_owned();
    let launcher = scene.launcher(move |_| {
        let started = outer.join("started").display().to_string();
        Ok((sh(&format!("touch {started}")), Ready::line(LINE)))
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let said = format!("{:#}", cause(&error));
    assert_eq!(said, format!("cannot open {}", log.display()));
    assert!(!error.retry_helps());
    assert!(!scene.temporary.path().join("started").exists());
    assert_nothing_left(&scene, &scene.gate, &launcher).await;
}
