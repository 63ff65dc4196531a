"""The kubeconfig that a node joins with: what is taken of it, and that no error tells the secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from initd.config import kubeconfig
from initd.config.checks import MismatchError
from tests.unit.cluster_support import PEM, TOKEN, pem, table
from tests.unit.cluster_support import kubeconfig as as_json

if TYPE_CHECKING:
    from collections.abc import Callable

CERTIFICATES = {
    "client-certificate-data": pem("CERTIFICATE"),
    "client-key-data": pem("EC PRIVATE KEY"),
}


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump], ids=["JSON", "YAML"])
@pytest.mark.parametrize("user", [{"token": TOKEN}, CERTIFICATES], ids=["token", "certificate"])
def test_what_is_needed_of_it_is_kept(write: Callable[[Any], str], user: dict[str, str]) -> None:
    given = table(**user)
    given["clusters"].append({"name": "other", "cluster": {**given["clusters"][0]["cluster"], "server": "https://x"}})
    made, authority = kubeconfig.parse(write(given))
    kept = json.loads(made)
    assert kept["clusters"] == [{"name": "initd", "cluster": table()["clusters"][0]["cluster"]}]
    assert kept["users"] == [{"name": "initd", "user": user}]
    assert kept["contexts"] == [{"name": kept["current-context"], "context": {"cluster": "initd", "user": "initd"}}]
    assert authority.decode() == PEM.format("CERTIFICATE")


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a kubeconfig; a value of None takes the key out."""

    def change(given: Any) -> None:
        *way, last = path.split("/")
        for key in way:
            given = given[int(key) if key.isdigit() else key]
        if value is None:
            del given[last]
        else:
            given[last] = value

    return change


CLUSTER, USER = "clusters/0/cluster", "users/0/user"
TAKEN = "client-certificate-data, client-key-data, token"


@pytest.mark.parametrize(
    ("change", "at", "problem"),
    [
        (put(f"{CLUSTER}/server", "http://x"), ".clusters[0].cluster.server", "expected https://HOST:PORT"),
        (put(f"{CLUSTER}/server", "https://u:p@x"), ".clusters[0].cluster.server", "expected https://HOST:PORT"),
        (put(f"{CLUSTER}/certificate-authority-data", None), ".clusters[0].cluster", "found nothing, expected a value"),
        (
            put(f"{CLUSTER}/certificate-authority-data", "AAAA"),
            ".clusters[0].cluster.certificate-authority-data",
            "expected base64 of a PEM CERTIFICATE",
        ),
        (
            put(f"{CLUSTER}/certificate-authority", "/ca"),
            ".clusters[0].cluster.certificate-authority",
            "found an unknown key, expected certificate-authority-data",
        ),
        (
            put(f"{CLUSTER}/insecure-skip-tls-verify", True),
            ".clusters[0].cluster.insecure-skip-tls-verify",
            "found an unknown key, expected one of certificate-authority-data, server",
        ),
        (put(f"{USER}/exec", {"command": "x"}), ".users[0].user.exec", f"an unknown key, expected one of {TAKEN}"),
        (put(f"{USER}/tokenFile", "/x"), ".users[0].user.tokenFile", "found an unknown key, expected token"),
        (
            put(f"{USER}/client-key", "/x"),
            ".users[0].user.client-key",
            "found an unknown key, expected client-key-data",
        ),
        (put(f"{USER}/token", None), ".users[0].user", "expected either token, or client-certificate-data"),
        (put(f"{USER}/token", "a b"), ".users[0].user.token", "expected a token without spaces"),
        (put(f"{USER}/token", [TOKEN]), ".users[0].user.token", "found an array, expected a string"),
        (
            put(f"{USER}/client-key-data", "x"),
            ".users[0].user",
            "expected either token, or client-certificate-data and",
        ),
        (put("users", [TOKEN]), ".users[0]", "found text, expected a table"),
        (put("users", TOKEN), ".users", "found text, expected an array"),
        (put("current-context", "other"), ".current-context", "found that of 0, expected the name of exactly one"),
        (put("current-context", None), ".current-context", "found nothing, expected a value"),
        (put("current-context", {}), ".current-context", "found a table, expected a string"),
        (put("contexts/0/context/user", "you"), ".contexts[0].context.user", "expected the name of exactly one"),
        (put("clusters", [table()["clusters"][0]] * 2), ".contexts[0].context.cluster", "found that of 2"),
    ],
)
def test_an_error_names_the_key_and_not_the_secret(
    change: Callable[[dict[str, Any]], None], at: str, problem: str
) -> None:
    given = table()
    change(given)
    with pytest.raises(MismatchError) as caught:
        kubeconfig.parse(json.dumps(given))
    assert caught.value.at.startswith(at)
    assert problem in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("key", CERTIFICATES)
def test_certificate_and_key_are_looked_at(key: str) -> None:
    with pytest.raises(MismatchError) as caught:
        kubeconfig.parse(as_json(**{**CERTIFICATES, key: pem("OTHER")}))
    assert caught.value.at == f".users[0].user.{key}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [", "found none (expected the node content, but found '<stream end>' at line 1)"),
        ("a: b: c\n", "found none (mapping values are not allowed here at line 1)"),
        ("\0", "found none (ReaderError)"),
        ('"\\UFFFFFFFF"', "found none"),
        ("[" * 5000, "found none (RecursionError)"),
        (TOKEN, "found text, expected a table"),
        ("", "expected a table"),
    ],
)
def test_what_is_no_kubeconfig_at_all(text: str, found: str) -> None:
    with pytest.raises(MismatchError) as caught:
        kubeconfig.parse(text)
    assert found in str(caught.value)
    assert TOKEN not in str(caught.value)


@given(st.text() | st.text(alphabet="ab:-[]{}&*!|>'\"#% \n"))
def test_whatever_it_is_there_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(MismatchError):
        kubeconfig.parse(text)
