"""A learner's home is hostile: what is found and what is connected to never leaves it."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from kpaas_lab.market.connector import ReplicaConnector
from kpaas_lab.market.endpoints import Replica, connect, replicas


def folder(learners: Path, publisher: str, endpoint: str) -> Path:
    path = learners / publisher / ".kpaas-lab" / "workloads" / endpoint
    path.mkdir(parents=True, exist_ok=True)
    return path


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    here = os.open(path.parent, os.O_PATH)
    server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)
    server.listen(16)
    return server


@pytest.fixture
def learners(tmp_path: Path) -> Path:
    # Longer than the 107 bytes of a Unix address, as real homes may be.
    path = tmp_path / ("x" * 100) / "learners"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def bob(learners: Path) -> Iterator[socket.socket]:
    with closing(listen(folder(learners, "bob", "faces") / "0.sock")) as server:
        yield server


def refused(learners: Path, publisher: str = "ann", endpoint: str = "digits") -> bool:
    try:
        asyncio.run(connect(learners, Replica(publisher, endpoint, 0))).close()
    except OSError:
        return replicas(learners, publisher, endpoint) == []
    return False


async def test_finds_and_reaches_replicas_in_order(learners: Path) -> None:
    home = folder(learners, "ann", "digits")
    servers = [listen(home / f"{n}.sock") for n in (10, 2, 0)]
    (home / "log").write_text("")
    (home / "x.sock").write_text("")
    (home / "01.sock").write_text("")
    found = replicas(learners, "ann", "digits")
    assert [replica.number for replica in found] == [0, 2, 10]
    for replica in found:
        (await connect(learners, replica)).close()
    for server in servers:
        server.close()


def test_a_korean_learner_and_an_email_address_are_names(learners: Path) -> None:
    for name in ("민수", "ann@example.org", "ann.b_c-d"):
        with closing(listen(folder(learners, name, "digits") / "0.sock")):
            assert replicas(learners, name, "digits") == [Replica(name, "digits", 0)]
            assert Replica.from_host(Replica(name, "digits", 0).host) == Replica(name, "digits", 0)


def test_a_link_to_anothers_socket(learners: Path, bob: socket.socket) -> None:
    (folder(learners, "ann", "digits") / "0.sock").symlink_to(learners / "bob/.kpaas-lab/workloads/faces/0.sock")
    assert refused(learners)
    assert not refused(learners, "bob", "faces")


def test_a_hard_link_to_anothers_socket(learners: Path, bob: socket.socket) -> None:
    os.link(learners / "bob/.kpaas-lab/workloads/faces/0.sock", folder(learners, "ann", "digits") / "0.sock")
    assert refused(learners)


def test_a_link_to_a_socket_outside(learners: Path, tmp_path: Path) -> None:
    with closing(listen(tmp_path / "database.sock")):
        (folder(learners, "ann", "digits") / "0.sock").symlink_to(tmp_path / "database.sock")
        assert refused(learners)


@pytest.mark.parametrize("depth", ["endpoint", "workloads", ".kpaas-lab", "home"])
def test_a_linked_folder(learners: Path, bob: socket.socket, depth: str) -> None:
    faces = learners / "bob/.kpaas-lab/workloads/faces"
    at = {
        "endpoint": (learners / "ann/.kpaas-lab/workloads/faces", faces),
        "workloads": (learners / "ann/.kpaas-lab/workloads", faces.parent),
        ".kpaas-lab": (learners / "ann/.kpaas-lab", faces.parents[1]),
        "home": (learners / "ann", faces.parents[2]),
    }
    link, target = at[depth]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)
    assert refused(learners, "ann", "faces")


def test_what_is_no_socket(learners: Path) -> None:
    home = folder(learners, "ann", "digits")
    os.mkfifo(home / "0.sock")
    assert refused(learners)
    (home / "0.sock").unlink()
    (home / "0.sock").write_text("no socket")
    assert refused(learners)
    (home / "0.sock").unlink()
    (home / "0.sock").mkdir()
    assert refused(learners)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a socket to another user needs root")
def test_a_socket_that_belongs_to_somebody_else(learners: Path) -> None:
    with closing(listen(folder(learners, "ann", "digits") / "0.sock")):
        assert not refused(learners)
        os.chown(learners / "ann/.kpaas-lab/workloads/digits/0.sock", 65534, 65534)
        assert refused(learners)


@pytest.mark.parametrize(
    ("publisher", "endpoint"),
    [
        ("..", "faces"),
        (".", "faces"),
        ("", "faces"),
        ("bob/", "faces"),
        ("ann/../bob", "faces"),
        ("../learners/bob", "faces"),
        ("bob\0", "faces"),
        ("b" * 2000, "faces"),
        ("bob\n", "faces"),
        ("\udce4", "faces"),
        ("bob", ".."),
        ("bob", "../faces"),
        ("bob", "faces/"),
        ("bob", "faces\n"),
        ("bob", "FACES"),
        ("bob", ""),
        ("bob", "f" * 2000),
    ],
)
def test_names_that_lead_elsewhere(learners: Path, bob: socket.socket, publisher: str, endpoint: str) -> None:
    assert refused(learners, publisher, endpoint)


def test_a_socket_nobody_listens_on(learners: Path) -> None:
    listen(folder(learners, "ann", "digits") / "0.sock").close()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connect(learners, Replica("ann", "digits", 0)))


def test_swapping_a_socket_for_a_link_never_reaches_another(learners: Path, bob: socket.socket) -> None:
    """The race itself: ann swaps her socket and a link to bob's as fast as she can; bob is never reached."""
    home = folder(learners, "ann", "digits")
    own = listen(home / "own")
    (home / "link").symlink_to(learners / "bob/.kpaas-lab/workloads/faces/0.sock")
    child = os.fork()
    if child == 0:
        while True:  # ends with SIGKILL below
            os.rename(home / "own", home / "0.sock")
            os.rename(home / "0.sock", home / "own")
            os.rename(home / "link", home / "0.sock")
            os.rename(home / "0.sock", home / "link")
    try:
        own.setblocking(False)
        bob.setblocking(False)
        reached = 0
        for _ in range(1500):
            try:
                asyncio_free_connect(learners)
            except OSError:
                continue
            own.accept()[0].close()
            reached += 1
        with pytest.raises(BlockingIOError):
            bob.accept()
        assert reached > 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        own.close()


def asyncio_free_connect(learners: Path) -> None:
    """Drives `connect` without a loop: it only awaits when the listener's queue is full, which it isn't here."""
    coroutine = connect(learners, Replica("ann", "digits", 0))
    try:
        coroutine.send(None)
    except StopIteration as done:
        done.value.close()


async def test_the_connector_reaches_replicas_reuses_connections_and_reaches_nothing_else(learners: Path) -> None:
    home = folder(learners, "ann", "digits")
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=listen(home / "0.sock"))
    async with server, aiohttp.ClientSession(connector=ReplicaConnector(learners)) as session:
        for _ in range(3):
            async with session.get(f"http://{Replica('ann', 'digits', 0).host}/v2") as response:
                assert await response.read() == b"hi"
        assert accepted == 1
        for host in ("127.0.0.1", "localhost", "0.digits.626f62.endpoint", "a.b.c.endpoint", "0.digits.616e6e.other"):
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://{host}/v2")
