"""A report made by hand: every kind of row, with round numbers."""

from ce_fx.report import Elsewhere, LayerReport, Report
from ce_fx.report.product import Operand, PlannedStep, Product

X = Operand("from relu", ("b", "s", "h", "w"), (8, 64, 56, 56))
A = Operand("layer1.0.conv1.a", ("t", "r"), (64, 2), weight=True)
B = Operand("layer1.0.conv1.b", ("r", "s", "h", "w"), (2, 64, 3, 3), weight=True)
TERM = Product("bshw,tr,rshw->bthw|hw", (X, A, B), ("b", "t", "h", "w"), ("h", "w"))
PLAN = Product(
    TERM.expression,
    TERM.operands,
    TERM.output,
    TERM.slid,
    (
        PlannedStep("bshw,rshw->brhw|hw", 0, 2, 57_802_752, 50_176, "slide"),
        PlannedStep("brhw,tr->bthw", 3, 1, 6_422_528, 1_605_632, "pixels"),
    ),
    dense=1_849_688_064,
)


def rewritten(name, **changes):
    values = {
        "name": name,
        "expression": TERM.expression,
        "decision": "rewritten",
        "reason": "2.0x faster, measured",
        "flops_before": 182_600_000,
        "flops_after": 64_225_280,
        "peak_before": 2_600_000,
        "peak_after": 200_000,
        "time_before": 4e-3,
        "time_after": 2e-3,
        "plan": tuple(step.string for step in PLAN.steps),
        "kind": "FactorizedConv",
        "measured": True,
        "can_change": True,
        "written": ("conv2d 3x3 64->2", "conv2d 1x1 2->64"),
        "terms": (TERM,),
        "products": (PLAN,),
    }
    return LayerReport(**{**values, **changes})


def same(name, decision, reason, flops, time, kind, peak=1000, **more):
    """A row that stays as it is."""
    return LayerReport(name, "", decision, reason, flops, flops, peak, peak, time, time, kind=kind, **more)


LAYERS = (
    same("conv1", "kept", "one convolution; it begins here", 1_888_000_000, 8e-3, "Conv2d 7x7/2"),
    rewritten("layer1.0.conv1"),
    rewritten("layer1.0.conv2"),
    rewritten("layer1.10.conv1", flops_after=91_300_000, time_after=1e-3, plan=("bshw,rshw->brhw|hw", "another")),
    same("layer2.norm", "refused", "statistics of the batch", 0, 1e-3, "BatchNorm2d"),
    same("layer2.mystery", "refused", "no FLOPs are known of mine::op", None, None, "Mystery", peak=None),
)
REPORT = Report(
    LAYERS,
    "Net, forward, eval, no grad, float32, cpu 2 threads, x: 8x3x224x224",
    "time",
    ("graph break at net.py:3",),
    (Elsewhere("relu", 17, 300, 2e-3), Elsewhere("add", 8, 100, 2e-3)),
    1000,
    {"model": "Net", "inputs": {"x": "8x3x224x224"}},
)


def training(layer):
    """The row with a backward of twice its forward."""
    values = {"flops": 3 * (layer.flops_before or 0), "after": 3 * (layer.flops_after or 0)}
    return LayerReport(
        **{
            **{name: getattr(layer, name) for name in layer.__dataclass_fields__},
            "flops_before": values["flops"],
            "flops_after": values["after"],
            "forward_flops_before": layer.flops_before,
            "forward_flops_after": layer.flops_after,
            "forward_time_before": layer.time_before and layer.time_before / 4,
            "forward_time_after": layer.time_after and layer.time_after / 4,
        }
    )
