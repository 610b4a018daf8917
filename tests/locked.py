"A process of its own that holds the lock of an output, for tests of two writers."

import subprocess
import sys
from contextlib import contextmanager

HOLD = """
import sys, time
from sslpdl_nb.core import exclusive
with exclusive(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(100)
"""


@contextmanager
def another_process_writes(path):
    "Its number; the process is killed at the end."
    command = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
