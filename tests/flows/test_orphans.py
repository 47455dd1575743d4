"""Descendants end with the command, however it ends, and nothing else is disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.orphans import MARK

ROOT = Path(__file__).parents[2]
COMMAND = """
import subprocess, sys, time
from flows.orphans import end_with_this_process

end_with_this_process()
end_with_this_process()
# A child that does not care for SIGTERM and has a child of its own.
child = subprocess.Popen([sys.executable, "-c", '''
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", flush=True)
time.sleep(600)
'''])
time.sleep(600)
"""


def command_line(process: psutil.Process) -> list[str]:
    """Return the arguments of a process; none if it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def command(tmp_path):
    """A command with a child and a grandchild, with its output piped."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    descendants = psutil.Process(process.pid).children(recursive=True)
    assert len(descendants) == 2
    mark = descendants[0].environ()[MARK].split(",")[-1]
    (watcher,) = [found for found in psutil.process_iter() if mark in command_line(found)]
    descendants.append(watcher)
    yield process, descendants
    for left in [process, *descendants]:
        try:
            left.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_descendants_end_with_the_command(command, number):
    """Whatever ends the command, child, grandchild and watcher end within seconds."""
    process, descendants = command
    os.kill(process.pid, number)
    process.wait(timeout=10)
    _, left = psutil.wait_procs(descendants, timeout=15)
    assert left == []
    assert process.stdout.read() == ""  # nobody holds the output open


def test_ctrl_c_in_the_terminal_ends_everything(command):
    """SIGINT goes to the whole group of a terminal; the watcher outlives it to end the others."""
    process, descendants = command
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=10)
    _, left = psutil.wait_procs(descendants, timeout=15)
    assert left == []


def test_a_command_that_ends_by_itself_is_not_held_up(tmp_path):
    """A normal end: exit code and output as without the watcher, a shell pipeline finishes."""
    line = f"{sys.executable} -c 'from flows.orphans import end_with_this_process as end; end(); "
    done = subprocess.run(
        ["bash", "-c", f"{line}print(7)' | cat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
