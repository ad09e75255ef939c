"""From a name that a user typed to the object it means: registries and import paths.

The names of all rooms stand here as import paths, so that a wrong one is refused before torch is imported. A new model,
data set, augmentation, optimizer or loss joins by a line here and one in its contract suite.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from lowland.core.errors import InputError, refused, require
from lowland.core.signatures import first_line_of, keywords_of

T = TypeVar("T")

_Entry: TypeAlias = str | tuple[Any, ...]
"""``"module:callable"`` in the registry's room, or with it what is given to it: positions, then a dict of keywords."""


class Registry(Mapping[str, Callable[..., Any]]):
    """Names and what they mean; that is imported when it is asked for."""

    def __init__(self, room: str, entries: Mapping[str, _Entry]) -> None:
        self.room, self.entries = room, dict(entries)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        entry = self.entries[name]
        path, *given = (entry,) if isinstance(entry, str) else entry
        found: Callable[..., Any] = import_path("name", f"{self.room}.{path}")
        keywords = given.pop() if given and isinstance(given[-1], dict) else {}
        return functools.partial(found, *given, **keywords) if given or keywords else found

    def keywords(self, name: str) -> tuple[str, ...] | None:
        """Return the options that a name takes, without importing it; None where only the import can tell."""
        path, *given = (entry,) if isinstance(entry := self.entries[name], str) else entry
        known = keywords_of(self.room, path)
        return None if known is None else known[len([one for one in given if not isinstance(one, dict)]) :]

    def about(self, name: str) -> str:
        """Return the first line of what a name means, without importing it; of another package, where it stands."""
        path = entry if isinstance(entry := self.entries[name], str) else str(entry[0])
        return first_line_of(self.room, path) or f"{self.room}.{path.replace(':', '.')}"

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


MODELS: Final = Registry(
    "lowland.models",
    {
        "resnet": "resnet:resnet",
        **{f"resnet{depth}": ("resnet:resnet", depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
        **{f"resnet{depth}": ("imagenet_resnet:imagenet_resnet", depth) for depth in (18, 34, 50, 101)},
        "wide_resnet": "wide_resnet:wide_resnet",
        "wrn28_10": ("wide_resnet:wide_resnet", 28, {"factor": 10}),
        "wrn16_4": ("wide_resnet:wide_resnet", 16, {"factor": 4}),
        "vgg9": ("vgg:vgg", 9),
        "vgg16": ("vgg:vgg", 16),
        "densenet_bc100": "densenet:densenet_bc100",
        "densenet121": "densenet:densenet121",
        "pyramidnet110": ("pyramidnet:pyramidnet", 110),
        "resnet1d": "conv1d:resnet1d",
        "vit": "vit:vit",
        "transformer": "transformer:transformer",
        "text_transformer": "transformer:text_transformer",
        "huggingface": "huggingface:huggingface",
    },
)
"""Every model by name."""

DATASETS: Final = Registry(
    "lowland.data",
    {
        **{name: f"{name}:{name}" for name in ("digits", "mnist", "mnist1d", "folders", "text", "huggingface")},
        **{name: f"cifar:{name}" for name in ("cifar10", "cifar100", "svhn")},
        "topics": "text:topics",
    },
)
"""Every data set by name."""

AUGMENTATIONS: Final = Registry(
    "lowland.data",
    {
        "crop": "augment:RandomCrop",
        "flip": "augment:Flip",
        "cutout": "augment:Cutout",
        "mixup": "augment:Mixup",
        "cutmix": "augment:CutMix",
        "kornia": "kornia:kornia_by_name",
    },
)
"""Every augmentation by name."""

OPTIMIZERS: Final = Registry(
    "lowland.optim",
    {
        **{name: f"{name}:{name.upper()}" for name in ("sam", "asam", "gsam", "fsam", "wsam", "msam", "sala")},
        "late_sam": "late:LateSAM",
        "looksam": "looksam:LookSAM",
        "lookahead": "lookahead:Lookahead",
        "ema": "averaging:EMA",
        "swa": "averaging:SWA",
    },
)
"""Every wrapper of a base optimizer by name."""

LOSSES: Final = Registry("lowland.losses", {name: f"{name}:{name.upper()}" for name in ("llr", "saf", "mesa")})
"""Every wrapper of a criterion by name."""

RESHAPERS: Final = Registry(
    "lowland.losses",
    {
        name.lower(): f"reshapers:{name}"
        for name in ("Sech", "ShiftedBump", "Arctangent", "LogExponential", "LinearWindow")
    },
)
"""Every reshaper of LLR by name."""

CRITERIA: Final = Registry("torch", {"cross_entropy": "nn:CrossEntropyLoss", "mse": "nn:MSELoss"})
"""Every plain loss by name."""

PROBES: Final = Registry(
    "lowland", {"gradient": "landscape.probes:GradientNorm", "convexity": "curvature.probe:Convexity"}
)
"""What can be measured at a point of a surface beyond loss and metrics, by name."""

METRICS: Final = {"accuracy": "Share of right answers; there by itself where the data have classes."}
"""What can be measured beside the loss, and what it is."""

ENGINES: Final = {
    "serial": "serial",
    "processes:N": r"processes:(?P<workers>\d+)",
    "ray": "ray",
    "ray:N": r"ray:(?P<workers>\d+)",
    "ray://HOST:PORT": "(?P<address>ray://.*)",
}
"""Form of an engine's name as documented -> its pattern, with what the engine is made of."""


def check_engine(name: str) -> re.Match[str]:
    """Check the name of an engine, and return its match with its pattern."""
    found = next(filter(None, (re.fullmatch(pattern, name, re.ASCII) for pattern in ENGINES.values())), None)
    if found is None:
        raise unknown("engine", name, ENGINES)
    return found


@functools.cache
def torch_optimizers() -> Registry:
    """Return every optimizer of the installed torch by its name in lower case, read from its list of imports."""
    torch = importlib.util.find_spec("torch")
    place = None if torch is None or torch.origin is None else Path(torch.origin).with_name("optim") / "__init__.py"
    text = place.read_text(encoding="utf-8") if place is not None and place.is_file() else ""
    found = re.findall(r"^from torch\.optim\.\w+ import ([A-Z]\w+)", text, re.MULTILINE)
    return Registry("torch", {name.lower(): f"optim:{name}" for name in sorted(found) if name != "Optimizer"})


_OBJECTS: Final = ("base", "criterion", "model")
"""What a wrapper is made around: no option."""

SPEC: Final = "spec.yaml"
"""The file that makes a run again; here, since commands look for it before anything heavy is imported."""


def unknown(argument: str, name: object, known: Iterable[str]) -> InputError:
    """Make the error for a name that nothing has, with the nearest known name."""
    return InputError(argument, "must be a known name", name, suggestion(name, sorted(known)))


def suggestion(name: object, known: Sequence[str]) -> str:
    """Return what to try instead of a name that nothing has: the nearest known one, and all of them."""
    near = nearest_name(name, known)
    return (f"did you mean {near!r}? " if near else "") + f"Known: {', '.join(known)}"


def nearest_name(name: object, known: Iterable[str]) -> str:
    """Return the known name that is nearest to what was typed; "" where none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)), "")


def check_known(argument: str, name: Any, known: Iterable[str]) -> None:
    """Refuse what is neither a known name nor a path ``module:callable``."""
    require(isinstance(name, str), argument, "must be a name", name)
    if ":" not in name and name not in known:
        raise unknown(argument, name, known)


def check_keywords(argument: str, name: str, options: Mapping[str, Any], registry: Registry) -> None:
    """Refuse options that a known thing does not take, before it is imported."""
    given = registry.keywords(name) if name in registry else None
    known = [one for one in given or () if one not in _OBJECTS]
    for option in options if given is not None else ():
        if option not in known:
            rule = f"must be an option of {name!r}"
            raise InputError(f"{argument}.{option}", rule, options[option], suggestion(option, known))


def check_modules(paths: Mapping[str, str | None]) -> None:
    """Refuse paths into modules that are not there, argument by argument; none is imported."""
    for argument, path in paths.items():
        module, colon, _ = (path or "").partition(":")
        top = module.split(".")[0]
        if colon and (not top or (top not in sys.modules and importlib.util.find_spec(top) is None)):
            raise InputError(argument, f"must be an importable `module:callable` (No module named {top!r})", path)


def find(argument: str, name: str, registry: Mapping[str, T]) -> T | Any:
    """Look a name up in a registry, or import it when it is a path ``module:callable``."""
    if name in registry:
        return registry[name]
    if ":" in name:
        return import_path(argument, name)
    raise unknown(argument, name, registry)


def import_path(argument: str, path: str) -> Any:
    """Import ``module:callable`` (dots after the colon reach into classes)."""
    module_name, _, attribute = path.partition(":")
    with refused((ImportError, AttributeError, ValueError), argument, "must be an importable `module:callable`", path):
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    require(callable(found), argument, "must name something callable", path)
    return found


def check_options(kind: str, name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check keyword arguments against a function before it is called."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # a callable written in C has no signature; it complains by itself
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        rule = f"must fit the {kind} {name!r} ({error})"
        raise InputError("options", rule, dict(options), f"Known: {known}") from error


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
