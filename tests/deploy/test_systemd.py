"""deploy/systemd/: units that systemd takes, that are fenced in, and whose commands and settings the code has."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.server.settings import Settings
from tests.jobs import REPO

FOLDER = REPO / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAMS = Path(sys.executable).parent
MOST_EXPOSED = 25
"""Of 100, by systemd's own scale; an unfenced service has 96."""


def unit(path: Path) -> dict[str, list[str]]:
    """Return the settings of a unit's service. Repeated ones are in order."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text.partition("[Service]")[2], re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def variables(path: Path) -> dict[str, str]:
    """Return the variables of an environment file, also those in comments."""
    pairs = re.findall(r"^#?([A-Z_]+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(pairs)


def installed(path: Path, folder: Path) -> Path:
    """Return a unit with the programs of this environment."""
    text = path.read_text(encoding="utf-8").replace("/opt/qtune/bin/", f"{PROGRAMS}/")
    made = folder / path.name
    made.write_text(text)
    return made


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Ask systemd."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: apt-get install systemd)")
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_it(path: Path, tmp_path: Path) -> None:
    """Without a word about any line of it."""
    made = installed(path, tmp_path)
    done = systemd_analyze("verify", "--recursive-errors=no", made)
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_a_wrong_line_is_found(tmp_path: Path) -> None:
    """The check checks."""
    made = installed(UNITS[0], tmp_path)
    made.write_text(made.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=perhaps"))
    said = systemd_analyze("verify", "--recursive-errors=no", made).stderr
    assert made.name in said
    assert "perhaps" in said


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_it_is_fenced_in(path: Path, tmp_path: Path) -> None:
    """By systemd's own measure, and in what matters most: no new rights, no root, nothing written but its state."""
    made = unit(path)
    fences = {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "User": "qtune",
        "CapabilityBoundingSet": "", "LoadCredential": "ray-token:/etc/qtune/ray-token",
    }  # fmt: skip
    assert {name: made[name][0] for name in fences} == fences
    assert made["StateDirectory"][0].split()[0] == ("qtune" if path.stem == "qtune-api" else "qtune-ray")
    done = systemd_analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", installed(path, tmp_path))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("path", [path for path in UNITS if path.stem != "qtune-api"], ids=lambda path: path.name)
def test_no_ray_node_sees_the_servers_files(path: Path) -> None:
    """Also on the server's machine, where both are the same user: the data root and the settings are out of sight."""
    server, made = unit(FOLDER / "qtune-api.service"), unit(path)
    hidden = {place.removeprefix("-") for line in made["InaccessiblePaths"] for place in line.split()}
    (root,) = re.findall(r"QTUNE_DATA_ROOT=(\S+)", " ".join(server["Environment"]))
    files = {str(Path(line.partition(":")[2]).parent) for line in server["LoadCredential"]}
    assert {root, *files, str(Path(server["EnvironmentFile"][0]).parent)} <= hidden
    used = {f"/var/lib/{name}" for name in made["StateDirectory"][0].split()}
    used |= set(re.findall(r"=(/var/lib/\S+)", " ".join(made["Environment"])))
    assert used
    assert not any(Path(place).is_relative_to(root) for place in used)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_state_is_of_its_user_alone(path: Path) -> None:
    """Of no group either: database, specs, logs and uploads; models and what jobs leave on nodes."""
    assert unit(path)["StateDirectoryMode"] == ["0700"]


def test_drivers_outlive_the_server() -> None:
    """Only the server is ended; neither their files nor their shared memory end with it."""
    made = unit(FOLDER / "qtune-api.service")
    assert made["KillMode"] == ["process"]
    environment = dict(pair.split("=", 1) for line in made["Environment"] for pair in line.split())
    assert made["PrivateTmp"] == ["yes"]
    assert "RemoveIPC" not in made
    for name in ("TMPDIR", "RAY_TMPDIR"):
        place = environment[name].removeprefix("/var/lib/")
        assert place in made["StateDirectory"][0].split()
    longest = f"{environment['RAY_TMPDIR']}/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
    assert len(longest) < 107, "a socket's path is short"


def test_settings_are_ones_that_the_server_has() -> None:
    """Each QTUNE_ variable of the unit and its file; the file as it stands is valid, with the cluster's lines too."""
    known = {f"QTUNE_{name.upper()}" for name in Settings.model_fields}
    found = variables(FOLDER / "api.env")
    in_unit = set(re.findall(r"\bQTUNE_[A-Z_]+", (FOLDER / "qtune-api.service").read_text(encoding="utf-8")))
    assert (found.keys() | in_unit) <= known
    settings = Settings(**{name.removeprefix("QTUNE_").lower(): value for name, value in found.items()})  # type: ignore[arg-type]
    assert settings.needs_tokens
    assert settings.launcher == "ray"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_commands_are_ones_that_there_are(path: Path) -> None:
    """`qtune serve`, and flags that `ray start` has; the variables that they name are in ray.env."""
    program, *words = shlex.split(unit(path)["ExecStart"][0])
    assert program.startswith("/opt/qtune/bin/")
    if program.endswith("qtune"):
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
        return
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs Ray")
    flags = {flag for option in scripts.start.params for flag in (*option.opts, *option.secondary_opts)}
    assert words[0] == "start"
    assert {word.partition("=")[0] for word in words[1:]} <= flags
    assert set(re.findall(r"\$\{(\w+)\}", " ".join(words))) <= variables(FOLDER / "ray.env").keys()


def test_units_are_plain_ini() -> None:
    """Sections in the order in which people look for them."""
    for path in UNITS:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
        parser.read_string(path.read_text(encoding="utf-8"))
        assert parser.sections() == ["Unit", "Service", "Install"]
