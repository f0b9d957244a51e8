"""A device whose seconds are known: what a model of planted constants says of each op, with noise if wished."""

import math
import random
from dataclasses import fields, replace

from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.microbench import Sample


def other_device(seed=0, spread=0.5):
    """A model that differs from the defaults as devices do: as a whole, and in each constant."""
    rng = random.Random(seed)
    base = TimeModel.default("cpu")
    whole = {name: math.exp(rng.gauss(0, 1)) for name in ("t0", "rate", "bandwidth")}
    whole |= {"each": whole["t0"], "far": whole["bandwidth"]}

    def moved(rates):
        values = {
            f.name: getattr(rates, f.name) * whole.get(f.name, 1) * math.exp(rng.gauss(0, spread))
            for f in fields(rates)
            if f.name != "alone"
        }
        return replace(rates, **values)

    tables = [{f: moved(r) for f, r in table.items()} for table in (base.forward_rates, base.both_rates)]
    return replace(base, forward_rates=tables[0], both_rates=tables[1])


def sample(model, op, noise=0.0, rng=None):
    """What measuring an op on the device gives."""
    factors = [math.exp((rng or random).gauss(0, noise)) if noise else 1.0 for _ in range(2)]
    return Sample(op, model.forward(op) * factors[0], model.forward_backward(op) * factors[1])
