"""What `backend="ce_fx"` decides: it hands on a function and no report."""

from contextlib import contextmanager
from unittest import mock

import ce_fx.handing_on


@contextmanager
def rows_of_the_backend():
    """The rows that the backend decides while this is open."""
    rows, decide = [], ce_fx.handing_on.rewritten_or_untouched

    def recorded(*args, **kwargs):
        decided = decide(*args, **kwargs)
        rows.extend(decided.layers)
        return decided

    with mock.patch("ce_fx.handing_on.rewritten_or_untouched", recorded):
        yield rows


@contextmanager
def rewritten_by_the_backend(least=1):
    """What is compiled while this is open is rewritten in so many places at least: else a test of it says nothing."""
    with rows_of_the_backend() as rows:
        yield
    assert len([row for row in rows if row.decision == "rewritten"]) >= least, rows
