"""Our tools hold every rule of the conformance suite; the other contracts hold what the rules leave to each tool."""

import pytest

from lowland.testing import own_adapters
from lowland.testing.rulebook import check


@pytest.mark.parametrize("adapter", own_adapters(), ids=lambda adapter: adapter.name)
def test_our_tools_hold_every_rule(adapter):
    found = check(adapter)
    assert [(o.rule.name, o.detail) for o in found if o.status not in ("holds", "not offered")] == []
    if adapter.family != "optimizer":  # of these each is about one method
        assert all(o.status == "holds" for o in found)
