//! TLS without certificates to administer.
//!
//! Who knows the cluster secret knows the server's Ed25519 key: it is derived from it. Every server presents a
//! certificate of that key, every client accepts that key and no other, whatever the certificate says of names
//! and dates. So TLS encrypts and proves the server; the client proves itself by the hello inside. Whether a
//! cluster uses TLS is one line of its secret file, which every process has.
//!
//! TLS 1.3 only, no resumption: connections live long, and a full handshake costs half a millisecond.

pub(crate) mod records;

use lumeofs_base::{Code, FsError};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, ServerConfig,
    SignatureScheme,
};
use std::io;
use std::sync::Arc;

/// First byte of a connection that opens with TLS: a handshake record.
pub(crate) const FIRST_BYTE: u8 = 0x16;
/// ALPN name of frames.
pub(crate) const ALPN_FRAMES: &[u8] = b"lumeofs";
/// ALPN name of gRPC.
pub(crate) const ALPN_GRPC: &[u8] = b"h2";
/// The name in the certificate. Ours are known by their key; clients in other languages want a name.
pub(crate) const SERVER_NAME: &str = "lumeofs";
/// What precedes the seed in an Ed25519 key in PKCS#8 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What both sides of a cluster's TLS need.
#[derive(Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    frames: Arc<ClientConfig>,
    grpc: Arc<ClientConfig>,
    certificate_pem: Arc<str>,
}

impl Tls {
    /// From 32 secret bytes.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        let key = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], seed].concat());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)
            .expect("any 32 bytes are an Ed25519 key");
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, SERVER_NAME);
        let mut params =
            CertificateParams::new([SERVER_NAME.to_owned()]).expect("the name is a valid one");
        params.distinguished_name = name;
        // All nodes make the same certificate.
        params.serial_number = Some(1.into());
        let certificate = params
            .self_signed(&pair)
            .expect("an Ed25519 key signs anything");
        let der = certificate.der().clone();
        let mut provider = ring::default_provider();
        // The fastest first; each is strong enough.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let pinned = Arc::new(Pinned::new(&der, provider.clone()));
        let client = |alpn: &[u8]| {
            let mut config = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the provider has suites of TLS 1.3")
                .dangerous()
                .with_custom_certificate_verifier(pinned.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = rustls::client::Resumption::disabled();
            config.enable_secret_extraction = true;
            Arc::new(config)
        };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![der], key.into())
            .expect("the certificate is of this key");
        server.alpn_protocols = vec![ALPN_GRPC.to_vec(), ALPN_FRAMES.to_vec()];
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        Self {
            server: Arc::new(server),
            frames: client(ALPN_FRAMES),
            grpc: client(ALPN_GRPC),
            certificate_pem: certificate.pem().into(),
        }
    }

    /// The servers' certificate, for gRPC clients in other languages.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(crate) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    pub(crate) fn frames(&self) -> &Arc<ClientConfig> {
        &self.frames
    }

    pub(crate) fn grpc(&self) -> &Arc<ClientConfig> {
        &self.grpc
    }
}

/// Whom clients ask for.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a valid name")
}

/// Accepts one public key.
#[derive(Debug)]
struct Pinned {
    key: SubjectPublicKeyInfoDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(certificate: &CertificateDer<'_>, provider: Arc<CryptoProvider>) -> Self {
        let key = ParsedCertificate::try_from(certificate)
            .expect("it was made here")
            .subject_public_key_info();
        Self { key, provider }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if ParsedCertificate::try_from(presented)?.subject_public_key_info() == self.key {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is what we speak".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What a server that demands TLS says to who came without.
pub fn plain_refused() -> FsError {
    FsError::new(
        Code::Refused,
        "the server encrypts its connections (TLS) and this one is plain: the secret files differ; add the \
         line \"tls = true\" to the client's, or copy the server's",
    )
}

/// What a server without TLS says to who wants it.
pub(crate) fn tls_refused() -> FsError {
    FsError::new(Code::Refused, TLS_REFUSED)
}

const TLS_REFUSED: &str = "the client's secret file says \"tls = true\" and the server does not speak TLS: give all servers \
     and clients of the cluster the same secret file and start them again";

/// What went wrong in a handshake, for whoever must mend it.
pub(crate) fn explain(error: &Error) -> FsError {
    let text = match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => TLS_REFUSED.to_owned(),
        Error::InvalidCertificate(_) => {
            "wrong cluster secret: the server's TLS key is not the one of this secret file; both ends \
             need the same secret file"
                .to_owned()
        }
        Error::AlertReceived(alert) => format!(
            "the other side ended the TLS handshake ({alert:?}): both ends need the same secret file"
        ),
        other => format!("TLS handshake: {other}"),
    };
    FsError::new(Code::Refused, text)
}

/// As [`explain`], for an I/O error that may carry one of TLS.
pub(crate) fn explain_io(error: &io::Error) -> FsError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(error) => explain(error),
        None => FsError::from_net(error, "TLS handshake"),
    }
}
