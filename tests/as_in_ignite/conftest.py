import pytest

from tests.as_in_ignite.sides import Side


@pytest.fixture(params=["ignite", "trainer"])
def side(request):
    return Side(request.param)
