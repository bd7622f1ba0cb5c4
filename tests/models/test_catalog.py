"""The catalog as it is read: without a framework."""

import pytest

from models import catalog
from models.catalog import CATALOG
from models.errors import ArtifactError


@pytest.mark.parametrize("found", CATALOG.values(), ids=CATALOG)
def test_it_says_where_it_is_from(found):
    assert any(source in found.paper for source in ("arXiv:", "doi:"))
    assert found.builders.keys() == {"torch", "keras"}


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ArtifactError, match="no architecture 'efficientnet_lite'") as caught:
        catalog.find("efficientnet_lite")
    assert "did you mean 'efficientnet_lite0'" in caught.value.cure
