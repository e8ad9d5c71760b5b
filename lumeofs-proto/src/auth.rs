//! Proof that both ends of a connection know the cluster secret, without sending it.
//!
//! Each side sends a nonce and then an HMAC-SHA256 over both nonces and both hellos, labelled with its
//! role; so neither a recorded nor a reflected answer is accepted. gRPC carries a token derived from the secret
//! instead ([`Credentials::grpc_token`]).

use crate::hello::Hello;
use hmac::{Hmac, Mac};
use lumeofs_base::{ClusterId, Code, FsError, FsResult, NodeId, NodeKind, entropy};
use sha2::Sha256;
use std::path::Path;

/// What a process must know to take part in a cluster. Kept in a file of two lines:
/// `cluster_id = "…"` and `secret = "…"`, both in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The cluster.
    pub cluster: ClusterId,
    secret: [u8; 32],
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, secret)", self.cluster)
    }
}

impl Credentials {
    /// Credentials of a new cluster.
    pub fn generate() -> Self {
        Self {
            cluster: ClusterId(entropy::bytes()),
            secret: entropy::bytes(),
        }
    }

    /// Credentials from text, as [`Credentials::to_text`] writes it.
    pub fn parse(text: &str) -> FsResult<Self> {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .ok_or_else(|| FsError::new(Code::Invalid, format!("no line \"{name} = …\"")))
        };
        let cluster = field("cluster_id")?.parse()?;
        let hex = field("secret")?;
        let bad = || FsError::new(Code::Invalid, "secret: want 64 hexadecimal digits");
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(bad());
        }
        let mut secret = [0; 32];
        for (index, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..index * 2 + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self { cluster, secret })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let hex: String = self
            .secret
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("cluster_id = \"{}\"\nsecret = \"{hex}\"\n", self.cluster)
    }

    /// Reads the file.
    pub fn load(path: &Path) -> FsResult<Self> {
        let what = || format!("cluster secret file {}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| FsError::new(Code::Invalid, format!("{}: {error}", what())))?;
        Self::parse(&text).map_err(|error| error.during(what()))
    }

    /// Value of the `authorization` header of gRPC calls.
    pub fn grpc_token(&self) -> String {
        let proof = self.mac(&[b"grpc", &self.cluster.0]);
        format!(
            "Bearer {}",
            proof
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        )
    }

    /// Whether a gRPC call may go on.
    pub fn accepts_grpc(&self, token: &[u8]) -> bool {
        let mine = self.grpc_token();
        token.len() == mine.len()
            && token
                .iter()
                .zip(mine.as_bytes())
                .fold(0, |diff, (a, b)| diff | (a ^ b))
                == 0
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes any key length");
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn proof(&self, label: &[u8], client: &Hello, server: &Hello) -> [u8; 32] {
        let (client_kind, server_kind) = (client.kind.to_le_bytes(), server.kind.to_le_bytes());
        let (client_id, server_id) = (client.node_id.to_le_bytes(), server.node_id.to_le_bytes());
        self.mac(&[
            label,
            &client.nonce,
            &client.cluster_id,
            &client_kind,
            &client_id,
            &server.nonce,
            &server.cluster_id,
            &server_kind,
            &server_id,
        ])
    }
}

/// One side of a connection: what it says of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Cluster and secret.
    pub credentials: Credentials,
    /// Its node id; 0 for clients.
    pub node: NodeId,
    /// Its kind.
    pub kind: NodeKind,
}

/// The other side, once it is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its node id; 0 for clients.
    pub node: NodeId,
    /// Its kind.
    pub kind: NodeKind,
}

impl Identity {
    /// The first message of this side.
    pub fn hello(&self) -> Hello {
        Hello {
            wire_version: u32::from(crate::WIRE_VERSION),
            cluster_id: self.credentials.cluster.0.to_vec().into(),
            node_id: self.node.get(),
            kind: match self.kind {
                NodeKind::Master => 1,
                NodeKind::Datanode => 2,
                NodeKind::Client => 3,
            },
            nonce: entropy::bytes::<32>().to_vec().into(),
            proof: Vec::new().into(),
        }
    }

    /// Server: the answer to a client's hello.
    pub fn answer(&self, client: &Hello) -> FsResult<Hello> {
        self.check_hello(client)?;
        let mut hello = self.hello();
        hello.proof = self
            .credentials
            .proof(b"server", client, &hello)
            .to_vec()
            .into();
        Ok(hello)
    }

    /// Client: checks the server's answer and makes the last proof.
    pub fn confirm(&self, mine: &Hello, server: &Hello) -> FsResult<(Peer, [u8; 32])> {
        let peer = self.check_hello(server)?;
        same(
            &self.credentials.proof(b"server", mine, server),
            &server.proof,
        )?;
        Ok((peer, self.credentials.proof(b"client", mine, server)))
    }

    /// Server: checks the client's proof.
    pub fn accept(&self, client: &Hello, mine: &Hello, proof: &[u8]) -> FsResult<Peer> {
        same(&self.credentials.proof(b"client", client, mine), proof)?;
        self.check_hello(client)
    }

    fn check_hello(&self, other: &Hello) -> FsResult<Peer> {
        if other.cluster_id != self.credentials.cluster.0[..] {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "peer belongs to cluster {}, this is {}: check the address and the secret file",
                    other
                        .cluster_id
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect::<String>(),
                    self.credentials.cluster
                ),
            ));
        }
        if other.nonce.len() != 32 {
            return Err(FsError::new(
                Code::Refused,
                "hello without a nonce of 32 bytes",
            ));
        }
        let kind = match other.kind {
            1 => NodeKind::Master,
            2 => NodeKind::Datanode,
            3 => NodeKind::Client,
            other => {
                return Err(FsError::new(
                    Code::Refused,
                    format!("unknown kind of peer {other}"),
                ));
            }
        };
        Ok(Peer {
            node: NodeId(other.node_id),
            kind,
        })
    }
}

fn same(mine: &[u8; 32], theirs: &[u8]) -> FsResult<()> {
    let equal = theirs.len() == 32
        && mine
            .iter()
            .zip(theirs)
            .fold(0, |diff, (a, b)| diff | (a ^ b))
            == 0;
    if equal {
        return Ok(());
    }
    Err(FsError::new(
        Code::Refused,
        "wrong cluster secret: both ends need the same secret file",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(credentials: &Credentials, kind: NodeKind) -> Identity {
        Identity {
            credentials: credentials.clone(),
            node: NodeId(1),
            kind,
        }
    }

    #[test]
    fn both_sides_accept_the_same_secret_only() {
        let good = Credentials::generate();
        let (client, server) = (side(&good, NodeKind::Client), side(&good, NodeKind::Master));
        let hello = client.hello();
        let answer = server.answer(&hello).unwrap();
        let (peer, proof) = client.confirm(&hello, &answer).unwrap();
        assert_eq!(peer.kind, NodeKind::Master);
        assert_eq!(
            server.accept(&hello, &answer, &proof).unwrap().kind,
            NodeKind::Client
        );

        let mut other = Credentials::generate();
        other.cluster = good.cluster;
        let intruder = side(&other, NodeKind::Client);
        let hello = intruder.hello();
        let answer = server.answer(&hello).unwrap();
        assert_eq!(
            intruder.confirm(&hello, &answer).unwrap_err().code,
            Code::Refused
        );
        let forged = other.proof(b"client", &hello, &answer);
        assert_eq!(
            server.accept(&hello, &answer, &forged).unwrap_err().code,
            Code::Refused
        );
        assert!(!good.accepts_grpc(other.grpc_token().as_bytes()));
        assert!(good.accepts_grpc(good.grpc_token().as_bytes()));
    }

    #[test]
    fn a_reflected_proof_is_refused() {
        let good = Credentials::generate();
        let server = side(&good, NodeKind::Master);
        let hello = side(&good, NodeKind::Client).hello();
        let answer = server.answer(&hello).unwrap();
        assert!(server.accept(&hello, &answer, &answer.proof).is_err());
    }

    #[test]
    fn the_file_round_trips_and_errors_name_the_line() {
        let credentials = Credentials::generate();
        assert_eq!(
            Credentials::parse(&credentials.to_text()).unwrap(),
            credentials
        );
        let error = Credentials::parse("cluster_id = \"00\"").unwrap_err();
        assert!(error.to_string().contains("cluster id"), "{error}");
    }
}
