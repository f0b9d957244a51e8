"""What a torch.einsum with an ellipsis costs: as with letters in its place."""

import pytest

from ce_fx.lower.price_einsum import lettered


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("...ij,...jk", [(5, 2, 3), (3, 4)], "aij,jk->aik"),
        ("...i, i j -> ...j", [(2, 3, 4), (4, 5)], "abi,ij->abj"),
        ("ij,jk->ik", [(2, 3), (3, 4)], "ij,jk->ik"),
        ("...a,...a->...", [(2, 3), (4, 2, 3)], "ca,bca->bc"),
    ],
)
def test_an_ellipsis_gets_letters(equation, shapes, expected):
    assert lettered(equation, shapes) == expected
