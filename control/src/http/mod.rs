//! The HTTP side: TLS connections in, requests to the registry, streams out.
//!
//! ```text
//! accept ─► TLS (client certificate, if any) ─► HTTP/1.1 ─► who ─► may they ─► path ─► registry ─► negotiated answer
//!                                                                               ├─► watch: a body that is pulled
//!                                                                               └─► streams: on to the pod's board
//! ```
//! Invariants: nobody writes without being known; every error is a `Status`; every body, connection count and wait has a
//! bound that is named here; a reader that takes nothing for [`STALLED_WRITE`] loses its connection, and nobody waits for it.

mod access;
mod body;
mod bounds;
mod connection;
mod discovery;
mod metrics;
mod negotiate;
mod openapi;
mod path;
mod reviews;
mod serve;
mod streams;
mod top;

use crate::auth::Authenticator;
use crate::controllers::Controllers;
use crate::enroll::Enrollment;
use crate::registry::Registry;
use crate::tunnel::Dialer;
use crate::usage::Boards;
use bounds::InFlight;
use metrics::Metrics;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Until accept(2) is tried again after an error that is not one connection's.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a request's body: upstream's bound.
const BODY_BYTES_MAX: usize = 3 << 20;
/// From the connection to the end of the TLS handshake, and to the end of a request's head.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the head to the end of the body.
const BODY: Duration = Duration::from_secs(60);
/// A request that is no watch.
const REQUEST: Duration = Duration::from_secs(60);
/// A client that takes nothing of what is sent.
const STALLED_WRITE: Duration = Duration::from_secs(30);

/// What a request may use.
#[derive(Debug)]
pub struct Context {
    registry: Registry,
    authenticator: Authenticator,
    metrics: Metrics,
    boards: Arc<Boards>,
    in_flight: InFlight,
    dialer: Arc<Dialer>,
    enrollment: Enrollment,
    /// They live as long as somebody is served; absent where only the API is.
    controllers: Option<Controllers>,
}

impl Context {
    /// Over a registry, for those that the authenticator knows, with a way to the boards, and a way in for new ones.
    pub fn new(
        registry: Registry,
        authenticator: Authenticator,
        (dialer, boards): (Arc<Dialer>, Arc<Boards>),
        enrollment: Enrollment,
    ) -> Context {
        Context {
            registry,
            authenticator,
            metrics: Metrics::default(),
            boards,
            in_flight: InFlight::default(),
            dialer,
            enrollment,
            controllers: None,
        }
    }

    /// With the controllers of this process, whose metrics are served.
    #[must_use]
    pub fn with_controllers(self, controllers: Controllers) -> Context {
        Context { controllers: Some(controllers), ..self }
    }

    /// `/metrics`.
    fn metrics_text(&self) -> String {
        let controllers = self.controllers.as_ref().map(Controllers::metrics);
        self.metrics.text() + &controllers.unwrap_or_default()
    }
}

/// Serves until it is dropped. Connections are tasks of their own. What accept(2) complains of passes: a connection that
/// broke, the network, or files and memory that are used up; then those who wait do so in the kernel's queue.
///
/// # Errors
/// None but a programmer's.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    context: Arc<Context>,
) -> Result<(), std::io::Error> {
    let acceptor = TlsAcceptor::from(tls);
    let connections_max = bounds::connections();
    let slots = Arc::new(Semaphore::new(connections_max));
    let sources = bounds::sources(connections_max);
    loop {
        let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // What is wrong with one connection, accept(2) tells of the listener.
            Err(error) if connection::is_of_the_peer(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = sources.place(from.ip()) else {
            tracing::debug!(%from, "too many connections come from there");
            continue;
        };
        let (acceptor, context) = (acceptor.clone(), context.clone());
        tokio::spawn(async move {
            connection::run(stream, acceptor, context).await;
            drop((slot, place));
        });
    }
}
