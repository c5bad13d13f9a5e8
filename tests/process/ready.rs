//! When a backend is ready: the notify protocol, a connection, a line, a probe.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spawn_gate::process::{Endpoint, Presence, ProcessError, Ready, Stop};
use spawn_gate::{GateError, How};

use crate::kit::{Scene, eventually, lives, sh, until_gone, until_nobody_is_there};
use crate::roles::{cause, end, steps};
use crate::scenes::{
    AN_AGE, address, file_of_a, launching, number_in, patient, set_clock_forward, touch,
    until_starting,
};

#[tokio::test]
async fn a_backend_is_ready_once_it_has_written_its_line() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "until [ -e go ]; do sleep 0.01; done; echo all is ready; exec sleep 60";
        Ok((sh(script), Ready::line("is ready")))
    });
    let launching = launching(&scene.gate, &launcher);
    until_starting(&launcher, |_| true).await;
    assert!(!launching.is_finished());
    touch(&scene, "go");
    let launched = launching.await.unwrap().unwrap();
    assert_eq!(launched.how, How::Led);
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(launched.value.clone()));
    end(&launcher, &launched.value).await;
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn a_backend_that_notifies_is_ready_once_it_says_so_and_its_status_is_shown_until_then() {
    let scene = Scene::new();
    let at = address();
    let launcher = scene.launcher(move |_| {
        let backend = steps(&[
            "notify STATUS=loading 3 %",
            "await more",
            "notify ERRNO=13",
            "await go",
            &format!("tcp {at}"),
            &format!("notify READY=1;X_SPAWN_GATE_ENDPOINT=tcp:{at}"),
        ]);
        Ok((backend, Ready::notify()))
    });
    let launching = launching(&scene.gate, &launcher);
    until_starting(&launcher, |status| status == Some("loading 3 %")).await;
    touch(&scene, "more");
    until_starting(&launcher, |status| {
        status.is_some_and(|status| status.contains("Permission denied"))
    })
    .await;
    assert!(!launching.is_finished());
    touch(&scene, "go");
    let backend = launching.await.unwrap().unwrap().value;
    assert_eq!(backend.endpoint, Some(Endpoint::Tcp(at)));
    TcpStream::connect(at).unwrap();
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(backend.clone()));
    assert!(!file_of_a(&scene, "notify").exists());
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_that_notifies_without_its_endpoint_is_where_the_launcher_says() {
    let scene = Scene::new();
    let at = address();
    let launcher = scene.launcher(move |_| {
        let backend = steps(&[&format!("tcp {at}"), "notify STATUS=more", "notify READY=1"]);
        Ok((backend, Ready::notify().at(at)))
    });
    let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(launched.value.endpoint, Some(Endpoint::Tcp(at)));
    end(&launcher, &launched.value).await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_utf_8_is_notified_as_it_is() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((steps(&["ready-at-bytes"]), Ready::notify())));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let endpoint = backend.endpoint.clone().unwrap();
    UnixStream::connect(endpoint.unix().unwrap()).unwrap();
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(backend.clone()));
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_that_notifies_can_extend_the_time_for_its_start() {
    let scene = Scene::new();
    let gate = patient(&scene);
    let launcher = scene.launcher(|_| {
        let extend = format!(
            "notify EXTEND_TIMEOUT_USEC={};STATUS=more",
            AN_AGE.as_micros()
        );
        let backend = steps(&[&extend, "await go", "notify READY=1"]);
        Ok((backend, Ready::notify()))
    });
    let launcher = launcher.start_timeout(AN_AGE / 10);
    let launching = launching(&gate, &launcher);
    until_starting(&launcher, |status| status == Some("more")).await;
    set_clock_forward(AN_AGE / 2).await;
    touch(&scene, "go");
    let backend = launching.await.unwrap().unwrap().value;
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_that_is_too_slow_after_an_extension_is_an_error_with_the_extended_time() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let extend = format!(
            "notify EXTEND_TIMEOUT_USEC={};STATUS=more",
            AN_AGE.as_micros()
        );
        Ok((steps(&[&extend]), Ready::notify()))
    });
    let launcher = launcher.start_timeout(AN_AGE / 10);
    let launching = launching(&patient(&scene), &launcher);
    until_starting(&launcher, |status| status == Some("more")).await;
    set_clock_forward(AN_AGE * 2).await;
    let error = launching.await.unwrap().unwrap_err();
    assert!(
        matches!(cause(&error), ProcessError::NotReady { after, .. } if *after >= AN_AGE),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_extension_does_not_shorten_the_time_for_the_start() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let backend = steps(&[
            "notify EXTEND_TIMEOUT_USEC=1",
            "notify STATUS=more",
            "await go",
            "notify READY=1",
        ]);
        Ok((backend, Ready::notify()))
    });
    let launching = launching(&scene.gate, &launcher);
    until_starting(&launcher, |status| status == Some("more")).await;
    touch(&scene, "go");
    let backend = launching.await.unwrap().unwrap().value;
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_that_is_too_slow_is_an_error_with_its_last_status_and_words() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let backend = steps(&[
            "write pid",
            "notify STATUS=loading 3 %",
            "notify STATUS=loading 4 %",
        ]);
        Ok((backend, Ready::notify()))
    });
    let launcher = launcher.start_timeout(AN_AGE);
    let launching = launching(&patient(&scene), &launcher);
    until_starting(&launcher, |status| status == Some("loading 4 %")).await;
    set_clock_forward(AN_AGE * 2).await;
    let error = launching.await.unwrap().unwrap_err();
    let ProcessError::NotReady {
        pid, status, words, ..
    } = cause(&error)
    else {
        panic!("{error:?}");
    };
    assert_eq!(status.as_deref(), Some("loading 4 %"));
    assert!(words.contains("running 1 test"), "{words}");
    assert_eq!(*pid, number_in(&scene, "pid").await);
    assert!(!lives(*pid));
    assert!(error.retry_helps());
    until_nobody_is_there(&launcher).await;
}

#[tokio::test]
async fn the_main_process_that_a_backend_names_is_the_backend() {
    let scene = Scene::new();
    let launcher =
        scene.launcher(|_| Ok((steps(&["write parent", "ready-as-child"]), Ready::notify())));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let parent = number_in(&scene, "parent").await;
    assert_ne!(backend.pid, parent);
    let found = launcher.find("a").await.unwrap();
    assert_eq!(found, Presence::Ready(backend.clone()));
    // The parent ends once its child does.
    launcher.stop("a", Stop::Orderly).await.unwrap();
    until_gone(backend.pid).await;
    until_gone(parent).await;
}

#[tokio::test]
async fn a_process_that_does_not_hold_the_lock_for_its_life_is_not_the_backend_whatever_that_says()
{
    let scene = Scene::new();
    let mut stranger = sh("exec sleep 60").spawn().unwrap();
    let pid = stranger.id();
    let launcher = scene.launcher(move |_| {
        let notify = format!("notify MAINPID={pid};READY=1");
        Ok((steps(&["write pid", &notify]), Ready::notify()))
    });
    let launched = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(launched.value.pid, number_in(&scene, "pid").await);
    end(&launcher, &launched.value).await;
    assert!(lives(pid));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// Launches a backend that listens only once the file `go` is there.
async fn is_ready_once_it_listens(scene: &Scene, listen: String, endpoint: Endpoint) {
    let launcher = scene.launcher({
        let endpoint = endpoint.clone();
        move |_| {
            let backend = steps(&["await go", &listen]);
            Ok((backend, Ready::accepts(endpoint.clone())))
        }
    });
    let launching = launching(&scene.gate, &launcher);
    until_starting(&launcher, |_| true).await;
    assert!(!launching.is_finished());
    touch(scene, "go");
    let backend = launching.await.unwrap().unwrap().value;
    assert_eq!(backend.endpoint, Some(endpoint.clone()));
    match &endpoint {
        Endpoint::Tcp(address) => drop(TcpStream::connect(address).unwrap()),
        Endpoint::Unix(path) => drop(UnixStream::connect(path).unwrap()),
        _ => unreachable!(),
    }
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_is_ready_once_its_tcp_port_accepts() {
    let scene = Scene::new();
    let at = address();
    is_ready_once_it_listens(&scene, format!("tcp {at}"), at.into()).await;
}

#[tokio::test]
async fn a_backend_is_ready_once_its_unix_socket_accepts_and_one_that_was_left_there_does_not_count()
 {
    let scene = Scene::new();
    let path = scene.files().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    is_ready_once_it_listens(&scene, "unix socket".to_owned(), path.into()).await;
}

#[tokio::test]
async fn a_port_that_a_stranger_has_is_a_failure_with_the_programs_own_words() {
    let scene = Scene::new();
    let at = address();
    let _stranger = TcpListener::bind(at).unwrap();
    let launcher = scene.launcher(move |_| {
        let backend = steps(&[&format!("tcp {at}")]);
        Ok((backend, Ready::accepts(at)))
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let ProcessError::Ended { status, words, .. } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(101));
    // The kind, since the C library words it.
    assert!(words.contains("AddrInUse"), "{words}");
    until_nobody_is_there(&launcher).await;
}

#[tokio::test]
async fn a_port_that_a_stranger_has_is_a_failure_also_if_the_program_does_not_say_so() {
    let scene = Scene::new();
    let at = address();
    let stranger = tokio::net::TcpListener::bind(at).await.unwrap();
    let gate = patient(&scene);
    let launcher = scene.launcher(move |_| {
        let script = "echo waiting for the port; echo $$ >pid; exec sleep 60";
        Ok((sh(script), Ready::accepts(at)))
    });
    let launcher = launcher.start_timeout(AN_AGE);
    let launching = launching(&gate, &launcher);
    // Looked at before the start, and after it.
    for _ in 0..2 {
        stranger.accept().await.unwrap();
    }
    let pid = number_in(&scene, "pid").await;
    assert!(!launching.is_finished());
    // It gets a few seconds to say so.
    set_clock_forward(AN_AGE / 100).await;
    let error = launching.await.unwrap().unwrap_err();
    let ProcessError::EndpointTaken {
        endpoint, words, ..
    } = cause(&error)
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (endpoint, words.as_str()),
        (&Endpoint::Tcp(at), "waiting for the port")
    );
    assert!(!lives(pid));
    until_nobody_is_there(&launcher).await;
}

#[tokio::test]
async fn a_backend_that_gets_its_port_once_a_stranger_has_left_it_is_ready() {
    let scene = Scene::new();
    let at = address();
    let stranger = tokio::net::TcpListener::bind(at).await.unwrap();
    let launcher = scene.launcher(move |_| {
        let backend = steps(&["await go", &format!("tcp {at}")]);
        Ok((backend, Ready::accepts(at)))
    });
    let launching = launching(&scene.gate, &launcher);
    for _ in 0..2 {
        stranger.accept().await.unwrap();
    }
    // To others it is starting, whoever accepts there.
    let found = launcher.find("a").await.unwrap();
    assert!(matches!(found, Presence::Starting { .. }), "{found:?}");
    drop(stranger);
    // The launcher looks again and again meanwhile, within the time that the backend has.
    for _ in 0..30 {
        set_clock_forward(Duration::from_millis(100)).await;
        launcher.find("a").await.unwrap();
    }
    touch(&scene, "go");
    let backend = launching.await.unwrap().unwrap().value;
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_backend_is_ready_once_the_probe_says_so() {
    let scene = Scene::new();
    let asked = Arc::new(AtomicU32::new(0));
    let launcher = scene.launcher({
        let asked = Arc::clone(&asked);
        move |_| {
            let asked = Arc::clone(&asked);
            let probe = move || {
                let before = asked.fetch_add(1, Ordering::Relaxed);
                async move { Ok(before == 3) }
            };
            Ok((sh("exec sleep 60"), Ready::probe(probe)))
        }
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_probe_that_fails_ends_the_launch_and_the_backend() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let probe = || async { Err("the index is of another format".into()) };
        Ok((sh("exec sleep 60"), Ready::probe(probe)))
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let ProcessError::Probe { pid, source } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(source.to_string(), "the index is of another format");
    assert!(!lives(*pid));
    until_nobody_is_there(&launcher).await;
}

#[tokio::test]
async fn a_probe_that_hangs_ends_with_the_time_for_the_start() {
    let scene = Scene::new();
    let gate = patient(&scene);
    let asked = Arc::new(AtomicU32::new(0));
    let launcher = scene.launcher({
        let asked = Arc::clone(&asked);
        move |_| {
            let asked = Arc::clone(&asked);
            let probe = move || {
                asked.fetch_add(1, Ordering::Relaxed);
                std::future::pending()
            };
            Ok((sh("echo $$ >pid; exec sleep 60"), Ready::probe(probe)))
        }
    });
    let launcher = launcher.start_timeout(AN_AGE);
    let launching = launching(&gate, &launcher);
    let pid = number_in(&scene, "pid").await;
    eventually(|| (asked.load(Ordering::Relaxed) == 1).then_some(())).await;
    set_clock_forward(AN_AGE * 2).await;
    let error: GateError = launching.await.unwrap().unwrap_err();
    assert!(matches!(cause(&error), ProcessError::NotReady { after, .. } if *after == AN_AGE));
    assert!(!lives(pid));
}

#[tokio::test]
async fn limits_without_end_are_limits() {
    let scene = Scene::new();
    let launcher = scene
        .launcher(|_| Ok((sh("echo is ready; exec sleep 60"), Ready::line("is ready"))))
        .start_timeout(Duration::MAX)
        .look_timeout(Duration::MAX)
        .grace(Duration::MAX);
    let backend = launcher.in_use("a").await.unwrap().clone();
    let found = scene.gate.launch("a", launcher.clone()).await.unwrap();
    assert_eq!(found.value, backend);
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_probe_that_fails_because_the_backend_ended_does_not_hide_that() {
    let scene = Scene::new();
    let pid_file = scene.files().join("pid");
    let launcher = scene.launcher(move |_| {
        let pid_file = pid_file.clone();
        let probe = move || {
            let pid_file = pid_file.clone();
            async move {
                let pid = std::fs::read_to_string(pid_file).unwrap_or_default();
                let Ok(pid) = pid.trim().parse() else {
                    return Ok(false);
                };
                // Blocks the runtime, so that the end is not noticed first.
                let until = std::time::Instant::now() + crate::kit::LIMIT;
                while lives(pid) && std::time::Instant::now() < until {
                    std::thread::yield_now();
                }
                Err("it does not answer".into())
            }
        };
        let script = "echo $$ >pid; echo its index is broken; exit 3";
        Ok((sh(script), Ready::probe(probe)))
    });
    let error = scene.gate.launch("a", launcher).await.unwrap_err();
    let ProcessError::Ended { status, words, .. } = cause(&error) else {
        panic!("{error:?}");
    };
    assert_eq!(status.unwrap().code(), Some(3));
    assert_eq!(words, "its index is broken");
}
