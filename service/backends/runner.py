"""The inference engine's own end of the pipe: what its process does from its start to its end."""

from __future__ import annotations

import faulthandler
import os
import queue
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import TYPE_CHECKING, Any

from service import child, log
from service.backends.messages import Command, Reply, place_batch
from service.backends.shared import Block
from service.errors import ContractBroken, ServiceError
from service.types import Network

if TYPE_CHECKING:  # only this process loads ONNX Runtime, and only once it runs
    from service.backends.onnx import Runtime


def run_engine(channel: Connection, threads: int, memory_gib: float) -> None:
    """Run networks until the other end of the channel is gone, be it closed or dead with its process.

    Parameters
    ----------
    channel
        Its other end gives commands and gets replies; first of all, `Abilities`.
    """
    log.set_up()
    child.serve()
    faulthandler.enable()
    try:
        from service.backends.onnx import Runtime

        runtime = Runtime(threads=threads, memory_gib=memory_gib)
    except Exception as exc:
        log.failure("engine.failed", exc)
        raise SystemExit(1) from None
    with suppress(EOFError, OSError):
        _Runner(channel, runtime).run()
    os._exit(0)  # at once, whatever native code other threads are in


class _Runner:
    """Reads commands in one thread; each lane, and loading, has a thread of its own."""

    def __init__(self, channel: Connection, runtime: Runtime) -> None:
        self._channel, self._runtime = channel, runtime
        self._sending = threading.Lock()
        self._networks: dict[str, Network] = {}
        self._blocks: dict[int, Block] = {}  # by lane
        self._lanes = [self._start(f"lane-{lane}") for lane in range(runtime.abilities.slots)]
        self._other = self._start("load")

    def run(self) -> None:
        """Until the channel ends."""
        self._channel.send(self._runtime.abilities)
        while True:
            command: Command = self._channel.recv()
            if command.block_bytes:  # the lane is idle: its caller waits for this very command
                self._take_block(command.lane, Block(recv_handle(self._channel), command.block_bytes))
            (self._lanes[command.lane] if command.verb == "infer" else self._other).put(command)

    def _start(self, name: str) -> queue.SimpleQueue[Command]:
        commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(commands,), name=name, daemon=True).start()
        return commands

    def _work(self, commands: queue.SimpleQueue[Command]) -> None:
        while True:
            command = commands.get()
            error: ServiceError | None = None
            value = None
            try:
                value = self._do(command)
            except ServiceError as exc:
                error = exc
            except Exception as exc:  # ours, then; whoever waits must hear of it
                log.failure("engine.failed", exc, network=command.network)
                error = ContractBroken(
                    doing=f"{command.verb} of the network {command.network}",
                    found=type(exc).__name__,
                    rule="the engine answers every command",
                    way_out="report it: see engine.failed in the log",
                )
            said = (type(error).__name__, error.parts()) if error else None
            with self._sending, suppress(OSError):
                self._channel.send(Reply(number=command.number, value=value, error=said))

    def _do(self, command: Command) -> Any:
        if command.verb == "infer":
            return self._infer(command)
        if command.verb == "unload":
            self._networks.pop(command.network, None)
            return self._runtime.unload(command.network)
        assert command.description  # the other two come with it
        if command.verb == "measure":
            return self._runtime.measure(command.description, command.limit_bytes, command.longest_seconds)
        loaded = self._runtime.load(command.description, command.limit_bytes)
        self._networks[command.network] = command.description
        return loaded

    def _infer(self, command: Command) -> None:
        block = self._blocks[command.lane]
        _, places = place_batch(self._networks[command.network], command.batch)
        patches, *answers = (block.array(shape, offset) for offset, shape in places)
        self._runtime.infer(command.network, patches, answers)

    def _take_block(self, lane: int, block: Block) -> None:
        last = self._blocks.pop(lane, None)
        if last:
            self._runtime.unpin(last.address)
            last.close()
        self._runtime.pin(block.address, block.size)
        self._blocks[lane] = block
