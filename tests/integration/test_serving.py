"""`serve` and `Endpoint` on the local engine: real processes, real sockets."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kpaas_lab import models
from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    LabError,
    ModelError,
    NoCapacityError,
    NotFoundError,
    RunFailedError,
    SettingsError,
    UnknownSliceError,
    WaitTimeoutError,
)
from kpaas_lab.serving import Endpoint, endpoints, serve
from kpaas_lab.settings import Settings, from_environment
from kpaas_lab.slices import load_catalogue
from tests.waiting import until

X = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def triple(x: np.ndarray) -> np.ndarray:
    return 3 * x


def shout(texts: np.ndarray) -> dict[str, Any]:
    return {"loud": np.array([text.upper() for text in texts]), "length": np.array([len(text) for text in texts])}


def sleepy(x: np.ndarray) -> np.ndarray:
    import time

    time.sleep(float(x.max()))
    return x


def breaks(x: np.ndarray) -> np.ndarray:
    import os

    if (x == 7).any():
        os._exit(9)
    if (x == 8).any():
        raise RuntimeError("no eights")
    return x


@dataclass
class Place:
    engine: LocalEngine
    settings: Settings

    def serve(self, model: Any, name: str = "m", **more: Any) -> Endpoint:
        return serve(self.engine, self.settings, model, name=name, **more)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = from_environment({"HOME": str(tmp_path)})
    engine = LocalEngine(settings.home, load_catalogue(settings.slices_file))
    yield Place(engine, settings)
    for status in engine.list():
        engine.delete(status.name)


def test_a_function_is_served_called_and_deleted(place: Place) -> None:
    endpoint = place.serve(double, example=X)
    assert np.array_equal(endpoint.predict(X), 2 * X)
    assert np.array_equal(endpoint.predict([[5, 6]]), [[10, 12]])  # converted to the model's FP32
    assert np.array_equal(endpoint.predict(X[0]), 2 * X[0])  # one row in, one row out
    assert endpoint.predict({"x": X}).dtype == np.float32
    assert endpoint.metadata()["platform"] == "python_source"
    assert endpoint.example()["inputs"][0]["name"] == "x"
    assert endpoint.metrics()["requests"] == 4
    assert any("is ready" in line for line in endpoint.logs())
    assert "ready" in repr(endpoint)
    endpoint.delete()
    endpoint.delete()
    assert list(endpoints(place.engine, place.settings)) == []
    assert not (place.settings.home / "endpoints" / "m").exists()
    with pytest.raises(NotFoundError):
        endpoint.predict(X)


def test_a_wrong_input_says_which_and_what(place: Place) -> None:
    endpoint = place.serve(shout, example=["a", "bc"])
    out = endpoint.predict(["hi", "안녕"])
    assert (out["loud"].tolist(), out["length"].tolist()) == (["HI", "안녕"], [2, 2])
    assert endpoint.predict(["hi"], output="length").tolist() == [2]
    for data, says in (
        ([1, 2], "'texts': expected BYTES, got INT64"),
        ({"text": ["a"]}, "inputs are texts; got text"),
        ([["a", "b"]], "'texts': expected shape [-1], got [1, 2]"),
        ([["a"], ["b", "c"]], "is no array"),
        (np.array([b"\xff"], dtype=object), "refuses this input: UnicodeDecodeError"),
    ):
        with pytest.raises(ModelError) as caught:
            endpoint.predict(data)
        assert says in str(caught.value)
    with pytest.raises(ModelError, match="no output 'loudness'"):
        endpoint.predict(["hi"], output="loudness")


def test_a_saved_model_outlives_where_it_came_from(place: Place, tmp_path: Path) -> None:
    models.save(double, tmp_path / "run" / "model", example=X)

    @dataclass
    class RunModel:
        path: Path

    first = place.serve(RunModel(tmp_path / "run" / "model"), name="first")
    (tmp_path / "run").rename(tmp_path / "gone")
    assert np.array_equal(first.predict(X), 2 * X)
    with pytest.raises(ModelError, match="no model at"):
        place.serve(tmp_path / "run" / "model", name="second")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="can run any code"):
        place.serve(tmp_path / "pickled", name="second")
    assert list(endpoints(place.engine, place.settings)) == ["first"]
    assert not (place.settings.home / "endpoints" / "second").exists()


def test_another_kernel_finds_it_and_this_ones_end_doesnt_stop_it(place: Place, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from kpaas_lab import serving, settings, slices; from kpaas_lab.engines.local import LocalEngine\n"
        "s = settings.from_environment(); e = LocalEngine(s.home, slices.load_catalogue(s.slices_file))\n"
        "serving.serve(e, s, Path(sys.argv[1]), name='m')\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    models.save(double, tmp_path / "model", example=X)
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    found = endpoints(place.engine, place.settings)
    assert list(found) == ["m"]
    assert np.array_equal(found["m"].predict(X), 2 * X)
    with pytest.raises(KeyError, match="Endpoints: m"):
        found["n"]
    with pytest.raises(NotFoundError):
        found["../m"]


def test_two_of_one_name(place: Place) -> None:
    place.serve(double, example=X)
    with pytest.raises(AlreadyExistsError, match=r"update\(model\)"):
        place.serve(triple, example=X)
    assert np.array_equal(endpoints(place.engine, place.settings)["m"].predict(X), 2 * X)


def test_two_kernels_at_once_one_wins(place: Place) -> None:
    def attempt(model: Any) -> object:
        try:
            return place.serve(model, example=X)
        except AlreadyExistsError as error:
            return error

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(attempt, [double, triple]))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AlreadyExistsError", "Endpoint"]
    factor = 2 if isinstance(outcomes[0], Endpoint) else 3
    assert np.array_equal(endpoints(place.engine, place.settings)["m"].predict(X), factor * X)


def test_an_update_changes_every_replica_without_a_gap(place: Place) -> None:
    endpoint = place.serve(double, example=X, replicas=2, slice="cpu")
    until(lambda: endpoint.status.ready == 2, 30, "two replicas")
    stop = False

    def call() -> set[float]:
        mine, seen = endpoints(place.engine, place.settings)["m"], set()
        while not stop:
            seen.add(float(mine.predict(X)[0, 0]))
        return seen

    with ThreadPoolExecutor() as pool:
        caller = pool.submit(call)
        endpoint.update(triple, example=X)
        for _number in range(8):
            assert np.array_equal(endpoint.predict(X), 3 * X)
        stop = True
        assert caller.result() <= {2.0, 3.0}
    with pytest.raises(ModelError):
        endpoint.update(place.settings.home)
    assert endpoint.metadata()["versions"] == ["2"]


def test_an_update_may_change_what_the_model_takes(place: Place) -> None:
    endpoint = place.serve(double, example=X)
    endpoint.predict(X)
    other = endpoints(place.engine, place.settings)["m"]
    other.update(shout, example=["a"])
    assert endpoint.predict(["b"])["loud"].tolist() == ["B"]


def test_a_killed_replica_comes_back(place: Place) -> None:
    endpoint = place.serve(breaks, example=X)
    with pytest.raises(ModelError, match="no eights") as caught:
        endpoint.predict(X * 0 + 8)
    assert "logs()" in caught.value.hint
    assert any("no eights" in line for line in endpoint.logs())
    with pytest.raises(EngineUnavailableError):
        endpoint.predict(X * 0 + 7)  # kills it

    def answers() -> bool:
        try:
            return bool(np.array_equal(endpoint.predict(X), X))
        except EngineUnavailableError:
            return False

    until(answers, 30, "restarted replica", log=lambda: "\n".join(endpoint.logs()))


def test_a_hung_model_times_out(place: Place) -> None:
    endpoint = place.serve(sleepy, example=X * 0)
    with pytest.raises(WaitTimeoutError, match=r"didn't answer within 0\.3 s"):
        endpoint.predict(X * 0 + 5, timeout=0.3)


def test_an_endpoint_that_doesnt_start_says_why(place: Place, tmp_path: Path) -> None:
    """Its log's last lines are in the error, and the name is free again."""
    models.save(double, tmp_path / "model", example=X)
    (file,) = (tmp_path / "model").glob("*.py")
    text = file.read_text() + "\nraise RuntimeError('no such library')\n"
    manifest = (tmp_path / "model" / "model.json").read_text()
    manifest = manifest.replace(
        hashlib.sha256(file.read_bytes()).hexdigest(), hashlib.sha256(text.encode()).hexdigest()
    )
    file.write_text(text)
    (tmp_path / "model" / "model.json").write_text(manifest)
    with pytest.raises(RunFailedError, match="no such library") as caught:
        place.serve(tmp_path / "model")
    assert caught.value.exit_code == 1
    assert list(endpoints(place.engine, place.settings)) == []
    assert not (place.settings.home / "endpoints" / "m").exists()


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        ({"name": "Bad Name"}, SettingsError, "can't be a name"),
        ({"name": "../x"}, SettingsError, "can't be a name"),
        ({"name": "x" * 2000}, SettingsError, "can't be a name"),
        ({"slice": "2g.20gb"}, UnknownSliceError, "Slices: cpu"),
        ({"replicas": 0}, SettingsError, "replicas=0"),
        ({"replicas": 32}, NoCapacityError, ""),
        ({"max_batch": 0}, SettingsError, "max_batch=0"),
        ({"max_delay": -1}, SettingsError, "max_delay=-1"),
        ({"max_bytes": 1000}, SettingsError, "max_bytes=1000"),
        ({"example": None}, ModelError, "saved with an example"),
    ],
)
def test_bad_arguments_leave_nothing(place: Place, more: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as caught:
        place.serve(double, **{"name": "m", "example": X, **more})
    assert says in str(caught.value)
    assert place.engine.list() == []
    folder = place.settings.home / "endpoints"
    assert not folder.exists() or [path for path in folder.iterdir() if not path.name.endswith(".lock")] == []


def test_a_request_that_is_too_large(place: Place) -> None:
    endpoint = place.serve(double, example=X, max_bytes=4096)
    assert endpoint.predict(X).tolist() == [[2, 4], [6, 8]]
    with pytest.raises(ModelError, match="larger than 4096 bytes"):
        endpoint.predict(np.zeros((1000, 2), dtype=np.float32))
    assert endpoint.predict(X).tolist() == [[2, 4], [6, 8]]


def on(place: Place, disk: Path) -> None:
    place.settings = replace(place.settings, home=disk)
    place.engine = LocalEngine(disk, load_catalogue(place.settings.slices_file))


def test_a_read_only_home_is_said(place: Place, small_disk: Path) -> None:
    on(place, small_disk)
    (small_disk / "endpoints").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EngineUnavailableError, match="can't be written"):
        place.serve(double, example=X)
    assert list(place.engine.list()) == []


def test_a_full_disk_is_said_and_leaves_no_name(place: Place, small_disk: Path) -> None:
    on(place, small_disk)
    (small_disk / "endpoints").mkdir()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="space"):
        filler.write_bytes(b"x" * (2 << 20))
    with pytest.raises(LabError, match="No space left"):
        place.serve(double, example=X)
    filler.unlink()
    assert list(place.engine.list()) == []
    assert place.serve(double, example=X).predict(X).tolist() == [[2, 4], [6, 8]]


def test_a_home_that_is_a_file_is_said(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place.settings = replace(place.settings, home=tmp_path / "file" / "home")
    with pytest.raises(EngineUnavailableError, match="can't be written"):
        place.serve(double, example=X)


def test_a_deep_home_is_no_problem(tmp_path: Path) -> None:
    settings = from_environment({"HOME": str(tmp_path / ("d" * 60) / ("e" * 60))})
    engine = LocalEngine(settings.home, load_catalogue(settings.slices_file))
    endpoint = serve(engine, settings, double, name="m", example=X)
    try:
        assert np.array_equal(endpoint.predict(X), 2 * X)
    finally:
        endpoint.delete()


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_deleting_leaves_no_process(place: Place) -> None:
    endpoint = place.serve(double, example=X, replicas=2)
    mine = [
        p for p in psutil.process_iter(["cmdline"]) if str(place.settings.home) in " ".join(p.info["cmdline"] or [])
    ]
    assert len(mine) >= 2
    endpoint.delete()
    until(lambda: not any(process.is_running() for process in mine), 20, "end of the processes")
