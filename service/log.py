"""Log lines: one JSON object each, on stderr: an event's name and its fields. UIDs only, never patient data."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from typing import Any

from service.errors import ServiceError

_LOGGER = logging.getLogger("overread")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info and record.exc_info[1] is not None:
            # The type and place, never the message: a library's message may quote a header.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            line |= {"exception": type(record.exc_info[1]).__name__, "where": where}
        return json.dumps(line, ensure_ascii=False, default=str)


def _says_no_headers(record: logging.LogRecord) -> bool:
    """Whether a line may be written: those of the DICOM libraries quote headers; ours say what matters.

    A filter, since pydicom gives its logger a level of its own whenever it is imported.
    """
    return record.name.partition(".")[0] not in ("pynetdicom", "pydicom", "highdicom")


def set_up(*, level: int = logging.INFO) -> None:
    """Send this process's log lines to stderr; libraries are heard from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    handler.addFilter(_says_no_headers)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _LOGGER.setLevel(level)
    warnings.simplefilter("ignore")  # pydicom's quote the values that they warn of


def event(name: str, **fields: Any) -> None:
    """Say that something happened."""
    _LOGGER.info(name, extra={"fields": fields})


def warning(name: str, error: ServiceError | None = None, **fields: Any) -> None:
    """Say that something went wrong and is being dealt with."""
    _LOGGER.warning(name, extra={"fields": {**fields, **(error.parts() if error else {})}})


def failure(name: str, exc: BaseException, **fields: Any) -> None:
    """Say that something failed that should not have: the exception's type and place, not its message."""
    parts = exc.parts() if isinstance(exc, ServiceError) else {}
    _LOGGER.error(name, extra={"fields": {**fields, **parts}}, exc_info=exc)
