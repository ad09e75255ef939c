"""Our tools hold every rule of the conformance suite; the other contracts hold what the rules leave to each tool."""

import pytest
from tests.optim_cases import MEMBERS, METHODS, adapter

from lowland import optim
from lowland.testing import own_adapters, rules
from lowland.testing.rulebook import check


@pytest.mark.parametrize("tool", own_adapters(), ids=lambda tool: tool.name)
def test_our_tools_hold_every_rule(tool):
    found = check(tool)
    assert [(o.rule.name, o.detail) for o in found if o.status not in ("holds", "not offered")] == []
    if tool.family != "optimizer":  # of these each is about one method
        assert all(o.status == "holds" for o in found)


def test_every_optimizer_of_the_registry_is_enrolled():
    assert {kind.__name__ for kind in optim.METHODS.values()} == set(METHODS)


ONE_METHOD = {"one_norm_over_groups", "scale_of_loss_cancels", "step_is_the_formula"}


@pytest.mark.parametrize("rule", rules("optimizer"), ids=lambda rule: rule.name)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_optimizer_and_variant_holds_every_rule(member, rule):
    tool = adapter(member)
    (found,) = check(tool, rule)
    assert found.status != "broken", found.detail
    if found.status == "not offered":
        assert tool.moves == "never" or rule.name in ONE_METHOD
