//! The log of this process: its form, and a filter that can be changed while it runs.

use anyhow::Context as _;
use lumeofs_base::{Code, FsError, FsResult, slow};
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// openraft reports each attempt to reach a peer that is down; what matters of it we log ourselves.
const DEFAULT: &str = "info,openraft=off,fuser=error";
/// The filter's environment variable.
const FILTER_VARIABLE: &str = "LUMEOFS_LOG";
/// The form's environment variable.
const FORMAT_VARIABLE: &str = "LUMEOFS_LOG_FORMAT";

/// The environment variable of what counts as slow, in milliseconds.
const SLOW_VARIABLE: &str = "LUMEOFS_SLOW_MS";

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What [`start`] was told, for processes that go on in another one.
static GIVEN: OnceLock<(Format, Option<u64>)> = OnceLock::new();
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Logs to stderr from now on; `LUMEOFS_LOG` filters, e.g. `info` or `lumeofs_master=debug`. Operations that take
/// `slow_ms` count as slow.
pub(crate) fn start(format: Option<Format>, slow_ms: Option<u64>) -> anyhow::Result<()> {
    let slow_ms = slow_ms.map_or_else(slow_of_environment, |ms| Ok(Some(ms)))?;
    if let Some(ms) = slow_ms {
        slow::set_threshold(Duration::from_millis(ms));
    }
    let format = format.map_or_else(format_of_environment, Ok)?;
    let _ = GIVEN.set((format, slow_ms));
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .context("start the log")?;
    // Set once: a second start failed above.
    let _ = FILTER.set(handle);
    Ok(())
}

/// The environment that makes another process of this program log as this one does.
pub(crate) fn environment() -> Vec<(&'static str, String)> {
    let Some((format, slow_ms)) = GIVEN.get() else {
        return Vec::new();
    };
    let format = match format {
        Format::Text => "text",
        Format::Json => "json",
    };
    let slow = slow_ms.map(|ms| (SLOW_VARIABLE, ms.to_string()));
    [(FORMAT_VARIABLE, format.to_owned())]
        .into_iter()
        .chain(slow)
        .collect()
}

fn format_of_environment() -> FsResult<Format> {
    match std::env::var_os(FORMAT_VARIABLE) {
        None => Ok(Format::Text),
        Some(name) if name == "text" => Ok(Format::Text),
        Some(name) if name == "json" => Ok(Format::Json),
        Some(name) => Err(FsError::new(
            Code::Invalid,
            format!("{FORMAT_VARIABLE}={}: want text or json", name.display()),
        )),
    }
}

fn slow_of_environment() -> FsResult<Option<u64>> {
    let Some(text) = std::env::var_os(SLOW_VARIABLE) else {
        return Ok(None);
    };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(ms) => Ok(Some(ms)),
        None => Err(FsError::new(
            Code::Invalid,
            format!(
                "{SLOW_VARIABLE}={}: want milliseconds, as 1000",
                text.display()
            ),
        )),
    }
}

/// The filter that holds now.
pub(crate) fn filter() -> FsResult<String> {
    handle()?
        .with_current(ToString::to_string)
        .map_err(|error| FsError::new(Code::Unavailable, format!("read the log filter: {error}")))
}

/// Replaces the filter.
pub(crate) fn set_filter(text: &str) -> FsResult<()> {
    let filter = parse(text)?;
    handle()?
        .reload(filter)
        .map_err(|error| FsError::new(Code::Unavailable, format!("change the log filter: {error}")))
}

fn handle() -> FsResult<&'static reload::Handle<EnvFilter, Registry>> {
    FILTER
        .get()
        .ok_or_else(|| FsError::new(Code::Unavailable, "this process keeps no log"))
}

fn parse(text: &str) -> FsResult<EnvFilter> {
    let text = text.trim();
    let bad = |why: &dyn std::fmt::Display| {
        let text =
            format!("log filter {text:?}: {why}: want e.g. info or info,lumeofs_master=debug");
        FsError::new(Code::Invalid, text)
    };
    if text.is_empty() {
        return Err(bad(&"it is empty"));
    }
    EnvFilter::try_new(text).map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_mean_nothing_are_refused_with_an_example() {
        for bad in ["", "  ", "lumeofs=loud", "a=b=c"] {
            let error = parse(bad).expect_err(bad);
            assert_eq!(error.code, Code::Invalid);
            assert!(
                error.to_string().contains("lumeofs_master=debug"),
                "{error}"
            );
        }
        assert!(parse("info,lumeofs_master=debug\n").is_ok());
    }
}
