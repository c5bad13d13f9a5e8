//! TLS: certificates of both sides, and what is told if they do not fit.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use spawn_gate::SpawnGate;
use spawn_gate_etcd::{EtcdError, EtcdSpawnLock, Tls};
use tempfile::TempDir;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{Gate, led};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this name, and its key.
    fn certificate(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server that wants client certificates, or not.
    fn etcd(&self, directory: &Path, wants_client: bool) -> Option<Etcd> {
        let (certificate, key) = self.certificate("127.0.0.1");
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let mut arguments = vec![
            format!("--cert-file={}", write("server.pem", &certificate)),
            format!("--key-file={}", write("server.key", &key)),
        ];
        if wants_client {
            arguments.push("--client-cert-auth".to_owned());
            arguments.push(format!(
                "--trusted-ca-file={}",
                write("ca.pem", &self.pem())
            ));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Etcd::start(1, &arguments)
    }
}

fn with(etcd: &Etcd, tls: Tls) -> EtcdSpawnLock {
    etcd.builder().tls(tls).build().unwrap()
}

async fn refused(lock: &EtcdSpawnLock) {
    let error = lock.check(PATIENCE).await.unwrap_err();
    assert!(matches!(error, EtcdError::Tls { .. }), "{error}");
    assert!(!error.retry_helps());
}

/// A member that closes connections may also be about to start, so this is told at the deadline, and a retry is allowed. At times TLS
/// itself says what is wrong.
async fn closed(lock: &EtcdSpawnLock) {
    let error = lock.check(Duration::from_secs(2)).await.unwrap_err();
    let is_told = matches!(error, EtcdError::Closed { .. } | EtcdError::Tls { .. });
    assert!(is_told && error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_client_with_a_certificate_launches_and_one_without_is_refused() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let Some(etcd) = authority.etcd(directory.path(), true) else {
        return;
    };
    let (certificate, key) = authority.certificate("client");
    let lock = with(
        &etcd,
        Tls::new().ca(authority.pem()).client(certificate, key),
    );
    lock.check(PATIENCE).await.unwrap();
    let gate: Gate = SpawnGate::builder(lock).build();
    led(&gate).await.succeed(1).await.unwrap();

    closed(&with(&etcd, Tls::new().ca(authority.pem()))).await;
    let (certificate, key) = Authority::new().certificate("stranger");
    closed(&with(
        &etcd,
        Tls::new().ca(authority.pem()).client(certificate, key),
    ))
    .await;
}

#[tokio::test]
async fn a_server_with_another_certificate_is_refused() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let Some(etcd) = authority.etcd(directory.path(), false) else {
        return;
    };
    with(&etcd, Tls::new().ca(authority.pem()))
        .check(PATIENCE)
        .await
        .unwrap();
    refused(&with(&etcd, Tls::new().ca(Authority::new().pem()))).await;
    refused(&with(&etcd, Tls::new())).await;
    refused(&with(
        &etcd,
        Tls::new().ca(authority.pem()).server_name("etcd.example"),
    ))
    .await;
}

#[tokio::test]
async fn a_side_without_tls_is_told() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (Some(plain), Some(with_tls)) = (Etcd::one(), authority.etcd(directory.path(), false))
    else {
        return;
    };
    plain.lock().await;
    with(&with_tls, Tls::new().ca(authority.pem()))
        .check(PATIENCE)
        .await
        .unwrap();
    let https = plain.endpoints()[0].replace("http", "https");
    closed(&EtcdSpawnLock::builder([https]).build().unwrap()).await;
    let http = with_tls.endpoints()[0].replace("https", "http");
    closed(&EtcdSpawnLock::builder([http]).build().unwrap()).await;
}

/// Takes connections and closes them at once, on a port that etcd is to get.
#[tokio::test]
async fn a_member_that_closes_connections_while_it_starts_is_no_final_error() {
    let Some(mut etcd) = Etcd::one() else { return };
    let lock = etcd.builder().build().unwrap();
    etcd.kill(0);
    let url = etcd.endpoints().remove(0);
    let address = url.trim_start_matches("http://").to_owned();
    let closing = TcpListener::bind(&address).unwrap();
    let checking = tokio::spawn(async move { lock.check(PATIENCE).await });
    let connections = tokio::task::spawn_blocking(move || {
        for _ in 0..5 {
            drop(closing.accept().unwrap());
        }
    });
    connections.await.unwrap();
    etcd.start_member(0);
    checking.await.unwrap().unwrap();
}

#[test]
fn texts_that_are_no_certificates_are_refused_when_the_lock_is_built() {
    let builder = |tls| {
        EtcdSpawnLock::builder(["https://localhost:2379"])
            .tls(tls)
            .build()
    };
    let (certificate, _) = Authority::new().certificate("client");
    for tls in [
        Tls::new().client("hello", "hello"),
        Tls::new().client(certificate, "hello"),
        Tls::new().ca("hello"),
    ] {
        let error = builder(tls).unwrap_err();
        assert!(
            matches!(error, EtcdError::InvalidSetting { setting: "TLS", .. }),
            "{error}"
        );
    }
}
