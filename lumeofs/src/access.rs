//! How a command finds its cluster: addresses of masters and the secret file, given as options, by
//! environment variables, or by the directory of a development cluster.

use crate::dev::layout::Layout;
use anyhow::Context as _;
use lumeofs_base::{Code, FsError};
use lumeofs_client::{CACHE_BYTES_MIN, Client, ClientOptions, OnOutage};
use lumeofs_proto::auth::Credentials;
use std::path::PathBuf;
use std::sync::Arc;

/// Options of every command that talks to a cluster.
#[derive(clap::Args, Clone)]
pub(crate) struct Access {
    /// Masters as HOST:PORT, separated by commas [env: LUMEOFS_MASTERS]
    #[arg(long, global = true, value_name = "LIST")]
    masters: Option<String>,
    /// Secret file of the cluster [env: LUMEOFS_SECRET]
    #[arg(long, global = true, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Directory of a development cluster; used when no masters are given
    #[arg(long, global = true, value_name = "DIR", default_value = crate::dev::DEFAULT_DIR)]
    dir: PathBuf,
    /// Prints JSON; a name that is not UTF-8 is a list of its bytes there
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Access {
    /// Masters and credentials.
    pub(crate) fn resolve(&self) -> anyhow::Result<(Vec<String>, Credentials)> {
        let masters = self
            .masters
            .clone()
            .or_else(|| std::env::var("LUMEOFS_MASTERS").ok());
        let secret = self.secret_file();
        if let Some(masters) = masters {
            let secret = secret.ok_or_else(|| {
                FsError::new(
                    Code::Invalid,
                    "masters are given but no secret file: add --secret FILE",
                )
            })?;
            return Ok((split_masters(&masters)?, Credentials::load(&secret)?));
        }
        let layout = Layout::load(&self.dir).with_context(|| {
            format!(
                "no --masters given and no development cluster in {}: give --masters and --secret, or start one with `lumeofs dev`",
                self.dir.display()
            )
        })?;
        Ok((
            layout.master_addresses(),
            Credentials::load(&layout.secret_file())?,
        ))
    }

    fn secret_file(&self) -> Option<PathBuf> {
        let named = self.secret.clone();
        named.or_else(|| std::env::var_os("LUMEOFS_SECRET").map(PathBuf::from))
    }

    /// The credentials alone, for what needs no master.
    pub(crate) fn secret(&self) -> anyhow::Result<Credentials> {
        let file = self.secret_file().ok_or_else(|| {
            FsError::new(Code::Invalid, "no secret file is given: add --secret FILE")
        })?;
        Ok(Credentials::load(&file)?)
    }

    /// A session for a short command: fails rather than waits when no quorum answers.
    pub(crate) fn connect(&self) -> anyhow::Result<Arc<Client>> {
        let (masters, credentials) = self.resolve()?;
        let options = ClientOptions {
            on_outage: OnOutage::Eio,
            description: format!("command, pid {}", std::process::id()),
            cache_bytes: CACHE_BYTES_MIN,
            dirsync: true,
        };
        Ok(Client::connect(&masters, credentials, options)?)
    }
}

/// Splits and checks a list of `HOST:PORT`.
pub(crate) fn split_masters(list: &str) -> anyhow::Result<Vec<String>> {
    let masters: Vec<String> = list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
    let valid = |address: &String| {
        address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if let Some(bad) = masters.iter().find(|address| !valid(address)) {
        return Err(FsError::new(Code::Invalid, format!("master {bad:?}: want HOST:PORT")).into());
    }
    if masters.is_empty() {
        return Err(FsError::new(
            Code::Invalid,
            "the list of masters is empty: want HOST:PORT[,…]",
        )
        .into());
    }
    Ok(masters)
}
