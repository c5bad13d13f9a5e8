//! The lock's main job on real etcd: three members, three hosts that share one backend, a member that is killed, a host that is cut
//! off, and a holder that is paused and starts its backend late. Needs `etcd` in the path. Run it with
//! `cargo run --release --example cluster_storm`, on Linux.
//!
//! This program plays all the parts: it starts itself again as `host` and `backend`. The parts to copy are `host.rs` and
//! `backend.rs`: how a host launches, and how a backend registers with its fencing token. The rest directs and judges.
//!
//! The exit status is 0 if all was as expected, 1 if not.

#[cfg(target_os = "linux")]
mod backend;
#[cfg(target_os = "linux")]
mod cluster;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod scenarios;
#[cfg(target_os = "linux")]
mod stage;

#[cfg(target_os = "linux")]
#[tokio::main]
async fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args[..] {
        [] => scenarios::play_all().await,
        ["host", endpoints, scene] => host::run(endpoints, scene).await.map(|()| true),
        ["backend", endpoints, scene, token] => {
            backend::run(endpoints, scene, token).await.map(|()| true)
        }
        _ => Err(format!("no such role: {args:?}; start it without arguments").into()),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this example runs on Linux");
}
