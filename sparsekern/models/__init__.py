"""Small bundled networks. They are plain dense torch modules; a Pruner makes them sparse."""

from sparsekern.models.bert import BERT, Encoder
from sparsekern.models.cnn import CNN, cnn
from sparsekern.models.gpt import GPT, Decoder
from sparsekern.models.mlp import MLP, mlp
from sparsekern.models.model import MODELS, Model
from sparsekern.models.resnet import ResidualNetwork, ResNet
from sparsekern.models.vgg import VGG, vgg
from sparsekern.models.vit import VisionTransformer, ViT

__all__ = [
    "BERT",
    "CNN",
    "GPT",
    "MLP",
    "MODELS",
    "VGG",
    "Decoder",
    "Encoder",
    "Model",
    "ResNet",
    "ResidualNetwork",
    "ViT",
    "VisionTransformer",
    "cnn",
    "mlp",
    "vgg",
]
