import pytest


@pytest.fixture(autouse=True)
def _everything_on_the_device(on_device) -> None:
    pass
