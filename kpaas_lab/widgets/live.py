"""A run's picture in a notebook, live while it runs: a thread looks at the run and redraws what has changed.

Once the run has ended, the live widget is replaced by an ordinary HTML output, which stays in the saved notebook with
no kernel behind it.
"""

from __future__ import annotations

import threading
import time
from itertools import count
from typing import Any

from kpaas_lab.errors import LabError
from kpaas_lab.i18n import _, language, use_language
from kpaas_lab.widgets.markup import card
from kpaas_lab.widgets.run import Picture, RunHandle, draw, take

PERIOD = 0.4  # seconds between looks at a run
SHARE = 0.1  # of the time, at most, is spent on looking: a run with much to read is looked at less often

_numbers = count(1)
_views: dict[str, LiveView] = {}


def show(run: RunHandle) -> None:
    """Display a run: a picture if it has ended, else a live view. A run has one live view, wherever it is shown."""
    from IPython.display import display

    picture = take(run)
    if picture.status.phase.ended:
        display(_bundle(run, draw(picture)), raw=True)  # type: ignore[no-untyped-call]
        return
    view = _views.get(run.name)
    if view is None or not view.alive:
        view = _views[run.name] = LiveView(run, picture)
    view.show(picture)


def _bundle(run: RunHandle, html: str) -> dict[str, Any]:
    return {"text/plain": repr(run), "text/html": html}


def _answer_while_busy(button: Any) -> None:
    """Let a click be heard while a cell runs, `run.wait()` above all.

    JupyterLab sends it to a thread of its own (a subshell, JEP 91); ipykernel sends it back to the thread that last
    spoke through this button's comm, which is the busy one, if it remembers one.
    """
    if hasattr(button.comm, "_reply_subshell_id"):
        del button.comm._reply_subshell_id


class LiveView:
    """The widget of one run, and the thread that keeps it up to date until the run ends or the widget is closed."""

    def __init__(self, run: RunHandle, picture: Picture) -> None:
        import ipywidgets
        from IPython.core.getipython import get_ipython

        self.run = run
        self._html = ipywidgets.HTML(value=draw(picture), layout={"width": "auto", "margin": "0"})
        self._button = ipywidgets.Button(description=_("Cancel"), icon="stop", tooltip=_("Stop this run"))
        self._button.on_click(self._cancel)
        _answer_while_busy(self._button)
        self.widget = ipywidgets.VBox([self._html, self._button])
        self._places: list[str] = []
        self._looking = threading.Lock()
        self._language = language()
        self._events = get_ipython().events  # type: ignore[no-untyped-call]
        self._events.register("post_run_cell", self._after_cell)
        self._thread = threading.Thread(target=self._follow, name=f"watch {run.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still follows the run."""
        return self.widget.comm is not None

    def show(self, picture: Picture) -> None:
        """One more place where this view is seen."""
        from IPython.display import display

        place = f"kpaas-lab-run-{next(_numbers)}"
        self._places.append(place)
        # Where there are no widgets, what is seen is the picture of this moment.
        widget = self.widget._repr_mimebundle_() or {}
        display(_bundle(self.run, draw(picture)) | widget, raw=True, display_id=place)  # type: ignore[no-untyped-call]

    def _follow(self) -> None:
        period = PERIOD
        while self.alive:
            time.sleep(period)
            begin = time.monotonic()
            with use_language(self._language):
                self._look()
            period = max(PERIOD, (time.monotonic() - begin) / SHARE)

    def _after_cell(self, _result: Any) -> None:
        """What ended while a cell ran is final when the cell is: so it stands in a notebook that is run as a batch."""
        self._look()

    def _look(self) -> None:
        with self._looking:
            if not self.alive:
                return
            try:
                picture = take(self.run)
            except LabError as error:  # deleted meanwhile, or its folder can't be read
                self._end(card(error))
                return
            if picture.status.phase.ended:
                self._end(draw(picture))
            else:
                self._html.value = draw(picture)

    def _end(self, html: str) -> None:
        from IPython.display import update_display

        for place in self._places:
            update_display(_bundle(self.run, html), raw=True, display_id=place)  # type: ignore[no-untyped-call]
        self._events.unregister("post_run_cell", self._after_cell)
        for widget in (self._html, self._button, self.widget):
            widget.close()

    def _cancel(self, _button: Any) -> None:
        self._button.disabled = True
        self._button.description = _("Stopping…")
        try:
            self.run.cancel()
        except LabError as error:
            self._button.disabled = False
            self._button.description = _("Cancel")
            self._button.tooltip = str(error)
