"""What pyproject.toml cannot say about builds: the wheel carries `configs/`, and archives are reproducible.

With `SOURCE_DATE_EPOCH`, as reproducible-builds.org defines it, the archives hold neither times, nor owners, nor rights
of the machine that builds them: a wheel and a source archive of one commit are equal to the byte.
"""

import gzip
import os
import shutil
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


class BuildWithConfigs(build_py):
    """Puts `configs/` into the built package, where `lbitcls.utils.library` finds it; a clone has it beside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "lbitcls", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))


class SteadyWheel(bdist_wheel):
    """Writes a wheel whose files have the same rights, whatever the umask of the clone."""

    def write_wheelfile(self, *args, **kwargs) -> None:
        super().write_wheelfile(*args, **kwargs)  # the last file before they are packed
        for path in Path(self.bdist_dir).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


class SteadySource(sdist):
    """Writes a source archive whose members have the time of `SOURCE_DATE_EPOCH`, and no owner."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def steady(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            return member

        archive = f"{base_name}.tar.gz"
        with (
            open(archive, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            tar.add(Path(root_dir or ".", base_dir), arcname=base_dir, filter=steady)
        return archive


setup(cmdclass={"build_py": BuildWithConfigs, "bdist_wheel": SteadyWheel, "sdist": SteadySource})
