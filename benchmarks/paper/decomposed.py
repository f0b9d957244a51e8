"""A trained network decomposed in every form: `python -m benchmarks.paper.decomposed --help`.

A small convolutional network is trained on scikit-learn's digits and its kernels are decomposed by `tensorize`. The
table has the relative error of each kernel, and the accuracy on held-out digits before, after, and after a few epochs
of training in that form.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from tabulate import tabulate

from benchmarks.harness import machine
from ce_fx.nn import FORMS, tensorize
from tests.nn.digits import accuracy, network, sklearn_digits, train

LAYERS = ("2", "4")
"""The convolutions with more than one input channel; the first one and the head stay."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fit = [name for name, form in FORMS.items() if form.dims <= 2 and name != "interleaved"]
    parser.add_argument("--forms", nargs="+", choices=fit, default=fit, metavar="FORM", help=f"of {', '.join(fit)}")
    parser.add_argument("--rates", nargs="+", type=float, default=[10.0, 25.0, 50.0], metavar="PERCENT")
    parser.add_argument("--epochs", type=int, default=20, help="of the dense network")
    parser.add_argument("--mend", type=int, default=3, help="epochs in the decomposed form")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Train, decompose and print; returns the rows."""
    args = parse(arguments)
    images, labels = sklearn_digits()
    held = len(labels) // 4
    torch.manual_seed(0)
    dense = network()
    train(dense, images[held:], labels[held:], args.epochs)
    print(f"{machine('cpu')}\ndense: accuracy {accuracy(dense, images[:held], labels[:held]):.3f}, {held} held out\n")
    rows = []
    for form in args.forms:
        for rate in args.rates:
            model = copy.deepcopy(dense)
            tensorize(model, form, rate=rate / 100, include=list(LAYERS))
            found = [layer for layer in model.tensorize_report.layers if layer.name in LAYERS]
            if not model.tensorize_report.replaced:
                rows.append([form, f"{rate:g} %", "kept", found[0].reason[:60], "", ""])
                continue
            errors = ["kept" if layer.error is None else f"{layer.error:.3f}" for layer in found]
            ranks = ["x".join(map(str, layer.ranks)) or "kept" for layer in found]
            after = accuracy(model, images[:held], labels[:held])
            train(model, images[held:], labels[held:], args.mend)
            mended = accuracy(model, images[:held], labels[:held])
            rows.append([form, f"{rate:g} %", ", ".join(ranks), ", ".join(errors), f"{after:.3f}", f"{mended:.3f}"])
    heads = ["form", "rate", "ranks", "errors of the kernels", "accuracy", f"after {args.mend} epochs"]
    print(tabulate(rows, headers=heads, tablefmt="plain", disable_numparse=True))
    return rows


if __name__ == "__main__":
    main()
