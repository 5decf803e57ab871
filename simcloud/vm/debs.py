"""Small Debian packages, made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simcloud.vm.host import run


@dataclass(frozen=True)
class Package:
    """A small Debian package."""

    name: str
    version: str
    depends: Sequence[str] = ()
    conflicts: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Absolute path → content; what begins with `#!` is executable."""
    postinst: str = ""

    def build(self, pool: Path, scratch: Path) -> Path:
        """Write the `.deb` into the pool."""
        root = scratch / self.name
        control = {
            "Package": self.name, "Version": self.version, "Architecture": "amd64", "Section": "misc",
            "Priority": "optional", "Maintainer": "Embedded cloud <root@localhost>",
            "Depends": ", ".join(self.depends), "Conflicts": ", ".join(self.conflicts),
            "Description": f"stand-in for {self.name}",
        }  # fmt: skip
        text = "".join(f"{key}: {value}\n" for key, value in control.items() if value)
        _write(root / "DEBIAN/control", text.encode())
        if self.postinst:
            _write(root / "DEBIAN/postinst", self.postinst.encode())
        for path, content in self.files.items():
            _write(root / path.lstrip("/"), content)
        deb = pool / f"{self.name}_{self.version}_amd64.deb"
        run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, deb], timeout_s=30)
        return deb


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if content.startswith(b"#!") else 0o644)
