"""Strings: what parses, how it prints, and the text of every error."""

import re

import pytest

from ce_fx.algebra import Expression, Factor, Index, Term
from ce_fx.algebra.canonical import canonical
from ce_fx.algebra.parser import parse
from ce_fx.algebra.printer import to_string
from ce_fx.errors import ExpressionError


def printed(string, shapes, **options):
    parsed = parse(string, shapes, **options)
    return to_string(parsed.term, parsed.output)


CP = [(8, 64, 56, 56), (16, 64), (16, 64), (16, 3), (16, 3)]


@pytest.mark.parametrize(
    ("string", "shapes", "expected"),
    [
        ("bshw,rt,rs,rh,rw->bthw|hw", CP, "bshw,rt,rs,rh,rw->bthw|hw"),
        ("b s h w, r t, r s, r h, r w -> b t h w | h, w", CP, "bshw,rt,rs,rh,rw->bthw|hw"),
        ("(r1)t,t(r1)->(r1)", [(2, 3), (3, 2)], "(r1)t,t(r1)->(r1)"),
        ("ij,jk", [(2, 3), (3, 4)], "ij,jk->ik"),
        ("ba", [(2, 3)], "ba->ab"),
        ("ii->i", [(3, 3)], "ii->i"),
        ("xh,yh,zh->xyzh|h", [(2, 9), (3, 3), (4, 3)], "xh,yh,zh->xyzh|h"),
    ],
)
def test_strings_round_trip(string, shapes, expected):
    assert printed(string, shapes) == expected


def test_ellipsis_counts_from_the_right_and_broadcasts():
    parsed = parse("...i,...i->...", [(5, 1, 3), (4, 3)])
    assert [axis[0].size for axis in parsed.output] == [5, 4]
    assert [len(axis) for axis in parsed.term.factors[0].axes] == [1, 0, 1]


def test_size_one_broadcasts():
    parsed = parse("ab,bc->ac", [(2, 1), (3, 4)])
    assert parsed.term.factors[0].axes == ((Index("a", 2),), ())


def test_features_are_the_largest_and_the_first_of_equals():
    window = parse("h,h->h|h", [(3,), (5,)], padding="valid").term.windows[0]
    assert (window.features.size, window.taps[0].index.name) == (5, "h.0")
    window = parse("h,h->h|h", [(3,), (3,)], padding="valid").term.windows[0]
    assert window.taps[0].index.name == "h.1"


@pytest.mark.parametrize(
    ("options", "pad", "out"),
    [
        ({}, 1, 8),
        ({"padding": "valid"}, 0, 5),
        ({"padding": "full"}, 3, 11),
        ({"padding": 2}, 2, 9),
        ({"padding": (0, 1)}, 0, 6),
        ({"padding": {"h": (2, 0)}}, 2, 7),
        ({"stride": 2}, 1, 4),
        ({"stride": {"h": 3}, "padding": "valid"}, 0, 2),
    ],
)
def test_padding_and_stride(options, pad, out):
    window = parse("h,h->h|h", [(8,), (4,)], **options).term.windows[0]
    assert (window.pad, window.out.size) == (pad, out)


def test_dilation_by_operand_wins():
    string, shapes = "h,h,h->h|h", [(20,), (3,), (3,)]
    window = parse(string, shapes, dilation={"h": 2, (2, "h"): 3}).term.windows[0]
    assert [t.dilation for t in window.taps] == [2, 3]
    assert window.pad == (4 + 6) // 2


def test_multi_character_conv_letters_take_plain_keys():
    window = parse("(h1),(h1)->(h1)|(h1)", [(8,), (3,)], stride={"h1": 2}).term.windows[0]
    assert window.stride == 2


def test_flip_names_the_kernel_dims():
    assert parse("bh,kh->bkh|h", [(2, 9), (4, 3)], flip=True).flipped == ((1, (1,)),)


@pytest.mark.parametrize(
    ("string", "shapes", "options", "message"),
    [
        ("ab,bc->ac", [(2, 3), (4, 5)], {}, "letter 'b' has size 4 in operand 1 ('bc') but 3 in operand 0 ('ab')"),
        ("ab,bc->ac", [(2, 3)], {}, "has 2 operands, but 1 were given"),
        ("ab->a", [(2, 3, 4)], {}, "operand 0 ('ab') has 2 letters, but the tensor has 3 dimensions (2, 3, 4)"),
        ("ah,h->a|h", [(2, 9), (3,)], {}, "convolution letter 'h' of 'ah,h->a|h' must be in at least two operands"),
        ("ah->ah|h", [(2, 9)], {}, "it is in operands [0] and in the output"),
        ("ahh,h->ah|h", [(2, 3, 3), (3,)], {}, "convolution letter 'h' is twice in operand 0"),
        ("ab,bc->ad", [(2, 3), (3, 5)], {}, "output letter 'd' of 'ab,bc->ad' is in no operand"),
        ("ab->aa", [(2, 3)], {}, "letter 'a' is twice in the output"),
        ("ah,h|h", [(2, 9), (3,)], {}, "has a pipe, so it needs an explicit output"),
        ("a;b->a", [(2, 3)], {}, "unexpected ';' in operand 0"),
        ("h,h->h|h", [(4,), (3,)], {"stride": 0}, "stride of letter 'h' must be an int >= 1, not 0"),
        ("h,h->h|h", [(4,), (3,)], {"stride": {"w": 2}}, "stride key 'w' is no convolution letter; they are ['h']"),
        ("h,h->h|h", [(4,), (3,)], {"dilation": {(0, "h"): 2}}, "holds the features on 'h', which have no dilation"),
        ("h,h->h|h", [(4,), (3,)], {"padding": "big"}, "padding of letter 'h' must be 'same', 'valid', 'full'"),
        ("h,h->h|h", [(4,), (3,)], {"padding": -1}, "padding of letter 'h' must be"),
        (
            "h,h->h|h",
            [(4,), (3,)],
            {"padding": "valid", "dilation": 4},
            "operand 0 ('h') has size 4 there, 4 with padding, but the composed kernel has 9",
        ),
        ("h,h->h|h", [(4,), (3,)], {"padding_mode": "reflect"}, "padding_mode must be 'zeros' or 'circular'"),
        ("...a->a...b", [(2, 3)], {}, "output letter 'b'"),
        ("ab->a...", [(2, 3)], {}, "has '...', but no operand has"),
    ],
)
def test_errors_say_where_and_what(string, shapes, options, message):
    with pytest.raises(ExpressionError, match=re.escape(message)):
        parse(string, shapes, **options)


def test_lifted_names_become_letters():
    b, s, t = Index("b#7", 2), Index("s#8", 3), Index("s#9", 4)
    term = Term((Factor(0, ((b,), (s,))), Factor(1, ((t,), (s,)))))
    assert to_string(term, ((b,), (t,))) == "bs,ts->bt"


def test_canonical_forgets_names_only():
    def matmul(*names):
        a, b, c = (Index(name, size) for name, size in zip(names, (2, 3, 4), strict=True))
        return Expression(((a,), (c,)), (Term((Factor(0, ((a,), (b,))), Factor(1, ((b,), (c,))))),))

    assert canonical(matmul("a", "b", "c")) == canonical(matmul("x", "y", "z"))
    assert canonical(matmul("a", "b", "c")) != matmul("a", "b", "c")
