import sys
from pathlib import Path

from stack import commands
from stack.config import StackConfig

CONFIG = StackConfig(target="/m/storyteller", draft="/m/draft", key_prefix="mine:")
URL = "redis://127.0.0.1:7000/0"


def test_each_role_is_a_module_with_flags() -> None:
    """The same commands as by hand; nothing is passed that a person could not type."""
    target = commands.target_command(CONFIG, 1, redis_url=URL)
    assert target.name == "target-1"
    assert target.argv == (
        sys.executable, "-m", "target_worker", "--model", "/m/storyteller", "--drain-s", "10",
        "--redis-url", URL, "--key-prefix", "mine:", "--log-level", "info",
    )  # fmt: skip
    assert commands.draft_command(CONFIG, 0, redis_url=URL).argv[1:5] == (
        "-m", "draft_worker", "--model", "/m/draft",
    )  # fmt: skip
    assert commands.gateway_command(CONFIG, redis_url=URL, port=80).argv[1:7] == (
        "-m", "gateway", "--host", "127.0.0.1", "--port", "80",
    )  # fmt: skip


def test_a_hub_id_reaches_the_worker_as_it_is() -> None:
    """The worker fetches it; a directory becomes absolute, since children run elsewhere."""
    config = StackConfig(target="org/name@v1", draft="models")
    assert commands.target_command(config, 0, redis_url=URL).argv[4] == "org/name@v1"
    assert commands.draft_command(config, 0, redis_url=URL).argv[4] == str(Path("models").resolve())


def test_the_server_listens_on_loopback_and_keeps_everything() -> None:
    """No eviction, every write on disk within a second."""
    argv = commands.server_command(Path("/bin/server"), Path("/d"), port=7000).argv
    pairs = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert pairs["--bind"] == "127.0.0.1"
    assert (pairs["--appendonly"], pairs["--appendfsync"]) == ("yes", "everysec")
    assert pairs["--maxmemory-policy"] == "noeviction"


def test_a_child_has_longer_to_end_than_it_drains() -> None:
    """It is killed only if it does not keep its own limit."""
    config = StackConfig(drain_s=7.5)
    command = commands.target_command(config, 0, redis_url=URL)
    assert command.argv[command.argv.index("--drain-s") + 1] == "7.5"
    assert command.stop_limit_s > 7.5


def test_children_keep_the_environment_but_not_its_threads() -> None:
    """A worker's own settings reach it through its variables."""
    given = {"OMP_NUM_THREADS": "8", "TARGET_WORKER_NUM_BLOCKS": "64", "PYTHONPATH": "/x"}
    environment = commands.child_environment(given)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["TARGET_WORKER_NUM_BLOCKS"] == "64"
    assert environment["PYTHONPATH"].split(":") == [str(commands.ROOT), "/x"]
