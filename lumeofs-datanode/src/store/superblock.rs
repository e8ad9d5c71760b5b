//! The superblock: whose directory this is and how it is laid out.
//!
//! It is the first file of a store and the first that is read. It keeps a node from serving, or worse
//! overwriting, the data of another one after disks were swapped or a path was mistyped.
//!
//! ```text
//! 0   8  magic "LUMECHNK"
//! 8   4  format version
//! 12 16  cluster id
//! 28  8  node id
//! 36  8  bytes of one extent file
//! 44  4  CRC-32C of bytes 0..44
//! ```
//! All numbers are little-endian.

use super::StoreIdentity;
use lumeofs_base::checksum::crc32c;
use lumeofs_base::disk::{Disk, OpenMode};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{ClusterId, Code, FsError, FsResult, NodeId};
use std::io::ErrorKind;
use std::path::Path;

/// Name of the file in the store's directory.
pub(super) const FILE_NAME: &str = "superblock";
/// The format that this program writes and the only one it reads.
pub(super) const FORMAT_VERSION: u32 = 2;

const MAGIC: &[u8; 8] = b"LUMECHNK";
const LEN: usize = 48;

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) identity: StoreIdentity,
    pub(super) extent_file_bytes: u64,
}

impl Superblock {
    /// Reads the superblock of `directory`, or makes the directory a store if it is empty.
    pub(super) fn open_or_create(
        disk: &dyn Disk,
        directory: &Path,
        fresh: Superblock,
    ) -> FsResult<Superblock> {
        let path = directory.join(FILE_NAME);
        let file = match disk.open(&path, OpenMode::default()) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fresh.create(disk, directory)?;
                return Ok(fresh);
            }
            Err(error) => return Err(FsError::from_disk(&error, path.display())),
        };
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| FsError::from_disk(&error, format!("read {}", path.display())))?;
        let found = Superblock::decode(&bytes).map_err(|error| error.during(path.display()))?;
        found.check_owner(fresh.identity, directory)?;
        Ok(found)
    }

    fn create(&self, disk: &dyn Disk, directory: &Path) -> FsResult<()> {
        let failed = |error: std::io::Error| {
            FsError::from_disk(
                &error,
                format!("create chunk store {}", directory.display()),
            )
        };
        disk.create_dir_all(directory).map_err(failed)?;
        let temporary = directory.join("superblock.new");
        let strange: Vec<_> = disk.list(directory).map_err(failed)?;
        if let Some(name) = strange
            .iter()
            .find(|name| name.as_path() != Path::new("superblock.new"))
        {
            return Err(FsError::new(
                Code::Invalid,
                format!(
                    "{} has no {FILE_NAME} but holds {}: restore the {FILE_NAME}, or give the node \
                     an empty directory",
                    directory.display(),
                    name.display()
                ),
            ));
        }
        let mode = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let file = disk.open(&temporary, mode).map_err(failed)?;
        file.write_all_at(&self.encode(), 0).map_err(failed)?;
        // The rename must not become durable before the bytes it gives a name to.
        file.sync().map_err(failed)?;
        disk.rename(&temporary, &directory.join(FILE_NAME))
            .map_err(failed)?;
        disk.sync_dir(directory).map_err(failed)?;
        // The directory itself may be new; without this a power cut could take it with everything in it.
        let parents = directory.ancestors().skip(1);
        parents
            .into_iter()
            .try_for_each(|parent| disk.sync_dir(parent))
            .map_err(failed)
    }

    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.identity.cluster.0);
        bytes[28..36].copy_from_slice(&self.identity.node.get().to_le_bytes());
        bytes[36..44].copy_from_slice(&self.extent_file_bytes.to_le_bytes());
        let sum = crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LEN]) -> FsResult<Superblock> {
        let number = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
        };
        let short = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
        };
        let invalid = |what: String| Err(FsError::new(Code::Invalid, what));
        if &bytes[..8] != MAGIC {
            return invalid("not the superblock of a LumeoFS chunk store".into());
        }
        // The version comes before the checksum: another format may place its checksum elsewhere.
        let version = short(8);
        if version != FORMAT_VERSION {
            return invalid(format!(
                "chunk store has format version {version}, this program knows {FORMAT_VERSION}: run \
                 the release that wrote it, or empty the directory and let the node recover"
            ));
        }
        if short(44) != crc32c(&bytes[..44]) {
            return Err(FsError::new(Code::Io, "superblock is damaged (checksum)"));
        }
        let cluster = ClusterId(bytes[12..28].try_into().expect("a slice of 16 bytes"));
        let identity = StoreIdentity {
            cluster,
            node: NodeId(number(28)),
        };
        let extent_file_bytes = number(36);
        if extent_file_bytes == 0 || !extent_file_bytes.is_multiple_of(BLOCK_SIZE as u64) {
            return invalid(format!(
                "extent file size {extent_file_bytes} is not whole blocks"
            ));
        }
        Ok(Superblock {
            identity,
            extent_file_bytes,
        })
    }

    fn check_owner(&self, wanted: StoreIdentity, directory: &Path) -> FsResult<()> {
        if self.identity == wanted {
            return Ok(());
        }
        Err(FsError::new(
            Code::Refused,
            format!(
                "chunk store {} belongs to node {} of cluster {}, not to node {} of cluster {}: point \
                 the node at its own directory, or empty this one to start anew",
                directory.display(),
                self.identity.node,
                self.identity.cluster,
                wanted.node,
                wanted.cluster
            ),
        ))
    }
}
