"""Keycloak's tokens, against an issuer of our own on this machine with RSA keys that are drawn for the test."""

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi.testclient import TestClient
from monailabel.config import settings

from lib.access import keycloak as module
from lib.access.errors import BadCredentials, LoginUnreachable, WrongRole
from lib.access.keycloak import Keycloak
from lib.access.principal import Principal, acting
from lib.access.throttle import Throttle
from lib.endpoints import samples
from lib.leases import same_account
from tests.lib.realm import Realm
from tests.lib.results_app import client_of, small_app

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def private_keys():
    return [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3)]


@pytest.fixture
def realm(private_keys, monkeypatch):
    realm = Realm(private_keys[0])
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", realm.url)
    yield realm
    realm.close()


def roles(*names):
    return {"realm_access": {"roles": list(names)}}


def test_a_valid_token_gives_name_and_roles(realm):
    account = Keycloak().account(realm.token())
    assert (account.name, account.role) == ("anna", "reader")
    assert account.roles == ("monailabel-annotator", "monailabel-user")
    assert Keycloak().account(realm.token(**roles("monailabel-admin"))).role == "admin"
    assert Keycloak().account(realm.token(azp=None, aud=["x", "monailabel-app"])).name == "anna"


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": 1_000_000_000},
        {"exp": None},
        {"iat": None},
        {"nbf": 4_000_000_000},
        {"azp": "other"},
        {"azp": None, "aud": "other"},
        {"azp": None, "aud": None},
        {"iss": "https://evil.example/realms/hospital"},
        {"iss": None},
        {"typ": "ID"},
        {"typ": "Refresh"},
    ],
    ids=str,
)
def test_a_token_that_is_over_or_for_others_is_refused(realm, changed):
    with pytest.raises(BadCredentials):
        Keycloak().account(realm.token(**changed))


@pytest.mark.parametrize("given", [{}, {"roles": []}, {"roles": ["offline"]}, {"roles": "monailabel-admin"}, [], None])
def test_an_account_without_a_role_is_refused_with_the_names_of_the_roles(realm, given):
    with pytest.raises(WrongRole, match="monailabel-user"):
        Keycloak().account(realm.token(realm_access=given))


def test_no_signature_is_no_token(realm):
    with pytest.raises(BadCredentials):
        Keycloak().account(jwt.encode(realm.claims(), None, algorithm="none", headers={"kid": "one"}))


@pytest.mark.parametrize("kid", ["one", "secret"])
def test_the_public_key_is_no_secret_to_sign_with(realm, kid):
    """HS256 over the realm's public key as PEM, DER and text; and over a symmetric key that the set names."""
    pem = f"-----BEGIN PUBLIC KEY-----\n{realm.public_key()}\n-----END PUBLIC KEY-----"
    for secret in (pem, pem + "\n", realm.public_key(), base64.b64decode(realm.public_key()), b"secret"):
        with pytest.raises(BadCredentials):
            Keycloak().account(hs256(realm.claims(), secret, kid))


def hs256(claims, secret, kid):
    parts = [{"alg": "HS256", "typ": "JWT", "kid": kid}, claims]
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    secret = secret.encode() if isinstance(secret, str) else secret
    signed = base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest()).rstrip(b"=")
    return (text + b"." + signed).decode()


def test_another_key_is_refused_under_a_known_and_an_unknown_id(realm, private_keys):
    for kid in ("one", "nine", "e"):
        with pytest.raises(BadCredentials):
            Keycloak().account(realm.token(key=private_keys[2], kid=kid))


@pytest.mark.parametrize("token", ["", "a.b.c", "..", "eyJhbGciOiJSUzI1NiJ9..", "é.é.é", "a" * 10000 + ".b.c"])
def test_what_is_no_token_is_refused(realm, token):
    with pytest.raises(BadCredentials):
        Keycloak().account(token)


def test_keys_are_kept_and_a_new_one_is_fetched_when_a_token_names_it(realm, private_keys, monkeypatch):
    login = Keycloak()
    old = realm.token()
    for _ in range(3):
        login.account(old)
    assert realm.asked.count("/realms/hospital/certs") == 1
    realm.keys, realm.signing = {"two": private_keys[1]}, "two"
    monkeypatch.setattr(module, "ASK_SECONDS", 0.0)
    assert login.account(realm.token()).name == "anna"
    assert realm.asked.count("/realms/hospital/certs") == 2
    with pytest.raises(BadCredentials):
        login.account(old)


def test_unknown_keys_do_not_make_the_server_ask_again_and_again(realm, private_keys):
    login = Keycloak()
    login.account(realm.token())
    for number in range(20):
        with pytest.raises(BadCredentials):
            login.account(realm.token(key=private_keys[2], kid=f"k{number}"))
    assert realm.asked.count("/realms/hospital/certs") == 1


def test_without_a_key_set_the_realms_public_key_serves(realm, private_keys):
    realm.has_set = False
    login = Keycloak()
    assert login.account(realm.token(kid="whatever")).name == "anna"
    with pytest.raises(BadCredentials):
        login.account(realm.token(key=private_keys[2]))


def test_a_login_that_does_not_answer_is_said_and_known_keys_go_on(realm, monkeypatch):
    login = Keycloak()
    login.account(realm.token())
    realm.server.shutdown()
    realm.server.server_close()
    monkeypatch.setattr(module, "KEYS_SECONDS", 0.0)
    monkeypatch.setattr(module, "ASK_SECONDS", 0.0)
    assert login.account(realm.token()).name == "anna"
    fresh = Keycloak()
    for _ in range(2):
        with pytest.raises(LoginUnreachable):
            fresh.account(realm.token())
    with pytest.raises(LoginUnreachable):
        fresh.sign_in("anna", "right")


# --- through the server ----------------------------------------------------------------------------------------------


@pytest.fixture
def served(realm, tmp_path, monkeypatch):
    return client_of(small_app(tmp_path), monkeypatch)


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_a_token_opens_what_its_roles_allow_and_monai_labels_own_rules_hold(served, realm):
    assert served.get("/anomaly/studies").status_code == 401
    user, admin = realm.token(**roles("monailabel-user")), realm.token(**roles("monailabel-admin"))
    annotator = realm.token()
    assert served.get("/anomaly/studies", headers=bearer(user)).status_code == 200
    assert served.delete("/anomaly/reviews/a", headers=bearer(user)).status_code == 403
    assert served.delete("/anomaly/reviews/a", headers=bearer(annotator)).status_code != 403
    assert served.delete("/datastore/label?id=a&tag=final", headers=bearer(annotator)).status_code == 403
    assert served.delete("/datastore/label?id=a&tag=final", headers=bearer(admin)).status_code != 403
    assert served.get("/anomaly/studies", headers=bearer(realm.token(exp=1))).status_code == 401
    assert served.get("/anomaly/studies", headers=bearer(realm.token(realm_access={}))).status_code == 403


def test_a_password_becomes_a_token_for_clients(served, realm):
    assert served.get("/auth/").json() == {"enabled": True, "client_id": "monailabel-app", "realm": realm.url}
    given = served.post("/auth/token", data={"username": "anna", "password": "right", "grant_type": "password"}).json()
    answer = served.get("/auth/token/valid", headers=bearer(given["access_token"]))
    assert answer.json()["username"] == "anna"
    assert served.post("/auth/token", data={"username": "anna", "password": "wrong"}).status_code == 401


def test_a_password_becomes_a_session_for_browsers(served, realm):
    client = TestClient(served.app, base_url="https://host", client=("10.0.0.9", 1), follow_redirects=False)
    wrong = client.post("/anomaly/login", data={"username": "anna", "password": "wrong"}, headers=HTML)
    assert wrong.status_code == 401
    assert "Token, or password" in wrong.text
    right = client.post("/anomaly/login", data={"username": "anna", "password": "right"}, headers=HTML)
    assert right.status_code == 303
    assert client.get("/anomaly/studies").status_code == 200
    assert client.delete("/datastore/label?id=a&tag=final").status_code == 403
    page = client.get("/anomaly/page.json")
    assert page.json()["user"] == {"name": "anna", "role": "reader"}


def test_an_account_is_the_same_in_a_browser_and_by_its_token_and_no_token_of_that_name(served, realm):
    browser = TestClient(served.app, base_url="https://host", client=("10.0.0.9", 1), follow_redirects=False)
    browser.post("/anomaly/login", data={"username": "anna", "password": "right"}, headers=HTML)
    lease = browser.post("/anomaly/studies/a/lease", json={"reader": "anna"}, headers={"Origin": "https://host"})
    assert lease.status_code == 200, lease.text
    assert lease.json()["yours"] is True
    assert browser.get("/anomaly/studies/a").json()["lease"]["yours"] is True
    told = served.get("/anomaly/studies/a", headers=bearer(realm.token(sub="anna"))).json()["lease"]
    assert told["yours"] is True
    with acting(Principal(told["reader"], "reader", "token")):
        assert not same_account(told)


def test_guesses_of_a_password_are_slowed_down_before_keycloak_is_asked(served, realm):
    client = TestClient(served.app, base_url="http://host", client=("10.0.0.9", 1))
    answers = [
        client.post("/anomaly/login", data={"username": "anna", "password": str(i)}).status_code for i in range(12)
    ]
    assert answers == [401] * 10 + [429] * 2
    other = TestClient(served.app, base_url="http://host", client=("10.0.0.8", 1))
    assert other.post("/anomaly/login", data={"username": "anna", "password": "right"}).status_code == 200


def test_a_name_in_other_letters_is_the_same_account_and_a_long_one_takes_no_memory(served, realm, monkeypatch):
    keys = []
    counted = Throttle.failed
    monkeypatch.setattr(Throttle, "failed", lambda self, key: keys.append(key) or counted(self, key))
    client = TestClient(served.app, base_url="http://host", client=("10.0.0.9", 1))
    names = ["anna", "Anna", "ANNA", "aNNA", "anNA", "annA"] * 2
    assert [client.post("/anomaly/login", data={"username": name, "password": "x"}).status_code for name in names] == [
        401
    ] * 10 + [429] * 2
    assert client.post("/anomaly/login", data={"username": "n" * 16000, "password": "x"}).status_code == 401
    assert keys
    assert max(len(str(key)) for key in keys) < 300


def test_a_password_reaches_the_login_as_it_was_typed(served, realm):
    for password, status in ((" right", 401), ("right ", 401), ("right", 200)):
        answer = served.post("/auth/token", data={"username": "anna", "password": password})
        assert answer.status_code == status


def test_the_next_study_is_lent_to_the_account_and_not_to_whom_the_client_names(served, realm, monkeypatch):
    asked = []
    monkeypatch.setattr(samples.activelearning, "sample", lambda *given: asked.append(given) or {})
    answer = served.post("/activelearning/first", json={"client_id": "ben"}, headers=bearer(realm.token()))
    assert answer.status_code == 200, answer.text
    assert asked == [("first", {"client_id": "anna"}, "anna")]
