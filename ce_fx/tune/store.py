"""Results that outlive a process: one readable JSON file each, under the cache folder.

A file is written beside its place and moved there, so a reader never sees half of one, and two writers lose nothing
but time. All of them are safe to delete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of the files; one of another schema is as good as none."""


def folder() -> Path | None:
    """Where results are kept: `CE_FX_CACHE_DIR`, else the user's cache folder.

    Returns:
        None where caches are off, by `TORCHINDUCTOR_FORCE_DISABLE_CACHES=1`.
    """
    if os.environ.get("TORCHINDUCTOR_FORCE_DISABLE_CACHES") == "1":
        return None
    given = os.environ.get("CE_FX_CACHE_DIR")
    return Path(given) if given else Path(platformdirs.user_cache_dir("ce_fx"))


def load(kind: str, key: str) -> dict[str, Any] | None:
    """What was saved under a key, or None; a file that cannot be read is reported and ignored.

    Args:
        kind: sub-folder: "calibration", "choice".
        key: all that the result depends on, as text.
    """
    place = _place(kind, key)
    if place is None or not place.exists():
        return None
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA and content["key"] == key:
            return dict(content["data"])
        log.info("%s is of another version or key and is ignored", place)
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"ce_fx: the cache file {place} cannot be read ({error}) and is ignored; delete it", stacklevel=2)
    return None


def save(kind: str, key: str, data: Mapping[str, Any]) -> Path | None:
    """Save plain data (numbers, strings, lists, dicts) under a key, over what was there.

    Returns:
        The file, or None where caches are off or the folder cannot be written (which is logged).
    """
    place = _place(kind, key)
    if place is None:
        return None
    content = json.dumps({"schema": SCHEMA, "key": key, "data": data}, indent=1)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=place.stem, suffix=".tmp", dir=place.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(beside, place)
    except OSError as error:
        log.warning("%s was not written: %s", place, error)
        return None
    return place


def _place(kind: str, key: str) -> Path | None:
    """The file of a key: a readable start and a digest of the whole."""
    root = folder()
    if root is None:
        return None
    readable = re.sub(r"[^A-Za-z0-9]+", "-", key)[:40].strip("-")
    return root / kind / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
