"""No module imports another in a circle, not for its types either; the order of rooms is import-linter's."""

from graphlib import TopologicalSorter

import grimp


def test_no_imports_in_a_circle():
    graph = grimp.build_graph("lowland", exclude_type_checking_imports=False, cache_dir=None)
    # the package itself imports nothing before it is asked
    imported = {m: graph.find_modules_directly_imported_by(m) - {"lowland"} for m in graph.modules}
    assert len(imported) > 200
    list(TopologicalSorter(imported).static_order())  # raises CycleError with the circle
