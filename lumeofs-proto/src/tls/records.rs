//! TLS records after the handshake, each direction on its own.
//!
//! A connection of rustls is one object for both directions, so the thread that sends and the one that
//! receives would have to share it under a lock. But records of the two directions have nothing in common: once
//! the handshake is done, the connection is taken apart into a [`Sealer`] and an [`Opener`], the way rustls
//! offers it for the kernel's TLS, with rustls' own record protection. Only new keys, every 2^24
//! records, are made in a place that both know.
//!
//! No I/O here.

use parking_lot::Mutex;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, ProtocolVersion,
    Tls13CipherSuite,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes before the protected part of a record: type, version, length.
pub(crate) const HEADER_BYTES: usize = 5;
/// Most plaintext in one record.
pub(crate) const PLAIN_BYTES_MAX: usize = 1 << 14;
/// Longest record that may come (RFC 8446, 5.2).
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + 256;
/// A KeyUpdate message that asks for nothing.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// A KeyUpdate message that asks for one in return.
const KEY_UPDATE_REQUEST: [u8; 5] = [24, 0, 0, 1, 1];

/// Protects what is sent.
pub(crate) struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    /// Records under one key.
    records_max: u64,
    keys: Arc<Keys>,
}

/// Checks and decrypts what is received.
pub(crate) struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
    keys: Arc<Keys>,
}

/// Where new keys come from.
struct Keys {
    suite: &'static Tls13CipherSuite,
    source: Mutex<Source>,
    /// The peer asked us to send under a new key.
    asked: AtomicBool,
}

enum Source {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened<'a> {
    /// Bytes of the stream.
    Data(&'a [u8]),
    /// Something of TLS itself.
    Nothing,
    /// The peer will send no more.
    End,
}

/// Takes a client's connection apart after its handshake.
pub(crate) fn of_client(connection: UnbufferedClientConnection) -> Result<(Sealer, Opener), Error> {
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    halves(secrets, Source::Client(kernel))
}

/// Takes a server's connection apart after its handshake.
pub(crate) fn of_server(connection: UnbufferedServerConnection) -> Result<(Sealer, Opener), Error> {
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    halves(secrets, Source::Server(kernel))
}

fn halves(secrets: ExtractedSecrets, source: Source) -> Result<(Sealer, Opener), Error> {
    let suite = match &source {
        Source::Client(kernel) => kernel.negotiated_cipher_suite(),
        Source::Server(kernel) => kernel.negotiated_cipher_suite(),
    };
    let suite = suite.tls13().ok_or(Error::HandshakeNotComplete)?;
    let keys = Arc::new(Keys {
        suite,
        source: Mutex::new(source),
        asked: AtomicBool::new(false),
    });
    let sealer = Sealer {
        cipher: keys.encrypter(secrets.tx.1),
        sequence: secrets.tx.0,
        // The message that announces a new key is one too.
        records_max: suite.common.confidentiality_limit - 1,
        keys: keys.clone(),
    };
    let opener = Opener {
        cipher: keys.decrypter(secrets.rx.1),
        sequence: secrets.rx.0,
        keys,
    };
    Ok((sealer, opener))
}

impl Keys {
    fn encrypter(&self, secrets: ConnectionTrafficSecrets) -> Box<dyn MessageEncrypter> {
        let (key, iv) = parts(secrets);
        self.suite.aead_alg.encrypter(key, iv)
    }

    fn decrypter(&self, secrets: ConnectionTrafficSecrets) -> Box<dyn MessageDecrypter> {
        let (key, iv) = parts(secrets);
        self.suite.aead_alg.decrypter(key, iv)
    }
}

fn parts(secrets: ConnectionTrafficSecrets) -> (AeadKey, Iv) {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        // The enum is open, our list of suites is not.
        _ => unreachable!("a suite that we do not offer"),
    }
}

impl Sealer {
    /// Adds the record of `chunks`, at most [`PLAIN_BYTES_MAX`], to `records`, and before it what TLS itself has
    /// to say.
    pub(crate) fn seal(
        &mut self,
        chunks: OutboundChunks<'_>,
        records: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        if self.keys.asked.swap(false, Ordering::Relaxed) || self.sequence >= self.records_max {
            self.change_keys(records)?;
        }
        records.push(self.encrypt(ContentType::ApplicationData, chunks)?);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn change_keys_after(&mut self, records: u64) {
        self.records_max = records;
    }

    fn change_keys(&mut self, records: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let message = OutboundChunks::Single(&KEY_UPDATE);
        records.push(self.encrypt(ContentType::Handshake, message)?);
        let updated = match &mut *self.keys.source.lock() {
            Source::Client(kernel) => kernel.update_tx_secret(),
            Source::Server(kernel) => kernel.update_tx_secret(),
        };
        let (sequence, secrets) = updated.map_err(invalid)?;
        self.cipher = self.keys.encrypter(secrets);
        self.sequence = sequence;
        Ok(())
    }

    fn encrypt(&mut self, typ: ContentType, payload: OutboundChunks<'_>) -> io::Result<Vec<u8>> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let sealed = self.cipher.encrypt(message, self.sequence);
        self.sequence += 1;
        Ok(sealed.map_err(invalid)?.encode())
    }
}

/// Length of the record at the start of `bytes`, header included; `None` if too little is there to tell.
pub(crate) fn record_len(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(&[typ, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let len = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if ContentType::from(typ) != ContentType::ApplicationData || len > RECORD_BYTES_MAX {
        let text = format!("not a TLS record: it starts with type {typ}, {len} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(len))
}

impl Opener {
    /// Opens a whole record in place.
    pub(crate) fn open<'a>(&mut self, record: &'a mut [u8]) -> io::Result<Opened<'a>> {
        let sealed = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            &mut record[HEADER_BYTES..],
        );
        let message = self
            .cipher
            .decrypt(sealed, self.sequence)
            .map_err(invalid)?;
        self.sequence += 1;
        match (message.typ, message.payload) {
            (ContentType::ApplicationData, data) => Ok(Opened::Data(data)),
            (ContentType::Handshake, message)
                if message == KEY_UPDATE || message == KEY_UPDATE_REQUEST =>
            {
                if message == KEY_UPDATE_REQUEST {
                    self.keys.asked.store(true, Ordering::Relaxed);
                }
                self.change_keys()?;
                Ok(Opened::Nothing)
            }
            // close_notify
            (ContentType::Alert, [_, 0]) => Ok(Opened::End),
            (ContentType::Alert, alert) => {
                let text = format!("the other side ended the connection, TLS alert {alert:?}");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
            (other, _) => {
                let text = format!("unexpected TLS record of type {other:?}");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    fn change_keys(&mut self) -> io::Result<()> {
        let updated = match &mut *self.keys.source.lock() {
            Source::Client(kernel) => kernel.update_rx_secret(),
            Source::Server(kernel) => kernel.update_rx_secret(),
        };
        let (sequence, secrets) = updated.map_err(invalid)?;
        self.cipher = self.keys.decrypter(secrets);
        self.sequence = sequence;
        Ok(())
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"))
}

#[cfg(test)]
mod tests;
