"""One mount gives and takes a permission, by lists and by modes, while processes of a user try it on another.

Arguments: the two mounts, for how many seconds, and what the lists are of. Exits with an error if a try that lay between two
changes ended as before the first of them.
"""

import mmap
import os
import random
import struct
import sys
import time

ONE, OTHER, END, TARGET = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3]), sys.argv[4]
NOBODY = 0xFFFFFFFF
NAME = "system.posix_acl_access"
USER, WORKERS, TRIES_MIN = 1000, 4, 100


def acl(bits):
    entries = (1, 7, NOBODY), (2, bits, USER), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, allows, who) for tag, allows, who in entries)


# How often a change was begun or ended, and what is allowed since.
SHARED = mmap.mmap(-1, 4096)


def state():
    return struct.unpack("<QQ", SHARED[:16])


def attempt():
    try:
        os.close(os.open("dir/file", os.O_RDONLY))
        return 1
    except PermissionError:
        return 0


def work():
    os.chdir(OTHER)
    os.setgroups([])
    os.setresgid(1, 1, 1)
    os.setresuid(USER, USER, USER)
    wrong = tries = 0
    while time.monotonic() < END:
        before = state()
        result = attempt()
        if before[0] % 2 == 0 and state() == before:
            tries += 1
            wrong += result != before[1]
    print(f"{tries} tries, {wrong} wrong", flush=True)
    os._exit(wrong != 0 or tries < TRIES_MIN)


os.chmod(ONE, 0o755)
os.mkdir(f"{ONE}/dir", 0o755)
os.close(os.open(f"{ONE}/dir/file", os.O_CREAT, 0o644))
target = f"{ONE}/{TARGET}"
os.setxattr(target, NAME, acl(7))
SHARED[:16] = struct.pack("<QQ", 0, 1)
workers = []
for _ in range(WORKERS):
    worker = os.fork()
    if worker == 0:
        work()
    workers.append(worker)
chance, changes = random.Random(1), 0
while time.monotonic() < END:
    changes += 1
    allowed = changes % 2
    SHARED[:8] = struct.pack("<Q", 2 * changes - 1)
    match chance.randrange(3):
        case 0:
            os.setxattr(target, NAME, acl(7 if allowed else 0))
        case 1:
            os.setxattr(target, NAME, acl(7))
            os.chmod(target, 0o770 if allowed else 0o700)
        case 2:
            os.setxattr(target, NAME, acl(0))
            os.removexattr(target, NAME)
            os.chmod(target, 0o755 if allowed else 0o750)
    SHARED[:16] = struct.pack("<QQ", 2 * changes, allowed)
    time.sleep(chance.choice([0, 0.002, 0.01]))
print(f"{changes} changes")
sys.exit(any([os.waitpid(worker, 0)[1] for worker in workers]))
