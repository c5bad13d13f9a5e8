//! One member of the cluster: its connection, and the token of this user there.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::error::EtcdError;
use crate::wire::{AuthenticateRequest, Call};

pub(crate) struct Endpoint {
    pub(crate) url: String,
    channel: Channel,
    user: Option<(String, String)>,
    token: Mutex<Option<Token>>,
    /// It has answered a call.
    has_answered: AtomicBool,
    /// How often it has closed a connection before it ever answered.
    closed: AtomicU32,
}

type Token = MetadataValue<Ascii>;

impl Endpoint {
    /// Must be called in the runtime that its calls run in.
    pub(crate) fn new(
        url: String,
        connection: &tonic::transport::Endpoint,
        user: Option<(String, String)>,
    ) -> Self {
        Self {
            url,
            channel: connection.connect_lazy(),
            user,
            token: Mutex::default(),
            has_answered: AtomicBool::new(false),
            closed: AtomicU32::new(0),
        }
    }

    /// Calls once; twice if the token of the user had expired.
    pub(crate) async fn call<C: Call>(&self, request: &C) -> Result<C::Answer, EtcdError> {
        let token = self.token().await?;
        match self.unary(request, token.clone()).await {
            Err(status) if token.is_some() && is_expired(&status) => {
                self.forget_token();
                let token = self.token().await?;
                self.unary(request, token).await
            }
            answer => answer,
        }
        .map_err(|status| self.error(&status))
        .inspect(|_| self.has_answered.store(true, Ordering::Relaxed))
    }

    /// Begins a stream of requests and responses.
    pub(crate) async fn stream<Q, A>(
        &self,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, EtcdError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let token = self.token().await?;
        let request = with_metadata(requests, token);
        let mut grpc = Grpc::new(self.channel.clone());
        let path = PathAndQuery::from_static(path);
        let streaming = async {
            ready(&mut grpc).await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.streaming(request, path, codec).await
        };
        match streaming.await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.stream_failed(&status)),
        }
    }

    /// The error of a stream. If the token had expired, the next stream gets a new one.
    pub(crate) fn stream_failed(&self, status: &Status) -> EtcdError {
        if is_expired(status) {
            self.forget_token();
        }
        self.error(status)
    }

    /// The error of a stream that ended without an answer.
    pub(crate) fn said_nothing(&self) -> EtcdError {
        EtcdError::Unreachable {
            endpoint: self.url.clone(),
            problem: "the stream ended without an answer".to_owned(),
        }
    }

    async fn unary<C: Call>(&self, request: &C, token: Option<Token>) -> Result<C::Answer, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        ready(&mut grpc).await?;
        let request = with_metadata(request.clone(), token);
        let path = PathAndQuery::from_static(C::PATH);
        let codec = ProstCodec::<C, C::Answer>::default();
        Ok(grpc.unary(request, path, codec).await?.into_inner())
    }

    /// The token of the user, if there is a user.
    async fn token(&self) -> Result<Option<Token>, EtcdError> {
        let Some((name, password)) = &self.user else {
            return Ok(None);
        };
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Some(token.clone()));
        }
        let request = AuthenticateRequest {
            name: name.clone(),
            password: password.clone(),
        };
        let answer = self.unary(&request, None).await;
        let answer = answer.map_err(|status| self.error(&status))?;
        let token: Token = answer
            .token
            .parse()
            .map_err(|_| EtcdError::Unauthenticated {
                problem: "the token is no header value".to_owned(),
            })?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }

    fn forget_token(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the status means. A member that takes connections and closes them before any answer may not know what to do with
    /// them: one side speaks TLS and the other does not, or the client's certificate is refused, which TLS 1.3 tells too late. Or it
    /// is about to end or to start.
    fn error(&self, status: &Status) -> EtcdError {
        match EtcdError::from_status(status, &self.url) {
            EtcdError::Unreachable { endpoint, problem } => {
                let is_unheard = is_closed(&problem) && !self.has_answered.load(Ordering::Relaxed);
                // The first time, it may be about to end.
                if !is_unheard || self.closed.fetch_add(1, Ordering::Relaxed) == 0 {
                    return EtcdError::Unreachable { endpoint, problem };
                }
                EtcdError::Closed { endpoint, problem }
            }
            error => {
                self.has_answered.store(true, Ordering::Relaxed);
                error
            }
        }
    }
}

fn with_metadata<V>(message: V, token: Option<Token>) -> Request<V> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if let Some(token) = token {
        metadata.insert("token", token);
    }
    // A member without a leader then says so, and ends its streams, instead of saying nothing for a while.
    metadata.insert("hasleader", MetadataValue::from_static("true"));
    request
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(Box::new(error)))
}

/// Whether a connection was made and closed, rather than not made.
fn is_closed(problem: &str) -> bool {
    let closed = [
        "connection closed",
        "handshake eof",
        "broken pipe",
        "reset",
        "http2 error",
        "frame",
    ];
    let problem = problem.to_lowercase();
    closed.iter().any(|text| problem.contains(text))
}

/// Whether a new token may help: the old one has expired, or users and roles were changed since.
fn is_expired(status: &Status) -> bool {
    let message = status.message();
    message.contains("invalid auth token") || message.contains("auth store is old")
}
