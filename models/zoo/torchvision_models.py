"""The classifiers of torchvision.models. They are the library's own networks, so all weights saved from them fit."""

from typing import Any

from models.architecture import Architecture
from models.inputs import NORMALIZATIONS, ImageInput

PREFIX = "torchvision:"
CHANNELS = 3

ALEXNET = "Krizhevsky, 2014, arXiv:1404.5997"
CONVNEXT = "Liu et al., 2022, arXiv:2201.03545"
DENSENET = "Huang et al., 2016, arXiv:1608.06993"
EFFICIENTNET = "Tan & Le, 2019, arXiv:1905.11946"
EFFICIENTNET_V2 = "Tan & Le, 2021, arXiv:2104.00298"
GOOGLENET = "Szegedy et al., 2014, arXiv:1409.4842"
INCEPTION_V3 = "Szegedy et al., 2015, arXiv:1512.00567"
MAXVIT = "Tu et al., 2022, arXiv:2204.01697"
MNASNET = "Tan et al., 2018, arXiv:1807.11626"
MOBILENET_V2 = "Sandler et al., 2018, arXiv:1801.04381"
MOBILENET_V3 = "Howard et al., 2019, arXiv:1905.02244"
REGNET = "Radosavovic et al., 2020, arXiv:2003.13678"
RESNET = "He et al., 2015, arXiv:1512.03385"
RESNEXT = "Xie et al., 2016, arXiv:1611.05431"
SHUFFLENET = "Ma et al., 2018, arXiv:1807.11164"
SQUEEZENET = "Iandola et al., 2016, arXiv:1602.07360"
SWIN = "Liu et al., 2021, arXiv:2103.14030"
SWIN_V2 = "Liu et al., 2021, arXiv:2111.09883"
VGG = "Simonyan & Zisserman, 2014, arXiv:1409.1556"
VIT = "Dosovitskiy et al., 2020, arXiv:2010.11929"
WIDE_RESNET = "Zagoruyko & Komodakis, 2016, arXiv:1605.07146"

# For the official weights that the library calls DEFAULT: the paper, the crop, the shorter side before it and Pillow's
# filter; then trainable parameters and running statistics.
ROWS: dict[str, tuple[str, int, int, Any, int, int]] = {
    "alexnet": (ALEXNET, 224, 256, "bilinear", 61_100_840, 0),
    "convnext_base": (CONVNEXT, 224, 232, "bilinear", 88_591_464, 0),
    "convnext_large": (CONVNEXT, 224, 232, "bilinear", 197_767_336, 0),
    "convnext_small": (CONVNEXT, 224, 230, "bilinear", 50_223_688, 0),
    "convnext_tiny": (CONVNEXT, 224, 236, "bilinear", 28_589_128, 0),
    "densenet121": (DENSENET, 224, 256, "bilinear", 7_978_856, 83_648),
    "densenet161": (DENSENET, 224, 256, "bilinear", 28_681_000, 219_936),
    "densenet169": (DENSENET, 224, 256, "bilinear", 14_149_480, 158_400),
    "densenet201": (DENSENET, 224, 256, "bilinear", 20_013_928, 229_056),
    "efficientnet_b0": (EFFICIENTNET, 224, 256, "bicubic", 5_288_548, 42_016),
    "efficientnet_b1": (EFFICIENTNET, 240, 255, "bilinear", 7_794_184, 62_048),
    "efficientnet_b2": (EFFICIENTNET, 288, 288, "bicubic", 9_109_994, 67_568),
    "efficientnet_b3": (EFFICIENTNET, 300, 320, "bicubic", 12_233_232, 87_296),
    "efficientnet_b4": (EFFICIENTNET, 380, 384, "bicubic", 19_341_616, 125_200),
    "efficientnet_b5": (EFFICIENTNET, 456, 456, "bicubic", 30_389_784, 172_736),
    "efficientnet_b6": (EFFICIENTNET, 528, 528, "bicubic", 43_040_704, 224_432),
    "efficientnet_b7": (EFFICIENTNET, 600, 600, "bicubic", 66_347_960, 310_720),
    "efficientnet_v2_l": (EFFICIENTNET_V2, 480, 480, "bicubic", 118_515_272, 512_576),
    "efficientnet_v2_m": (EFFICIENTNET_V2, 480, 480, "bilinear", 54_139_356, 292_032),
    "efficientnet_v2_s": (EFFICIENTNET_V2, 384, 384, "bilinear", 21_458_488, 153_872),
    "googlenet": (GOOGLENET, 224, 256, "bilinear", 6_624_904, 14_560),
    "inception_v3": (INCEPTION_V3, 299, 342, "bilinear", 23_834_568, 34_432),
    "maxvit_t": (MAXVIT, 224, 224, "bicubic", 30_919_624, 47_616),
    "mnasnet0_5": (MNASNET, 224, 256, "bilinear", 2_218_512, 20_624),
    "mnasnet0_75": (MNASNET, 224, 232, "bilinear", 3_170_208, 29_808),
    "mnasnet1_0": (MNASNET, 224, 256, "bilinear", 4_383_312, 37_920),
    "mnasnet1_3": (MNASNET, 224, 232, "bilinear", 6_282_256, 48_816),
    "mobilenet_v2": (MOBILENET_V2, 224, 232, "bilinear", 3_504_872, 34_112),
    "mobilenet_v3_large": (MOBILENET_V3, 224, 232, "bilinear", 5_483_032, 24_400),
    "mobilenet_v3_small": (MOBILENET_V3, 224, 256, "bilinear", 2_542_856, 12_112),
    "regnet_x_16gf": (REGNET, 224, 232, "bilinear", 54_278_536, 111_168),
    "regnet_x_1_6gf": (REGNET, 224, 232, "bilinear", 9_190_136, 43_504),
    "regnet_x_32gf": (REGNET, 224, 232, "bilinear", 107_811_560, 162_016),
    "regnet_x_3_2gf": (REGNET, 224, 232, "bilinear", 15_296_552, 62_560),
    "regnet_x_400mf": (REGNET, 224, 232, "bilinear", 5_495_976, 37_856),
    "regnet_x_800mf": (REGNET, 224, 232, "bilinear", 7_259_656, 37_312),
    "regnet_x_8gf": (REGNET, 224, 232, "bilinear", 39_572_648, 90_464),
    "regnet_y_128gf": (REGNET, 384, 384, "bicubic", 644_812_894, 415_072),
    "regnet_y_16gf": (REGNET, 224, 232, "bilinear", 83_590_140, 122_816),
    "regnet_y_1_6gf": (REGNET, 224, 232, "bilinear", 11_202_430, 52_672),
    "regnet_y_32gf": (REGNET, 224, 232, "bilinear", 145_046_770, 158_288),
    "regnet_y_3_2gf": (REGNET, 224, 232, "bilinear", 19_436_338, 66_160),
    "regnet_y_400mf": (REGNET, 224, 232, "bilinear", 4_344_144, 27_152),
    "regnet_y_800mf": (REGNET, 224, 232, "bilinear", 6_432_512, 30_432),
    "regnet_y_8gf": (REGNET, 224, 232, "bilinear", 39_381_472, 86_528),
    "resnet101": (RESNET, 224, 232, "bilinear", 44_549_160, 105_344),
    "resnet152": (RESNET, 224, 232, "bilinear", 60_192_808, 151_424),
    "resnet18": (RESNET, 224, 256, "bilinear", 11_689_512, 9_600),
    "resnet34": (RESNET, 224, 256, "bilinear", 21_797_672, 17_024),
    "resnet50": (RESNET, 224, 232, "bilinear", 25_557_032, 53_120),
    "resnext101_32x8d": (RESNEXT, 224, 232, "bilinear", 88_791_336, 202_880),
    "resnext101_64x4d": (RESNEXT, 224, 232, "bilinear", 83_455_272, 202_880),
    "resnext50_32x4d": (RESNEXT, 224, 232, "bilinear", 25_028_904, 68_224),
    "shufflenet_v2_x0_5": (SHUFFLENET, 224, 256, "bilinear", 1_366_792, 7_952),
    "shufflenet_v2_x1_0": (SHUFFLENET, 224, 256, "bilinear", 2_278_604, 16_180),
    "shufflenet_v2_x1_5": (SHUFFLENET, 224, 232, "bilinear", 3_503_624, 23_440),
    "shufflenet_v2_x2_0": (SHUFFLENET, 224, 232, "bilinear", 7_393_996, 33_716),
    "squeezenet1_0": (SQUEEZENET, 224, 256, "bilinear", 1_248_424, 0),
    "squeezenet1_1": (SQUEEZENET, 224, 256, "bilinear", 1_235_496, 0),
    "swin_b": (SWIN, 224, 238, "bicubic", 87_768_224, 0),
    "swin_s": (SWIN, 224, 246, "bicubic", 49_606_258, 0),
    "swin_t": (SWIN, 224, 232, "bicubic", 28_288_354, 0),
    "swin_v2_b": (SWIN_V2, 256, 272, "bicubic", 87_930_848, 0),
    "swin_v2_s": (SWIN_V2, 256, 260, "bicubic", 49_737_442, 0),
    "swin_v2_t": (SWIN_V2, 256, 260, "bicubic", 28_351_570, 0),
    "vgg11": (VGG, 224, 256, "bilinear", 132_863_336, 0),
    "vgg11_bn": (VGG, 224, 256, "bilinear", 132_868_840, 5_504),
    "vgg13": (VGG, 224, 256, "bilinear", 133_047_848, 0),
    "vgg13_bn": (VGG, 224, 256, "bilinear", 133_053_736, 5_888),
    "vgg16": (VGG, 224, 256, "bilinear", 138_357_544, 0),
    "vgg16_bn": (VGG, 224, 256, "bilinear", 138_365_992, 8_448),
    "vgg19": (VGG, 224, 256, "bilinear", 143_667_240, 0),
    "vgg19_bn": (VGG, 224, 256, "bilinear", 143_678_248, 11_008),
    "vit_b_16": (VIT, 224, 256, "bilinear", 86_567_656, 0),
    "vit_b_32": (VIT, 224, 256, "bilinear", 88_224_232, 0),
    "vit_h_14": (VIT, 518, 518, "bicubic", 633_470_440, 0),
    "vit_l_16": (VIT, 224, 242, "bilinear", 304_326_632, 0),
    "vit_l_32": (VIT, 224, 256, "bilinear", 306_535_400, 0),
    "wide_resnet101_2": (WIDE_RESNET, 224, 232, "bilinear", 126_886_696, 137_856),
    "wide_resnet50_2": (WIDE_RESNET, 224, 232, "bilinear", 68_883_240, 68_224),
}

# Normalised to -1..1; all others by ImageNet's mean and standard deviation.
CENTRED = {"efficientnet_v2_l", "googlenet", "inception_v3"}

# Auxiliary classifiers inside a network, for training only. Inference does not need their weights.
TRAINING_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def torch_torchvision(shape: tuple[int, ...], num_classes: int, *, name: str) -> Any:
    """Takes [N, 3, height, width], returns logits [N, num_classes]. Raises ValueError if the library has no such shape.

    Official weights of GoogLeNet and Inception v3 come with `transform_input`, which rescales pixels normalised by
    mean and standard deviation to -1..1. Here preprocessing rescales them to -1..1, and `transform_input` is off.
    """
    from torchvision import models

    height, width, channels = shape
    if channels != CHANNELS:
        raise ValueError(f"torchvision's networks take {CHANNELS} channels, not {channels}")
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("torchvision's vision transformers take square images")
        options["image_size"] = height
    elif name == "maxvit_t":
        options["input_size"] = (height, width)
    elif name in TRAINING_ONLY:
        options |= {"aux_logits": False, "init_weights": False}
    network = models.get_model(name, weights=None, num_classes=num_classes, **options)
    network.training_only = TRAINING_ONLY.get(name, ())
    return network


ARCHITECTURES = tuple(
    Architecture(
        name=PREFIX + name,
        paper=paper,
        input=ImageInput(
            height=crop,
            width=crop,
            resize_to=shorter_side,
            interpolation=interpolation,
            **NORMALIZATIONS["tf" if name in CENTRED else "torch"],
        ),
        num_classes=1000,
        parameters=parameters,
        statistics=statistics,
        builders={"torch": torch_torchvision},
        options={"name": name},
    )
    for name, (paper, crop, shorter_side, interpolation, parameters, statistics) in ROWS.items()
)
