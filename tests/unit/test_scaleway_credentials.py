"""Where Scaleway credentials come from, and that a wrong one is refused without being shown."""

from pathlib import Path

import pytest

from components.scaleway.credentials import Credentials, CredentialsError

SECRET = "5ec2e700-0000-4000-8000-00000000cafe"
FILE = f"""
access_key: SCWFILE
secret_key: {SECRET}
default_project_id: project-file
default_zone: fr-par-1
active_profile: gpu
profiles:
  gpu: {{default_zone: fr-par-2, default_project_id: project-gpu}}
  old: {{default_zone: pl-waw-2}}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def test_configuration_wins_over_environment_and_environment_over_file(config_file: Path) -> None:
    environ = {
        "SCW_CONFIG_PATH": str(config_file),
        "SCW_DEFAULT_PROJECT_ID": "project-env",
        "SCW_ACCESS_KEY": "SCWENV",
    }
    found = Credentials.resolve({"access_key": "SCWCONFIG"}, environ)
    assert (found.access_key, found.project_id, found.zone) == ("SCWCONFIG", "project-env", "fr-par-2")
    assert found.secret_key == SECRET
    assert found.api_url == "https://api.scaleway.com"


def test_the_environment_chooses_another_profile_than_the_active_one(config_file: Path) -> None:
    found = Credentials.resolve({}, {"SCW_CONFIG_PATH": str(config_file), "SCW_PROFILE": "old"})
    assert (found.zone, found.project_id) == ("pl-waw-2", "project-file")


def test_the_default_profile_is_the_top_of_the_file(config_file: Path) -> None:
    found = Credentials.resolve({}, {"SCW_CONFIG_PATH": str(config_file), "SCW_PROFILE": "default"})
    assert (found.zone, found.project_id) == ("fr-par-1", "project-file")


def test_the_file_is_looked_for_below_xdg_config_home(tmp_path: Path) -> None:
    (tmp_path / "scw").mkdir()
    (tmp_path / "scw" / "config.yaml").write_text(FILE)
    assert Credentials.resolve({}, {"XDG_CONFIG_HOME": str(tmp_path)}).access_key == "SCWFILE"


def test_a_broken_file_does_no_harm_when_nothing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{")
    given = {
        "access_key": "a",
        "secret_key": SECRET,
        "project_id": "p",
        "zone": "z",
        "api_url": "http://127.0.0.1:1",
    }
    assert Credentials.resolve(given, {"SCW_CONFIG_PATH": str(path)}).project_id == "p"


def test_missing_credentials_are_named_with_the_three_ways_to_set_them(tmp_path: Path) -> None:
    absent = tmp_path / "config.yaml"
    with pytest.raises(CredentialsError) as caught:
        Credentials.resolve({}, {"SCW_CONFIG_PATH": str(absent), "SCW_SECRET_KEY": ""})
    secret, project = str(caught.value).splitlines()
    assert secret.startswith("secret_key: ")
    assert "pulumi config set --secret scaleway:secretKey" in secret
    assert "SCW_SECRET_KEY" in secret
    assert str(absent) in secret
    assert "pulumi config set scaleway:projectId" in project
    assert "SCW_DEFAULT_PROJECT_ID" in project


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"secret_key: [{SECRET}", "is not valid YAML"),
        ("- a\n- b\n", "is not a mapping"),
        (f"secret_key: {SECRET}\nactive_profile: gone\n", "has no profile 'gone'"),
        (f"secret_key: {SECRET}\nactive_profile: odd\nprofiles: {{odd: 3}}\n", "has no profile 'odd'"),
    ],
)
def test_an_unusable_file_is_named_and_its_secret_is_not_quoted(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(CredentialsError, match=message) as caught:
        Credentials.resolve({}, {"SCW_CONFIG_PATH": str(path)})
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("api.scaleway.com", "is no URL"),
        ("ftp://api.scaleway.com", "is no URL"),
        ("https://", "is no URL"),
        ("https://api.scaleway.com:99999", "is no URL"),
        ("http://api.scaleway.com", "unencrypted"),
        ("http://127.0.0.1.example.com", "unencrypted"),
        ("https://me:pass@api.scaleway.com", "user name or password"),
    ],
)
def test_an_api_url_that_fails_or_leaks_is_refused(url: str, message: str) -> None:
    with pytest.raises(CredentialsError, match=message) as caught:
        Credentials(secret_key=SECRET, project_id="p", api_url=url)
    assert "pass@" not in str(caught.value)


def test_plain_http_is_accepted_on_loopback() -> None:
    assert Credentials(
        secret_key=SECRET, project_id="p", api_url="http://127.0.0.1:18480/scaleway"
    ).on_loopback


def test_a_secret_key_that_no_header_can_carry_is_refused_unseen() -> None:
    with pytest.raises(CredentialsError, match="secret_key") as caught:
        Credentials(secret_key=SECRET + "\n", project_id="p")
    assert SECRET not in str(caught.value)


def test_the_secret_key_is_never_shown() -> None:
    assert SECRET not in repr(Credentials(secret_key=SECRET, project_id="p"))
