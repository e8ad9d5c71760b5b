//! What a node keeps of how it became one: `node.json` and `secret` in its (first) data directory, so that it is
//! started again with nothing but `--data`.
//!
//! A node that joins writes both before it asks for its id, with a random number that names the question: whenever it
//! dies, it asks again and gets the same id.

use super::token::Token;
use crate::output;
use anyhow::Context as _;
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeKind, entropy};
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::control::AllocateRequest;
use lumeofs_proto::control::controller_client::ControllerClient;
use lumeofs_proto::grpc::{Connector, cause_of, endpoint, error_of};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the masters are asked for an id.
const ALLOCATE_PATIENCE: Duration = Duration::from_secs(60);
/// How long one of them may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before all are asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What kind of node a directory is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Master,
    Datanode,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Datanode => "datanode",
        }
    }
}

/// The policies of a new cluster, kept by the master that founds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Founding {
    pub(crate) replicas: u32,
    pub(crate) chunk_size: u64,
    pub(crate) durability: String,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Once the masters have given it.
    pub(crate) id: Option<u64>,
    /// Names the question for it: 32 hexadecimal digits.
    pub(crate) nonce: String,
    pub(crate) listen: String,
    pub(crate) advertise: String,
    /// Masters to ask.
    pub(crate) masters: Vec<String>,
    /// Of a datanode.
    #[serde(default)]
    pub(crate) zone: String,
    /// Of a master that joins: without being admitted by anybody.
    #[serde(default)]
    pub(crate) vote: bool,
    /// Of the master that founds the cluster.
    #[serde(default)]
    pub(crate) founding: Option<Founding>,
}

/// What the command line says.
pub(crate) struct Options<'a> {
    pub(crate) role: Role,
    pub(crate) dir: &'a Path,
    pub(crate) token: Option<&'a str>,
    pub(crate) listen: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) vote: bool,
}

/// Where the secret of a node is.
pub(crate) fn secret_file(dir: &Path) -> PathBuf {
    dir.join("secret")
}

fn file(dir: &Path) -> PathBuf {
    dir.join("node.json")
}

fn invalid(text: String) -> FsError {
    FsError::new(Code::Invalid, text)
}

impl Member {
    /// What a directory says, if it is that of a node which keeps it.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Option<Self>> {
        let file = file(dir);
        let text = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        let member = serde_json::from_slice(&text)
            .map_err(|error| invalid(format!("{}: {error}", file.display())))?;
        Ok(Some(member))
    }

    /// Replaces the file as a whole.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let file = file(dir);
        let new = file.with_extension("new");
        let written = || -> std::io::Result<()> {
            let mut out = std::fs::File::create(&new)?;
            out.write_all(&serde_json::to_vec_pretty(self)?)?;
            out.sync_all()?;
            std::fs::rename(&new, &file)?;
            std::fs::File::open(dir)?.sync_all()
        };
        written().with_context(|| format!("write {}", file.display()))
    }

    /// The node of a directory: as it was, or joined just now.
    pub(crate) fn open(options: &Options<'_>) -> anyhow::Result<(Self, Identity)> {
        let dir = options.dir;
        let token = Token::given(options.token)?;
        let mut member = match Self::load(dir)? {
            Some(member) => member.again(options, token.as_ref())?,
            None => Self::join(options, token)?,
        };
        let credentials = Credentials::load(&secret_file(dir))?;
        let id = match member.id {
            Some(id) => id,
            None => {
                let id = allocate(&member, &credentials)?;
                member.id = Some(id);
                member.save(dir)?;
                tracing::info!(id, "this {} has its id", member.role.name());
                id
            }
        };
        let kind = match member.role {
            Role::Master => NodeKind::Master,
            Role::Datanode => NodeKind::Datanode,
        };
        let identity = Identity {
            credentials,
            node: NodeId(id),
            kind,
        };
        Ok((member, identity))
    }

    /// Takes over what the command line changes.
    fn again(mut self, options: &Options<'_>, token: Option<&Token>) -> anyhow::Result<Self> {
        let dir = options.dir;
        if self.role != options.role {
            let text = format!(
                "data directory {} is that of a {}: give the {} its own",
                dir.display(),
                self.role.name(),
                options.role.name()
            );
            return Err(FsError::new(Code::Refused, text).into());
        }
        let secret = Credentials::load(&secret_file(dir))?;
        if token.is_some_and(|token| token.credentials.cluster != secret.cluster) {
            let text = format!(
                "data directory {} belongs to cluster {}, the token to another: give an empty directory to join that one",
                dir.display(),
                secret.cluster
            );
            return Err(FsError::new(Code::Refused, text).into());
        }
        let before = self.clone();
        if let Some(token) = token {
            // Where they are now: all of those that were told may be gone.
            self.masters.clone_from(&token.masters);
        }
        if let Some(listen) = &options.listen {
            // What is advertised moves along unless it was another address all the time.
            if self.advertise == self.listen {
                self.advertise.clone_from(listen);
            }
            self.listen.clone_from(listen);
        }
        if let Some(advertise) = &options.advertise {
            self.advertise.clone_from(advertise);
        }
        if let Some(zone) = &options.zone {
            self.zone.clone_from(zone);
        }
        self.vote |= options.vote;
        check_address(&self.listen, &self.advertise)?;
        if self != before {
            self.save(dir)?;
        }
        Ok(self)
    }

    /// Makes a directory that of a node which has no id yet.
    fn join(options: &Options<'_>, token: Option<Token>) -> anyhow::Result<Self> {
        let (dir, role) = (options.dir, options.role);
        let Some(token) = token else {
            let text = format!(
                "data directory {} is not set up: join a cluster with --join TOKEN (printed by `lumeofs cluster token`), \
                 or name everything: see `lumeofs {} --help`",
                dir.display(),
                role.name()
            );
            return Err(invalid(text).into());
        };
        for used in ["superblock", "controller", "metadata", "chunks"] {
            if dir.join(used).exists() {
                let text = format!(
                    "data directory {} holds a node already, which did not join with a token: start it with the options \
                     that it was started with, or give an empty directory",
                    dir.display()
                );
                return Err(FsError::new(Code::Refused, text).into());
            }
        }
        let listen = options.listen.clone().ok_or_else(|| {
            invalid("--listen HOST:PORT is missing: where shall others reach this node?".to_owned())
        })?;
        let advertise = options.advertise.clone().unwrap_or_else(|| listen.clone());
        check_address(&listen, &advertise)?;
        std::fs::create_dir_all(dir).map_err(|error| {
            FsError::from_disk(&error, format_args!("create {}", dir.display()))
        })?;
        write_secret(&secret_file(dir), &token.credentials)?;
        let member = Self {
            role,
            id: None,
            nonce: nonce(),
            listen,
            advertise,
            masters: token.masters,
            zone: options.zone.clone().unwrap_or_default(),
            vote: options.vote,
            founding: None,
        };
        member.save(dir)?;
        Ok(member)
    }
}

/// A new random number.
pub(crate) fn nonce() -> String {
    let bytes: [u8; 16] = entropy::bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Others must be able to connect to what is advertised.
pub(crate) fn check_address(listen: &str, advertise: &str) -> anyhow::Result<()> {
    crate::access::split_masters(listen)?;
    let advertised = crate::access::split_masters(advertise)?;
    let host = advertise.rsplit_once(':').map_or("", |(host, _)| host);
    if advertised.len() > 1 || matches!(host, "0.0.0.0" | "[::]" | "") {
        let text = format!(
            "others cannot connect to {advertise}: name an address of this machine with --advertise HOST:PORT"
        );
        return Err(invalid(text).into());
    }
    Ok(())
}

/// Writes a secret that only its owner can read. One that is there must be the same: it was written by an attempt
/// before.
pub(crate) fn write_secret(file: &Path, credentials: &Credentials) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if file.exists() {
        let there = Credentials::load(file)?;
        if there.to_text() == credentials.to_text() {
            return Ok(());
        }
        let text = format!(
            "{} is the secret of another cluster, or an older one: give an empty data directory",
            file.display()
        );
        return Err(FsError::new(Code::Refused, text).into());
    }
    let new = file.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut out = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| format!("create {}", new.display()))?;
    out.write_all(credentials.to_text().as_bytes())?;
    out.sync_all()?;
    Ok(std::fs::rename(new, file)?)
}

/// Asks the masters for an id until one of them leads.
fn allocate(member: &Member, credentials: &Credentials) -> anyhow::Result<u64> {
    let nonce = u128::from_str_radix(&member.nonce, 16)
        .map_err(|_| invalid(format!("nonce {:?} in node.json", member.nonce)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        let mut last = FsError::new(Code::Invalid, "node.json names no masters");
        for master in &member.masters {
            let asked = async {
                let asked = tokio::time::timeout(CALL_TIMEOUT, ask(master, credentials, nonce));
                asked.await.unwrap_or_else(|_| Err(Code::Timeout.into()))
            };
            match runtime.block_on(asked) {
                Ok(id) => return Ok(id),
                Err(error) if error.code == Code::Refused => {
                    return Err(error.during(format_args!("master {master}")).into());
                }
                Err(error) => last = error.during(format_args!("master {master}")),
            }
        }
        if begun.elapsed() > ALLOCATE_PATIENCE {
            return Err(last.during("no master gives this node its id").into());
        }
        if !told {
            told = true;
            output::note(format_args!(
                "waiting for a master to give this node its id ({last})"
            ));
        }
        std::thread::park_timeout(PAUSE);
    }
}

async fn ask(master: &str, credentials: &Credentials, nonce: u128) -> FsResult<u64> {
    let endpoint = endpoint(master)?;
    let connecting = endpoint.connect_with_connector(Connector::new(credentials));
    let channel = connecting.await.map_err(|error| cause_of(&error))?;
    let mut request = tonic::Request::new(AllocateRequest {
        nonce: nonce.to_be_bytes().to_vec().into(),
    });
    let token = credentials.grpc_token().parse();
    let token = token.map_err(|_| FsError::new(Code::Invalid, "token of the secret"))?;
    request.metadata_mut().insert("authorization", token);
    let reply = ControllerClient::new(channel).allocate(request).await;
    reply
        .map(|reply| reply.into_inner().id)
        .map_err(|status| error_of(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options<'a>(dir: &'a Path, token: Option<&'a str>, listen: Option<&str>) -> Options<'a> {
        Options {
            role: Role::Datanode,
            dir,
            token,
            listen: listen.map(str::to_owned),
            advertise: None,
            zone: None,
            vote: false,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("lumeofs-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_node_that_joins_keeps_what_it_needs_and_asks_with_the_same_number_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = scratch("join");
        let token = Token {
            credentials: Credentials::generate(),
            masters: vec!["a:1".into()],
        };
        let first = Member::join(&options(&dir, None, Some("b:1")), Some(token.clone())).unwrap();
        let mode = std::fs::metadata(secret_file(&dir)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let again = Member::load(&dir).unwrap().unwrap();
        assert_eq!(again, first);
        let moved = again
            .again(&options(&dir, None, Some("c:2")), Some(&token))
            .unwrap();
        assert_eq!((moved.nonce, moved.advertise), (first.nonce, "c:2".into()));
        let other = Token {
            credentials: Credentials::generate(),
            ..token
        };
        let error = Member::load(&dir).unwrap().unwrap();
        let error = error
            .again(&options(&dir, None, None), Some(&other))
            .unwrap_err();
        assert!(
            error.to_string().contains("the token to another"),
            "{error}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_directory_that_is_in_use_or_not_set_up_is_not_joined() {
        let dir = scratch("unset");
        let error = Member::join(&options(&dir, None, Some("b:1")), None).unwrap_err();
        assert!(error.to_string().contains("--join TOKEN"), "{error}");
        std::fs::create_dir(dir.join("chunks")).unwrap();
        let token = Token {
            credentials: Credentials::generate(),
            masters: vec!["a:1".into()],
        };
        let error = Member::join(&options(&dir, None, Some("b:1")), Some(token)).unwrap_err();
        assert!(
            error.to_string().contains("holds a node already"),
            "{error}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_nobody_can_connect_to_is_not_advertised() {
        assert!(check_address("0.0.0.0:7000", "0.0.0.0:7000").is_err());
        assert!(check_address("[::]:7000", "[::]:7000").is_err());
        assert!(check_address("0.0.0.0:7000", "10.0.0.1:7000").is_ok());
        assert!(check_address("nonsense", "10.0.0.1:7000").is_err());
    }
}
