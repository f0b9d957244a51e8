import pytest

import ce_fx.nn
from ce_fx.nn import LayerError, form_string

IMAGE = {
    "cp": "bshw,rt,rs,rh,rw->bthw|hw",
    "tucker": "bshw,(r1)t,(r2)s,(r1)(r2)hw->bthw|hw",
    "tucker_full": "bshw,(r1)t,(r2)s,(r3)h,(r4)w,(r1)(r2)(r3)(r4)->bthw|hw",
    "tt": "bshw,(r1)t,(r1)(r2)h,(r2)(r3)w,(r3)s->bthw|hw",
    "tr": "bshw,(r0)(r1)t,(r1)(r2)h,(r2)(r3)w,(r3)(r0)s->bthw|hw",
    "bt": "bshw,npt,nqs,npqhw->bthw|hw",
    "ht": "bshw,at,cs,ehw,acd,de->bthw|hw",
    "rcp": "b(s1)(s2)(s3)hw,r(t1)(s1),r(t2)(s2),r(t3)(s3),rhw->b(t1)(t2)(t3)hw|hw",
    "rtk": "b(s1)(s2)(s3)hw,(r1)(t1)(s1),(r2)(t2)(s2),(r3)(t3)(s3),(r0)hw,(r0)(r1)(r2)(r3)->b(t1)(t2)(t3)hw|hw",
    "rtt": "b(s1)(s2)(s3)hw,(r1)(t1)(s1),(r1)(r2)(t2)(s2),(r2)(r3)(t3)(s3),(r3)hw->b(t1)(t2)(t3)hw|hw",
    "rtr": "b(s1)(s2)(s3)hw,(r0)(r1)(t1)(s1),(r1)(r2)(t2)(s2),(r2)(r3)(t3)(s3),(r3)(r0)hw->b(t1)(t2)(t3)hw|hw",
    "rbt": "b(s1)(s2)(s3)hw,n(p1)(t1)(s1),n(p2)(t2)(s2),n(p3)(t3)(s3),n(p0)hw,n(p0)(p1)(p2)(p3)->b(t1)(t2)(t3)hw|hw",
    "rht": "b(s1)(s2)(s3)hw,(r1)(t1)(s1),(r2)(t2)(s2),(r3)(t3)(s3),(r0)hw,(r1)(r2)(q1),(q1)(r3)(q2),(q2)(r0)"
    "->b(t1)(t2)(t3)hw|hw",
    "separable": "bshw,rshw,rst->bthw|hw",
    "strips": "bshw,(r1)sh,(r1)tw->bthw|hw",
    "interleaved": "b(s1)(s2)hw,(s1)(s2)(t2)hw,(s1)(t1)(t2)->b(t1)(t2)hw|hw",
}


def test_strings_of_images_with_three_channel_factors():
    assert {name: form_string(name) for name in ce_fx.nn.FORMS} == IMAGE


@pytest.mark.parametrize(
    ("form", "dims", "factors", "string"),
    [
        ("cp", 0, 3, "bs,rt,rs->bt"),
        ("cp", 1, 3, "bsh,rt,rs,rh->bth|h"),
        ("cp", 3, 3, "bsdhw,rt,rs,rd,rh,rw->btdhw|dhw"),
        ("tt", 0, 3, "bs,(r1)t,(r1)s->bt"),
        ("tr", 1, 3, "bsh,(r0)(r1)t,(r1)(r2)h,(r2)(r0)s->bth|h"),
        ("bt", 0, 3, "bs,npt,nqs,npq->bt"),
        ("ht", 0, 3, "bs,at,cs,ac->bt"),
        ("ht", 3, 3, "bsdhw,at,cs,edhw,acf,fe->btdhw|dhw"),  # d is taken
        ("rcp", 2, 1, "b(s1)hw,r(t1)(s1),rhw->b(t1)hw|hw"),
        ("rtt", 0, 2, "b(s1)(s2),(r1)(t1)(s1),(r1)(t2)(s2)->b(t1)(t2)"),
        ("rtr", 2, 1, "b(s1)hw,(r0)(r1)(t1)(s1),(r1)(r0)hw->b(t1)hw|hw"),
        ("rtk", 1, 2, "b(s1)(s2)h,(r1)(t1)(s1),(r2)(t2)(s2),(r0)h,(r0)(r1)(r2)->b(t1)(t2)h|h"),
        ("rht", 0, 4, "b(s1)(s2)(s3)(s4),(r1)(t1)(s1),(r2)(t2)(s2),(r3)(t3)(s3),(r4)(t4)(s4),(r1)(r2)(q1),(r3)(r4)(q2),"
                      "(q1)(q2)->b(t1)(t2)(t3)(t4)"),
        ("rht", 2, 1, "b(s1)hw,(r1)(t1)(s1),(r0)hw,(r1)(r0)->b(t1)hw|hw"),
        ("strips", 3, 3, "bsdhw,(r1)sd,(r1)(r2)h,(r2)tw->btdhw|dhw"),
        ("interleaved", 0, 3, "b(s1)(s2),(s1)(s2)(t2),(s1)(t1)(t2)->b(t1)(t2)"),
    ],
)  # fmt: skip
def test_strings_of_other_sizes(form, dims, factors, string):
    assert form_string(form, dims, factors) == string


def test_groups_are_one_more_letter_of_every_operand():
    assert form_string("cp", 1, grouped=True) == "bgsh,grt,grs,grh->bgth|h"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensor",), "there is no form 'tensor'; the forms are cp, tucker,"),
        (("strips", 1), "form 'strips' needs at least 2 spatial axes, and the layer has 1"),
        (("separable", 0), "form 'separable' needs at least 1 spatial axes, and the layer has 0"),
        (("rtt", 0, 1), "form 'rtt' needs num_factors >= 2 here, not 1"),
        (("rtt", 2, 0), "form 'rtt' needs num_factors >= 1 here, not 0"),
        (("cp", 4), "form 'cp' has 0 to 3 spatial axes, not 4"),
    ],
)
def test_what_there_is_not(arguments, message):
    with pytest.raises(LayerError, match=message):
        form_string(*arguments)
