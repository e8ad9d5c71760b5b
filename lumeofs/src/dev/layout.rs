//! What a development cluster consists of: `cluster.json` in its directory.

use anyhow::Context as _;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use serde::{Deserialize, Serialize};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Metadata and controller.
    Master,
    /// Chunks.
    Datanode,
}

impl Role {
    /// As the command line calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Datanode => "datanode",
        }
    }
}

/// One server process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    /// `master-1`, `datanode-101`.
    pub(crate) name: String,
    /// What it is.
    pub(crate) role: Role,
    /// Its node id.
    pub(crate) id: u64,
    /// Where it listens.
    pub(crate) address: String,
    /// Where it answers with its metrics; not at all in a cluster of an older version.
    #[serde(default)]
    pub(crate) metrics: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    nodes: Vec<Node>,
    replicas: u32,
    durability: String,
    mount: Option<PathBuf>,
    options: String,
    #[serde(default)]
    mount_metrics: Option<String>,
}

/// A development cluster.
pub(crate) struct Layout {
    /// Its directory, absolute.
    pub(crate) dir: PathBuf,
    /// Where it is mounted.
    pub(crate) mount: Option<PathBuf>,
    stored: Stored,
}

impl Layout {
    /// Whether there is a cluster in `dir`.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join("cluster.json").exists()
    }

    /// Reads the cluster in `dir`.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("cluster.json");
        let text = std::fs::read(&file)
            .with_context(|| format!("no development cluster here: {}", file.display()))?;
        let stored: Stored = serde_json::from_slice(&text)
            .with_context(|| format!("damaged: {}", file.display()))?;
        Ok(Self {
            dir: dir.canonicalize()?,
            mount: stored.mount.clone(),
            stored,
        })
    }

    /// Makes a new cluster: secret, ports, directories.
    pub(crate) fn create(
        dir: &Path,
        masters: u64,
        datanodes: u64,
        replicas: u32,
        durability: &str,
        tls: bool,
    ) -> anyhow::Result<Self> {
        if !matches!(masters, 1 | 3 | 5) {
            return Err(FsError::new(
                Code::Invalid,
                format!("--masters {masters}: want 1, 3 or 5"),
            )
            .into());
        }
        if datanodes == 0 || datanodes > 100 || u64::from(replicas) > datanodes || replicas == 0 {
            let text = format!(
                "--datanodes {datanodes} with {replicas} replicas: want 1 to 100 datanodes and at least as many as replicas"
            );
            return Err(FsError::new(Code::Invalid, text).into());
        }
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        for part in ["logs", "run"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        let ids = (1..=masters).map(|id| (Role::Master, id));
        let ids = ids.chain((101..101 + datanodes).map(|id| (Role::Datanode, id)));
        // All listeners are held until the last port is drawn, so no port comes twice.
        let mut held = Vec::new();
        let mut draw = || -> anyhow::Result<String> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?.to_string();
            held.push(listener);
            Ok(address)
        };
        let mut nodes = Vec::new();
        for (role, id) in ids {
            nodes.push(Node {
                name: format!("{}-{id}", role.name()),
                role,
                id,
                address: draw()?,
                metrics: Some(draw()?),
            });
        }
        let mount_metrics = Some(draw()?);
        let secret = dir.join("secret");
        if !secret.exists() {
            crate::server::write_secret(&secret, tls)?;
        }
        let stored = Stored {
            nodes,
            replicas,
            durability: durability.into(),
            mount: None,
            options: String::new(),
            mount_metrics,
        };
        let layout = Self {
            dir,
            mount: None,
            stored,
        };
        layout.save()?;
        Ok(layout)
    }

    /// Refuses what would only be true of a new cluster. `None` asks for nothing.
    pub(crate) fn check_is_as_wanted(
        &self,
        masters: Option<u64>,
        datanodes: Option<u64>,
        replicas: Option<u32>,
        durability: Option<&str>,
    ) -> anyhow::Result<()> {
        let has = |name: &str, wanted: Option<String>, is: String| match wanted {
            Some(wanted) if wanted != is => {
                let text = format!(
                    "--{name} {wanted}: the cluster in {} was made with {is}; leave the option out, or name another --dir",
                    self.dir.display()
                );
                Err(FsError::new(Code::Invalid, text))
            }
            _ => Ok(()),
        };
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        has(
            "masters",
            text(masters),
            self.master_addresses().len().to_string(),
        )?;
        has(
            "datanodes",
            text(datanodes),
            self.datanode_count().to_string(),
        )?;
        let stored = &self.stored;
        has(
            "replicas",
            text(replicas.map(u64::from)),
            stored.replicas.to_string(),
        )?;
        has(
            "durability",
            durability.map(str::to_owned),
            stored.durability.clone(),
        )?;
        Ok(())
    }

    /// Refuses to go on as if a cluster without TLS had it.
    pub(crate) fn check_tls(&self) -> anyhow::Result<()> {
        let secret = self.secret_file();
        if Credentials::load(&secret)?.tls().is_some() {
            return Ok(());
        }
        let text = format!(
            "the cluster in {} was made without TLS: add the line \"tls = true\" to {} and start it again",
            self.dir.display(),
            secret.display()
        );
        Err(FsError::new(Code::Invalid, text).into())
    }

    /// The same cluster, mounted at `mount`; remembered for later commands.
    pub(crate) fn with_mount(
        mut self,
        mount: Option<PathBuf>,
        options: &str,
    ) -> anyhow::Result<Self> {
        if let Some(mount) = &mount {
            // A dead mount answers ENOTCONN to everything; it is cleared when mounting.
            if std::fs::metadata(mount)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
            {
                std::fs::create_dir_all(mount)
                    .with_context(|| format!("create {}", mount.display()))?;
            }
        }
        self.mount = mount.map(|mount| std::path::absolute(&mount)).transpose()?;
        self.stored.mount.clone_from(&self.mount);
        self.stored.options = options.into();
        self.save()?;
        Ok(self)
    }

    fn save(&self) -> anyhow::Result<()> {
        let (file, temporary) = (
            self.dir.join("cluster.json"),
            self.dir.join("cluster.json.new"),
        );
        std::fs::write(&temporary, serde_json::to_vec_pretty(&self.stored)?)?;
        Ok(std::fs::rename(temporary, file)?)
    }

    /// The server processes, masters first.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.stored.nodes
    }
    /// Addresses of the masters.
    pub(crate) fn master_addresses(&self) -> Vec<String> {
        let masters = self.nodes().iter().filter(|node| node.role == Role::Master);
        masters.map(|node| node.address.clone()).collect()
    }
    /// Number of datanodes.
    pub(crate) fn datanode_count(&self) -> usize {
        self.nodes()
            .iter()
            .filter(|node| node.role == Role::Datanode)
            .count()
    }
    /// The cluster's secret.
    pub(crate) fn secret_file(&self) -> PathBuf {
        self.dir.join("secret")
    }
    /// Log of a process.
    pub(crate) fn log_file(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }
    /// Data directory of a node.
    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    /// Process file of a process.
    pub(crate) fn run_file(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }
    /// Where the mount answers with its metrics.
    pub(crate) fn mount_metrics(&self) -> Option<&str> {
        self.stored.mount_metrics.as_deref()
    }
    /// Mount options, besides the secret file.
    pub(crate) fn mount_options(&self) -> &str {
        &self.stored.options
    }
    /// Arguments of `lumeofs` for a node.
    pub(crate) fn arguments(&self, node: &Node) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let mut arguments = vec![node.role.name().into(), "--id".into(), node.id.to_string()];
        arguments.extend(["--secret".into(), text(self.secret_file())]);
        arguments.extend(["--data".into(), text(self.data_dir(&node.name))]);
        arguments.extend(["--listen".into(), node.address.clone()]);
        if let Some(metrics) = &node.metrics {
            arguments.extend(["--metrics".into(), metrics.clone()]);
        }
        match node.role {
            Role::Master => {
                let masters = self.nodes().iter().filter(|node| node.role == Role::Master);
                let peers: Vec<_> = masters
                    .map(|node| format!("{}={}", node.id, node.address))
                    .collect();
                arguments.extend(["--peers".into(), peers.join(",")]);
                arguments.extend(["--replicas".into(), self.stored.replicas.to_string()]);
                arguments.extend(["--durability".into(), self.stored.durability.clone()]);
            }
            Role::Datanode => {
                arguments.extend(["--masters".into(), self.master_addresses().join(",")]);
                arguments.extend(["--zone".into(), node.name.clone()]);
            }
        }
        arguments
    }
}
