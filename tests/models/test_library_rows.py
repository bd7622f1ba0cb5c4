"""The libraries' own networks go the way of the catalog's: one of each kind."""

import pytest

from tests.models.rows import walk

pytestmark = pytest.mark.slow

ROWS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:vit_b_16",
    "torchvision:inception_v3",
    "keras:ResNet50",
    "keras:MobileNetV2",
    "keras:InceptionV3",
    "keras:InceptionResNetV2",
    "keras:EfficientNetB0",
)


@pytest.mark.parametrize("name", ROWS)
def test_a_library_row_is_served_alike(name, make_row, application, tmp_path, record_property):
    record_property("row", walk(name, make_row, application, tmp_path))
