//! The masters as a datanode knows them: those that it was told, and those that they named since.
//!
//! The list that a master sent last is kept in a file, so that a datanode finds masters again that were all replaced
//! since it was told.

use lumeofs_base::limits::CONNECT_TIMEOUT;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::controller_client::ControllerClient;
use lumeofs_proto::grpc::{Connector, endpoint, error_of};
use parking_lot::Mutex;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

/// How long one master may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Most masters that are remembered: no cluster has that many.
const REMEMBERED_MAX: usize = 64;
/// Name of the file, in the first data directory.
const FILE_NAME: &str = "masters";

type Channels = Arc<Vec<(String, Channel)>>;

/// The masters, one of which leads the controller.
pub(crate) struct Masters {
    channels: Mutex<Channels>,
    /// The one that answered last.
    current: AtomicUsize,
    failures: AtomicUsize,
    token: MetadataValue<Ascii>,
    connector: Connector,
    /// Those that this process was told; asked when none of the others answers.
    told: Vec<String>,
    /// Where those are remembered that a master named.
    file: Option<PathBuf>,
    /// What stands there.
    remembered: Mutex<Vec<String>>,
}

impl Masters {
    /// Those that were told, after those that are remembered. Within a runtime.
    pub(crate) fn new(
        credentials: &Credentials,
        told: &[String],
        data_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let file = data_dir.map(|dir| dir.join(FILE_NAME));
        let remembered = file.as_deref().map(read).unwrap_or_default();
        let masters = Self {
            channels: Mutex::default(),
            current: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            token: credentials.grpc_token().parse()?,
            connector: Connector::new(credentials),
            told: told.to_owned(),
            file,
            remembered: Mutex::new(remembered.clone()),
        };
        masters.use_these(&remembered)?;
        anyhow::ensure!(!masters.channels.lock().is_empty(), "no master is given");
        Ok(masters)
    }

    /// Makes channels to these and to those that were told, keeping those that there are.
    fn use_these(&self, named: &[String]) -> Result<(), FsError> {
        let mut channels: Vec<(String, Channel)> = Vec::new();
        let old = self.channels.lock().clone();
        for address in named.iter().chain(&self.told) {
            if channels.iter().any(|(known, _)| known == address) {
                continue;
            }
            let kept = old.iter().find(|(known, _)| known == address);
            let channel = match kept {
                Some((_, channel)) => channel.clone(),
                None => endpoint(address)?
                    .connect_timeout(CONNECT_TIMEOUT)
                    .http2_keep_alive_interval(Duration::from_secs(2))
                    .keep_alive_timeout(Duration::from_secs(2))
                    .max_frame_size(Some(1 << 20))
                    .connect_with_connector_lazy(self.connector.clone()),
            };
            channels.push((address.clone(), channel));
        }
        let current = old.get(self.current.load(Ordering::Relaxed));
        let index = current.and_then(|(current, _)| {
            let mut places = channels.iter();
            places.position(|(address, _)| address == current)
        });
        *self.channels.lock() = Arc::new(channels);
        self.current.store(index.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// Takes over the list that a master sent, and remembers it.
    pub(crate) fn learn(&self, named: &[String]) {
        let mut remembered = self.remembered.lock();
        if named.is_empty() || named.len() > REMEMBERED_MAX || *remembered == named {
            return;
        }
        if let Err(error) = self.use_these(named) {
            tracing::warn!(%error, "the masters named one that cannot be used");
            return;
        }
        tracing::info!(masters = ?named, "the masters are");
        if let Some(file) = &self.file {
            // A datanode whose disk is full knows them until it ends.
            if let Err(error) = write(file, named) {
                tracing::warn!(file = %file.display(), %error, "the masters are not remembered");
            }
        }
        named.clone_into(&mut remembered);
    }

    /// A call with the token of the cluster.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.token.clone());
        request
    }

    /// Whether the last call was answered.
    pub(crate) fn reached(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0
    }

    /// Calls one master after the other until one answers.
    pub(crate) async fn call<T, F>(
        &self,
        call: impl Fn(ControllerClient<Channel>) -> F,
    ) -> Result<T, FsError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let channels = self.channels.lock().clone();
        let first = self.current.load(Ordering::Relaxed);
        let mut last_error = String::new();
        let mut refusals = 0;
        for step in 0..channels.len() {
            let index = (first + step) % channels.len();
            let (address, channel) = &channels[index];
            let client = ControllerClient::new(channel.clone()).max_decoding_message_size(64 << 20);
            match tokio::time::timeout(CALL_TIMEOUT, call(client)).await {
                Ok(Ok(reply)) => {
                    self.current.store(index, Ordering::Relaxed);
                    self.failures.store(0, Ordering::Relaxed);
                    return Ok(reply.into_inner());
                }
                Ok(Err(status)) => {
                    let error = error_of(&status);
                    refusals += usize::from(error.code == Code::Refused);
                    last_error = format!("master {address}: {}", error.context);
                }
                Err(_) => last_error = format!("master {address}: no answer in {CALL_TIMEOUT:?}"),
            }
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let all_refuse = refusals == channels.len();
        let code = if all_refuse {
            Code::Refused
        } else {
            Code::Unavailable
        };
        Err(FsError::new(code, last_error))
    }
}

/// Addresses in a file, one a line. None if there is none, or none that can be read: those that were told must do.
fn read(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().map(str::trim);
    let valid = |line: &&str| !line.is_empty() && endpoint(line).is_ok();
    lines
        .filter(valid)
        .take(REMEMBERED_MAX)
        .map(str::to_owned)
        .collect()
}

/// Replaces the file as a whole.
fn write(file: &Path, masters: &[String]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    let mut out = std::fs::File::create(&new)?;
    out.write_all((masters.join("\n") + "\n").as_bytes())?;
    out.sync_all()?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(masters: &Masters) -> Vec<String> {
        let channels = masters.channels.lock().clone();
        channels
            .iter()
            .map(|(address, _)| address.clone())
            .collect()
    }

    #[tokio::test]
    async fn masters_that_were_named_are_remembered_and_asked_before_those_that_were_told() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::generate();
        let told = ["a:1".to_owned(), "b:1".to_owned()];
        let masters = Masters::new(&credentials, &told, Some(dir.path())).unwrap();
        assert_eq!(known(&masters), told);
        masters.current.store(1, Ordering::Relaxed);
        masters.learn(&["b:1".to_owned(), "c:1".to_owned()]);
        assert_eq!(known(&masters), ["b:1", "c:1", "a:1"]);
        assert_eq!(masters.current.load(Ordering::Relaxed), 0, "still b");
        // An answer that names nobody changes nothing.
        masters.learn(&[]);
        let again = Masters::new(&credentials, &told, Some(dir.path())).unwrap();
        assert_eq!(known(&again), ["b:1", "c:1", "a:1"]);
        std::fs::write(dir.path().join(FILE_NAME), "\n not an address \nd:1\n").unwrap();
        let damaged = Masters::new(&credentials, &told, Some(dir.path())).unwrap();
        assert_eq!(known(&damaged), ["d:1", "a:1", "b:1"]);
    }
}
