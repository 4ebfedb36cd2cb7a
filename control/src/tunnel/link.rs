//! One tunnel: yamux over an upgraded connection, driven by one task that alone has it.

use super::dial::{Io, TunnelError};
use crate::shares::{Place, Shares};
use coracle_api::tunnel::{PING, PONG, STREAMS_MAX, WINDOW_BYTES_MAX};
use futures_util::future::poll_fn;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Connection, ConnectionError, Mode};

/// Of [`STREAMS_MAX`], those that one user may have: the rest is for others.
pub(super) const STREAMS_OF_USER_MAX: usize = STREAMS_MAX / 2;
/// Those who wait for a stream to be opened.
const WAITING_MAX: usize = STREAMS_MAX;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

type Opened = oneshot::Sender<yamux::Stream>;

/// A handle on a tunnel. It lives as long as there is one.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub id: u64,
    requests: mpsc::Sender<Opened>,
    slots: Arc<Semaphore>,
    /// Streams that are open, by the user they are for.
    users: Arc<Shares<String>>,
}

/// What makes the tunnel go.
pub(super) struct Driver<T> {
    connection: Connection<Compat<T>>,
    requests: mpsc::Receiver<Opened>,
    /// To ask for a ping's stream; weak, so that the last handle's end is heard.
    link: mpsc::WeakSender<Opened>,
}

/// A new tunnel over `io`.
pub(super) fn open<T: Io + 'static>(io: T) -> (Link, Driver<T>) {
    let mut config = yamux::Config::default();
    config
        .set_max_num_streams(2 * STREAMS_MAX)
        .set_max_connection_receive_window(Some(WINDOW_BYTES_MAX))
        .set_read_after_close(false);
    let connection = Connection::new(io.compat(), config, Mode::Client);
    let (send, requests) = mpsc::channel(WAITING_MAX);
    let driver = Driver { connection, requests, link: send.downgrade() };
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let slots = Arc::new(Semaphore::new(STREAMS_MAX));
    (Link { id, requests: send, slots, users: Shares::new(STREAMS_OF_USER_MAX) }, driver)
}

impl Link {
    /// A new stream for a user; for the control plane itself if `user` is empty.
    ///
    /// # Errors
    /// Too many are open, of this user or of all, or the tunnel has ended.
    pub(super) async fn stream(&self, user: &str) -> Result<Stream, TunnelError> {
        let place = match user {
            "" => None,
            user => Some(self.users.place(user.to_string()).ok_or(TunnelError::FullForUser)?),
        };
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| TunnelError::Full)?;
        let stream = opened(&self.requests).await?;
        Ok(Stream { stream, _slot: slot, _place: place })
    }
}

async fn opened(requests: &mpsc::Sender<Opened>) -> Result<Compat<yamux::Stream>, TunnelError> {
    let (answer, heard) = oneshot::channel();
    requests.send(answer).await.map_err(|_| TunnelError::Ended)?;
    Ok(heard.await.map_err(|_| TunnelError::Ended)?.compat())
}

impl<T: Io + 'static> Driver<T> {
    /// Until the board leaves, stops answering, or comes anew.
    pub(super) async fn run(self) -> Result<(), TunnelError> {
        let Driver { mut connection, mut requests, link } = self;
        let mut driven = pin!(drive(&mut connection, &mut requests));
        let mut pinged = pin!(pings(&link));
        // Without a goodbye: while yamux says one, whoever reads from a stream is never told that it has ended. What is
        // dropped ends all of them.
        tokio::select! {
            ended = &mut driven => ended,
            failed = &mut pinged => Err(failed),
        }
    }
}

async fn drive<T: Io>(
    connection: &mut Connection<Compat<T>>,
    requests: &mut mpsc::Receiver<Opened>,
) -> Result<(), TunnelError> {
    let mut waiting: Option<Opened> = None;
    poll_fn(|cx| {
        loop {
            if waiting.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(answer)) => waiting = Some(answer),
                    // A newer tunnel is there.
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
            }
            if waiting.is_some()
                && let Poll::Ready(opened) = connection.poll_new_outbound(cx)
            {
                let stream = opened.map_err(broken)?;
                // Who asked may have left; then the stream ends with this.
                drop(waiting.take().map(|answer| answer.send(stream)));
                continue;
            }
            match connection.poll_next_inbound(cx) {
                // A board opens none: dropped, which resets it.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

fn broken(error: ConnectionError) -> TunnelError {
    TunnelError::Broken(io::Error::other(error))
}

/// Asks for `/healthz` for ever; returns with what is wrong.
async fn pings(link: &mpsc::WeakSender<Opened>) -> TunnelError {
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        next += PING;
        let Some(link) = link.upgrade() else { return TunnelError::Ended };
        match timeout(PONG, ping(&link)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return TunnelError::Silent(PONG),
        }
    }
}

async fn ping(link: &mpsc::Sender<Opened>) -> Result<(), TunnelError> {
    let io = TokioIo::new(opened(link).await?);
    let broken = |error| TunnelError::Broken(io::Error::other::<hyper::Error>(error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(broken)?;
    let asked = async {
        let request = hyper::Request::get("/healthz").header("host", "tunnel");
        let request = request.body(Empty::<bytes::Bytes>::new()).expect("a request of constants");
        sender.send_request(request).await
    };
    let mut connection = pin!(connection);
    tokio::select! {
        answer = asked => answer.map(drop).map_err(broken),
        ended = &mut connection => Err(ended.map_or_else(broken, |()| TunnelError::Ended)),
    }
}

/// A stream, which counts as open until it is dropped.
pub(super) struct Stream {
    stream: Compat<yamux::Stream>,
    _slot: OwnedSemaphorePermit,
    _place: Option<Place<String>>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
