"""A Keycloak realm on this machine, as far as this app asks one: discovery, keys, and tokens for a password."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization


class Realm:
    """An issuer: what it answers can be changed while it runs."""

    def __init__(self, key):
        self.keys = {"one": key}
        self.signing = "one"
        self.has_set = True
        self.asked = []
        realm = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                realm.asked.append(self.path)
                said = realm.answers().get(self.path)
                self._say(404 if said is None else 200, said or {})

            def do_POST(self):
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                right = form.get("username") == ["anna"] and form.get("password") == ["right"]
                right = right and form["client_id"] == ["monailabel-app"] and self.path == "/realms/hospital/token"
                self._say(200, {"access_token": realm.token(), "token_type": "Bearer"}) if right else self._say(401, {})

            def _say(self, status, said):
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Keeps the tests' output free of requests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/realms/hospital"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answers(self):
        def jwk(kid, key):
            said = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            return {**said, "kid": kid, "alg": "RS256", "use": "sig"}

        keys = [jwk(kid, key) for kid, key in self.keys.items()]
        unusable = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
            {**keys[0], "use": "enc", "kid": "e"},
        ]
        about = {
            "issuer": self.url, "jwks_uri": f"{self.url}/certs", "token_endpoint": f"{self.url}/token",
        }  # fmt: skip
        return {
            "/realms/hospital": {"public_key": self.public_key()},
            "/realms/hospital/.well-known/openid-configuration": about,
            "/realms/hospital/certs": {"keys": [*unusable, *keys]} if self.has_set else None,
        }

    def public_key(self):
        der = (
            self.keys[self.signing]
            .public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return base64.b64encode(der).decode()

    def claims(self, **changed):
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": "account", "azp": "monailabel-app", "typ": "Bearer", "iat": now, "exp": now + 300,
            "sub": "1234", "preferred_username": "anna", "realm_access": {"roles": ["offline", "monailabel-annotator",
            "monailabel-user"]},
        } | changed  # fmt: skip
        return {key: value for key, value in claims.items() if value is not None}

    def token(self, algorithm="RS256", kid=None, key=None, **changed):
        kid = self.signing if kid is None else kid
        return jwt.encode(self.claims(**changed), key or self.keys[self.signing], algorithm, headers={"kid": kid})

    def close(self):
        self.server.shutdown()
        self.server.server_close()
