"""One optimised model in many threads whose first calls come at once, as in a server that has just started."""

from threading import Barrier, Thread

import pytest
import torch

import ce_fx
from tests.serve.chains import chain, has_gained, optimised

THREADS = 8
SECONDS = 60


def at_once(calls):
    """Run functions, each in a thread, all starting together; what they returned, in order.

    An exception of one is raised here, and so is a deadlock.
    """
    barrier, results = Barrier(len(calls)), [None] * len(calls)

    def run(place):
        try:
            barrier.wait(SECONDS)
            results[place] = calls[place]()
        except BaseException as error:
            results[place] = error

    threads = [Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread has not come back"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["2d", "1d"])
def test_first_calls_at_once(name, fold):
    model, x, other = chain(name)
    inputs = [torch.randn_like(x) for _ in range(THREADS)]
    fast = optimised(model, fold=fold)

    def serve(given):
        with torch.no_grad():  # a mode of each thread
            return [fast(given) for _ in range(5)]

    for given, found in zip(inputs, at_once([lambda x=x: serve(x) for x in inputs]), strict=True):
        for one in found:
            close(one, model(given))
    assert has_gained(fast)
    assert len(ce_fx.graph_modules(fast)) == 1
    serve(other)  # had each thread compiled, Dynamo's limit would be reached
    assert len(ce_fx.graph_modules(fast)) == 2


@pytest.mark.timeout(120)
def test_a_first_call_that_fails_is_no_first_call():
    model, x, _ = chain("1d")
    fast = optimised(model)
    with pytest.raises(RuntimeError):
        fast(x[:, :3])
    for found in at_once([lambda: fast(x)] * THREADS):
        close(found, model(x))
    assert len(ce_fx.graph_modules(fast)) == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fold", [False, True])
def test_first_calls_of_many_sizes_at_once(fold):
    model, _, _ = chain("1d")
    # Whichever is captured last is in the report; each is large enough to gain (two of 30 positions are not).
    inputs = [torch.randn(batch, 16, length) for batch, length in zip((4, 5, 6, 8) * 2, range(40, 80, 5), strict=True)]
    fast = optimised(model, fold=fold)

    def serve(given):
        with torch.no_grad():
            return fast(given)

    for given, found in zip(inputs, at_once([lambda x=x: serve(x) for x in inputs]), strict=True):
        close(found, model(given))
    assert has_gained(fast)


@pytest.mark.timeout(120)
def test_gradients_of_first_calls_at_once():
    model, x, _ = chain("2d")
    fast = optimised(model)
    inputs = [torch.randn_like(x, requires_grad=True) for _ in range(THREADS)]
    found = at_once([lambda x=x: torch.autograd.grad(fast(x).sum(), x)[0] for x in inputs])
    for given, gradient in zip(inputs, found, strict=True):
        close(gradient, torch.autograd.grad(model(given).sum(), given)[0])
    assert has_gained(fast)


@pytest.mark.timeout(120)
def test_models_of_their_own_at_once():
    model, x, _ = chain("1d")
    views = [optimised(model) for _ in range(THREADS)]
    for found in at_once([lambda fast=fast: fast(x) for fast in views]):
        close(found, model(x))
    assert all(map(has_gained, views))


@pytest.mark.timeout(120)
def test_new_weights_while_folds_are_in_use():
    """After the write every call has the new weights, whichever thread computed the folds last."""
    model, x, _ = chain("2d")
    fast = optimised(model, fold=True)

    def serve():
        with torch.no_grad():
            return fast(x)

    for _ in range(5):
        for found in at_once([serve] * THREADS):
            close(found, model(x))
        with torch.no_grad():
            model.a.weight.mul_(1.5)
    assert has_gained(fast)
