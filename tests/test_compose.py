"""compose.yaml without a container engine: its shape, and that it starts what `stack` starts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config.flags import load
from stack import commands
from stack.config import StackConfig
from stack.health import HealthConfig
from tests.programs import config_of

ROOT = Path(__file__).parents[1]
_VARIABLE = re.compile(r"\$\{\w+:-(?P<default>[^}]*)\}")
WORKERS = ("target", "draft", "target-gpu", "draft-gpu")
OURS = ("gateway", *WORKERS)


def read() -> dict[str, Any]:
    """The file as an engine would read it, with every variable unset."""
    text = (ROOT / "compose.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda match: match["default"], text))
    return found


SERVICES: dict[str, dict[str, Any]] = read()["services"]


def seconds(duration: str) -> float:
    """`60s` as a number."""
    return float(duration.removesuffix("s"))


def test_the_file_follows_the_compose_specification() -> None:
    """The schema that comes with the checker, so that nothing is downloaded."""
    checker = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = subprocess.run(
        [*checker, str(ROOT / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_the_command_that_stack_runs(name: str) -> None:
    """The same flags in the same order; only the values differ."""
    config = StackConfig()
    url = "redis://server:6379/0"
    known = {
        "gateway": commands.gateway_command(config, redis_url=url, port=8000),
        "target": commands.target_command(config, 0, redis_url=url),
        "draft": commands.draft_command(config, 0, redis_url=url),
    }
    ours = SERVICES[name]["command"]
    theirs = known[name.removesuffix("-gpu")].argv
    assert ours[:3] == ["python", *theirs[1:3]]
    assert ours[3::2] == list(theirs[3::2])


@pytest.mark.parametrize("name", OURS)
def test_the_program_itself_accepts_the_command(name: str) -> None:
    """Parsed by the real flag parser, not by a copy of it."""
    module, *flags = SERVICES[name]["command"][2:]
    config = load(config_of(module), prog=module, description="", argv=flags, env={})
    assert getattr(config, "redis_url", "") == "redis://server:6379/0"


@pytest.mark.parametrize("name", OURS)
def test_a_service_has_longer_to_end_than_it_drains(name: str) -> None:
    """Otherwise the engine would kill it while it hands its work back."""
    module, *flags = SERVICES[name]["command"][2:]
    config = load(config_of(module), prog=module, description="", argv=flags, env={})
    assert seconds(SERVICES[name]["stop_grace_period"]) > getattr(config, "drain_s", 0.0)


@pytest.mark.parametrize("name", OURS)
def test_health_is_asked_by_our_own_program(name: str) -> None:
    """With flags that it accepts, about the role that it is."""
    kind, python, dash_m, module, *flags = SERVICES[name]["healthcheck"]["test"]
    assert (kind, python, dash_m, module) == ("CMD", "python", "-m", "stack.health")
    config = load(HealthConfig, prog=module, description="", argv=flags, env={})
    assert config.role == name.removesuffix("-gpu")


def test_everything_has_health_an_order_and_a_policy() -> None:
    """Nothing starts before what it needs is well."""
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert (service["init"], service["restart"]) == (True, "unless-stopped"), name
        if name != "server":
            assert service["depends_on"]["server"]["condition"] == "service_healthy", name
    gateway = SERVICES["gateway"]["depends_on"]
    assert {"target", "target-gpu"} <= set(gateway)


def test_only_the_gateway_can_be_reached_from_outside() -> None:
    """The server has no password: it is on an internal network and not published."""
    published = [name for name, service in SERVICES.items() if "ports" in service]
    assert published == ["gateway"]
    assert SERVICES["gateway"]["ports"] == ["127.0.0.1:8000:8000"]
    assert read()["networks"]["inside"]["internal"] is True
    assert all(s["networks"] == ["inside"] for n, s in SERVICES.items() if n != "gateway")


def test_nothing_has_more_rights_than_it_needs() -> None:
    """No capability, no new privilege, nothing written outside volumes; models are read-only."""
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
    for name in WORKERS:
        assert SERVICES[name]["volumes"] == ["./models:/models:ro"]
    for role in ("gateway", "worker"):
        lines = (ROOT / "deploy" / f"{role}.Dockerfile").read_text().splitlines()
        assert "USER outrider" in lines


def test_the_server_keeps_every_write_and_evicts_nothing() -> None:
    """The settings of the embedded server."""
    flags = SERVICES["server"]["command"][1:]
    ours = dict(zip(flags[::2], flags[1::2], strict=True))
    embedded = commands.server_command(Path("/s"), Path("/d"), port=1).argv[1:]
    theirs = dict(zip(embedded[::2], embedded[1::2], strict=True))
    assert ours.items() <= theirs.items()
    assert SERVICES["server"]["volumes"] == ["data:/data"]


def test_cpu_is_the_default_and_gpus_are_a_profile() -> None:
    """Without the profile no device is asked for."""
    for name, service in SERVICES.items():
        is_gpu = name.endswith("-gpu")
        assert (service.get("profiles") == ["gpu"]) is is_gpu
        assert ("deploy" in service) is is_gpu
    devices = SERVICES["target-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_an_image_holds_the_lock_and_only_what_it_needs(role: str) -> None:
    """Hashed packages; no torch and no model in the gateway's."""
    text = (ROOT / "deploy" / f"{role}.Dockerfile").read_text()
    assert f"pip install --require-hashes --no-deps -r requirements/{role}.txt" in text
    copied = set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
    expected = {"gateway": {"shared", "gateway", "stack"}}.get(
        role, {"kernels", "shared", "target_worker", "draft_worker", "stack"}
    )
    assert copied == expected
    assert ("requirements/torch.txt" in text) is (role == "worker")


@pytest.mark.parametrize("name", WORKERS)
def test_workers_on_gpus_run_their_model_there(name: str) -> None:
    """By variables that the program itself reads; the flags stay those of the stack."""
    module, *flags = SERVICES[name]["command"][2:]
    variables = SERVICES[name].get("environment", {})
    config = load(config_of(module), prog=module, description="", argv=flags, env=variables)
    assert getattr(config, "device", "") == ("cuda" if name.endswith("-gpu") else "cpu")
