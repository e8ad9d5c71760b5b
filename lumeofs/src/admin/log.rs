//! `lumeofs admin log`: shows or changes the log filter of a running process, through its metrics endpoint.

use crate::output;
use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use lumeofs_base::{Code, FsError};
use serde_json::json;
use std::time::Duration;

/// For connecting, asking and answering together.
const ASK_TIME: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 10;

/// Options of `lumeofs admin log`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the process was told to serve: http://HOST:PORT of its --metrics
    url: String,
    /// The filter from now on, e.g. debug or info,lumeofs_master=debug; only from the process's own machine
    filter: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, as_json: bool) -> anyhow::Result<()> {
    let host = host_of(&args.url)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = runtime.block_on(async {
        tokio::time::timeout(ASK_TIME, ask(host, args.filter.as_deref())).await
    });
    let asked = asked.unwrap_or_else(|_| {
        let text = format!("no answer in {} s", ASK_TIME.as_secs());
        Err(FsError::new(Code::Timeout, text).into())
    });
    let (status, body) = asked.with_context(|| format!("log filter of {}", args.url))?;
    let body = body.trim_end();
    let code = match status {
        StatusCode::OK if as_json => {
            return output::json(&json!({"url": args.url, "filter": body}));
        }
        StatusCode::OK => return output::line(body),
        StatusCode::FORBIDDEN => Code::NotPermitted,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Code::Invalid,
        StatusCode::NOT_FOUND => Code::NotFound,
        _ => Code::Unavailable,
    };
    Err(FsError::new(code, format!("{} answers: {body}", args.url)).into())
}

async fn ask(host: &str, filter: Option<&str>) -> anyhow::Result<(StatusCode, String)> {
    let stream = tokio::net::TcpStream::connect(host)
        .await
        .map_err(|error| {
            let text = format!("{error}: is the process running, with --metrics {host}?");
            FsError::new(Code::Unavailable, text)
        })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this runtime; its error is that of the request as well.
    tokio::spawn(async move { drop(connection.await) });
    let method = filter.map_or(Method::GET, |_| Method::PUT);
    let body = Bytes::copy_from_slice(filter.unwrap_or_default().as_bytes());
    let request = Request::builder()
        .method(method)
        .uri("/log")
        .header(HOST, host)
        .body(Full::new(body))?;
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    let body = Limited::new(reply.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
    Ok((
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    ))
}

/// `http://HOST:PORT[/]` -> `HOST:PORT`.
fn host_of(url: &str) -> Result<&str, FsError> {
    let host = url.strip_prefix("http://").unwrap_or(url);
    let host = host.strip_suffix('/').unwrap_or(host);
    match host.rsplit_once(':') {
        Some((name, port))
            if !name.is_empty() && !name.contains('/') && port.parse::<u16>().is_ok() =>
        {
            Ok(host)
        }
        _ => Err(FsError::new(
            Code::Invalid,
            format!("{url:?}: want http://HOST:PORT, as given to --metrics"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for good in ["http://a:1", "http://a:1/", "a:1"] {
            assert_eq!(host_of(good).unwrap(), "a:1");
        }
        for bad in ["", "a", "http://a", "https://a:1", "a:b", "http://a:1/log"] {
            let error = host_of(bad).expect_err(bad);
            assert!(error.to_string().contains("http://HOST:PORT"), "{error}");
        }
    }
}
