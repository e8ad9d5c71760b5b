//! `lumeofs cluster`: the first master of a cluster, and tokens with which other machines join.

pub(crate) mod member;
pub(crate) mod token;

use crate::access::Access;
use crate::{admin, output, server};
use lumeofs_base::{Code, FsError, limits};
use lumeofs_proto::auth::Credentials;
use member::{Founding, Member, Role};
use serde_json::json;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use token::Token;

/// Options of `lumeofs cluster`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Prepares the first master of a new cluster in an empty directory; `lumeofs master --data DIR` then starts it
    Init(Init),
    /// Prints a join token: with it other machines join as `lumeofs master` or `lumeofs datanode`. It is a secret
    Token(TokenArgs),
}

#[derive(clap::Args)]
struct Init {
    /// Directory for metadata, logs and the secret of the first master; created if missing
    #[arg(long)]
    data: PathBuf,
    /// HOST:PORT to listen on
    #[arg(long)]
    listen: String,
    /// HOST:PORT that others reach it by [default: --listen]
    #[arg(long)]
    advertise: Option<String>,
    /// Copies of a chunk
    #[arg(long, default_value_t = limits::REPLICAS_DEFAULT as u32)]
    replicas: u32,
    /// Bytes of a file in one chunk, a multiple of 1 MiB up to 64 MiB
    #[arg(long, default_value_t = limits::CHUNK_SIZE_BYTES)]
    chunk_size: u64,
    /// When a write is acknowledged: `fsync` = in memory of all replicas, on disk at fsync; `always` = on disk
    #[arg(long, default_value = "fsync", value_parser = ["fsync", "always"])]
    durability: String,
    /// The cluster encrypts its connections
    #[arg(long)]
    tls: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct TokenArgs {
    /// Data directory of a node of the cluster on this machine, instead of --masters and --secret
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Init(args) => init(args),
        Action::Token(args) => print_token(&args),
    }
}

fn init(args: Init) -> anyhow::Result<()> {
    let dir = &args.data;
    let advertise = args.advertise.unwrap_or_else(|| args.listen.clone());
    member::check_address(&args.listen, &advertise)?;
    server::check_chunk_size(args.chunk_size)?;
    if args.replicas == 0 {
        return Err(FsError::new(Code::Invalid, "--replicas 0: want a number from 1").into());
    }
    std::fs::create_dir_all(dir)
        .map_err(|error| FsError::from_disk(&error, format_args!("create {}", dir.display())))?;
    if std::fs::read_dir(dir)?.next().is_some() {
        let text = format!(
            "{} is not empty: give the first master an empty directory",
            dir.display()
        );
        return Err(FsError::new(Code::Exists, text).into());
    }
    server::write_secret(&member::secret_file(dir), args.tls)?;
    let member = Member {
        role: Role::Master,
        id: Some(1),
        nonce: member::nonce(),
        listen: args.listen,
        masters: vec![advertise.clone()],
        advertise,
        zone: String::new(),
        vote: false,
        founding: Some(Founding {
            replicas: args.replicas,
            chunk_size: args.chunk_size,
            durability: args.durability,
        }),
    };
    member.save(dir)?;
    if args.json {
        return output::json(&json!({
            "data": output::json_name(dir.as_os_str().as_bytes()),
            "secret": output::json_name(member::secret_file(dir).as_os_str().as_bytes()),
            "master": member.advertise,
        }));
    }
    output::line(next_steps(dir, args.replicas))
}

fn next_steps(dir: &Path, replicas: u32) -> String {
    let dir = dir.display();
    format!(
        "The first master is prepared in {dir}. Next:\n\
         \x20 here           lumeofs master --data {dir}\n\
         \x20 here           lumeofs cluster token --data {dir} > token      (a secret: copy it to the other machines)\n\
         \x20 {replicas} or more hosts lumeofs datanode --join @token --data DIR --listen HOST:PORT\n\
         \x20 2 more hosts   lumeofs master --join @token --data DIR --listen HOST:PORT\n\
         \x20 here           lumeofs admin master list, lumeofs admin master add ID ID"
    )
}

fn print_token(args: &TokenArgs) -> anyhow::Result<()> {
    let (masters, credentials) = match &args.data {
        Some(dir) => of_node(dir)?,
        None => args.access.resolve()?,
    };
    // Those that there are now; a token with old addresses may be worth nothing.
    let masters = admin::master::addresses(&masters, &credentials).unwrap_or(masters);
    let token = Token {
        credentials,
        masters,
    };
    if args.access.json {
        return output::json(&json!({"token": token.to_text(), "masters": token.masters}));
    }
    output::note(
        "This token is a secret: who has it can read and change everything in the cluster. Give it to a command as \
         --join @FILE or in LUMEOFS_TOKEN, where `ps` does not show it.",
    );
    output::line(token.to_text())
}

/// Masters and secret as a node keeps them.
fn of_node(dir: &Path) -> anyhow::Result<(Vec<String>, Credentials)> {
    let Some(member) = Member::load(dir)? else {
        let text = format!(
            "{} holds no node that was set up by `lumeofs cluster init` or --join: give --masters and --secret",
            dir.display()
        );
        return Err(FsError::new(Code::NotFound, text).into());
    };
    let mut masters = member.masters;
    if member.role == Role::Master && !masters.contains(&member.advertise) {
        masters.insert(0, member.advertise);
    }
    Ok((masters, Credentials::load(&member::secret_file(dir))?))
}
