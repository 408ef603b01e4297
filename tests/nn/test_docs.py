"""Pages about networks against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ocp_nn
import ocp_nn.baselines
import ocp_nn.experiments
from ocp_nn.defaults import DEFAULTS, LIMITS

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONSTANTS = {"ACTIVATIONS", "OPTIMIZERS"}


@pytest.mark.parametrize("module", [ocp_nn, ocp_nn.baselines, ocp_nn.experiments])
def test_every_public_name_is_in_the_api_page(module):
    text = (DOCS / "api.md").read_text("utf-8")
    prefix = re.escape(module.__name__)
    listed = set(re.findall(rf"auto\w+:: {prefix}\.(\w+)$", text, re.MULTILINE))
    # What is told at the top of the package need not be told again.
    told = set(ocp_nn.__all__) if module is not ocp_nn else set()
    assert set(module.__all__) - listed - told - CONSTANTS == set()
    assert all(hasattr(module, name) for name in listed)


def test_the_table_of_defaults_is_that_of_the_code():
    text = (DOCS / "training.md").read_text("utf-8")
    table = text[text.index("<!-- defaults: start") : text.index("<!-- defaults: end")]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|$", table, re.MULTILINE)
    assert {name: (float(a), float(b)) for name, a, b in rows} == {
        name: (d.lr, d.damping) for name, d in DEFAULTS.items()
    }
    for form, limit in LIMITS.items():
        assert f"{limit:g} ({form}" in text
