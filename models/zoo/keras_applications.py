"""The classifiers of keras.applications. They are the library's own networks, so all weights saved from them fit."""

import math
from typing import Any

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput

PREFIX = "keras:"

CONVNEXT = "Liu et al., 2022, arXiv:2201.03545"
DENSENET = "Huang et al., 2016, arXiv:1608.06993"
EFFICIENTNET = "Tan & Le, 2019, arXiv:1905.11946"
EFFICIENTNET_V2 = "Tan & Le, 2021, arXiv:2104.00298"
INCEPTION_RESNET = "Szegedy et al., 2016, arXiv:1602.07261"
INCEPTION_V3 = "Szegedy et al., 2015, arXiv:1512.00567"
MOBILENET = "Howard et al., 2017, arXiv:1704.04861"
MOBILENET_V2 = "Sandler et al., 2018, arXiv:1801.04381"
MOBILENET_V3 = "Howard et al., 2019, arXiv:1905.02244"
NASNET = "Zoph et al., 2017, arXiv:1707.07012"
RESNET = "He et al., 2015, arXiv:1512.03385"
RESNET_V2 = "He et al., 2016, arXiv:1603.05027"
VGG = "Simonyan & Zisserman, 2014, arXiv:1409.1556"
XCEPTION = "Chollet, 2016, arXiv:1610.02357"

# Paper, side of the picture, the mode of the library's preprocess_input ("raw" if the network rescales inside), then
# parameters: trainable, and not.
ROWS: dict[str, tuple[str, int, str, int, int]] = {
    "ConvNeXtBase": (CONVNEXT, 224, "raw", 88_591_464, 0),
    "ConvNeXtLarge": (CONVNEXT, 224, "raw", 197_767_336, 0),
    "ConvNeXtSmall": (CONVNEXT, 224, "raw", 50_223_688, 0),
    "ConvNeXtTiny": (CONVNEXT, 224, "raw", 28_589_128, 0),
    "ConvNeXtXLarge": (CONVNEXT, 224, "raw", 350_196_968, 0),
    "DenseNet121": (DENSENET, 224, "torch", 7_978_856, 83_648),
    "DenseNet169": (DENSENET, 224, "torch", 14_149_480, 158_400),
    "DenseNet201": (DENSENET, 224, "torch", 20_013_928, 229_056),
    "EfficientNetB0": (EFFICIENTNET, 224, "raw", 5_288_548, 42_023),
    "EfficientNetB1": (EFFICIENTNET, 240, "raw", 7_794_184, 62_055),
    "EfficientNetB2": (EFFICIENTNET, 260, "raw", 9_109_994, 67_575),
    "EfficientNetB3": (EFFICIENTNET, 300, "raw", 12_233_232, 87_303),
    "EfficientNetB4": (EFFICIENTNET, 380, "raw", 19_341_616, 125_207),
    "EfficientNetB5": (EFFICIENTNET, 456, "raw", 30_389_784, 172_743),
    "EfficientNetB6": (EFFICIENTNET, 528, "raw", 43_040_704, 224_439),
    "EfficientNetB7": (EFFICIENTNET, 600, "raw", 66_347_960, 310_727),
    "EfficientNetV2B0": (EFFICIENTNET_V2, 224, "raw", 7_139_704, 60_608),
    "EfficientNetV2B1": (EFFICIENTNET_V2, 240, "raw", 8_141_052, 71_072),
    "EfficientNetV2B2": (EFFICIENTNET_V2, 260, "raw", 10_096_086, 82_288),
    "EfficientNetV2B3": (EFFICIENTNET_V2, 300, "raw", 14_358_406, 109_216),
    "EfficientNetV2L": (EFFICIENTNET_V2, 480, "raw", 118_515_272, 512_576),
    "EfficientNetV2M": (EFFICIENTNET_V2, 480, "raw", 54_139_356, 292_032),
    "EfficientNetV2S": (EFFICIENTNET_V2, 384, "raw", 21_458_488, 153_872),
    "InceptionResNetV2": (INCEPTION_RESNET, 299, "tf", 55_813_192, 60_544),
    "InceptionV3": (INCEPTION_V3, 299, "tf", 23_817_352, 34_432),
    "MobileNet": (MOBILENET, 224, "tf", 4_231_976, 21_888),
    "MobileNetV2": (MOBILENET_V2, 224, "tf", 3_504_872, 34_112),
    "MobileNetV3Large": (MOBILENET_V3, 224, "raw", 5_483_032, 24_400),
    "MobileNetV3Small": (MOBILENET_V3, 224, "raw", 2_542_856, 12_112),
    "NASNetLarge": (NASNET, 331, "tf", 88_753_150, 196_668),
    "NASNetMobile": (NASNET, 224, "tf", 5_289_978, 36_738),
    "ResNet101": (RESNET, 224, "caffe", 44_601_832, 105_344),
    "ResNet101V2": (RESNET_V2, 224, "tf", 44_577_896, 97_664),
    "ResNet152": (RESNET, 224, "caffe", 60_268_520, 151_424),
    "ResNet152V2": (RESNET_V2, 224, "tf", 60_236_904, 143_744),
    "ResNet50": (RESNET, 224, "caffe", 25_583_592, 53_120),
    "ResNet50V2": (RESNET_V2, 224, "tf", 25_568_360, 45_440),
    "VGG16": (VGG, 224, "caffe", 138_357_544, 0),
    "VGG19": (VGG, 224, "caffe", 143_667_240, 0),
    "Xception": (XCEPTION, 299, "tf", 22_855_952, 54_528),
}

# With its official weights the library builds these with one more layer, which divides by the root of the standard
# deviation a second time; with `weights=None` it leaves that layer out. The layer has no weights, so a file of either
# network fits both, and only one gives the right outputs. The plain name means the official network; the one without
# the layer has SCRATCH appended.
TWICE_SCALED = tuple(name for name in ROWS if name.startswith("EfficientNetB"))
SCRATCH = "_scratch"


def twin(architecture: str) -> str | None:
    """Another architecture that the same weights fit, with different outputs; None for nearly all."""
    name = architecture.removeprefix(PREFIX)
    if name.removesuffix(SCRATCH) not in TWICE_SCALED:
        return None
    return PREFIX + (name.removesuffix(SCRATCH) if name.endswith(SCRATCH) else name + SCRATCH)


def keras_application(shape: tuple[int, ...], num_classes: int, *, name: str, twice_scaled: bool) -> Any:
    """Takes [N, height, width, channels], returns logits [N, num_classes]. Raises ValueError as the library does."""
    from keras import applications

    if twice_scaled and shape[-1] != len(NORMALIZATIONS["torch"]["std"]):
        raise ValueError(f"the official {name} takes 3 channels; keras:{name}{SCRATCH} takes {shape[-1]}")
    network = getattr(applications, name)(
        include_top=True, weights=None, input_shape=shape, classes=num_classes, classifier_activation=None
    )
    return scaled_again(network) if twice_scaled else network


def scaled_again(network: Any) -> Any:
    """The network with a layer after its Normalization that divides by the root of ImageNet's standard deviation."""
    from keras import layers, models

    roots = layers.Rescaling([1 / math.sqrt(std) for std in NORMALIZATIONS["torch"]["std"]])

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        x = layer(*args, **kwargs)
        return roots(x) if isinstance(layer, layers.Normalization) else x

    return models.clone_model(network, call_function=call)


def _architecture(name: str, *, twice_scaled: bool, variant: str = "") -> Architecture:
    paper, side, normalization, parameters, statistics = ROWS[name]
    return Architecture(
        name=PREFIX + name + variant,
        paper=paper,
        input=ImageInput(height=side, width=side, resize="stretch", **NORMALIZATIONS[normalization]),
        num_classes=1000,
        parameters=parameters,
        statistics=statistics,
        builders={"keras": keras_application},
        options={"name": name, "twice_scaled": twice_scaled},
    )


ARCHITECTURES = (
    *(_architecture(name, twice_scaled=name in TWICE_SCALED) for name in ROWS),
    *(_architecture(name, twice_scaled=False, variant=SCRATCH) for name in TWICE_SCALED),
)
