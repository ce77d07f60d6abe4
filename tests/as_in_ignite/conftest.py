import ignite
import pytest
from packaging.version import Version

from tests.as_in_ignite.sides import Side


@pytest.fixture(params=["ignite", "trainer"])
def side(request):
    # The tests describe the engine of Ignite 0.5.5. Before, it has no `max_iters`, for example.
    if request.param == "ignite" and Version(ignite.__version__) < Version("0.5.5"):
        pytest.skip("describes the engine of Ignite 0.5.5")
    return Side(request.param)
