"""No process outlives the command that started it, however the command ends.

Prefect runs a server of its own as a child, which would stay when the command is killed. So the
command starts one tiny process beside itself, which waits for the command's end and then ends
whatever it has left. The kernel tells it: it reads from a pipe that nobody writes to, and the end
of the file is the end of the command. Descendants are known by a mark in their environment, which
they inherit however deep they are. Works on Linux and macOS alike.

Run as a program by its path, so that it imports nothing of this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

MARK = "CONCENTRATE_RUN"
GRACE_SECONDS = 3.0
ROUNDS = 5

_pipe: int | None = None  # open until this process ends, and in no other process


def end_with_this_process() -> None:
    """Have every process that this one starts from now on end with it; cheap to call again."""
    global _pipe
    if _pipe is not None:
        return
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    end, _pipe = os.pipe()
    # In a session of its own, Ctrl-C in the terminal does not reach it; and it holds neither
    # stdout nor stderr, so that whoever reads those sees their end.
    subprocess.run(
        [sys.executable, "-P", __file__, mark],
        env=environment,
        stdin=end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
    os.close(end)
    # A command inside a run of another carries both marks, and ends with either.
    os.environ[MARK] = ",".join(filter(None, (os.environ.get(MARK), mark)))


def _end_marked(mark: str) -> None:
    """End every process that carries the mark: first asked, then killed."""
    import psutil

    for _ in range(ROUNDS):
        found = []
        for process in psutil.process_iter():
            try:
                if mark in process.environ().get(MARK, "").split(","):
                    process.terminate()
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # another user's, or it has just ended
        if not found:
            return
        _, stubborn = psutil.wait_procs(found, timeout=GRACE_SECONDS)
        for process in stubborn:
            try:
                process.kill()
            except psutil.Error:
                continue


def _main() -> None:
    if os.fork():
        os._exit(0)  # the one that goes on is nobody's child: it is not ended with the others
    sys.stdin.buffer.read()
    _end_marked(sys.argv[1])


if __name__ == "__main__":
    _main()
