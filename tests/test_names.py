"""Module paths as their user wrote them, from those that Dynamo and export note."""

import pytest

from ce_fx.report.names import module_path


@pytest.mark.parametrize(
    "raw, path",
    [
        ("L['self']._modules['a']._modules['0'].b", "a.0.b"),
        ("L['self'].layers[3].conv", "layers.3.conv"),
        (
            "L['self'].__dict__['_modules']['base_model'].__dict__['_modules']['model'].convs.0",
            "base_model.model.convs.0",
        ),
        ("L['fn']", ""),
    ],
)
def test_module_paths(raw, path):
    assert module_path(raw) == path
