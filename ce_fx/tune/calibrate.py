"""The time model of a device: measured once per device, thread count and kind of number, then kept on disk.

Seven ops of each family, forward and with backward, take some seconds; the constants that fit them are stored as
readable JSON with the quality of the fit on held-out ops. A machine too noisy to give a good fit gets the constants
that come with the package, which are flagged as not calibrated.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ce_fx.plan.ops import FAMILIES
from ce_fx.plan.time_model import Roofline, TimeModel
from ce_fx.tune import machine, store
from ce_fx.tune.fit import Quality, fitted, held_out
from ce_fx.tune.instances import all_instances
from ce_fx.tune.microbench import Sample, disagreement, measure, merged

log = logging.getLogger(__name__)

KIND = "calibration"
BUDGET = 5.0  # seconds of measuring, about
COUNT = 7  # instances of a family
_ROUNDS = 2
_LIMITS = Quality(0.9, 2.0, 0)  # what a fit must reach on held-out ops to be used
_UNITS = {"t0": ("t0_us", 1e-6), "rate": ("rate_gmac_s", 1e9), "each": ("each_us", 1e-6)}
_UNITS |= {name: (f"{name}_gb_s", 1e9) for name in ("bandwidth", "far")}
_POSITIVE = ("t0", "rate", "bandwidth")  # the other constants may be absent, as 0
_PATIENCE = 60.0  # seconds until an unasked calibration that met an obstacle is tried again

_known: dict[tuple[str, str], TimeModel] = {}
_told: set[str] = set()
_not_before: dict[tuple[str, str], float] = {}  # when to try again, on the clock of `time.monotonic`


def time_model(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    measure: bool = False,
    verbose: bool | None = None,
) -> TimeModel:
    """The best time model there is for a device and the present number of threads.

    Args:
        device: where the ops run.
        dtype: of their operands. One without a calibration of its own takes that of float32, scaled.
        measure: calibrate now, if that has not been done; refused where ops cannot be timed, or where several ranks
            of a process group would come to different models.
        verbose: a progress bar while measuring: None for one on a terminal only.

    Returns:
        The stored calibration, or the constants that come with the package (`calibrated` tells which).
    """
    device = torch.device(device)
    own = stored(device, dtype) or stored(device, torch.float32)
    if own is None and measure:
        own = _measured_unasked(device, verbose)
    return _for_dtype(own or TimeModel.default(device), dtype)


def calibrate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    verbose: bool | None = None,
    budget: float = BUDGET,
) -> TimeModel:
    """Measure a device, fit the time model to it, and keep it.

    Nothing is kept, and the constants that come with the package are returned with a warning, where ops cannot be timed
    now (while tracing, in a CUDA graph capture, with the cores in use by others) or where two tries give no fit that
    predicts held-out ops. Torch's random state is not touched.

    Args:
        device: what to measure, at the present number of threads.
        dtype: of the operands, floating point or complex.
        verbose: a progress bar: None for one on a terminal only.
        budget: seconds to measure for, about; twice that on a noisy machine.

    Returns:
        The fitted model, with `calibrated` set.

    Raises:
        ValueError: the dtype is not floating point or complex.
    """
    device = torch.device(device)
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"ops on {dtype} have no gradients to time; calibrate for a floating point or complex dtype")
    default = _for_dtype(TimeModel.default(device), dtype)
    obstacle = machine.obstacle(device)
    if obstacle is not None:
        return _defaults_because(f"{obstacle}; calibrate later", default)
    rounds: list[list[Sample]] = []
    for _ in range(2):
        rounds += _measured(device, dtype, budget, verbose)
        samples = merged(rounds)
        found = held_out(samples, default)
        if all(_good(quality) for quality in found):
            model = fitted(samples, default)
            return _keep(device, dtype, model, _record(device, dtype, model, found, rounds))
    reached = ", ".join(f"{name} {quality}" for name, quality in zip(("forward", "both"), found, strict=True))
    return _defaults_because(
        f"the measurements are too noisy: on held-out ops {reached}, two rounds {disagreement(rounds):.2f}x apart; "
        "calibrate again when the machine is quiet",
        default,
    )


def stored(device: torch.device, dtype: torch.dtype) -> TimeModel | None:
    """The calibration on disk for exactly this device, dtype, number of threads and torch, if it is good enough."""
    if not machine.reachable(device):
        return None
    key = machine.key(device, dtype)
    place = str(store.folder()), key
    if place not in _known:
        data = store.load(KIND, key)
        model = None if data is None else _read(key, data)
        if model is None:
            return None
        _known[place] = model
    return _known[place]


def all_stored() -> dict[str, TimeModel]:
    """The calibrations that there are of this machine, at the present threads and flags, by what they hold for."""
    devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
    dtypes = [each for each in vars(torch).values() if isinstance(each, torch.dtype)]
    pairs = ((device, dtype, stored(device, dtype)) for device, dtype in product(devices, dtypes))
    return {machine.key(device, dtype): model for device, dtype, model in pairs if model is not None}


def merge(source: Path | str) -> list[str]:
    """Take over calibrations from a file, or from a folder of another machine or user.

    Of two for the same device, threads and versions the later one stays. One for another number of threads is kept, and
    used when torch runs with that many.

    Args:
        source: a calibration file, a folder of them, or a whole cache folder.

    Returns:
        The keys that were taken over.

    Raises:
        FileNotFoundError: nothing is there.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a calibration file or a folder of them")
    folder = source / KIND if (source / KIND).is_dir() else source
    taken = []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else [folder]:
        found = _foreign(file)
        if found is None:
            continue
        key, data = found
        here = store.load(KIND, key)
        if here is not None and str(here.get("date", "")) >= str(data["date"]):
            log.info("%s is not newer than what is kept for %s", file, key)
        elif store.save(KIND, key, data) is not None:
            _known.pop((str(store.folder()), key), None)
            taken.append(key)
    return taken


def _measured(device: torch.device, dtype: torch.dtype, budget: float, verbose: bool | None) -> list[list[Sample]]:
    """Two rounds over all instances: a burst of other load meets an instance once."""
    ones = all_instances(COUNT, device=device.type)
    share = budget / (len(ones) * _ROUNDS)
    text = f"ce_fx: calibrating {device} ({torch.get_num_threads()} threads)"
    hidden = None if verbose is None else not verbose  # tqdm's None: hidden unless on a terminal
    with tqdm(total=len(ones) * _ROUNDS, desc=text, disable=hidden, leave=False) as bar:
        rounds: list[list[Sample]] = []
        for _ in range(_ROUNDS):
            rounds.append([])
            for one in ones:
                rounds[-1].append(measure(one, device, dtype, share))
                bar.update()
    return rounds


def _good(quality: Quality) -> bool:
    return quality.spearman >= _LIMITS.spearman and quality.factor <= _LIMITS.factor


def _measured_unasked(device: torch.device, verbose: bool | None) -> TimeModel | None:
    """A calibration that nobody asked for: an obstacle is no reason for a warning, nor to look again at once."""
    place = str(store.folder()), f"{device}, {torch.get_num_threads()} threads"
    now = time.monotonic()
    if now < _not_before.get(place, now):
        return None
    obstacle = _several_ranks() or machine.obstacle(device)
    if obstacle is not None:
        _not_before[place] = now + _PATIENCE
        log.info("%s is not calibrated now: %s", device, obstacle)
        return None
    model = calibrate(device, torch.float32, verbose=verbose)
    _not_before[place] = math.inf  # a machine that is too noisy is not asked again by every region of a model
    return model if model.calibrated else None


def _several_ranks() -> str | None:
    """Each rank would decide by a model of its own, and they would run different graphs."""
    group = torch.distributed
    several = group.is_available() and group.is_initialized() and group.get_world_size() > 1
    return "the ranks of a process group need one model" if several else None


def _defaults_because(reason: str, default: TimeModel) -> TimeModel:
    """Warn once for each reason."""
    if reason not in _told:
        _told.add(reason)
        warnings.warn(f"ce_fx: not calibrated: {reason}. Predictions use built-in constants", stacklevel=3)
    return default


def _for_dtype(model: TimeModel, dtype: torch.dtype) -> TimeModel:
    return model.for_numbers(dtype.itemsize, dtype.is_complex)


def _keep(device: torch.device, dtype: torch.dtype, model: TimeModel, record: Mapping[str, Any]) -> TimeModel:
    """Keep a model on disk and here: rounded, as the next process reads it, which is to decide alike."""
    key = machine.key(device, dtype)
    place = store.save(KIND, key, record)
    model = _known[str(store.folder()), key] = _read(key, record) or model
    log.info("calibrated %s: %s", key, place or "not kept on disk")
    return model


def _record(
    device: torch.device,
    dtype: torch.dtype,
    model: TimeModel,
    found: Sequence[Quality],
    rounds: Sequence[Sequence[Sample]],
) -> dict[str, Any]:
    """What is written: readable, in units of people."""
    forward, both = ({"spearman": round(q.spearman, 4), "factor": round(q.factor, 3)} for q in found)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.facts(device, dtype),
        "held_out": {"forward": forward, "both": both},
        "instances": len(rounds[0]),
        "rounds": len(rounds),
        "rounds_apart": round(disagreement(rounds), 3),
        "kind": model.device,
        "itemsize": model.itemsize,
        "complex_numbers": model.complex_numbers,
        "forward": {family: _in_units(r) for family, r in model.forward_rates.items()},
        "both": {family: _in_units(r) for family, r in model.both_rates.items()},
    }


def _in_units(rates: Roofline) -> dict[str, float]:
    shown = {}
    for name, value in asdict(rates).items():
        label, unit = _UNITS.get(name, (name, 1.0))
        shown[label] = float(f"{value / unit:.4g}")
    return shown


def _from_units(shown: Mapping[str, float]) -> Roofline:
    values = {}
    for field in fields(Roofline):
        label, unit = _UNITS.get(field.name, (field.name, 1.0))
        values[field.name] = float(shown[label]) * unit
    if not all(math.isfinite(v) and v >= 0 for v in values.values()) or not min(values[n] for n in _POSITIVE):
        raise ValueError("a constant is negative, zero or no number")
    return Roofline(**values)


def _read(key: str, data: Mapping[str, Any]) -> TimeModel | None:
    """The model in a record; None where it is malformed or predicts too badly, which is said once."""
    try:
        found = [
            Quality(float(q["spearman"]), float(q["factor"]), 0)
            for q in (data["held_out"]["forward"], data["held_out"]["both"])
        ]
        forward, both = ({f: _from_units(data[d][f]) for f in FAMILIES} for d in ("forward", "both"))
        model = TimeModel(data["kind"], forward, both, True, int(data["itemsize"]), bool(data["complex_numbers"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _say_once(f"the calibration for {key} is malformed ({error!r}) and is not used; calibrate again")
        return None
    if not all(_good(quality) for quality in found):
        _say_once(f"the calibration for {key} predicts too badly ({found}) and is not used; calibrate again")
        return None
    return replace(model, calibrated=True)


def _say_once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        log.warning(text)


def _foreign(file: Path) -> tuple[str, dict[str, Any]] | None:
    """Key and record of a file of the store, if it is one of a calibration that can be used."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        key, data = content["key"], dict(content["data"])
        usable = content["schema"] == store.SCHEMA and "date" in data and _read(key, data) is not None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s is no calibration (%r) and is not taken over", file, error)
        return None
    return (key, data) if usable else None
