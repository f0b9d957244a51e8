"""The cache on disk: readable, atomic, and never in the way."""

from __future__ import annotations

import json
import multiprocessing
import warnings

import pytest

from ce_fx.tune import store

KEY = "cpu model, 2 threads | torch 2.13"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", raising=False)
    return tmp_path


def test_what_is_saved_is_loaded_under_its_own_key_only():
    assert store.load("choice", KEY) is None
    place = store.save("choice", KEY, {"tree": [[0, 1], 2], "seconds": 1.5e-3})
    assert store.load("choice", KEY) == {"tree": [[0, 1], 2], "seconds": 1.5e-3}
    assert store.load("choice", KEY + " ") is None and store.load("calibration", KEY) is None
    assert json.loads(place.read_text())["key"] == KEY, "a reader of the folder can tell what it is"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "key": 3, "data": 4}', "\x00"])
def test_a_corrupt_file_is_ignored_and_replaced(content):
    place = store.save("choice", KEY, {"a": 1})
    place.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.load("choice", KEY) is None
    store.save("choice", KEY, {"a": 2})
    assert store.load("choice", KEY) == {"a": 2}


def test_a_corrupt_file_is_warned_of_by_its_path():
    place = store.save("choice", KEY, {"a": 1})
    place.write_text("{")
    with pytest.warns(UserWarning, match=place.name):
        store.load("choice", KEY)


def test_another_schema_is_as_good_as_none():
    place = store.save("choice", KEY, {"a": 1})
    place.write_text(place.read_text().replace('"schema": 1', '"schema": 0'))
    assert store.load("choice", KEY) is None


def test_caches_that_are_off_keep_nothing(monkeypatch, cache):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert store.save("choice", KEY, {"a": 1}) is None and store.load("choice", KEY) is None
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_cache(monkeypatch, cache):
    (cache / "file").write_text("")
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(cache / "file"))
    assert store.save("choice", KEY, {"a": 1}) is None and store.load("choice", KEY) is None


def _write(number):
    for _ in range(30):
        store.save("choice", KEY, {"number": number, "long": [number] * 2000})


def test_writers_at_once_never_leave_half_a_file(cache):
    writers = [multiprocessing.get_context("fork").Process(target=_write, args=(n,)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = store.load("choice", KEY)
        assert data is None or data["long"] == [data["number"]] * 2000
    assert all(writer.exitcode == 0 for writer in writers)
    assert len(list((cache / "choice").iterdir())) == 1
