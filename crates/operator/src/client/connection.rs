//! Connections for writes: they look at the gate before each call that hands bytes to the system, the last moment at
//! which a process can still refuse. What was begun before a freeze, and waits between the tasks of this process when it
//! wakes, ends here.

use std::{
    io::{Error, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Uri;
use futures::future::{BoxFuture, FutureExt as _};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{self, Connected, HttpConnector};
use tower::{BoxError, Service};

use crate::lease::Gate;

/// Makes connections that send nothing while the lease is not held.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    inner: HttpConnector,
    gate: Gate,
}

impl Connector {
    pub(super) fn new(timeout: Option<Duration>, gate: Gate) -> Self {
        let mut inner = HttpConnector::new();
        // TLS comes on top of it.
        inner.enforce_http(false);
        inner.set_connect_timeout(timeout);
        Self { inner, gate }
    }
}

impl Service<Uri> for Connector {
    type Response = Connection<<HttpConnector as Service<Uri>>::Response>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let gate = self.gate.clone();
        async move {
            let inner = connecting.await?;
            Ok(Connection { inner, gate })
        }
        .boxed()
    }
}

#[derive(Debug)]
pub(super) struct Connection<C> {
    inner: C,
    gate: Gate,
}

impl<C: Write + Unpin> Connection<C> {
    /// The connection, if it may send now.
    fn open(&mut self) -> Result<Pin<&mut C>, Error> {
        self.gate.held().map_err(Error::other)?;
        Ok(Pin::new(&mut self.inner))
    }
}

impl<C: Write + Unpin> Write for Connection<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        self.open()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize, Error>> {
        self.open()?.poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<C: Read + Unpin> Read for Connection<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<C: connect::Connection> connect::Connection for Connection<C> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}
