"""Fixtures with a real ComfyUI."""

import comfy_hosts
import pytest


def pytest_generate_tests(metafunc):
    """A test that takes `comfy` runs on every host version at hand."""
    if "comfy" in metafunc.fixturenames:
        hosts = comfy_hosts.at_hand() or [None]
        ids = [f"comfyui-{host.version}" if host else "no-comfyui" for host in hosts]
        metafunc.parametrize("comfy", hosts, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def comfy(request):
    """A running ComfyUI (comfy_hosts.Comfy), one process for all tests of the session."""
    if request.param is None:
        pytest.skip(comfy_hosts.NONE)
    with comfy_hosts.started(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def host():
    """The first ComfyUI at hand, not started."""
    found = comfy_hosts.at_hand()
    if not found:
        pytest.skip(comfy_hosts.NONE)
    return found[0]
