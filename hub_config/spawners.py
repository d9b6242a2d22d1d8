"""How a learner's server is started, found again and stopped: on one machine, in a sandbox."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner, SpawnException  # type: ignore[import-untyped]
from traitlets import Any as AnyTrait
from traitlets import Float, Integer, Unicode

from hub_config import course_folder, homes, ports, records, sandbox
from hub_config.admission import Promised, Turns
from hub_config.language import both, t
from hub_config.profiles import Holding, Machine, choices, chosen, gpu_for
from hub_config.server_environment import JUPYTER_CONFIG, environment
from hub_config.slice_cards import cards
from hub_config.warm import WarmPool
from kpaas_lab.errors import EngineError, LabError, UnknownSliceError, http_status
from kpaas_lab.i18n import COOKIE, N_, _, negotiate, use_language
from kpaas_lab.slices import SliceCapacity

# (progress in percent, what is being done); the queue comes before all of them.
STAGES = {
    "home": (15, N_("Preparing your home and the course folder")),
    "sandbox": (30, N_("Starting your sandbox")),
    "lab": (55, N_("Starting JupyterLab")),
}
# What a learner is told where a step fails.
FAILED = {
    "": N_("Your server could not be started."),
    "home": N_("Your home could not be prepared."),
    "sandbox": N_("Your sandbox could not be started."),
    "lab": N_("JupyterLab did not start."),
}
NEXT = N_("Try again, or choose another slice. If it stays so, tell your operator: the reason is in hub.log.")
FULL = {errno.ENOSPC, errno.EDQUOT}


class LocalSandboxSpawner(Spawner):  # type: ignore[misc]  # JupyterHub has no types
    """Runs a learner's server in a sandbox of this machine (`sandbox.py`); it outlives the hub.

    A start waits its turn (`Turns`) instead of being refused; memory and GPUs are promised once (`Promised`).
    """

    promised: ClassVar[Promised] = Promised()
    turns: ClassVar[Turns] = Turns(2)
    warm: ClassVar[WarmPool | None] = None
    kernels: ClassVar[WarmPool | None] = None

    state_home = Unicode(config=True, help="The state folder (KPAAS_LAB_HOME).")
    catalogue = AnyTrait((), config=True, help="The slices: a tuple of SliceProfile.")
    machine = AnyTrait(Machine(memory_mib=4096), config=True, help="What is shared: a Machine.")
    sandbox_environment = AnyTrait({}, config=True, help="Variables that every sandbox gets.")
    readable = AnyTrait((), config=True, help="Files and folders that every sandbox may read.")
    closed_ports = AnyTrait((), config=True, help="The platform's own ports: no sandbox may listen on them.")
    starts_at_once = Integer(2, config=True, help="Servers that start side by side; others wait their turn.")
    launch_timeout = Float(120, config=True, help="Seconds from a start's turn until the server answers.")
    grace = Float(10, config=True, help="Seconds a server has to stop by itself.")

    record: records.Record | None = None
    holding: Holding | None = None
    stage = ""
    _starting = False
    _watch: asyncio.Task[None] | None = None
    _notice: asyncio.Task[int | None] | None = None

    # The choice

    def available(self) -> tuple[SliceCapacity, ...]:
        """What this learner may choose now."""
        groups = {group.name for group in self.user.groups}
        return choices(self.catalogue, groups, self.machine, self.promised.others(self._log_name))

    def _options_form_default(self) -> Any:
        return lambda spawner: str(cards(spawner.available(), spawner.orm_spawner.user_options or {}))

    def _apply_user_options_default(self) -> Any:
        return lambda _spawner, _options: None  # `start` reads them

    def _options_from_form_default(self) -> Any:
        return self._checked_form

    def _checked_form(self, form: dict[str, list[str]]) -> dict[str, str]:
        """The form's fields as options: checked now, so that the page can say what is wrong, and again at the start."""
        options = {key: values[0] if len(values) == 1 else values for key, values in form.items() if key != "_xsrf"}
        self._choose(options)
        return options  # type: ignore[return-value]

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, str]:
        """Options of a link such as `/hub/spawn?opt-slice=cpu`: as those of the form."""
        return self._checked_form(query_data)

    def _choose(self, options: dict[str, Any]) -> SliceCapacity:
        """The slice that the options name, or a refusal in both languages."""
        try:
            return chosen(options, self.available())
        except LabError as error:
            raise self._refusal(options, error) from error

    def _refusal(self, options: dict[str, Any], error: LabError) -> SpawnException:
        def why() -> str:
            try:
                chosen(options, self.available())
            except LabError as again:
                return str(again)
            return str(error)

        return self._exception(why, error, 400 if isinstance(error, UnknownSliceError) else http_status(error))

    def _exception(self, say: Callable[[], str], error: Exception, status: int) -> SpawnException:
        """What the hub shows: in the learner's language where it can hold one text, else in both."""
        with use_language("en"):
            english = say()
        with use_language(self._language()):
            message = say()
        exception = SpawnException(
            message, reason=getattr(error, "code", "sandbox"), log_message=english, status_code=status
        )
        exception.jupyterhub_message = message  # these two names are what the hub's pages read
        exception.jupyterhub_html_message = str(both(say))
        return exception

    def _not_started(self, error: Exception) -> SpawnException:
        """What a learner can do about it. The reason, with paths and the like, is for the operator in the hub's log."""
        causes = (error, error.__cause__)
        full = any(isinstance(cause, OSError) and cause.errno in FULL for cause in causes)
        what = N_("The disk is full.") if full else FAILED[self.stage]
        return self._exception(lambda: f"{_(what)} {_(NEXT)}", error, 500)

    def _language(self) -> str:
        if self.handler is None:
            return "en"
        return negotiate(self.handler.request.headers.get("Accept-Language", ""), self.handler.get_cookie(COOKIE, ""))

    # Paths

    @property
    def _home(self) -> Path:
        return Path(self.state_home, "learners", self.user.name)

    @property
    def _record_path(self) -> Path:
        return Path(self.state_home, "run", "sandboxes", f"{self.user.name}.json")

    @property
    def _log_path(self) -> Path:
        return Path(self.state_home, "log", "learners", f"{self.user.name}.log")

    # Start, poll, stop

    async def start(self) -> tuple[str, int]:
        """Wait for a turn, start the sandbox, and return when its server answers.

        Raises:
            SpawnException: the options are refused, or the server didn't come up; in both languages.
        """
        profile = self._choose(self.user_options).profile
        self.holding = Holding(profile, gpu_for(profile, self.machine, self.promised.others(self._log_name)))
        self.promised.hold(self._log_name, self.holding)
        self._starting = True
        self.turns.at_once = self.starts_at_once
        try:
            await self._start_in_turn(self.holding)
        except Exception as error:
            foreseen = isinstance(error, LabError)
            self.log.error("The server of %s did not start: %s", self._log_name, error, exc_info=not foreseen)
            raise self._not_started(error) from error
        finally:
            self.stage, self._starting = "", False
        return "127.0.0.1", self.port

    async def _start_in_turn(self, holding: Holding) -> None:
        async with self.turns.turn(self._log_name):
            self.stage = "home"
            await asyncio.to_thread(self._prepare_home)
            self.stage = "sandbox"
            self.port = ports.free_port()
            await self._start_sandbox(self._sandbox(holding, self._language()))
            self.stage = "lab"
            await self._until_it_answers()

    async def _start_sandbox(self, wanted: sandbox.Sandbox) -> None:
        """Start it and keep its record, cancelled or not: a thread can't be, and its sandbox must be found again."""
        thread = asyncio.ensure_future(asyncio.to_thread(sandbox.start, wanted))
        try:
            self.record = await asyncio.shield(thread)
        except asyncio.CancelledError:
            self.record = await thread
            raise

    def _prepare_home(self) -> None:
        """The home, and what of the courses isn't there yet; the server of a hub that died half-way is ended first."""
        left = records.load(self._record_path)
        if left is not None and records.poll(left) is None:
            records.stop(left, self.grace)
        for folder in (self._record_path.parent, self._log_path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        uid, _gid = homes.own(self._home, self.user.name)
        cache = Path(self.state_home, "hub", "courses")
        for course in course_folder.courses():
            view = course_folder.release_view(course, cache)
            homes.place_tree(view, self._home, f"courses/{course.name}", uid)

    def _sandbox(self, holding: Holding, language: str) -> sandbox.Sandbox:
        return sandbox.Sandbox(
            name=self.user.name,
            home=self._home,
            profile=holding.profile,
            env={**self.get_env(), **environment(self.user.name, holding, language), **self.sandbox_environment},
            command=(sys.executable, "-m", "jupyterhub.singleuser"),
            record=self._record_path,
            log=self._log_path,
            warm=self.warm,
            kernels=self.kernels,
            port=self.port,
            closed_ports=self.closed_ports,
            readable=(JUPYTER_CONFIG, *map(Path, self.readable)),
        )

    async def _until_it_answers(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.launch_timeout
        while not await ports.accepts(self.port):
            if await self.poll() is not None:
                raise EngineError(
                    _("JupyterLab ended before it answered."), hint=_("Try again, or tell your operator.")
                )
            if loop.time() > deadline:
                raise EngineError(
                    _("JupyterLab did not answer in {seconds:.0f} s.").format(seconds=self.launch_timeout),
                    hint=_("Try again, or tell your operator."),
                )
            await asyncio.sleep(0.1)
        # Another learner's program could have taken the port in the meantime, and would be shown this one's cookies.
        if not await asyncio.to_thread(ports.belongs, self.port, self.record.pid if self.record else 0):
            raise EngineError(
                _("Port {port} was taken by something else.").format(port=self.port), hint=_("Try again.")
            )

    def start_polling(self) -> None:
        """Also hear of the server's end at once: until the hub does, people are led to a port that nobody holds."""
        super().start_polling()
        if self.record is not None:
            self._watch = asyncio.ensure_future(self._watch_end(self.record))

    def stop_polling(self) -> None:
        """Somebody else sees to the server's end now."""
        super().stop_polling()
        if self._watch is not None:
            self._watch.cancel()

    async def _watch_end(self, record: records.Record) -> None:
        await records.end(record)
        self._notice = asyncio.ensure_future(self.poll_and_notify())  # not in this task, which it would cancel

    async def poll(self) -> int | None:
        """None while it runs (or starts), else its exit status."""
        if self.record is not None:
            return await asyncio.to_thread(records.poll, self.record)
        return None if self._starting else 0

    async def stop(self, now: bool = False) -> None:
        """End the server and everything in its sandbox."""
        if self.record is not None:
            await asyncio.to_thread(records.stop, self.record, 0 if now else self.grace)

    # Across a restart of the hub

    def get_state(self) -> dict[str, Any]:
        """What the hub's database keeps of a running server."""
        state: dict[str, Any] = super().get_state()
        if self.record is not None and self.holding is not None:
            state |= {"slice": self.holding.profile.name, "gpu": self.holding.gpu}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Find the sandbox again that an earlier hub started."""
        super().load_state(state)
        if "slice" not in state:
            return
        self.record = records.load(self._record_path)
        profile = next((entry for entry in self.catalogue if entry.name == state["slice"]), None)
        if self.record is not None and profile is not None:
            self.holding = Holding(profile, state.get("gpu"))
            self.promised.hold(self._log_name, self.holding)

    def clear_state(self) -> None:
        """The server has ended: what it held is free."""
        super().clear_state()
        self.record = self.holding = None
        self.promised.release(self._log_name)

    # Progress

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Each change of the place in the queue or of the step, in both languages."""
        last = None
        while True:
            event = self._progress_event()
            if event is not None and event != last:
                last = event
                yield event
            await asyncio.sleep(0.2)

    def _progress_event(self) -> dict[str, Any] | None:
        place = self.turns.place(self._log_name)
        if place:
            percent, words = 5, t(N_("Waiting for your turn. Place in the queue: {place}"), place=place)
        elif self.stage:
            percent, message = STAGES[self.stage]
            words = t(message)
        else:
            return None
        return {"progress": percent, "message": words.striptags(), "html_message": str(words)}
