"""Prints what the calls about ACLs and extended attributes do, for a comparison of filesystems.

Arguments: directories that show the same files, as two mounts do. Calls take them in turn, so that each one must find what
the one before has done elsewhere.
"""

import ctypes
import errno
import itertools
import os
import stat
import struct
import sys

ROOTS = itertools.cycle(sys.argv[1:])
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NOBODY = 0xFFFFFFFF
TAGS = {"u": 1, "U": 2, "g": 4, "G": 8, "m": 16, "o": 32}
NAMES = {tag: kind for kind, tag in TAGS.items()}
LIBC = ctypes.CDLL(None, use_errno=True)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)


def acl(text):
    """`u:7,U1000:6,g:5,m:7,o:0`, with numbers as they are."""
    value = struct.pack("<I", 2)
    for entry in text.split(","):
        who, bits = entry.split(":")
        value += struct.pack("<HHI", TAGS[who[0]], int(bits), int(who[1:] or NOBODY))
    return value


def shown(value):
    entries = struct.iter_unpack("<HHI", value[4:])
    return ",".join(f"{NAMES[tag]}{'' if who == NOBODY else who}:{bits}" for tag, bits, who in entries)


def attempt(call, *arguments, **named):
    try:
        result = call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok" if result is None else result


def to(path):
    """The next root becomes the working directory: other users could not reach it by its path."""
    os.chdir(next(ROOTS))
    return path


def state(path):
    to(path)
    meta = os.lstat(path)
    lists = {}
    for name in ACCESS, DEFAULT:
        value = attempt(os.getxattr, path, name, follow_symlinks=False)
        lists[name[17:]] = shown(value) if isinstance(value, bytes) else value
    names = sorted(attempt(os.listxattr, path, follow_symlinks=False))
    return f"{stat.S_IMODE(meta.st_mode):o} {meta.st_uid}:{meta.st_gid} {lists} {names}"


def as_user(uid, gid, groups, call, *arguments):
    """The result of `attempt` in a process of that user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            to("")
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, repr(attempt(call, *arguments)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def tell(*words):
    print(*words, flush=True)


def make(path, mode=0o644):
    os.close(os.open(to(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def opened(path, flags, mode=0o666):
    os.close(os.open(path, flags, mode))


def renamed(old, new, flags):
    if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def ctime(path):
    return os.lstat(to(path)).st_ctime_ns


LISTS = [
    "u:7,g:5,o:1",
    "u:6,g:4,m:4,o:0",
    "u:7,U1000:6,g:5,m:7,o:0",
    "u:7,U1000:6,g:5,m:1,o:0",
    "u:7,U1000:6,g:5,G50:3,m:0,o:5",
    "u:6,U1001:4,U1000:6,U1001:7,g:0,G51:7,G50:4,m:7,o:0",
]
WRONG = [
    b"",
    acl(LISTS[0])[:4],
    acl(LISTS[0])[:7],
    acl(LISTS[0])[:-1],
    b"\1\0\0\0" + acl(LISTS[0])[4:],
    acl("u:7,g:5"),
    acl("u:7,o:5"),
    acl("g:7,o:5"),
    acl("o:7,g:5,u:5"),
    acl("u:7,u:7,g:5,o:5"),
    acl("u:7,g:5,o:5,o:5"),
    acl("u:7,U1:7,g:5,o:5"),
    acl("u:7,g:5,G1:5,o:5"),
    acl("u:7,g:5,m:5,m:5,o:5"),
    acl("u:7,g:5,m:5,o:5,U1:5"),
    acl("u:8,g:5,o:5"),
    acl(f"u:7,U{NOBODY}:7,g:5,m:7,o:5"),
    acl("u:7,g:5,o:5") + struct.pack("<HHI", 64, 1, NOBODY),
]


def setting():
    os.umask(0)
    make("file")
    os.mkdir(to("dir"), 0o755)
    os.mkfifo(to("fifo"), 0o644)
    os.symlink("file", to("link"))
    for path in "file", "dir", "fifo", "link":
        for name in ACCESS, DEFAULT:
            for value in [acl(text) for text in LISTS] + WRONG:
                before = ctime(path)
                done = attempt(os.setxattr, to(path), name, value, follow_symlinks=False)
                tell("set", path, name, value.hex(), done, ctime(path) != before, state(path))
            for flags in os.XATTR_CREATE, os.XATTR_REPLACE:
                value = acl(LISTS[2])
                tell("flags", path, name, flags, attempt(os.setxattr, to(path), name, value, flags, follow_symlinks=False))
            for _ in range(2):
                before = ctime(path)
                done = attempt(os.removexattr, to(path), name, follow_symlinks=False)
                tell("remove", path, name, done, ctime(path) != before, state(path))
    for path in "file", "dir":
        for text in LISTS:
            os.setxattr(to(path), ACCESS, acl(text))
            for mode in 0o700, 0o1644, 0o2077, 0o4715, 0:
                os.chmod(to(path), mode)
                tell("chmod", path, text, state(path))
            # With data that is not written back yet.
            if path == "file":
                with open(to(path), "ab", buffering=0) as file:
                    file.write(b"data")
                    os.fchmod(file.fileno(), 0o640)
                    tell("fchmod", text, state(path))
                    os.setxattr(file.fileno(), ACCESS, acl(text))
                    tell("fsetxattr", text, state(path))
                    os.fchmod(file.fileno(), 0o2601)
                    tell("fchmod again", text, state(path))
            os.chown(to(path), 1000, 50)
            tell("chown", path, state(path))
            os.chown(to(path), 0, 0)
    long = acl("u:7," + "U5:7," * 100 + "g:7,m:7,o:7")
    tell("long", attempt(os.setxattr, to("file"), ACCESS, long), attempt(os.getxattr, to("file"), ACCESS) == long)
    tell("small buffer", attempt(short, "file"))


def short(path):
    if LIBC.getxattr(to(path).encode(), ACCESS.encode(), ctypes.create_string_buffer(8), 8) < 0:
        raise OSError(ctypes.get_errno(), "getxattr")


def inheriting():
    for number, text in enumerate(LISTS):
        for umask in 0, 0o027, 0o777:
            os.umask(umask)
            parent = f"in{number}-{umask:o}"
            os.mkdir(to(parent), 0o777)
            tell("fresh", state(parent))
            os.chmod(to(parent), 0o2775 if number % 2 else 0o755)
            os.setxattr(to(parent), DEFAULT, acl(text))
            tell("parent", state(parent))
            for mode in 0o777, 0o644, 0o4750, 0o2010, 0:
                name = f"{parent}/{mode:o}"
                tell("open", attempt(opened, to(f"{name}f"), os.O_CREAT | os.O_RDWR, mode), state(f"{name}f"))
                tell("mkdir", attempt(os.mkdir, to(f"{name}d"), mode), state(f"{name}d"))
                tell("mkdir in it", attempt(os.mkdir, to(f"{name}d/e"), mode), state(f"{name}d/e"))
                tell("fifo", attempt(os.mkfifo, to(f"{name}p"), mode), state(f"{name}p"))
                tell("mknod", attempt(os.mknod, to(f"{name}n"), stat.S_IFREG | mode), state(f"{name}n"))
                tell("device", attempt(os.mknod, to(f"{name}c"), stat.S_IFCHR | mode, os.makedev(1, 3)), state(f"{name}c"))
                tell("symlink", attempt(os.symlink, "x", to(f"{name}l")), state(f"{name}l"))
                tell("link", attempt(os.link, to(f"{name}f"), f"{name}h"), state(f"{name}h"))
            make(f"{parent}.moved")
            os.rename(to(f"{parent}.moved"), f"{parent}/moved")
            tell("moved", state(f"{parent}/moved"))
            tell("whiteout", attempt(renamed, to(f"{parent}/moved"), "away", 4), state(f"{parent}/moved"))
            os.unlink(to("away"))
            os.removexattr(to(parent), DEFAULT)
            tell("without", attempt(opened, to(f"{parent}/w"), os.O_CREAT | os.O_RDWR), state(f"{parent}/w"))
    os.umask(0)


USERS = [(0, 0, []), (500, 50, []), (1000, 1, []), (1000, 50, []), (1001, 9, [50, 51]), (1001, 9, []), (7, 51, []), (7, 7, [50]), (7, 7, [])]


def acting():
    os.mkdir(to("act"), 0o755)
    for path, mode in ("act/file", 0o640), ("act/dir/inner", 0o644):
        if "/dir" in path:
            os.mkdir(to("act/dir"), 0o750)
            os.chown(to("act/dir"), 500, 50)
        make(path, mode)
        os.chown(to(path), 500, 50)
    for text in ["none"] + LISTS:
        for path in "act/file", "act/dir":
            if text == "none":
                attempt(os.removexattr, to(path), ACCESS)
            else:
                os.setxattr(to(path), ACCESS, acl(text))
        for user in USERS:
            calls = {
                "read": (opened, "act/file", os.O_RDONLY),
                "write": (opened, "act/file", os.O_WRONLY),
                "append": (opened, "act/file", os.O_RDWR | os.O_APPEND),
                "run": (os.access, "act/file", os.X_OK),
                "list": (os.listdir, "act/dir"),
                "find": (os.lstat_mode, "act/dir/inner"),
                "into": (os.chdir, "act/dir"),
                "make": (opened, "act/dir/new", os.O_CREAT | os.O_WRONLY),
                "unmake": (os.unlink, "act/dir/new"),
                "truncate": (os.truncate, "act/file", 3),
                "touch": (os.utime, "act/file"),
                "set a time": (os.utime, "act/file", (1, 1)),
                "chmod": (os.chmod, "act/file", 0o640) if text == "none" else (os.lstat_mode, "act/file"),
                "get": (os.getxattr, "act/file", ACCESS),
                "set": (os.setxattr, "act/dir", DEFAULT, acl(LISTS[2])),
                "unset": (os.removexattr, "act/dir", DEFAULT),
                "user": (os.setxattr, "act/file", "user.x", b"1"),
                "user of it": (os.getxattr, "act/file", "user.x"),
            }
            for what, call in calls.items():
                tell(text, user, what, as_user(*user, *call))
            attempt(os.unlink, to("act/dir/new"))
    # What one side takes away, the other has no more, also of an open directory.
    for _ in range(20):
        os.setxattr(to("act/dir"), ACCESS, acl("u:7,U1000:7,g:0,m:7,o:0"))
        tell("given", as_user(1000, 1, [], opened, "act/dir/inner", os.O_RDONLY), as_user(1000, 1, [], os.listdir, "act/dir"))
        os.setxattr(to("act/dir"), ACCESS, acl("u:7,U1000:4,g:0,m:7,o:0"))
        tell("less", as_user(1000, 1, [], opened, "act/dir/inner", os.O_RDONLY), as_user(1000, 1, [], os.listdir, "act/dir"))
        os.chmod(to("act/dir"), 0o705)
        tell("no mask", as_user(1000, 1, [], opened, "act/dir/inner", os.O_RDONLY), as_user(1000, 1, [], os.listdir, "act/dir"))
        os.removexattr(to("act/dir"), ACCESS)
        os.chmod(to("act/dir"), 0o700)
        tell("taken", as_user(1000, 1, [], opened, "act/dir/inner", os.O_RDONLY))


def set_group_id():
    for kind in "file", "dir":
        for user in (500, 9, []), (500, 9, [50]), (500, 50, []), (0, 0, []):
            for text in LISTS[:3]:
                path = f"sgid-{kind}"
                make(path) if kind == "file" else os.mkdir(to(path))
                os.chown(to(path), 500, 50)
                os.chmod(to(path), 0o6775)
                tell(user, as_user(*user, os.setxattr, path, ACCESS, acl(text)), state(path))
                os.chmod(to(path), 0o6775)
                tell(user, as_user(*user, os.removexattr, path, ACCESS), state(path))
                os.unlink(to(path)) if kind == "file" else os.rmdir(to(path))


def attributes():
    make("x", 0o666)
    os.mkdir(to("x.dir"), 0o777)
    os.mkdir(to("x.sticky"), 0o777)
    os.chmod(to("x.sticky"), 0o1777)
    os.mkfifo(to("x.fifo"), 0o666)
    os.symlink("x", to("x.link"))
    names = ["user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "user", "trusted.", "", "user." + "n" * 250, "user." + "n" * 251, "system.posix_acl_other"]
    for path in "x", "x.dir", "x.sticky", "x.fifo", "x.link":
        for name in names:
            for user in (0, 0, []), (1000, 1000, []):
                def of(call, *more, **named):
                    return as_user(*user, lambda: call(path, name, *more, follow_symlinks=False, **named))
                tell(path, name[:9], len(name), user[0], of(os.getxattr), of(os.setxattr, b"", os.XATTR_REPLACE),
                     of(os.setxattr, b"one", os.XATTR_CREATE), of(os.setxattr, b"two", os.XATTR_CREATE), of(os.getxattr),
                     of(os.setxattr, b"", os.XATTR_REPLACE), of(os.setxattr, b"x", 3), of(os.getxattr), of(os.removexattr), of(os.removexattr))
        for name in "user.a", "trusted.a", "security.a", "user.b":
            attempt(os.setxattr, to(path), name, b"1", follow_symlinks=False)
        for user in (0, 0, []), (1000, 1000, []):
            tell(path, "names", user[0], as_user(*user, lambda: sorted(os.listxattr(path, follow_symlinks=False))))
    changes = {
        "write": lambda path: os.write(os.open(path, os.O_WRONLY), b"x"),
        "write nothing": lambda path: os.write(os.open(path, os.O_WRONLY), b""),
        "truncate": lambda path: os.truncate(path, 1),
        "same size": lambda path: os.truncate(path, os.stat(path).st_size),
        "open for it": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
        "chown": lambda path: os.chown(path, 5, 5),
        "chown to the same": lambda path: os.chown(path, -1, -1),
        "chmod": lambda path: os.chmod(path, 0o755),
        "utime": lambda path: os.utime(path),
        "rename": lambda path: os.rename(path, path),
        "set": lambda path: os.setxattr(path, "user.z", b"1"),
    }
    for what, change in changes.items():
        for user in (0, 0, []), (500, 500, []):
            make("capable", 0o777)
            with open(to("capable"), "wb") as file:
                file.write(b"data")
            os.chown(to("capable"), 500, 500)
            os.chmod(to("capable"), 0o6755)
            os.setxattr(to("capable"), "security.capability", CAPABILITY)
            os.setxattr(to("capable"), ACCESS, acl(LISTS[2]))
            done = as_user(*user, change, "capable")
            tell("capability", what, user[0], done, state("capable"))
            os.unlink(to("capable"))


os.lstat_mode = lambda path: os.lstat(path).st_mode
for part in setting, inheriting, acting, set_group_id, attributes:
    tell("#", part.__name__)
    part()
