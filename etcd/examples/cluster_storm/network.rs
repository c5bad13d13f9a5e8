//! The network of one host: it forwards to the members until it is cut, and again once it is mended.

use std::sync::Arc;

use spawn_gate::BoxError;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Network {
    endpoints: Vec<String>,
    is_cut: Arc<watch::Sender<bool>>,
}

impl Network {
    pub(crate) async fn new(members: &[u16]) -> Result<Self, BoxError> {
        let is_cut = Arc::new(watch::Sender::new(false));
        let mut endpoints = Vec::new();
        for &member in members {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            endpoints.push(format!("http://{}", listener.local_addr()?));
            tokio::spawn(forward(listener, member, Arc::clone(&is_cut)));
        }
        Ok(Self { endpoints, is_cut })
    }

    pub(crate) fn endpoints(&self) -> String {
        self.endpoints.join(",")
    }

    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn forward(listener: TcpListener, member: u16, is_cut: Arc<watch::Sender<bool>>) {
    while let Ok((mut here, _)) = listener.accept().await {
        let mut cut = is_cut.subscribe();
        tokio::spawn(async move {
            // While it is cut, nothing goes through, and nobody is told so.
            until(&mut cut, false).await;
            let Ok(mut there) = TcpStream::connect(("127.0.0.1", member)).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut here, &mut there) => return,
                () = until(&mut cut, true) => {}
            }
            // Both ends stay open, and silent, until it is mended.
            until(&mut cut, false).await;
        });
    }
}

async fn until(cut: &mut watch::Receiver<bool>, wanted: bool) {
    // The sender lives as long as the forwarding.
    let _ = cut.wait_for(|&is_cut| is_cut == wanted).await;
}
