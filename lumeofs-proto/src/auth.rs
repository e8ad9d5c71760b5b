//! Proof that both ends of a connection know the cluster secret, without sending it.
//!
//! Each side sends a nonce and then an HMAC-SHA256 over both nonces and both hellos, labelled with its
//! role; so neither a recorded nor a reflected answer is accepted. gRPC carries a token derived from the secret
//! instead ([`Credentials::grpc_token`]). Where the cluster uses TLS, all of this happens inside of it, and the
//! server's key comes from the secret too ([`crate::tls`]).

use crate::hello::Hello;
use crate::tls::Tls;
use hmac::{Hmac, Mac};
use lumeofs_base::{ClusterId, Code, FsError, FsResult, NodeId, NodeKind, entropy};
use sha2::Sha256;
use std::path::Path;

/// What a process must know to take part in a cluster. Kept in a file of lines: `cluster_id = "…"` and
/// `secret = "…"`, both in hexadecimal, and `tls = true` if the cluster encrypts its connections.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster.
    pub cluster: ClusterId,
    secret: [u8; 32],
    tls: Option<Tls>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tls = if self.tls.is_some() { ", TLS" } else { "" };
        write!(f, "Credentials({}, secret{tls})", self.cluster)
    }
}

/// What a line of the file sets.
#[derive(Default)]
struct Lines<'a> {
    cluster_id: Option<&'a str>,
    secret: Option<&'a str>,
    tls: Option<&'a str>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> FsResult<Self> {
        let mut lines = Self::default();
        let given = text.lines().map(str::trim);
        for line in given.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let place = match key.trim() {
                "cluster_id" => &mut lines.cluster_id,
                "secret" => &mut lines.secret,
                "tls" => &mut lines.tls,
                other => {
                    let text =
                        format!("unknown key {other:?}: there are cluster_id, secret and tls");
                    return Err(FsError::new(Code::Invalid, text));
                }
            };
            if place.replace(value.trim().trim_matches('"')).is_some() {
                let text = format!("{} is there twice: keep one line", key.trim());
                return Err(FsError::new(Code::Invalid, text));
            }
        }
        Ok(lines)
    }
}

impl Credentials {
    /// Credentials of a new cluster.
    pub fn generate() -> Self {
        Self {
            cluster: ClusterId(entropy::bytes()),
            secret: entropy::bytes(),
            tls: None,
        }
    }

    /// The same, of a cluster that encrypts its connections.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.tls = None;
        let seed = self.mac(&[b"tls server key", &self.cluster.0]);
        self.tls = Some(Tls::from_seed(&seed));
        self
    }

    /// Keys and configurations of TLS, if the cluster uses it.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Credentials from text, as [`Credentials::to_text`] writes it.
    pub fn parse(text: &str) -> FsResult<Self> {
        let missing = |name: &str| FsError::new(Code::Invalid, format!("no line \"{name} = …\""));
        let lines = Lines::of(text)?;
        let cluster = lines.cluster_id.ok_or_else(|| missing("cluster_id"))?;
        let cluster = cluster.parse()?;
        let hex = lines.secret.ok_or_else(|| missing("secret"))?;
        let bad = || FsError::new(Code::Invalid, "secret: want 64 hexadecimal digits");
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(bad());
        }
        let mut secret = [0; 32];
        for (index, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..index * 2 + 2], 16).map_err(|_| bad())?;
        }
        let plain = Self {
            cluster,
            secret,
            tls: None,
        };
        match lines.tls {
            None | Some("false") => Ok(plain),
            Some("true") => Ok(plain.with_tls()),
            Some(other) => {
                let text = format!("tls = {other}: want true or false");
                Err(FsError::new(Code::Invalid, text))
            }
        }
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let hex: String = self
            .secret
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let tls = if self.tls.is_some() {
            "tls = true\n"
        } else {
            ""
        };
        format!(
            "cluster_id = \"{}\"\nsecret = \"{hex}\"\n{tls}",
            self.cluster
        )
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
        // So what a process that was not told of TLS says in the clear is worth nothing inside of TLS.
        let mode: &[&[u8]] = if self.tls.is_some() { &[b"tls"] } else { &[] };
        for part in mode.iter().chain(parts) {
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
    fn what_is_proven_in_the_clear_proves_nothing_inside_tls() {
        let plain = Credentials::generate();
        let tls = plain.clone().with_tls();
        let server = side(&tls, NodeKind::Master);
        let hello = side(&plain, NodeKind::Client).hello();
        let answer = server.answer(&hello).unwrap();
        let proof = plain.proof(b"client", &hello, &answer);
        assert!(server.accept(&hello, &answer, &proof).is_err());
        assert!(!tls.accepts_grpc(plain.grpc_token().as_bytes()));
    }

    #[test]
    fn the_file_round_trips_and_errors_name_the_line() {
        for credentials in [Credentials::generate(), Credentials::generate().with_tls()] {
            let text = credentials.to_text();
            let read = Credentials::parse(&text).unwrap();
            assert_eq!(
                (read.cluster, read.secret),
                (credentials.cluster, credentials.secret)
            );
            assert_eq!(read.tls.is_some(), text.contains("tls = true"));
            assert_eq!(read.to_text(), text);
        }
        let text = Credentials::generate().to_text();
        let refused = [
            ("cluster_id = \"00\"".to_owned(), "cluster id"),
            ("secret = \"00\"".to_owned(), "no line \"cluster_id = …\""),
            (
                format!("{text}tsl = true"),
                "unknown key \"tsl\": there are cluster_id, secret and tls",
            ),
            (format!("{text}tls = yes"), "tls = yes: want true or false"),
            (format!("{text}secret = 0"), "secret is there twice"),
        ];
        for (text, reason) in refused {
            let error = Credentials::parse(&text).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        let commented = format!("# of the cluster in rack 7\n\n{text}tls = false\n");
        assert!(Credentials::parse(&commented).unwrap().tls.is_none());
    }
}
