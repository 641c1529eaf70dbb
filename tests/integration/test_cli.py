"""The command line on a deployment's own files: what it prints, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.core
import typer.main

from ci_platform.cli import main as cli
from ci_platform.config import Config


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str


Sluice = Callable[..., Done]


@pytest.fixture
def sluice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sluice:
    for name in ("SLUICE_DATA", "SLUICE_TOKEN", "SLUICE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sluice", "--data", str(tmp_path / "data"), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Done(ended.value.code if isinstance(ended.value.code, int) else 0, out, err)

    return run


def test_a_repository_is_created_listed_and_deleted(sluice: Sluice) -> None:
    assert sluice("repo", "create", "me/app", "--description", "mine") == Done(
        0, "created me/app\n", ""
    )
    listed = sluice("repo", "list")
    assert listed.out.splitlines()[1].split() == ["me/app", "mine"]
    assert sluice("repo", "delete", "me/app").out == "deleted me/app\n"
    assert sluice("repo", "list").out.startswith("No repositories yet. Make one: sluice repo")


def test_json_is_printed_alone_wherever_the_option_stands(sluice: Sluice) -> None:
    made = json.loads(sluice("repo", "create", "me/app", "--json").out)
    assert made["clone_url"] == "http://127.0.0.1:8080/me/app.git"
    (listed,) = json.loads(sluice("--json", "repo", "list").out)
    assert listed == made


def test_a_token_is_printed_alone_and_never_again(sluice: Sluice) -> None:
    sluice("repo", "create", "me/app")
    made = sluice("token", "create", "--name", "ci", "--scope", "repo:write", "--repo", "me/app")
    assert made.code == 0
    secret = made.out.strip()
    assert secret.startswith("slu_")
    assert "\n" not in secret
    listed = sluice("token", "list")
    assert "ci" in listed.out
    assert secret not in listed.out
    token_id = listed.out.splitlines()[1].split()[0]
    assert sluice("token", "revoke", token_id).out == f"revoked {token_id}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["repo", "create", "no-slash"], "name"),
        (["repo", "create", "me/.."], "name"),
        (["token", "create", "--name", "x", "--scope", "everything"], "scope"),
        (["repo", "create"], "Missing argument"),
        (["frobnicate"], "No such command"),
        (["event", "run_1", "go", "{not json"], "PAYLOAD is not JSON"),
        (["start", "me/app", "--param", "novalue"], "is not K=V"),
        (["restart", "run_1", "--from", "build"], "expected kind:name"),
        (["serve", "--port", "99999"], "SLUICE_PORT: Input should be less than"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_says_what(
    sluice: Sluice, arguments: list[str], says: str
) -> None:
    done = sluice(*arguments)
    assert done.code == 2
    assert says in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "run_nothing"],
        ["logs", "run_nothing"],
        ["runs", "me/nothing"],
        ["repo", "delete", "me/nothing"],
        ["pause", "run_nothing"],
        ["approve", "run_nothing", "gate"],
    ],
)
def test_what_is_not_there_exits_with_3(sluice: Sluice, arguments: list[str]) -> None:
    done = sluice(*arguments)
    assert done.code == 3
    assert done.err.startswith("sluice: ")


def test_a_server_that_does_not_answer_exits_with_4(sluice: Sluice) -> None:
    done = sluice("--url", "http://127.0.0.1:1", "repo", "list")
    assert done.code == 4
    assert "no answer from http://127.0.0.1:1" in done.err


def test_a_database_that_cannot_be_opened_exits_with_4(sluice: Sluice, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sluice.db").write_text("this is no database, it is a sentence" * 100)
    done = sluice("repo", "list")
    assert done.code == 4
    assert "not a database" in done.err


def test_a_setting_that_cannot_be_is_named(sluice: Sluice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_LEASE_SECONDS", "soon")
    done = sluice("repo", "list")
    assert (done.code, done.out) == (2, "")
    assert "SLUICE_LEASE_SECONDS" in done.err


@pytest.mark.parametrize("url", ["nonsense", "ftp://somewhere"])
def test_an_object_store_that_cannot_be_is_named(
    sluice: Sluice, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SLUICE_OBJECTS_URL", url)
    done = sluice("repo", "list")
    assert done.code == 2
    assert done.err.startswith("sluice: SLUICE_OBJECTS_URL cannot be used: ")
    assert done.err.count("\n") == 1


def test_a_directory_that_cannot_be_made_is_named(sluice: Sluice, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file is in the way")
    done = sluice("repo", "list")
    assert done.code == 2
    assert f"SLUICE_DATA: {tmp_path / 'data'} cannot be made: File exists" in done.err


def test_settings_are_shown_with_secrets_masked(
    sluice: Sluice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_SECRET_KEY", "k" * 40)
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://me:hunter2@db/sluice")
    shown = json.loads(sluice("config", "show", "--json").out)
    assert set(shown) == set(Config.model_fields)
    assert shown["secret_key"] == "***"
    assert shown["database_url"] == "postgresql://me:***@db/sluice"
    assert "hunter2" not in sluice("config", "show").out


def test_the_first_admins_link_is_made_until_there_is_one(sluice: Sluice) -> None:
    link = sluice("user", "link")
    assert link.out.startswith("http://127.0.0.1:8080/setup/")
    assert sluice("user", "create", "ada", "--admin", "--password", "correct horse").code == 0
    assert sluice("user", "link").code == 3


def test_a_user_gets_a_role(sluice: Sluice) -> None:
    sluice("repo", "create", "me/app")
    sluice("user", "create", "bob", "--password", "correct horse")
    assert sluice("user", "role", "me/app", "bob", "writer").out == "bob is writer of me/app\n"
    assert "bob" in sluice("user", "list").out


def test_every_command_stands_in_the_guide() -> None:
    guide = Path(__file__).parent.parent.parent / "docs" / "guide" / "cli.md"
    documented = guide.read_text(encoding="utf-8")
    root = typer.main.get_command(cli.cli)
    assert isinstance(root, typer.core.TyperGroup)
    for name, command in root.commands.items():
        inner = command.commands if isinstance(command, typer.core.TyperGroup) else {}
        assert f"`{name}{' ' if inner else '`'}" in documented, name
        for verb in inner:
            assert f"{verb}`" in documented, f"{name} {verb}"


def test_a_repository_is_imported_forked_proved_and_cleaned(
    sluice: Sluice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_PRIVATE_REMOTES", "true")
    work = tmp_path / "origin"
    for command in (["init", "-q", "-b", "main", str(work)], ["commit", "-q", "--allow-empty"]):
        who = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "core.editor=true"]
        where = ["-C", str(work)] if work.exists() else []
        message = ["-m", "first"] if command[0] == "commit" else []
        subprocess.run(["git", *who, *where, *command, *message], check=True)
    url = f"file://{work}/.git"
    assert sluice("repo", "import", "me/app", url).out == (
        "imported 1 branches and tags into me/app\n"
    )
    assert sluice("repo", "import", "me/app", url).code == 2
    assert sluice("repo", "fork", "me/app", "me/copy").code == 0
    proved = json.loads(sluice("fsck", "--json").out)
    assert {name: one["whole"] for name, one in proved.items()} == {"me/app": True, "me/copy": True}
    assert "me/copy" in sluice("gc", "me/copy").out
    assert sluice("fsck", "me/nothing").code == 3


def test_a_mirror_is_set_shown_hurried_and_removed(sluice: Sluice) -> None:
    made = sluice("repo", "mirror", "me/copy", "https://example.org/x.git", "--minutes", "5")
    assert made.code == 0 and made.out.startswith("me/copy follows https://example.org/x.git\n")
    shown = json.loads(sluice("--json", "repo", "mirror", "me/copy").out)
    assert (shown["every_seconds"], shown["outcome"]) == (300, None)
    assert sluice("repo", "mirror", "me/copy", "--sync").code == 0
    assert sluice("repo", "mirror", "me/copy", "--sync", "--remove").code == 2
    assert sluice("repo", "mirror", "me/copy", "--remove").out == "me/copy is no mirror any more\n"
    assert sluice("repo", "mirror", "me/copy").code == 3


def test_the_hosts_of_a_repository_are_set_shown_and_cleared(sluice: Sluice) -> None:
    assert sluice("repo", "create", "me/app").code == 0
    network = ("repo", "network", "me/app")
    assert sluice(*network).out == "commands of me/app may reach what the server allows\n"
    set_to = sluice(*network, "--allow", "pypi.org", "--allow", "*.example.org:8443")
    assert set_to.out == "commands of me/app may reach pypi.org, *.example.org:8443\n"
    assert json.loads(sluice("--json", *network, "--none").out) == {"hosts": []}
    assert sluice(*network).out == "commands of me/app may reach no host\n"
    assert sluice(*network, "--none", "--clear").code == 2
    assert sluice(*network, "--allow", "http://pypi.org/").code == 2
    assert json.loads(sluice("--json", *network, "--clear").out) == {"hosts": None}
    assert sluice("repo", "network", "me/nothing").code == 3


def test_many_are_created_and_each_said_of(sluice: Sluice) -> None:
    done = sluice("repo", "create-many", "me/a", "me/b", "me/a")
    assert done.code == 2
    assert [line.split()[:2] for line in done.out.splitlines()[1:3]] == [
        ["me/a", "created"],
        ["me/b", "created"],
    ]
    assert "exists" in done.out
    assert sluice("repo", "create-many", "me/c", "--template", "me/a").code == 0
    assert sluice("repo", "create-many", *[f"you/{n:03}" for n in range(150)]).code == 0
    assert len(json.loads(sluice("--json", "repo", "list").out)) == 153
    assert len(json.loads(sluice("--json", "repo", "list", "--limit", "101").out)) == 101
    assert sluice("repo", "create-many", "nonsense").code == 2


def test_a_subscription_is_made_listed_and_ended(sluice: Sluice) -> None:
    sluice("repo", "create", "me/app")
    asked = ("repo", "subscribe", "me/app", "https://example.org/hook", "--event", "pushed")
    made = json.loads(sluice("--json", *asked).out)
    assert len(made["secret"]) > 30
    listed = sluice("repo", "subscriptions", "me/app")
    assert made["id"] in listed.out and made["secret"] not in listed.out
    log = sluice("repo", "subscriptions", "me/app", "--log", made["id"])
    assert log.out.startswith("It was told nothing lately.")
    assert sluice("repo", "subscriptions", "me/app", "--remove", made["id"]).code == 0
    assert sluice("repo", "subscriptions", "me/app", "--log", made["id"]).code == 3
    assert sluice(*asked[:-1], "nonsense").code == 2
