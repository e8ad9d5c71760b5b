//! The HTTP endpoint of a process: `GET /metrics`, `GET /healthz`, `GET` and `PUT /log`.
//!
//! It has no authentication, so it shows only numbers, and the log filter is changed from this machine alone.
//! It runs on a thread of its own: a process whose work hangs still answers.

mod process;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lumeofs_base::metrics::Page;
use lumeofs_base::{Code, FsError};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Served at the same time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's head.
const HEAD_MAX: usize = 8 << 10;
/// Bytes of a log filter.
const BODY_MAX: usize = 4 << 10;
/// From accepting a connection to its end.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// After a connection could not be accepted, as when there are too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What a process adds to the page.
type Collect = Box<dyn Fn(&mut Page) + Send + Sync>;

/// Answers on `address`, if one is given, from now on and as long as the process lives: so a wrong address is known
/// before anything is begun. What `collect` writes of the process is there once the returned cell is filled.
///
/// # Errors
/// The address is none of this machine, or its port is taken.
pub(crate) fn start_early<T: Send + Sync + 'static>(
    address: Option<&str>,
    collect: fn(&T, &mut Page),
) -> anyhow::Result<Arc<OnceLock<T>>> {
    let metrics: Arc<OnceLock<T>> = Arc::default();
    if let Some(address) = address {
        let metrics = metrics.clone();
        let collect = move |page: &mut Page| {
            if let Some(metrics) = metrics.get() {
                collect(metrics, page);
            }
        };
        start_with(address, Box::new(collect), CONNECTION_TIME)?;
    }
    Ok(metrics)
}

/// Gives the address with its port.
fn start_with(address: &str, collect: Collect, time: Duration) -> anyhow::Result<SocketAddr> {
    let failed = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::AddrInUse => Code::Busy,
            _ => Code::Invalid,
        };
        let text = format!(
            "--metrics {address}: {error}: want HOST:PORT of this machine that no other process uses"
        );
        FsError::new(code, text)
    };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve(&listener, collect, time).await,
                    Err(error) => tracing::error!(%error, "the metrics endpoint did not start"),
                }
            });
        })?;
    process::start_time();
    tracing::info!(%address, "metrics are served");
    Ok(address)
}

async fn serve(listener: &TcpListener, collect: Collect, time: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let collect = Arc::new(collect);
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "metrics endpoint: accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let collect = collect.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request| answer(request, peer.ip(), &collect));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(time)
                .max_buf_size(HEAD_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(time, served).await {
                tracing::debug!(%error, %peer, "metrics endpoint: a connection failed");
            }
        });
    }
}

type Reply = Response<Full<Bytes>>;

async fn answer<B>(
    request: Request<B>,
    peer: IpAddr,
    collect: &Collect,
) -> Result<Reply, Infallible>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let get = request.method() == Method::GET;
    let reply = match request.uri().path() {
        "/metrics" if get => {
            let mut page = Page::default();
            process::collect(&mut page);
            collect(&mut page);
            text(StatusCode::OK, page.into_text())
        }
        "/healthz" if get => text(StatusCode::OK, "ok\n"),
        "/log" if get => match crate::log::filter() {
            Ok(filter) => text(StatusCode::OK, filter + "\n"),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        "/log" if request.method() == Method::PUT => change_log(request, peer).await,
        "/metrics" | "/healthz" => wrong_method("GET"),
        "/log" => wrong_method("GET, PUT"),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /healthz and /log\n",
        ),
    };
    Ok(reply)
}

async fn change_log<B>(request: Request<B>, peer: IpAddr) -> Reply
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // An IPv4 peer of an IPv6 socket comes as ::ffff:127.0.0.1.
    if !peer.to_canonical().is_loopback() {
        let why = "the log filter can be changed from the same machine only\n";
        return text(StatusCode::FORBIDDEN, why);
    }
    let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else {
        let why = format!("want a log filter of at most {BODY_MAX} bytes\n");
        return text(StatusCode::PAYLOAD_TOO_LARGE, why);
    };
    let body = body.to_bytes();
    match crate::log::set_filter(&String::from_utf8_lossy(&body)) {
        Ok(()) => {
            let filter = crate::log::filter().unwrap_or_default();
            tracing::warn!(%filter, "the log filter was changed");
            text(StatusCode::OK, filter + "\n")
        }
        Err(error) if error.code == Code::Invalid => {
            text(StatusCode::BAD_REQUEST, format!("{error}\n"))
        }
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply = text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("allowed: {allowed}\n"),
    );
    let allowed = hyper::header::HeaderValue::from_static(allowed);
    reply.headers_mut().insert(ALLOW, allowed);
    reply
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

#[cfg(test)]
mod tests;
