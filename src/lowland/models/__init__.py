"""Reference networks, by function or by name (`create`)."""

from lowland.models.registry import MODELS, create
from lowland.models.resnet import CifarResNet, resnet

__all__ = ["MODELS", "create", "CifarResNet", "resnet"]
