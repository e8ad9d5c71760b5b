#!/usr/bin/env python3
"""create|stat|read|unlink N files of 4 KiB with J processes; prints operations per second over the whole run."""
import multiprocessing
import os
import sys
import time

operation, root, count, processes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
data = os.urandom(4096)


def work(number):
    directory = f"{root}/{number}"
    if operation == "create":
        os.makedirs(directory, exist_ok=True)
    for index in range(count // processes):
        path = f"{directory}/f{index:06d}"
        if operation == "create":
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, data)
            os.close(fd)
        elif operation == "stat":
            os.stat(path)
        elif operation == "read":
            fd = os.open(path, os.O_RDONLY)
            assert len(os.read(fd, 8192)) == 4096
            os.close(fd)
        else:
            os.unlink(path)


begun = time.time()
workers = [multiprocessing.Process(target=work, args=(number,)) for number in range(processes)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
failed = any(worker.exitcode for worker in workers)
print("FAIL" if failed else round(count // processes * processes / (time.time() - begun)))
