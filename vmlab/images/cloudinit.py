"""A NoCloud seed: the little CD from which a cloud image learns its user, key, password and name."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

from vmlab.errors import UsageError

#: What cloud-init looks for (either case) among the machine's disks.
LABEL = "CIDATA"

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/=]+( .*)?")
#: How each kind of user-data begins, with the type that cloud-init knows it by.
_KINDS = [
    ("#cloud-config", "cloud-config"),
    ("#!", "x-shellscript"),
    ("#include", "x-include-url"),
    ("#cloud-boothook", "cloud-boothook"),
    ("## template: jinja", "jinja2"),
]


@dataclass(frozen=True)
class CloudInit:
    """What a cloud image is told at its first boot.

    Attributes
    ----------
    user
        An account with sudo; without it, key and password are those of the image's own default user.
    ssh_key
        One or more public keys, as in ``~/.ssh/id_ed25519.pub``.
    password
        For the console and ssh. It is kept readable in the image's seed: use it for guests that hold no secrets.
    hostname
        The guest's name; the image's, if not given.
    user_data
        cloud-config, or a script with a shebang, in addition to all that.
    """

    user: str | None = None
    ssh_key: str | Sequence[str] | None = None
    password: str | None = None
    hostname: str | None = None
    user_data: str | None = None

    def __post_init__(self) -> None:
        if self.user is not None and _USER.fullmatch(self.user) is None:
            raise UsageError(
                f"'{self.user}' cannot be the name of a user.", hint="small letters, digits, '-' and '_'"
            )
        if self.hostname is not None and _HOSTNAME.fullmatch(self.hostname) is None:
            raise UsageError(
                f"'{self.hostname}' cannot be a host's name.", hint="letters, digits, '-' and '.'"
            )
        for key in self.keys():
            if _KEY.fullmatch(key) is None:
                raise UsageError(
                    "That is no public key of ssh.", hint="give the contents of a .pub file", key=key[:60]
                )
        if self.user_data is not None and not any(self.user_data.startswith(start) for start, _ in _KINDS):
            raise UsageError(
                "The user-data does not say what it is.",
                hint="its first line must be '#cloud-config', or '#!' with an interpreter",
                first_line=self.user_data.split("\n", 1)[0][:80],
            )

    def keys(self) -> list[str]:
        """Return the public keys, one each."""
        keys = self.ssh_key or []
        lines = keys.splitlines() if isinstance(keys, str) else list(keys)
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    def config(self) -> dict[str, Any]:
        """Return our own part of the configuration, as cloud-config has it."""
        config: dict[str, Any] = {}
        account: dict[str, Any] = {}
        if self.keys():
            account["ssh_authorized_keys"] = self.keys()
        if self.password is not None:
            account |= {"plain_text_passwd": self.password, "lock_passwd": False}
            config["ssh_pwauth"] = True
        if self.user is not None:
            more = {
                "name": self.user,
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "groups": ["sudo"],
            }
            config["users"] = ["default", more | account]
        elif account:
            if "ssh_authorized_keys" in account:
                config["ssh_authorized_keys"] = account["ssh_authorized_keys"]
            if self.password is not None:
                config |= {"password": self.password, "chpasswd": {"expire": False}}
        return config

    def files(self, image: str) -> dict[str, bytes]:
        """Return the seed's files by name."""
        host = self.hostname or re.sub(r"[^A-Za-z0-9-]", "-", image).strip("-") or "guest"
        # One instance for all machines of the image: a fork has been set up already, and must not be set up again.
        meta = {"instance-id": f"vmlab-{uuid.uuid4()}", "local-hostname": host}
        return {"meta-data": _yaml(meta), "user-data": self._user_data()}

    def _user_data(self) -> bytes:
        ours = b"#cloud-config\n" + _yaml(self.config())
        if self.user_data is None:
            return ours
        if not self.config():
            return self.user_data.encode()
        # Both: cloud-init takes several parts in one message, and merges what they configure.
        whole = MIMEMultipart()
        for text in (ours.decode(), self.user_data):
            kind = next(kind for start, kind in _KINDS if text.startswith(start))
            whole.attach(MIMEText(text, kind, "utf-8"))
        return whole.as_bytes()


def _yaml(data: dict[str, Any]) -> bytes:
    # JSON is YAML, and needs no rules about quoting.
    return json.dumps(data, indent=1).encode() + b"\n"


def write_seed(cloud_init: CloudInit, image: str, path: Path) -> None:
    """Write the seed as an ISO file that cloud-init finds by its label."""
    import pycdlib  # only here: it is needed rarely, and large

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for name, data in cloud_init.files(image).items():
        plain = re.sub(r"[^A-Z0-9]", "_", name.upper())
        iso.add_fp(io.BytesIO(data), len(data), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
