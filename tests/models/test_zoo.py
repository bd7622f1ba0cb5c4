"""Every row of the catalog, from saved weights to an answer over HTTP, in both frameworks."""

import pytest

from models.catalog import CATALOG
from tests.models.rows import walk

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CATALOG)
def test_a_row_is_built_saved_loaded_converted_and_served_alike(name, make_row, application, tmp_path, record_property):
    record_property("row", walk(name, make_row, application, tmp_path))
