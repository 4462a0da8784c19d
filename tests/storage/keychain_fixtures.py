"""Key chains for tests: a cheap passphrase lock, and a keyring that is a file."""

from __future__ import annotations

import json
from pathlib import Path

import keyring.backend

from edgekv_storage.keychain.unlocking import Unlocking

SECRET = "correct horse battery staple"
GIVEN = Unlocking(passphrase=SECRET)


class FileKeyring(keyring.backend.KeyringBackend):
    """A keyring that survives a process, as a real one does."""

    priority = 9
    name = "test"
    path = Path()

    def _all(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get_password(self, service, username):
        return self._all().get(f"{service} {username}")

    def set_password(self, service, username, password):
        self.path.write_text(json.dumps(self._all() | {f"{service} {username}": password}))

    def delete_password(self, service, username):
        entries = self._all()
        del entries[f"{service} {username}"]
        self.path.write_text(json.dumps(entries))


def use_keyring(monkeypatch, tmp_path) -> FileKeyring:
    """Makes a FileKeyring this process's own."""
    backend = FileKeyring()
    backend.path = tmp_path / "keyring.json"
    monkeypatch.setattr("keyring.get_keyring", lambda: backend)
    return backend
