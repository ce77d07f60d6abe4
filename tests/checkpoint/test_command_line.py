import json
import shlex
import subprocess
import sys

import pytest

from ignite_hooks.checkpoint import command_line as module
from ignite_hooks.checkpoint.command_line import command_line
from ignite_hooks.checkpoint.command_line import without_secrets

SECRET = "abc123"


@pytest.fixture
def started_by(monkeypatch):
    def start(arguments, argv=()):
        command_line.cache_clear()
        monkeypatch.setattr(sys, "orig_argv", arguments)
        monkeypatch.setattr(sys, "argv", list(argv))
        return command_line()

    yield start
    command_line.cache_clear()


@pytest.mark.parametrize(
    "line",
    [
        "--api-key=abc123",
        "--api-key abc123",
        "--api_key abc123",
        "--apiKey abc123",
        "--APIKEY=abc123",
        "-token abc123",
        "--token -abc123",
        "--hf.token abc123",
        "--hftoken=abc123",
        "--password 'abc123 and more'",
        "--db-password=abc123,abc123",
        "--passphrase abc123",
        "--client-secret=abc123",
        "--credentials abc123",
        "--auth user:abc123",
        "--tokens abc123 abc123 --lr 1",
        "--secret-key abc123 --token abc123",
        "wandb.api_key=abc123",
        "+model.token=abc123",
        "++a.b.secretKey=abc123",
        "--env HF_TOKEN=abc123",
        "-e AWS_SECRET_ACCESS_KEY=abc123",
        "--set=trainer={token:abc123,lr:1}",
        """--json '{"password": "abc123 or abc123", "lr": 1}'""",
        """--yaml 'token: abc123'""",
        "--header 'Authorization: Bearer abc123'",
        "--header='Authorization: Basic abc123'",
        "'Bearer abc123'",
        "https://user:abc123@host/path",
        "https://abc123@host/path",
        "--db=postgres://user:p@abc123@host/db",
        "s3://user:abc/abc123@host/x",
        "'https://host/x?sig=abc123&y=1'",
        "https://host/x?y=1&X-Amz-Signature=abc123",
        "-c 'login(token=\"abc123\")'",
        "hf_abc123abc123abc123abc",
        "--name=ghp_abc123abc123abc123abc",
        "sk-proj-abc123abc123abc123",
        "eyJhbGciOiJIUzI1NiJ9.abc123abc123.abc123",
    ],
)
def test_secret_is_redacted(line):
    shown = without_secrets(["train.py", *shlex.split(line)])
    assert SECRET not in " ".join(shown)
    assert "***" in " ".join(shown)
    assert len(shown) == 1 + len(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "--lr 1e-3 --batch-size=32 runs/digits",
        "--tokenizer gpt2 --tokenizer-path=a/b --monkey 3 --keyboard us --passes 3",
        "--max-tokens 512 --num_tokens=1_000 --tokens-per-batch=4k max_tokens=8",
        "https://host:8080/pkg@1.0 s3://bucket/keys/a file:///tmp/x",
        "trainer={lr:1,betas:[0.9,0.99]} C:/runs/a --name=a:b",
        "--token --verbose a",
        "--password=",
        "--keep-last 3 --signal SIGTERM --author me --compass north",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_other_values_are_kept(line):
    assert without_secrets(shlex.split(line)) == shlex.split(line)


def test_options_after_a_secret_are_kept():
    given = shlex.split("--tokens a b --lr 1 --token c positional --api-key=d --seed 2")
    shown = "--tokens *** *** --lr 1 --token *** positional --api-key=*** --seed 2"
    assert without_secrets(given) == shlex.split(shown)


@pytest.mark.parametrize("piece", ["a", "a:", "x://", "-----BEGIN", "a=b ", "bearer ", "k.e-y"])
def test_long_argument_is_replaced_by_its_length(piece):
    assert without_secrets([piece * 10**5]) == [f"({len(piece) * 10**5} characters)"]


def test_command_line_is_that_of_the_program(started_by):
    assert started_by(["python", "-m", "train", "--lr=1"]) == ("python", "-m", "train", "--lr=1")


@pytest.mark.parametrize(
    "arguments",
    [[], ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"]],
)
def test_process_of_multiprocessing_shows_the_program(started_by, arguments):
    shown = started_by(arguments, ["train.py", "--token=abc123"])
    assert shown == (sys.executable, "train.py", "--token=***")


def test_arguments_of_any_kind_can_be_stored_as_json(started_by):
    shown = started_by(["python", 3, None, "\udcff", "\x1b"])
    assert shown == ("python", "3", "None", "\\udcff", "\x1b")
    json.dumps(shown).encode()


@pytest.mark.parametrize("arguments", [["x" * 1000] * 1000, ["x" * 4000] * 10])
def test_command_line_is_bounded(started_by, arguments):
    shown = started_by(arguments)
    assert len("".join(shown)) < module.MAX_LENGTH + 100
    assert max(map(len, shown)) <= module.MAX_ARGUMENT_LENGTH


def test_omitted_arguments_are_counted(started_by):
    assert started_by(["x" * 1000] * 100)[-1] == "... 92 more"


def test_real_process_has_its_own_command_line():
    program = (
        "from ignite_hooks.checkpoint.command_line import command_line; print(command_line()[2:])"
    )
    command = [sys.executable, "-c", program, "--api-key", "abc123", "--lr", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.rstrip().endswith("'--api-key', '***', '--lr', '1')")
