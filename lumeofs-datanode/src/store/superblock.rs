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
const FILE_NAME_NEW: &str = "superblock.new";
/// The format that this program writes.
pub(super) const FORMAT_VERSION: u32 = 3;
/// The oldest format that it reads: it has nothing of what the next one has not, so such a store becomes one of ours
/// by its number.
const FORMAT_VERSION_OLDEST: u32 = 2;

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
        let Some((found, version)) = Superblock::read(disk, directory)? else {
            fresh.create(disk, directory)?;
            return Ok(fresh);
        };
        found.check_owner(fresh.identity, directory)?;
        if version != FORMAT_VERSION {
            // Before anything is written that a program of that version does not understand.
            found.write(disk, directory)?;
            tracing::info!(
                directory = %directory.display(),
                "chunk store of format {version} is one of format {FORMAT_VERSION} from here on"
            );
        }
        Ok(found)
    }

    /// The superblock of `directory` and its format version. `None` if there is none.
    pub(super) fn read(disk: &dyn Disk, directory: &Path) -> FsResult<Option<(Superblock, u32)>> {
        let path = directory.join(FILE_NAME);
        let file = match disk.open(&path, OpenMode::default()) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FsError::from_disk(&error, path.display())),
        };
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| FsError::from_disk(&error, format!("read {}", path.display())))?;
        let decoded = Superblock::decode(&bytes);
        decoded
            .map(Some)
            .map_err(|error| error.during(path.display()))
    }

    fn create(&self, disk: &dyn Disk, directory: &Path) -> FsResult<()> {
        let failed = |error: std::io::Error| {
            FsError::from_disk(
                &error,
                format!("create chunk store {}", directory.display()),
            )
        };
        disk.create_dir_all(directory).map_err(failed)?;
        let strange: Vec<_> = disk.list(directory).map_err(failed)?;
        if let Some(name) = strange
            .iter()
            .find(|name| name.as_path() != Path::new(FILE_NAME_NEW))
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
        self.write(disk, directory)?;
        // The directory itself may be new; without this a power cut could take it with everything in it.
        let parents = directory.ancestors().skip(1);
        parents
            .into_iter()
            .try_for_each(|parent| disk.sync_dir(parent))
            .map_err(failed)
    }

    /// Puts the file there, in the place of an older one.
    fn write(&self, disk: &dyn Disk, directory: &Path) -> FsResult<()> {
        let (new, path) = (directory.join(FILE_NAME_NEW), directory.join(FILE_NAME));
        let mode = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let written = disk.open(&new, mode).and_then(|file| {
            file.write_all_at(&self.encode(), 0)?;
            // The rename must not become durable before the bytes it gives a name to.
            file.sync()?;
            disk.rename(&new, &path)?;
            disk.sync_dir(directory)
        });
        written.map_err(|error| FsError::from_disk(&error, format!("write {}", path.display())))
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

    /// The superblock and its format version.
    fn decode(bytes: &[u8; LEN]) -> FsResult<(Superblock, u32)> {
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
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
            return invalid(format!(
                "chunk store has format version {version}, this program knows {FORMAT_VERSION_OLDEST} to \
                 {FORMAT_VERSION}: run the release that wrote it, or empty the directory and let the node recover"
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
        let superblock = Superblock {
            identity,
            extent_file_bytes,
        };
        Ok((superblock, version))
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
