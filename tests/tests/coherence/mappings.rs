//! What a mount's kernel has in its page cache: mappings and `sendfile(2)` show what another mount has acknowledged (K2),
//! although nothing is opened or looked at anew.

use lumeofs_tests::Cluster;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Maps a file; for each line that it gets, it says how that begins: by the mapping, or by sendfile.
const READER: &str = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 4096, mmap.MAP_SHARED)
out = os.memfd_create("out")
for line in sys.stdin:
    match line.split():
        case ["map"]:
            print(mapping[:8].hex())
        case ["send"]:
            os.ftruncate(out, 0)
            os.lseek(out, 0, os.SEEK_SET)
            os.sendfile(out, fd, 0, 4096)
            print(os.pread(out, 8, 0).hex())
        case ["store", data]:
            mapping[:8] = bytes.fromhex(data)
            mapping.flush()
            print("done")
    sys.stdout.flush()
"#;

struct Reader {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Reader {
    fn start(path: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", READER])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.input, "{what}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

#[test]
fn mappings_and_sendfile_show_what_another_mount_has_written() {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.second_mount());
    let file = File::create_new(a.join("file")).unwrap();
    let write = |number: u64| file.write_all_at(&number.to_be_bytes(), 0).unwrap();
    file.set_len(4096).unwrap();
    write(1);
    let mut reader = Reader::start(&b.join("file"));
    let mut sender = Reader::start(&b.join("file"));
    for number in 2..50 {
        assert_eq!(reader.ask("map"), hex(number - 1));
        assert_eq!(sender.ask("send"), hex(number - 1));
        write(number);
        if number % 3 == 0 {
            file.sync_all().unwrap();
        }
        assert_eq!(reader.ask("map"), hex(number));
        if number % 2 == 0 {
            continue;
        }
        assert_eq!(sender.ask("send"), hex(number));
    }
    // And what is stored in a mapping is there after msync. While several mounts write nothing is kept in memory.
    std::thread::sleep(Duration::from_secs(3));
    let mut own = Reader::start(&a.join("file"));
    for number in 100..110 {
        assert_eq!(reader.ask(&format!("store {}", hex(number))), "done");
        assert_eq!(own.ask("map"), hex(number));
        assert_eq!(own.ask("send"), hex(number));
    }
}
