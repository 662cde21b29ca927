"""Worker processes that answer requests with yes or no, whatever a request does to them: no threads, no signals.

A worker is a python program of its own, in its own process group. It writes "r" when it is ready, reads a request a
line from stdin, and writes "1" or "0" for each. Past its deadline its process group is killed. Whatever else it does, the
answer to its request is no, and the next request gets a new process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import deque

START = 60.0  # seconds that a worker has to start


class Verdict:
    """The answer to one request: `done()` says without waiting whether it is there, `result()` waits for it."""

    def __init__(self, workers: Workers, request: str, value: bool | None = None):
        self.workers, self.request, self.value = workers, request, value

    def done(self) -> bool:
        if self.value is None:
            self.workers.advance(wait=False)
        return self.value is not None

    def result(self) -> bool:
        """`RuntimeError` where no worker can start or the workers were closed first."""
        while self.value is None:
            self.workers.advance(wait=True)
        if isinstance(self.value, RuntimeError):
            raise self.value
        return self.value


class Workers(contextlib.AbstractContextManager):
    """So many processes that run `command`, with `timeout` seconds for each request; for use in one thread. Asking for
    any verdict moves all of them on. The first request starts the first process."""

    def __init__(self, command: list[str], workers: int, timeout: float):
        self.workers, self.waiting = [_Worker(command, timeout) for _ in range(workers)], deque()

    def ask(self, request: str) -> Verdict:
        """Hand in a request, of one line."""
        verdict = Verdict(self, request)
        self.waiting.append(verdict)
        self.advance(wait=False)
        return verdict

    def advance(self, wait: bool):
        """Hear what workers wrote, end those past their deadline, hand out requests; `wait` for one of the first two."""
        busy, ears = [worker for worker in self.workers if worker.verdict], select.poll()
        for worker in busy:
            ears.register(worker.process.stdout, select.POLLIN)
        left = min((worker.deadline for worker in busy), default=0) - time.monotonic()
        heard = dict(ears.poll(max(0, 1000 * left) if wait else 0))
        for worker in busy:
            if worker.process.stdout.fileno() in heard:
                worker.hear(worker.process.stdout.read(16))
            elif time.monotonic() >= worker.deadline:
                worker.hear(b"")
        for worker in self.workers:
            if self.waiting and not worker.verdict:
                worker.ask(self.waiting.popleft())

    def close(self):
        """Ends every worker. A verdict that is still out is an error from here on."""
        for verdict in filter(None, [*self.waiting, *(worker.verdict for worker in self.workers)]):
            verdict.value = RuntimeError("the workers were closed before this verdict")
        self.waiting.clear()
        for worker in self.workers:
            worker.end()

    def __exit__(self, *_):
        self.close()


class _Worker:
    """One process at a time, and one request."""

    def __init__(self, command: list[str], timeout: float):
        self.command, self.timeout = command, timeout
        self.process = self.verdict = None
        self.ready, self.deadline = False, 0.0

    def ask(self, verdict: Verdict):
        """Hand over a request, to a new process if need be. Never blocks where the longest one fits into a pipe."""
        if self.process and self.process.poll() is not None:  # killed while idle
            self.end()
        try:
            self.process = self.process or subprocess.Popen(
                self.command,
                bufsize=0,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self.verdict, self.deadline = verdict, time.monotonic() + (self.timeout if self.ready else START)
            self.process.stdin.write(verdict.request.encode() + b"\n")
        except BrokenPipeError:  # it died, which `hear` will find
            pass
        except OSError as error:
            verdict.value = RuntimeError(f"no worker process starts: {error}")

    def hear(self, reply: bytes):
        """One byte when it is ready, one for each verdict; anything else, or nothing by the deadline, is its end."""
        if not self.ready and reply[:1] == b"r":  # the time to start is not the first request's
            self.ready, self.deadline, reply = True, time.monotonic() + self.timeout, reply[1:]
            if not reply:
                return
        failed = None if self.ready else RuntimeError(f"no worker process starts: {' '.join(self.process.args)}")
        self.verdict.value = failed or reply == b"1"
        self.verdict = None
        if reply not in (b"0", b"1"):
            self.end()

    def end(self):
        if self.process:
            with self.process:  # closes its pipes and waits for it
                if self.process.poll() is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
        self.process = self.verdict = None
        self.ready = False
