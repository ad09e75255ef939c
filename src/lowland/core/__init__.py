"""What every room stands on: parameters, risk, restoring contexts, seeds, schema, provenance, errors.

Import from the modules themselves (``from lowland.core.params import ParameterSpace``): this file stays
empty so that ``core.schema`` and ``core.errors`` load without torch.
"""
