"""[edge: pynetdicom] Two races of pynetdicom (3.0.4) on the side that asks for an association, mended.

Both need a busy machine. A peer that rejects and hangs up before our thread looks is taken for one that is not there.
And the thread that serves the peer's requests may take the answer that `send_c_store` and its kin wait for: these then
wait until their time is up.
"""

from __future__ import annotations

import threading
from typing import Final

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import A_ASSOCIATE

_LOOK_SECONDS: Final = 0.05  # the thread comes round every millisecond, unless it has ended


class Rejection:
    """What a peer answered that rejected us, by what was received; to be handed to `AE.associate` with its handlers."""

    def __init__(self) -> None:
        self.primitive: A_ASSOCIATE | None = None  # with result, source and diagnostic (PS3.8 Table 9-21)
        self.handler: Final = (evt.EVT_PDU_RECV, self._note)

    def _note(self, event: evt.Event) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            self.primitive = event.pdu.to_primitive()


def steady(association: Association) -> None:
    """Let the answers to our requests reach those who wait for them; once, when it is established.

    pynetdicom holds its serving thread at a checkpoint while a request of ours is under way, and looks at a flag to see
    that it is held. The flag is still set for a moment after the thread has left the checkpoint.
    """
    checkpoint = _Checkpoint(association)
    association._reactor_checkpoint = checkpoint
    while association.is_alive() and not checkpoint.reached.wait(_LOOK_SECONDS):
        pass


class _Checkpoint(threading.Event):
    """Takes the flag back before the thread leaves, in one step for whoever closes the checkpoint."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self.reached = threading.Event()
        self._association = association
        self._leaving = threading.Lock()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        while True:
            is_open = super().wait(timeout)
            with self._leaving:
                if not is_open or self.is_set():
                    self._association._is_paused = False
                    return is_open

    def clear(self) -> None:
        with self._leaving:
            super().clear()
