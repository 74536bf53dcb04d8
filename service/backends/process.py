"""[edge] The inference engine's process, as the service sees it.

It promises that whoever waits for an answer gets one: the engine's, or an error that says how the engine ended. An
engine that ends is started again at once; what it had loaded is then gone.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import send_handle
from typing import Any, Final

from service import errors, log
from service.backends.messages import Abilities, Command, Reply
from service.backends.runner import run_engine
from service.backends.shared import Block
from service.errors import BackendCrashed, BackendTimeout, BackendUnavailable, ServiceError, Stopping

START_SECONDS: Final = 120.0  # from the start to the first word: CUDA's libraries are gigabytes on a cold disk
_PAUSE_SECONDS: Final = 2.0  # before another try, when the engine did not come up
_END_SECONDS: Final = 5.0  # for a process to end once it was killed, or its pipe is closed


class NotSent(Exception):
    """The engine of that generation is gone; the command never reached it."""


@dataclass(slots=True)
class _Pending:
    doing: str
    future: Future[Reply] = field(default_factory=Future)


class Engine:
    """The engine's process; one that dies is replaced. Thread-safe.

    Each start is a *generation*. A command is meant for one generation, because a new one has nothing loaded.

    Raises
    ------
    BackendUnavailable
        If it does not come up.
    """

    def __init__(self, *, threads: int, memory_gib: float) -> None:
        self._arguments = (threads, memory_gib)
        self._changed = threading.Condition()  # guards all that follows
        self._process: SpawnProcess | None = None  # from its start until its pipe is closed
        self._channel: Connection | None = None  # while it takes commands
        self._abilities: Abilities | None = None
        self._pending: dict[int, _Pending] = {}  # by the command's number
        self._number = 0
        self._generation = 0
        self._killed = ""  # why this process was killed, if we did it
        self._failures = 0  # starts in a row that came to nothing
        self._closed = False
        self._supervisor = threading.Thread(target=self._supervise, name="engine", daemon=True)
        self._supervisor.start()
        try:
            self.generation()
        except BackendUnavailable:
            self.close()
            raise
        assert self._abilities  # its first word
        self.abilities: Abilities = self._abilities

    @property
    def pid(self) -> int | None:
        """Number of the process that takes commands, if one does."""
        with self._changed:
            return self._process.pid if self._process and self._channel else None

    def generation(self) -> int:
        """The generation that is up; waits for one that is starting.

        Raises
        ------
        BackendUnavailable
            If none comes up; Stopping after `close`.
        """
        with self._changed:
            failures = self._failures
            self._changed.wait_for(lambda: self._closed or self._channel or self._failures > failures, START_SECONDS)
            if self._closed:
                raise stopping()
            if self._channel is None:
                raise BackendUnavailable(
                    doing="starting the inference engine",
                    found="its process ended, or said nothing, before it was ready",
                    rule="ONNX Runtime starts in a process of its own",
                    way_out="see engine.failed and engine.died in the log; it is tried again",
                )
            return self._generation

    def call(
        self, generation: int, command: Command, *, doing: str, limit_seconds: float, block: Block | None = None
    ) -> Any:
        """Give a command and wait for what comes of it.

        Parameters
        ----------
        block
            Sent along, where the command announces one.

        Raises
        ------
        NotSent
            If that generation is gone.
        BackendTimeout
            After the time limit; the engine is killed.
        BackendCrashed
            If it died meanwhile.
        ServiceError
            What the engine says.
        """
        with self._changed:
            if self._closed:
                raise stopping()
            if self._channel is None or self._process is None or self._generation != generation:
                raise NotSent
            self._number += 1
            number, pending = self._number, _Pending(doing)
            try:
                self._channel.send(replace(command, number=number))
                if block:
                    send_handle(self._channel, block.fd, self._process.pid)
            except OSError as exc:  # it is dead, and the supervisor about to notice; or it got half a command
                self._channel = None
                self._process.kill()
                raise NotSent from exc
            self._pending[number] = pending  # the reply can't be looked up before the lock is free
        try:
            reply = pending.future.result(limit_seconds)
        except TimeoutError:
            self._end_late(number, limit_seconds)
            reply = pending.future.result()  # there by now: this error, or what came at the last moment
        if reply.error:
            name, parts = reply.error
            raise getattr(errors, name)(**parts)
        return reply.value

    def is_up(self) -> bool:
        """Whether it would take a command now."""
        with self._changed:
            return self._channel is not None and not self._closed

    def close(self) -> None:
        """End the process and the thread that watches it; whoever waits is told."""
        with self._changed:
            self._closed = True
            self._channel = None
            if self._process:
                self._process.kill()  # it holds nothing that could be spoilt
            self._fail_pending(lambda doing: stopping())
            self._changed.notify_all()
        self._supervisor.join(2 * _END_SECONDS)

    def _end_late(self, number: int, seconds: float) -> None:
        with self._changed:
            late = self._pending.pop(number, None)
            if late is None:  # it was answered while we came here
                return
            late.future.set_exception(
                BackendTimeout(
                    doing=late.doing,
                    found=f"no answer after {seconds:g} s; the inference engine was killed",
                    rule="a patch takes at most [analysis] patch_seconds, and loading a network ten times that",
                    way_out="raise patch_seconds if the machine is only slow; else the network never ends",
                )
            )
            # Whoever waits is told now: a process that is stuck in the driver may take long to die.
            self._killed = killed = f"killed by the service, because {late.doing} took too long"
            self._fail_pending(lambda doing: _crashed(doing, killed))
            self._channel = None
            if self._process:
                log.warning("engine.late", pid=self._process.pid, doing=late.doing, limit_seconds=seconds)
                self._process.kill()

    def _fail_pending(self, error: Callable[[str], ServiceError]) -> None:
        for pending in self._pending.values():
            pending.future.set_exception(error(pending.doing))
        self._pending.clear()

    def _supervise(self) -> None:
        while True:
            try:
                came_up = self._live()
            except OSError as exc:  # no memory for a process, no descriptor for a pipe
                log.failure("engine.not_started", exc)
                came_up = False
            with self._changed:
                if not came_up:
                    self._failures += 1
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed, _PAUSE_SECONDS)
                if self._closed:
                    return

    def _live(self) -> bool:
        """One generation, from its start to its end; whether it came up."""
        context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=run_engine, args=(theirs, *self._arguments), name="engine", daemon=True)
        begun = time.monotonic()
        with ours:
            with theirs, self._changed:  # our copy of their end: closed, the death of either process ends the other's
                if self._closed:
                    return False
                process.start()
                self._process, self._killed = process, ""
            came_up = False
            try:
                if ours.poll(START_SECONDS):
                    abilities: Abilities = ours.recv()
                    came_up = True
                    self._begin(ours, abilities, time.monotonic() - begun)
                    while True:
                        self._answer(ours.recv())
            except (EOFError, OSError):
                pass
            finally:
                self._end(process)
        return came_up

    def _begin(self, channel: Connection, abilities: Abilities, seconds: float) -> None:
        with self._changed:
            if self._closed:
                return
            self._abilities, self._channel = abilities, channel
            self._generation += 1
            self._failures = 0
            self._changed.notify_all()
        log.event(
            "engine.started", pid=self.pid, device=abilities.device, slots=abilities.slots, seconds=round(seconds, 3)
        )

    def _answer(self, reply: Reply) -> None:
        with self._changed:
            pending = self._pending.pop(reply.number, None)
            if reply.error and reply.error[0] == BackendUnavailable.__name__ and self._process:
                # A CUDA context that failed once fails for ever, and only a new process gets another one.
                self._killed = "killed by the service, because the GPU did not answer"
                self._channel = None
                self._process.kill()
            if pending:  # else its caller was told of a time limit or of the end
                pending.future.set_result(reply)

    def _end(self, process: SpawnProcess) -> None:
        """The pipe is closed, or nothing came through it: see the process out, and tell those who wait."""
        with self._changed:
            self._channel = self._process = None  # from here on nobody else signals it
        process.join(_END_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()  # for ever, if it is stuck in the driver: then there is nothing to start again on, either
        with self._changed:
            how = self._killed or _how(process.exitcode)
            self._fail_pending(lambda doing: _crashed(doing, how))
            closed = self._closed
        if not closed:
            log.warning("engine.died", pid=process.pid, how=how)
        process.close()


def stopping() -> Stopping:
    """What is told to callers when the service stops."""
    return Stopping(
        doing="running a batch",
        found="the service is stopping",
        rule="a stopping service begins nothing new",
        way_out="nothing to do; the study is analysed after the restart",
    )


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"it ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"ended by {name}" + (", perhaps by the kernel because memory ran out" if name == "SIGKILL" else "")


def _crashed(doing: str, how: str) -> BackendCrashed:
    return BackendCrashed(
        doing=doing,
        found=f"the inference engine died: {how}",
        rule="ONNX Runtime has a process of its own, so that nothing else dies with it",
        way_out="nothing to do: it is started again, and what was running is tried again, each network alone",
    )
