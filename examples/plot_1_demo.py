"""The demonstration
=================

``ce-fx demo`` needs torch and ce_fx only. It makes a small network of two factorised convolutions and a linear layer
with an adapter, prints the audit, and times the network as written and optimised in turn.
"""

from ce_fx.cli import main

main(["demo"])
