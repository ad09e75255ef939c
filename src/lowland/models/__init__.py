"""Reference networks, by function or by name (`create`), and weights from files (`load_weights`)."""

from lowland.core.names import MODELS
from lowland.models.conv1d import SignalResNet, resnet1d
from lowland.models.densenet import DenseNet, densenet, densenet121, densenet_bc100
from lowland.models.huggingface import HuggingFaceModel, huggingface
from lowland.models.imagenet_resnet import ImageNetResNet, imagenet_resnet
from lowland.models.pyramidnet import PyramidNet, pyramidnet
from lowland.models.registry import create
from lowland.models.resnet import CifarResNet, resnet
from lowland.models.transformer import LanguageModel, TextClassifier, text_transformer, transformer
from lowland.models.vgg import VGG, vgg
from lowland.models.vit import VisionTransformer, vit
from lowland.models.weights import load_weights, read_weights, tool_model
from lowland.models.wide_resnet import WideResNet, wide_resnet

__all__ = ["MODELS", "create", "load_weights", "read_weights", "tool_model"]
__all__ += ["resnet", "imagenet_resnet", "wide_resnet", "vgg"]
__all__ += ["densenet", "densenet_bc100", "densenet121", "pyramidnet", "resnet1d"]
__all__ += ["vit", "transformer", "text_transformer", "huggingface"]
__all__ += ["CifarResNet", "ImageNetResNet", "WideResNet", "VGG", "DenseNet", "PyramidNet", "SignalResNet"]
__all__ += ["VisionTransformer", "LanguageModel", "TextClassifier", "HuggingFaceModel"]
