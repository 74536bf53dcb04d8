"""[edge: fastapi] What stands in addresses: each is described once, and held to its form before anything is done."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import Path, Query
from pydantic import StringConstraints
from starlette.datastructures import URL

MOST: Final = 2**31 - 1  # a number in the database

_NAME: Final = r"^[ -.0-~]+$"  # what is printed, and no slash

StudyUid = Annotated[
    str,
    Path(
        description="Study Instance UID (0020,000D).",
        max_length=64,
        pattern=r"^[0-9]+(\.[0-9]+)*$",  # PS3.5 section 9.1
        examples=["1.2.826.0.1.3680043.8.498.1"],
    ),
]
FileName = Annotated[
    str,
    Path(
        description="As an answer names it.",
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        examples=["lung-nodule-1.png"],
    ),
]
DestinationName = Annotated[
    str, Path(description="As the configuration names it.", max_length=64, pattern=_NAME, examples=["pacs"])
]
SourceTitle = Annotated[
    str, Path(description="Its calling AE title.", max_length=16, pattern=_NAME, examples=["CT_SCANNER"])
]
Some = Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00-\x1f]*$")]  # what no database chokes on
ModelName = Annotated[str, StringConstraints(max_length=64, pattern=r"^([a-z][a-z0-9-]*)?$")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Offset = Annotated[int, Query(ge=0, le=MOST, description="How many are passed over, in that order.")]


def links(url: URL, *, known: Collection[str], total: int, limit: int, offset: int) -> str:
    """The value of a Link header (RFC 8288): first, previous, next and last page of a list.

    Parameters
    ----------
    known
        The parameters that count; others are not repeated, whatever they say.
    """
    url = url.remove_query_params([key for key in parse_qs(url.query, keep_blank_values=True) if key not in known])
    last = max(0, (total - 1) // limit * limit)
    pages = {"first": 0, "last": last}
    if offset > 0:
        pages["prev"] = max(0, min(offset - limit, last))
    if offset + limit < total:
        pages["next"] = offset + limit
    targets = {name: url.include_query_params(limit=limit, offset=start) for name, start in pages.items()}
    return ", ".join(f'<{target.path}?{target.query}>; rel="{name}"' for name, target in targets.items())
