"""Contractions of other libraries that Dynamo cannot trace through, although they run nothing but ops of torch."""

from __future__ import annotations

import sys


def capture_contractions() -> None:
    """Have Dynamo put calls of `opt_einsum.contract` into its graphs as they are.

    Its path search is Python on sizes, which breaks graphs in three places. A call in a graph is read like any other
    function: as the pairwise contractions that it runs. Dynamo keeps this for the process.
    """
    library = sys.modules.get("opt_einsum")
    if library is not None:  # else no model calls it
        from torch.compiler import allow_in_graph

        allow_in_graph(library.contract)
