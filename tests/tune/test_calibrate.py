"""Calibrating, keeping and merging, on a planted device; one short calibration of the real one."""

import json
import logging
import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ce_fx.plan.ops import FAMILIES, Op
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune import calibrate as room
from ce_fx.tune import machine, microbench, store
from ce_fx.tune.calibrate import calibrate, merge, time_model
from ce_fx.tune.instances import instances
from tests.tune.planted import other_device, sample

CPU = torch.device("cpu")
DEVICE = other_device(1)
OP = Op("conv", 10**8, 576, 64, 3136, 10**6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", raising=False)
    monkeypatch.setattr(machine, "_busy", lambda: None)
    for memory in (room._known, room._told, room._not_before):
        memory.clear()
    return tmp_path


@pytest.fixture
def planted(monkeypatch):
    """Measuring gives what the planted device would take; the list has the dtype of each call."""
    calls = []

    def fake(one, device, dtype, budget):
        calls.append(dtype)
        return sample(DEVICE.for_numbers(dtype.itemsize, dtype.is_complex), one.op)

    monkeypatch.setattr(room, "measure", fake)
    return calls


@pytest.fixture
def noisy(monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(room, "measure", lambda one, *_: sample(DEVICE, one.op, 2.0, rng))


def files(cache):
    return sorted((cache / "calibration").glob("*.json"))


def test_without_a_calibration_the_defaults_are_returned(planted):
    model = time_model("cpu", torch.float32)
    assert model == TimeModel.default("cpu") and not model.calibrated
    assert planted == []


def test_a_calibration_is_fitted_kept_and_found_again(planted, cache):
    model = calibrate("cpu")
    assert model.calibrated
    assert model.forward(OP) == pytest.approx(DEVICE.forward(OP), rel=0.3)
    assert time_model("cpu", torch.float32) == model
    room._known.clear()  # another process
    assert time_model("cpu", torch.float32) == model
    assert len(files(cache)) == 1


def test_what_is_kept_can_be_read_by_people(planted, cache):
    calibrate("cpu")
    content = json.loads(files(cache)[0].read_text())
    assert content["key"] == machine.key(CPU, torch.float32)
    data = content["data"]
    assert data["machine"]["threads"] == str(torch.get_num_threads())
    assert data["machine"]["torch"] == torch.__version__
    assert data["date"].startswith("20")
    assert data["held_out"]["forward"]["spearman"] > 0.95 and data["held_out"]["both"]["factor"] < 1.5
    assert data["instances"] == 12 * room.COUNT and data["rounds_apart"] == 1.0
    assert list(data["forward"]) == list(FAMILIES)
    conv = data["forward"]["conv"]
    assert conv["rate_gmac_s"] == pytest.approx(DEVICE.forward_rates["conv"].rate / 1e9, rel=0.5)
    assert set(conv) == {"t0_us", "rate_gmac_s", "k0", "n0", "m0", "bandwidth_gb_s", "alone", "each_us", "far_gb_s"}


def test_it_is_measured_once_where_that_is_asked_for(planted):
    first = time_model("cpu", torch.float32, measure=True)
    count = len(planted)
    assert first.calibrated and count == 2 * 12 * room.COUNT
    assert time_model("cpu", torch.float32, measure=True) == first
    assert time_model("cpu", torch.float64, measure=True).calibrated
    assert len(planted) == count


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_another_dtype_takes_the_constants_of_float32(planted, dtype):
    single = calibrate("cpu")
    assert time_model("cpu", dtype) == single.for_numbers(dtype.itemsize, dtype.is_complex)


def test_a_dtype_with_a_calibration_of_its_own_takes_that(planted):
    single, double = calibrate("cpu"), calibrate("cpu", torch.float64)
    assert set(planted) == {torch.float32, torch.float64}
    assert time_model("cpu", torch.float64) == double
    assert double.itemsize == 8
    assert time_model("cpu", torch.float32) == single


def test_integers_cannot_be_calibrated():
    with pytest.raises(ValueError, match=r"torch\.int8 have no gradients.*floating point or complex"):
        calibrate("cpu", torch.int8)


def test_the_number_of_threads_and_the_flags_are_part_of_the_key(planted, monkeypatch):
    calibrate("cpu")
    key = machine.key(CPU, torch.float32)
    assert machine.key(CPU, torch.float64) != key
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    assert "threads 63" in machine.key(CPU, torch.float32)
    assert not time_model("cpu", torch.float32).calibrated
    monkeypatch.undo()
    with torch.backends.mkldnn.flags(enabled=False):
        assert machine.key(CPU, torch.float32) != key


def test_a_machine_too_noisy_keeps_nothing_and_warns_once(noisy, cache):
    with pytest.warns(UserWarning, match="too noisy: on held-out ops forward Spearman .* calibrate again"):
        model = calibrate("cpu")
    assert model == TimeModel.default("cpu")
    assert not (cache / "calibration").exists()


def test_a_noisy_machine_is_not_asked_again_by_the_next_region(monkeypatch):
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        return TimeModel.default("cpu")

    monkeypatch.setattr(room, "calibrate", fails)
    for _ in range(3):
        assert not time_model("cpu", torch.float32, measure=True).calibrated
    assert len(calls) == 1


def test_a_second_try_saves_a_calibration_that_a_burst_spoilt(monkeypatch):
    calls = []
    rng = random.Random(0)

    def bursts(one, *_):
        calls.append(one)
        return sample(DEVICE, one.op, 2.0 if len(calls) <= 2 * 12 * room.COUNT else 0.0, rng)

    monkeypatch.setattr(room, "measure", bursts)
    monkeypatch.setattr(room, "merged", lambda rounds: rounds[-1])
    assert calibrate("cpu").calibrated
    assert len(calls) == 4 * 12 * room.COUNT


def test_nothing_is_measured_under_fake_tensors(planted, caplog):
    with FakeTensorMode(), caplog.at_level(logging.INFO):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nobody asked for it, so nobody is warned
            assert not time_model("cpu", torch.float32, measure=True).calibrated
        with pytest.warns(UserWarning, match="FakeTensorMode.*calibrate later"):
            assert not calibrate("cpu").calibrated
    assert planted == []
    assert "not calibrated now: a dispatch mode is active" in caplog.text


def test_an_obstacle_passes(planted):
    with FakeTensorMode():
        assert not time_model("cpu", torch.float32, measure=True).calibrated
    room._not_before = {place: 0.0 for place in room._not_before}  # a minute later
    assert time_model("cpu", torch.float32, measure=True).calibrated


def test_nothing_is_measured_while_others_use_the_cores(planted, monkeypatch):
    monkeypatch.setattr(machine, "_busy", lambda: "other processes use 1.8 of 2 cores")
    with pytest.warns(UserWarning, match=r"use 1\.8 of 2 cores; calibrate later"):
        assert not calibrate("cpu").calibrated
    assert planted == []


def test_the_cores_of_others_are_seen(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(machine, "_cores_of_others", lambda: 1.6)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert machine._busy() == "other processes use 1.6 of 2 cores"
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine._busy() is None
    monkeypatch.setattr(machine, "_cores_of_others", lambda: None)
    assert machine._busy() is None
    looks = iter((4.0, 4.0, 0.0))  # a burst that ends
    monkeypatch.setattr(machine, "_cores_of_others", lambda: next(looks))
    assert machine._busy() is None


def test_busy_time_is_counted_without_idle_and_nice(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 9999 20 77777 8888 3 4 5 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    monkeypatch.setattr(machine, "_STAT", stat)
    assert machine._jiffies() == 100 + 20 + 3 + 4 + 5
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert machine._jiffies() is None and machine._cores_of_others() is None


def test_other_devices_have_obstacles_of_their_own():
    assert machine.obstacle(torch.device("meta")) == "meta tensors take no time"
    if not torch.cuda.is_available():
        assert machine.obstacle(torch.device("cuda")) == "there is no CUDA device"
        assert time_model("cuda", torch.float32, measure=True) == TimeModel.default("cuda")
    assert torch.func.vmap(lambda x: x * (machine.obstacle(CPU) is None))(torch.ones(2)).sum() == 0


def test_ranks_of_a_group_are_not_calibrated_unasked(planted, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert not time_model("cpu", torch.float32, measure=True).calibrated
    assert planted == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("forward"),
        lambda data: data["both"].pop("mm"),
        lambda data: data["both"]["mm"].pop("k0"),
        lambda data: data["forward"]["mm"].update(rate_gmac_s=-1),
        lambda data: data["forward"]["mm"].update(t0_us="fast"),
        lambda data: data.update(held_out=3),
        lambda data: data.update(held_out={}),
        lambda data: data["forward"]["conv"].update(bandwidth_gb_s=math.nan),
        lambda data: data["forward"]["conv"].update(k0=math.inf),
        lambda data: data["forward"]["conv"].update(t0_us=0.0),
    ],
)
def test_a_malformed_calibration_is_not_used(planted, cache, caplog, spoil):
    calibrate("cpu")
    content = json.loads(files(cache)[0].read_text())
    spoil(content["data"])
    files(cache)[0].write_text(json.dumps(content))
    room._known.clear()
    for _ in range(2):
        assert time_model("cpu", torch.float32) == TimeModel.default("cpu")
    assert caplog.text.count("is malformed") == 1
    assert calibrate("cpu").calibrated
    room._known.clear()
    assert time_model("cpu", torch.float32).calibrated


def test_a_file_that_is_no_json_is_not_used(planted, cache):
    calibrate("cpu")
    files(cache)[0].write_text("{")
    room._known.clear()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert not time_model("cpu", torch.float32).calibrated


@pytest.mark.parametrize("poor", [{"spearman": 0.8}, {"factor": 2.5}])
def test_a_calibration_that_predicts_badly_is_not_used(planted, cache, caplog, poor):
    calibrate("cpu")
    content = json.loads(files(cache)[0].read_text())
    content["data"]["held_out"]["both"].update(poor)
    files(cache)[0].write_text(json.dumps(content))
    room._known.clear()
    assert not time_model("cpu", torch.float32).calibrated
    assert "predicts too badly" in caplog.text


def test_caches_that_are_off_still_calibrate_this_process(planted, monkeypatch, cache):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    model = calibrate("cpu")
    assert model.calibrated and not list(cache.iterdir())
    assert time_model("cpu", torch.float32) == model


def test_folders_of_others_are_merged(planted, cache, tmp_path_factory, monkeypatch):
    calibrate("cpu")
    calibrate("cpu", torch.float64)
    own = tmp_path_factory.mktemp("own")
    (cache / "calibration" / "other.json").write_text("{}")
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(own))
    assert not time_model("cpu", torch.float32).calibrated
    taken = merge(cache)
    assert sorted(taken) == sorted(machine.key(CPU, dtype) for dtype in (torch.float32, torch.float64))
    assert time_model("cpu", torch.float32).calibrated
    assert merge(cache) == []  # nothing is newer
    assert [merge(file) for file in files(cache)] == [[], [], []]


@pytest.mark.parametrize(("date", "newer"), [("2999-01-01T00:00:00+00:00", True), ("1999-01-01T00:00:00+00:00", False)])
def test_of_two_calibrations_the_later_one_stays(planted, cache, tmp_path, date, newer):
    model = calibrate("cpu")
    content = json.loads(files(cache)[0].read_text())
    content["data"]["date"] = date
    content["data"]["forward"]["mm"]["t0_us"] *= 2
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert bool(merge(other)) == newer
    t0 = time_model("cpu", torch.float32).forward_rates["mm"].t0
    assert t0 == pytest.approx(model.forward_rates["mm"].t0 * (2 if newer else 1), rel=1e-3)


def test_a_merged_calibration_for_other_threads_waits_for_them(planted, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    calibrate("cpu")
    moved = tmp_path / "theirs"
    (cache / "calibration").rename(moved)
    monkeypatch.undo()
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(cache))
    room._known.clear()
    assert len(merge(moved)) == 1
    assert not time_model("cpu", torch.float32).calibrated
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    assert time_model("cpu", torch.float32).calibrated


def test_merging_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json does not exist; give a calibration file or a folder"):
        merge(tmp_path / "nothing.json")


def test_merging_a_file_of_something_else_takes_nothing(tmp_path, caplog):
    for content in ("", "[]", '{"key": "a", "schema": 1, "data": {"date": "2026"}}'):
        file = tmp_path / "other.json"
        file.write_text(content)
        assert merge(file) == []


def test_a_short_calibration_of_this_machine_ends_and_leaves_no_trace(cache, monkeypatch):
    monkeypatch.setattr(room, "COUNT", 3)
    # the smallest works only: what is tested is that all families run and the whole comes to its end
    monkeypatch.setattr(
        room,
        "all_instances",
        lambda count, device: [one for family in FAMILIES for one in instances(family, 7)[:count]],
    )
    monkeypatch.setattr(room, "_LIMITS", replace(room._LIMITS, spearman=-1.0, factor=math.inf))
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    model = calibrate("cpu", budget=0.2, verbose=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled() == grad
    assert model.calibrated and len(files(cache)) == 1
    # not which is less: the forward and the step are fits of their own, and three samples of 0.2 s are noise
    assert 0 < model.forward(OP) < 60 and 0 < model.forward_backward(OP) < 60
    with torch.inference_mode():
        assert time_model("cpu", torch.float32) == model


def test_measuring_works_in_every_mode_a_caller_may_be_in():
    one = instances("conv1x1", 7)[0]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = microbench.measure(one, CPU, torch.float32, 1e-3)
    assert found.op == one.op and found.forward > 0 and found.both > 0


def test_rounds_are_merged_to_the_least_and_compared():
    one = instances("mm", 7)[0].op
    rounds = [[microbench.Sample(one, 1.0, 4.0)], [microbench.Sample(one, 2.0, 3.0)]]
    assert microbench.merged(rounds) == [microbench.Sample(one, 1.0, 3.0)]
    assert microbench.disagreement([rounds[0], rounds[0]]) == 1.0
    assert microbench.disagreement(rounds) == pytest.approx(math.sqrt(2 * 4 / 3))


def test_files_are_kept_where_the_store_keeps_them(planted, cache):
    calibrate("cpu")
    assert store.load("calibration", machine.key(CPU, torch.float32)) is not None
