//! How many calls reach the cluster, by the members' own counts.

use std::time::Duration;

use spawn_gate::BoxError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::Cluster;

/// Counts the calls of this time. A stream counts once, when it begins.
pub(crate) async fn counted(cluster: &Cluster, time: Duration) -> Result<u64, BoxError> {
    let before = started(cluster).await?;
    tokio::time::sleep(time).await;
    Ok(started(cluster).await? - before)
}

async fn started(cluster: &Cluster) -> Result<u64, BoxError> {
    let mut calls = 0;
    for port in cluster.ports() {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = "GET /metrics HTTP/1.0\r\n\r\n";
        connection.write_all(request.as_bytes()).await?;
        let mut page = Vec::new();
        connection.read_to_end(&mut page).await?;
        let page = String::from_utf8_lossy(&page).into_owned();
        for line in page
            .lines()
            .filter(|line| line.starts_with("grpc_server_started_total{"))
        {
            let count = line.rsplit(' ').next().unwrap_or_default();
            calls += count.parse::<f64>()? as u64;
        }
    }
    Ok(calls)
}
