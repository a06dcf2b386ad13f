"""Accounts: files and environment, passwords, sessions, limits on attempts, who has to sign in where, the commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time

import pytest
from itsdangerous import URLSafeTimedSerializer
from limits import RateLimitItemPerMinute

from seedvr_ui.accounts import AccountError, Accounts, AccountsFile, load_accounts, load_secret
from seedvr_ui.admission import FIRST_ADMIN, accounts_path, make_access
from seedvr_ui.login import SESSION_AGE_S, Login, TooManyAttemptsError, WrongPasswordError
from seedvr_ui.login_policy import LoginPolicy, OpenServerError, decide_login
from seedvr_ui.serve_options import ServeOptions
from seedvr_ui.signed_out import FOLDER_NAME, SignedOut
from seedvr_ui.storage import is_id
from tests.ui.server import ROOT

SECRET = b"s" * 32
PASSWORD = "correct horse"
LIMITS = (RateLimitItemPerMinute(3, 5), RateLimitItemPerMinute(5, 15))


@pytest.fixture
def file(tmp_path: Path) -> AccountsFile:
    return AccountsFile(tmp_path / "data" / "accounts.json")


@pytest.fixture
def login(file: AccountsFile) -> Login:
    """With the accounts anna and ben; three attempts of an address, five of a name."""
    file.add("anna", PASSWORD, is_admin=True)
    file.add("ben", PASSWORD)
    return Login(Accounts(file, SECRET), SECRET, SignedOut(file.path.parent), *LIMITS)


def test_an_account_has_an_id_that_stays_and_no_password_in_the_file(file: AccountsFile) -> None:
    added = file.add("anna", PASSWORD, is_admin=True)
    (read,) = AccountsFile(file.path).accounts()
    assert (read.id, read.name, read.is_admin) == (added.id, "anna", True)
    assert is_id(read.id)
    assert PASSWORD not in file.path.read_text()
    assert "$argon2id$" in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", "x" * 65, "\u202eanna", "a\0"])
def test_a_name_that_cannot_be_typed_is_refused(file: AccountsFile, name: str) -> None:
    with pytest.raises(AccountError, match="A name has"):
        file.add(name, PASSWORD)


@pytest.mark.parametrize("password", ["", "1234567", "x" * 257])
def test_a_password_of_a_bad_length_is_refused(file: AccountsFile, password: str) -> None:
    with pytest.raises(AccountError, match="8 to 256"):
        file.add("anna", password)


def test_names_differ_by_more_than_case(file: AccountsFile) -> None:
    file.add("Zoë", PASSWORD)
    with pytest.raises(AccountError, match="already"):
        file.add("ZOE\u0308", PASSWORD)


def test_additions_at_the_same_time_lose_none(file: AccountsFile) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: AccountsFile(file.path).add(f"user{index}", PASSWORD), range(8)))
    assert len(AccountsFile(file.path).accounts()) == 8


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 1, "accounts": [{"name": "a"}]}', '{"version": 2}'])
def test_a_damaged_file_is_an_error_and_not_an_open_door(file: AccountsFile, content: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(content)
    with pytest.raises(AccountError, match="damaged|newer"):
        file.accounts()


def test_accounts_of_the_environment_and_of_the_file_come_together(file: AccountsFile) -> None:
    file.add("anna", PASSWORD)
    file.add("cleo", PASSWORD)
    accounts = Accounts(file, SECRET, {"SEEDVR_USERS": "Anna:her-password\n ben:his:pass:word"})
    assert [(account.name, account.is_admin) for account in accounts.all()] == [
        ("Anna", True), ("ben", False), ("cleo", False)
    ]  # fmt: skip
    login = Login(accounts, SECRET, SignedOut(file.path.parent))
    assert login.sign_in("anna", "her-password", "192.0.2.1").name == "Anna"
    assert login.sign_in("ben", "his:pass:word", "192.0.2.1").name == "ben"


def test_the_environment_names_the_admins(file: AccountsFile) -> None:
    accounts = Accounts(file, SECRET, {"SEEDVR_USERS": "a:12345678 b:12345678", "SEEDVR_ADMINS": "B"})
    assert [account.is_admin for account in accounts.all()] == [False, True]


def test_an_owner_of_the_environment_stays_and_cannot_be_guessed(file: AccountsFile) -> None:
    def owner(secret: bytes) -> str:
        return Accounts(file, secret, {"SEEDVR_USERS": "a:12345678"}).all()[0].id

    assert owner(SECRET) == owner(SECRET)
    assert owner(SECRET) != owner(b"t" * 32)
    assert is_id(owner(SECRET))


@pytest.mark.parametrize(
    ("users", "admins", "sentence"),
    [
        ("anna", "", "no password for anna"),
        ("anna:short", "", "SEEDVR_USERS, anna: A password"),
        ("anna:12345678 ANNA:12345678", "", "twice"),
        ("anna:12345678", "ben", "SEEDVR_ADMINS names ben"),
    ],
)
def test_a_mistake_in_the_environment_is_a_sentence(
    file: AccountsFile, users: str, admins: str, sentence: str
) -> None:  # fmt: skip
    with pytest.raises(AccountError, match=sentence):
        Accounts(file, SECRET, {"SEEDVR_USERS": users, "SEEDVR_ADMINS": admins})


# --- signing in ---


@pytest.mark.parametrize(
    ("name", "password"), [("anna", "wrong"), ("nobody", PASSWORD), ("anna", "x" * 10**6), ("", "")]
)
def test_a_wrong_name_and_a_wrong_password_are_told_alike(login: Login, name: str, password: str) -> None:
    with pytest.raises(WrongPasswordError, match="The name or the password is wrong"):
        login.sign_in(name, password, "192.0.2.1")


def test_an_unknown_name_takes_the_same_work(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = login.accounts.passwords._hasher
    hashes: list[str] = []
    verify = type(hasher).verify
    monkeypatch.setattr(
        type(hasher), "verify", lambda self, known, given: hashes.append(known) or verify(self, known, given)
    )
    for name in ("anna", "nobody"):
        with pytest.raises(WrongPasswordError):
            login.sign_in(name, "wrong-password", "192.0.2.1")
    assert len(hashes) == 2
    assert hashes[0].split("$")[:4] == hashes[1].split("$")[:4]  # the same algorithm and costs


def test_attempts_of_an_address_are_limited_whatever_the_name(login: Login) -> None:
    for name in ("anna", "ben", "cleo"):
        with pytest.raises(WrongPasswordError):
            login.sign_in(name, "wrong", "192.0.2.1")
    with pytest.raises(TooManyAttemptsError, match=r"try again in [1-5] minutes\."):
        login.sign_in("anna", PASSWORD, "192.0.2.1")
    assert login.sign_in("anna", PASSWORD, "192.0.2.2").name == "anna"


def test_a_network_of_ipv6_counts_as_one_address(login: Login) -> None:
    for last in range(3):
        with pytest.raises(WrongPasswordError):
            login.sign_in("anna", "wrong", f"2001:db8::{last}")
    with pytest.raises(TooManyAttemptsError):
        login.sign_in("anna", PASSWORD, "2001:db8::99")


def test_attempts_on_a_name_are_limited_over_all_addresses(login: Login) -> None:
    for last in range(5):
        with pytest.raises(WrongPasswordError):
            login.sign_in("Anna", "wrong", f"192.0.2.{last}")
    with pytest.raises(TooManyAttemptsError):
        login.sign_in("anna", PASSWORD, "192.0.2.9")
    assert login.sign_in("ben", PASSWORD, "192.0.2.9").name == "ben"


def test_many_attempts_at_once_are_no_way_around_the_limit(login: Login) -> None:
    def attempt(_: int) -> str:
        try:
            login.sign_in("anna", "wrong", "192.0.2.1")
        except (WrongPasswordError, TooManyAttemptsError) as error:
            return type(error).__name__
        raise AssertionError("the wrong password was right")

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(attempt, range(12)))
    assert seen.count("WrongPasswordError") == 3


def test_a_program_that_sends_its_password_each_time_is_no_attacker(login: Login) -> None:
    for _ in range(20):
        assert login.sign_in_again("ben", PASSWORD, "192.0.2.1").name == "ben"
    with pytest.raises(WrongPasswordError):
        login.sign_in_again("ben", "wrong", "192.0.2.1")


def test_a_session_outlives_a_restart_and_ends_with_the_password_or_the_account(login: Login) -> None:
    file = login.accounts.file
    anna, ben = login.accounts.all()
    sessions = [login.session(anna), login.session(ben)]
    again = Login(Accounts(AccountsFile(file.path), SECRET), SECRET, SignedOut(file.path.parent))
    assert [again.account_of(session) for session in sessions] == [anna, ben]
    file.set_password("anna", "another password")
    file.remove("BEN")
    assert [again.account_of(session) for session in sessions] == [None, None]
    with pytest.raises(WrongPasswordError):
        again.sign_in_again("anna", PASSWORD, "192.0.2.1")


def test_a_session_of_the_environment_ends_with_the_password_only(file: AccountsFile) -> None:
    def login(password: str) -> Login:
        return Login(Accounts(file, SECRET, {"SEEDVR_USERS": f"anna:{password}"}), SECRET, SignedOut(file.path.parent))

    first = login("12345678")
    session = first.session(first.accounts.all()[0])
    assert login("12345678").account_of(session) is not None
    assert login("87654321").account_of(session) is None


def test_a_forged_or_foreign_session_is_none(login: Login) -> None:
    anna, _ = login.accounts.all()
    session = login.session(anna)
    foreign = URLSafeTimedSerializer(b"t" * 32, salt="seedvr session").dumps([anna.id, anna.stamp])
    strange = URLSafeTimedSerializer(SECRET, salt="seedvr session").dumps({"id": anna.id})
    for forged in ("", "x", session[:-1], session[::-1], foreign, strange, "ä" * 5000):
        assert login.account_of(forged) is None


def test_signing_out_is_remembered_as_long_as_the_session_would_have_lasted(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = login.accounts.all()
    ended, other = login.session(anna), login.session(anna)
    login.sign_out(ended)
    login.sign_out("no session")
    assert (login.account_of(ended), login.account_of(other)) == (None, anna)
    folder = login.accounts.file.path.parent / FOLDER_NAME
    (first,) = folder.iterdir()
    monkeypatch.setattr("seedvr_ui.signed_out.time.time", lambda: time() + SESSION_AGE_S + 1)
    login.sign_out(login.session(ben))
    assert len(list(folder.iterdir())) == 1
    assert not first.exists()


def test_a_session_ends_by_itself(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    session = login.session(login.accounts.all()[0])
    assert login.account_of(session) is not None
    monkeypatch.setattr("seedvr_ui.login.SESSION_AGE_S", -1)
    assert login.account_of(session) is None


# --- the server's start ---


@pytest.mark.parametrize(
    ("host", "options", "policy"),
    [
        ("127.0.0.1", {}, LoginPolicy.ANONYMOUS),
        ("127.8.8.8", {}, LoginPolicy.ANONYMOUS),
        ("::1", {}, LoginPolicy.ANONYMOUS),
        ("localhost", {}, LoginPolicy.ANONYMOUS),
        ("0.0.0.0", {}, LoginPolicy.GENERATE),
        ("::", {}, LoginPolicy.GENERATE),
        ("", {}, LoginPolicy.GENERATE),
        ("192.168.1.2", {}, LoginPolicy.GENERATE),
        ("no.such.host.invalid", {}, LoginPolicy.GENERATE),
        ("0.0.0.0", {"has_accounts": True}, LoginPolicy.ACCOUNTS),
        ("127.0.0.1", {"has_accounts": True}, LoginPolicy.ACCOUNTS),
        ("127.0.0.1", {"has_accounts": True, "is_shared": True}, LoginPolicy.ACCOUNTS),
        ("0.0.0.0", {"is_login_off": True}, LoginPolicy.ANONYMOUS),
        ("0.0.0.0", {"is_login_off": True, "has_accounts": True}, LoginPolicy.ANONYMOUS),
    ],
)
def test_who_has_to_sign_in_where(host: str, options: dict[str, bool], policy: LoginPolicy) -> None:
    assert decide_login(host, **{"has_accounts": False, **options}) is policy


def test_a_shared_link_is_never_open_to_everybody() -> None:
    with pytest.raises(OpenServerError, match="leave out --no-login"):
        decide_login("127.0.0.1", has_accounts=True, is_login_off=True, is_shared=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_shared_link_without_accounts_is_refused(host: str) -> None:
    with pytest.raises(OpenServerError, match="add an account first"):
        decide_login(host, has_accounts=False, is_shared=True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEEDVR_USERS", "SEEDVR_ADMINS", "SEEDVR_ACCOUNTS"):
        monkeypatch.delenv(name, raising=False)


def test_a_public_server_without_accounts_makes_one_and_tells_its_password_once(tmp_path: Path, bare: None) -> None:
    told: list[str] = []
    first = make_access(ServeOptions(data=tmp_path), told.append)
    again = make_access(ServeOptions(data=tmp_path), told.append)
    assert len(told) == 1
    password = told[0].partition("password  ")[2].split()[0]
    assert len(password) >= 16
    assert all(password not in path.read_text(errors="replace") for path in tmp_path.iterdir())
    for access in (first, again):
        assert access.login is not None
        account = access.login.sign_in(FIRST_ADMIN, password, "192.0.2.1")
        assert (account.name, account.is_admin) == (FIRST_ADMIN, True)


def test_a_file_of_accounts_that_is_named_has_to_be_there(tmp_path: Path, bare: None) -> None:
    with pytest.raises(AccountError, match="There is no file of accounts"):
        make_access(ServeOptions(data=tmp_path, accounts=tmp_path / "typo.json"), print)


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        secrets = set(pool.map(load_secret, [tmp_path] * 8))
    assert len(secrets) == 1
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    (tmp_path / "secret.key").write_bytes(b"short")
    with pytest.raises(AccountError, match="damaged"):
        load_secret(tmp_path)


# --- the commands ---


def run_accounts(data: Path, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SEEDVR_")}
    return subprocess.run(
        [sys.executable, "-m", "inference.cli", "accounts", *arguments],
        cwd=ROOT, env=environment | {"SEEDVR_DATA": str(data), "PYTHONPATH": str(ROOT)}, input=f"{password}\n",
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_the_commands_add_list_change_and_remove(tmp_path: Path) -> None:
    assert run_accounts(tmp_path, "add", "anna", "--admin", password=PASSWORD).returncode == 0
    assert run_accounts(tmp_path, "add", "ben", password="another one").returncode == 0
    login = Login(load_accounts(accounts_path(tmp_path), tmp_path, {}), SECRET, SignedOut(tmp_path))
    session = login.session(login.sign_in("anna", PASSWORD, "192.0.2.1"))
    listed = run_accounts(tmp_path, "list").stdout
    assert [line.split() for line in listed.splitlines()[1:]] == [["anna", "yes"], ["ben"]]
    assert "argon2" not in listed
    assert run_accounts(tmp_path, "password", "anna", password="something else").returncode == 0
    assert login.account_of(session) is None  # the server has not been started again
    assert login.sign_in("anna", "something else", "192.0.2.1").is_admin
    assert run_accounts(tmp_path, "remove", "anna").returncode == 0
    with pytest.raises(WrongPasswordError):
        login.sign_in("anna", "something else", "192.0.2.1")
    assert [entry["name"] for entry in json.loads((tmp_path / "accounts.json").read_text())["accounts"]] == ["ben"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("add", "anna"), "A password has 8 to 256"), (("remove", "nobody"), "There is no account nobody")],
)
def test_a_command_that_cannot_work_ends_with_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:  # fmt: skip
    done = run_accounts(tmp_path, *arguments, password="short")
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
