"""A second device on the processor: tensors that say they lie elsewhere, compute with the processor's kernels, and
refuse what an accelerator refuses or does slowly.

To be imported before the first backward pass of a process (torch's autograd counts the devices there), hence in a
process of its own: `python -m tests.other_device` prints the numbers of every room's cases on both devices.

An operation that mixes tensors of two devices is an error, and so is, inside `no_reads`, one that waits for a number.
Everything else gives the processor's bits, so that results can be compared with equality.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME: Final = "other"
_READS: Final = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")
"""Operations whose result the processor waits for: a number, a truth, or a shape."""


class _Module(_DummyBackendModule):
    """What torch asks a device about itself."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class MixedDevices(RuntimeError):
    """Tensors of two devices met in one operation."""


class HostRead(RuntimeError):
    """A number was read where nothing may wait for the device."""


class OtherTensor(Tensor):
    """A tensor of the other device; the processor's tensor inside does the work."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OtherTensor:
        made: OtherTensor = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0), requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = OtherTensor(self.inner.clone())
        if getattr(self, "_is_param", False):
            made = nn.Parameter(made, self.requires_grad)
        made.requires_grad_(self.requires_grad)
        made.grad = copy.deepcopy(self.grad, memo)
        memo[id(self)] = made
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")

    def __repr__(self, **_: Any) -> str:
        return f"OtherTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_reading: list[bool] = [True]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, OtherTensor)]
    given = kwargs.get("device")
    wanted = None if given is None else torch.device(given).type
    if there and name not in ("_to_copy", "copy_", "_copy_from"):
        # numbers without an axis go with any tensor, as on other devices
        strangers = [value for value in tensors if not isinstance(value, OtherTensor) and value.ndim]
        if strangers and name not in ("index_put_", "index", "index_put"):
            raise MixedDevices(f"{name} of tensors on {NAME} and {strangers[0].device}")
    copied = name == "_to_copy" and wanted not in (None, NAME)
    waits = copied and not kwargs.get("non_blocking")
    if there and (any(word in name for word in _READS) or waits) and not _reading[-1]:
        raise HostRead(f"{name} waits for the device")
    inner_args, inner_kwargs = tree_map(_inner, (args, dict(kwargs)))
    if wanted is not None:
        inner_kwargs["device"] = torch.device("cpu") if wanted == NAME else given
    result = func(*inner_args, **inner_kwargs)
    stays = (bool(there) and not copied and not (name == "copy_" and not isinstance(args[0], OtherTensor))) or (
        wanted == NAME
    )
    if not stays:
        return result if name != "copy_" else args[0]
    if func._schema.is_mutable and name != "_to_copy":
        return _mutated(func, args, kwargs, result)
    return tree_map(lambda value: OtherTensor(value) if isinstance(value, Tensor) else value, result)


def _mutated(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """Return what a writing operation returns: the very tensors that it wrote to, and others made anew."""
    flat, _ = tree_flatten((args, kwargs))
    given = {id(value.inner): value for value in flat if isinstance(value, OtherTensor)}
    for value in given.values():
        assert value.shape == value.inner.shape, f"{func} changes a shape in place"

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else OtherTensor(value)

    return tree_map(outer, result)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OtherTensor) else value


class _Made(TorchDispatchMode):
    """Makes tensors of the other device where none is among the arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (kwargs or {}).get("device")
        if given is not None and torch.device(given).type == NAME:
            return _run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@contextmanager
def other_device() -> Generator[torch.device, None, None]:
    """Let the other device be there inside."""
    with _Made():
        yield torch.device(NAME, 0)


@contextmanager
def no_reads() -> Generator[None, None, None]:
    """Refuse what waits for the device inside."""
    _reading.append(False)
    try:
        yield
    finally:
        _reading.pop()


_setup_privateuseone_for_python_backend(NAME, _Module())


def _both(case: Callable[[torch.device, Any], list[float]], quiet: Any) -> dict[str, Any]:
    """Return a case's numbers on the processor and on the other device, or the error there."""
    expected = case(torch.device("cpu"), nullcontext)
    with other_device() as device:
        try:
            return {"expected": expected, "found": case(device, quiet)}
        except Exception:
            return {"error": traceback.format_exc(limit=-8)}


def _refusals() -> list[str]:
    """Return which errors what an accelerator refuses or waits for gives here, beside what it does."""
    with other_device() as device:
        there = torch.ones(3).to(device)
        assert there.device == device and (there * 2.0).sum().item() == 6.0
        found = []
        for call in (lambda: there + torch.ones(3), lambda: float(there.sum())):
            try:
                with no_reads():
                    call()
            except RuntimeError as error:
                found.append(type(error).__name__)
        return found


if __name__ == "__main__":
    from tests import device_cases

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # torch has no autocast for devices written in Python
    rooms = {
        room: {name: _both(case, no_reads) for name, case in cases.items() if "bfloat16" not in name}
        for room, cases in device_cases.ROOMS.items()
    }
    sys.stdout.write(json.dumps({"refused": _refusals(), "rooms": rooms}))
