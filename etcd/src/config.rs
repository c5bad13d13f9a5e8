//! The settings of a lock on etcd.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::error::EtcdError;

/// How to speak TLS with the cluster. Without any of it, the certificates of the operating system are trusted.
#[derive(Clone, Default)]
pub struct Tls {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl Tls {
    /// Creates the settings that trust the certificates of the operating system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificate authority of this PEM text, and no other.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows this certificate to the cluster; both are PEM texts.
    #[must_use]
    pub fn client(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client = Some((certificate.into(), key.into()));
        self
    }

    /// Sets the name that must be in the server's certificate, if it is not the host in the URL.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Checks that the texts are what they should be.
    fn check(&self) -> Result<(), EtcdError> {
        let check = |pem: &[u8]| match CertificateDer::pem_slice_iter(pem).next() {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(format!("a certificate cannot be read: {error}")),
            None => Err("a certificate is missing".to_owned()),
        };
        let client = self.client.as_ref();
        let mut certificates = self
            .ca
            .iter()
            .chain(client.map(|(certificate, _)| certificate));
        let checked = certificates.try_for_each(|pem| check(pem));
        let checked = checked.and_then(|()| match client {
            Some((_, key)) => PrivateKeyDer::from_pem_slice(key)
                .map(drop)
                .map_err(|error| format!("the key cannot be read: {error}")),
            None => Ok(()),
        });
        checked.map_err(|problem| EtcdError::InvalidSetting {
            setting: "TLS",
            problem,
        })
    }

    fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.client {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        match &self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

/// Keys and certificates are not shown.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("has_ca", &self.ca.is_some())
            .field("has_client", &self.client.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// All settings, as the builder collects them.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    /// How long a lock holds without a renewal.
    pub(crate) expires_in: Duration,
    /// How long a record is kept after its last charge.
    pub(crate) kept_for: Duration,
    /// The limit of one call at one member.
    pub(crate) call_timeout: Duration,
    pub(crate) tls: Option<Tls>,
    pub(crate) user: Option<(String, String)>,
}

/// The URL without user and password, for errors.
pub(crate) fn redacted(url: &str) -> String {
    let begin = url.find("://").map_or(0, |scheme| scheme + 3);
    match url.rfind('@') {
        Some(at) if at >= begin => format!("{}…{}", &url[..begin], &url[at..]),
        // In doubt, what is before the last of them is no scheme.
        Some(at) => format!("…{}", &url[at..]),
        None => url.to_owned(),
    }
}

/// Etcd refuses more.
const LONGEST_LEASE: Duration = Duration::from_secs(9_000_000_000);

impl Config {
    /// Checks the settings and returns a connection, not yet made, for each endpoint.
    pub(crate) fn connections(&self) -> Result<Vec<(String, Endpoint)>, EtcdError> {
        let invalid = |setting, problem: &str| EtcdError::InvalidSetting {
            setting,
            problem: problem.to_owned(),
        };
        if self.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        if self.prefix.is_empty() || self.prefix.ends_with('/') || self.prefix.contains('\0') {
            return Err(invalid(
                "prefix",
                "it must not be empty, end with '/', or contain a zero byte",
            ));
        }
        let whole_seconds = |time: Duration| time.as_secs() > 0 && time.subsec_nanos() == 0;
        if !whole_seconds(self.expires_in) || self.expires_in > Duration::from_secs(3600) {
            return Err(invalid("expires_in", "it must be 1 to 3600 whole seconds"));
        }
        if !whole_seconds(self.kept_for)
            || self.kept_for < self.expires_in
            || self.kept_for > LONGEST_LEASE
        {
            return Err(invalid(
                "kept_for",
                "it must be whole seconds, and not less than expires_in",
            ));
        }
        if self.call_timeout.is_zero() || self.call_timeout > self.expires_in {
            return Err(invalid(
                "call_timeout",
                "it must be more than zero, and not more than expires_in",
            ));
        }
        let connection = |endpoint: &String| Ok((endpoint.clone(), self.connection(endpoint)?));
        self.endpoints.iter().map(connection).collect()
    }

    fn connection(&self, url: &str) -> Result<Endpoint, EtcdError> {
        let invalid = |problem| EtcdError::InvalidEndpoint {
            endpoint: redacted(url),
            problem,
        };
        let endpoint =
            Endpoint::from_shared(url.to_owned()).map_err(|_| invalid("it is no URL"))?;
        let uri = endpoint.uri();
        let has_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("it does not begin with http:// or https://")),
        };
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("it has no host"));
        }
        if uri.port_u16().is_none() {
            return Err(invalid("it has no port"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("it has a path"));
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(invalid("it has a user; give the user to the builder"));
        }
        if !has_tls && self.tls.is_some() {
            return Err(invalid("it is http://, and TLS is set"));
        }
        let endpoint = endpoint
            .connect_timeout(self.call_timeout)
            // Etcd closes a connection with more than one ping in 5 s.
            .http2_keep_alive_interval(Duration::from_secs(6))
            .keep_alive_timeout(self.call_timeout);
        if !has_tls {
            return Ok(endpoint);
        }
        let tls = self.tls.clone().unwrap_or_default();
        tls.check()?;
        endpoint
            .tls_config(tls.config())
            .map_err(|error| EtcdError::InvalidSetting {
                setting: "TLS",
                problem: match std::error::Error::source(&error) {
                    Some(source) => source.to_string(),
                    None => error.to_string(),
                },
            })
    }
}
