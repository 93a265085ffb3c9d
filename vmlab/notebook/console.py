"""Live consoles in a notebook: a small widget that connects the page with the Jupyter server, not with the kernel.

The widget's script (``console.js`` beside this file) looks for a Jupyter server that has vmlab and knows this very
machine, and shows the server's console: no byte of it passes the kernel. Where there is none (VS Code, Colab), the
kernel sends pictures and takes clicks and keys, and can start the web console.

What is saved with a notebook is never secret: the traits are a name, a kind and how it is shown; pictures and addresses
go as messages. Beside the widget stands a picture of the screen at the time of the call, for whoever opens the file
without a kernel. It is not refreshed while the widget is shown: replacing an output rebuilds the widget in it.

Whoever turns a notebook into a page or a paper (nbconvert, nbviewer) prefers a widget's view to any picture, and shows
nothing where the widget is lost. So the view is in an output only where a page needs it there: our own extension finds
the widget by what is saved for it, and where no page is (nbconvert --execute, papermill), there is no use for one.
"""

from __future__ import annotations

import base64
import contextlib
import io
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets
from IPython.display import publish_display_data
from PIL import Image as PillowImage
from traitlets import Bool, Enum, Unicode

from vmlab.errors import UsageError, VMLabError, WrongState
from vmlab.guest import keys as guest_keys
from vmlab.guest.serial import SerialLog, strip_ansi
from vmlab.notebook.frontend import front_end

if TYPE_CHECKING:
    from vmlab.guest.screen import Screenshot
    from vmlab.machine import Machine
    from vmlab.render.surface import Kind

__all__ = ["Console", "Consoles", "consoles"]

HERE = Path(__file__).parent
VIEW = "application/vnd.jupyter.widget-view+json"
#: For our JupyterLab extension (``extension/src/consoles/saved.ts``), which shows the console where the widget is lost.
SAVED = "application/vnd.vmlab.console+json"
#: The picture in a saved notebook is at most so many pixels wide; of several side by side, each.
WIDTH, WIDTH_BESIDE = 1024, 480
#: Bytes of a serial log that are shown where the kernel has to send them, and lines that a saved notebook keeps.
SERIAL, SERIAL_LINES = 16 << 10, 40


class Console(anywidget.AnyWidget):
    """The live screen or serial line of a machine, as a widget; made by :meth:`vmlab.Machine.console`.

    Attributes
    ----------
    machine, uuid
        Which machine; the UUID keeps a server on another host from showing another machine of the same name.
    kind
        ``screen`` or ``serial``.
    mode
        ``fit`` or ``actual`` (pixel for pixel).
    read_only, minimised
        Look only; a small picture without a stream.
    """

    _esm = (HERE / "console.js").read_text(encoding="utf-8")

    machine = Unicode().tag(sync=True)
    uuid = Unicode().tag(sync=True)
    kind = Enum(("screen", "serial"), "screen").tag(sync=True)
    mode = Enum(("fit", "actual"), "fit").tag(sync=True)
    read_only = Bool(False).tag(sync=True)
    minimised = Bool(False).tag(sync=True)

    def __init__(self, machine: Machine, **options: Any) -> None:
        self._machine = machine
        self._output = _Output(self, [self])
        self._size = (0, 0)
        self._webconsole: Any = None
        # One thing after the other, and not in the thread that runs cells: typing a text takes its time.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"vmlab-console-{machine.name}")
        super().__init__(machine=machine.name, uuid=machine.uuid, **options)
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        return f"<Console of {self.machine} ({self.kind})>"

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self._output.bundle()

    def _ipython_display_(self) -> None:
        self._output.show()

    def close(self) -> None:
        """Take the console away; the output keeps the last picture. The machine is not touched."""
        super().close()
        with contextlib.suppress(RuntimeError):  # closed before
            self._worker.submit(self._stop_webconsole)
        self._worker.shutdown(wait=False)
        self._output.close()

    # -- what the page asks when it has no server: in any thread, so nothing here prints or raises -----------------

    def _on_message(self, _widget: object, said: Any, _buffers: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._worker.submit(self._answer, said)

    def _answer(self, said: dict[str, Any]) -> None:
        acts = {
            "pictures": self._pictures,
            "look": self._look,
            "input": self._input,
            "webconsole": self._open_webconsole,
        }
        try:
            acts[said["do"]](said)
        except VMLabError as error:
            self.send({"what": "error", "message": error.message, "hint": error.next_step})
        except Exception as error:  # shown where it happened, instead of in the log of the kernel
            self.send({"what": "error", "message": f"{type(error).__name__}: {error}", "hint": None})

    def _pictures(self, _said: dict[str, Any]) -> None:
        self.send({"what": "code", "code": (HERE / "pictures.js").read_text(encoding="utf-8")})

    def _look(self, said: dict[str, Any]) -> None:
        self._machine.uuid  # noqa: B018 - raises NotFound; a machine that is gone would look like one that is off
        if self.kind == "serial":
            text = _serial_text(self._machine)
            self.send({"what": "same"} if text == said.get("seen") else {"what": "text", "text": text})
            return
        try:
            shot = self._machine.screenshot()
        except WrongState as error:
            self.send({"what": "off", "message": error.message})
            return
        self._size = shot.size
        if shot.sha256 == said.get("seen"):
            self.send({"what": "same"})
        else:
            self.send({"what": "picture", "seen": shot.sha256}, buffers=[shot.png])

    def _input(self, said: dict[str, Any]) -> None:
        if self.read_only:
            raise UsageError("This console is read-only.")
        trouble: VMLabError | None = None
        for event in said["events"]:
            try:
                self._one_input(event)
            except VMLabError as error:  # a guest without a pointer still has a keyboard
                trouble = error
        self.send({"what": "done"})
        if trouble is not None:
            raise trouble

    def _one_input(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "text" and self.kind == "serial":
            self._machine.send_serial(event["text"])
        elif kind == "text":
            self._machine.type(event["text"])
        elif kind == "keys":
            self._machine.keys(event["keys"])
        else:
            if not self._machine.spec.tablet:
                if kind in ("move", "up"):
                    return  # said already, when the button went down
                raise UsageError(f"{self.machine} has no tablet, so its pointer cannot be placed from here.")
            # Of the size that the person saw; Machine.pointer would take a picture to know it.
            pointer = guest_keys.Pointer(self._machine.domain, self._size)
            if kind == "wheel":
                pointer.wheel(max(-5, min(5, int(event["clicks"]))))
                return
            width, height = self._size
            x, y = (max(0, min(int(event[axis]), size - 1)) for axis, size in (("x", width), ("y", height)))
            pointer.move(x, y)
            if kind in ("down", "up"):
                getattr(pointer, kind)(event["button"])

    def _open_webconsole(self, _said: dict[str, Any]) -> None:
        from vmlab import webconsole

        self._stop_webconsole()  # its address was used, or lost
        self._webconsole = webconsole.start([self.machine], self._machine._store.home)
        # It may end by itself: then it should not stay as a zombie for as long as the kernel lives.
        threading.Thread(target=self._webconsole.process.wait, daemon=True).start()
        # As a message: the address is a key, and what is in a trait is saved with the notebook.
        self.send({"what": "webconsole", "address": self._webconsole.address})

    def _stop_webconsole(self) -> None:
        if self._webconsole is not None:
            self._webconsole.stop()


class Consoles(ipywidgets.Box):
    """Several consoles side by side; indexed by the machine's name."""

    def __init__(self, consoles: list[Console]) -> None:
        self._consoles = consoles
        self._output = _Output(self, consoles)
        for console in consoles:
            console.layout = ipywidgets.Layout(flex="1 1 340px", min_width="320px", margin="0 8px 8px 0")
        super().__init__(consoles, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start"))
        # The end of the kernel is not the end of a live console: it is not marked as broken (console.js).
        self.add_class("vmlab-live")

    def __getitem__(self, name: str) -> Console:
        for console in self._consoles:
            if console.machine == name:
                return console
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"<Consoles of {', '.join(console.machine for console in self._consoles)}>"

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self._output.bundle()

    def _ipython_display_(self) -> None:
        self._output.show()

    def close(self) -> None:
        """Take the consoles away; the output keeps the last pictures. The machines are not touched."""
        for console in self._consoles:
            console.close()
        super().close()
        self._output.close()


def consoles(machines: Sequence[Machine], kind: Kind, options: dict[str, Any]) -> Console | Consoles:
    """Return a console, or several side by side."""
    made = [Console(machine, kind=kind, **options) for machine in machines]
    return made[0] if len(made) == 1 else Consoles(made)


class _Output:
    """The output of a widget: the view, and beside it what a reader without a kernel sees."""

    def __init__(self, widget: ipywidgets.Widget, consoles: list[Console]) -> None:
        self._widget = widget
        self._consoles = consoles
        self._display_id: str | None = None

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the data of a display and their metadata."""
        data, metadata = kept(self._consoles, "when this cell ran")
        saved = {
            "machines": [one.machine for one in self._consoles],
            "uuids": [one.uuid for one in self._consoles],
            "kind": self._consoles[0].kind,
        }
        page = front_end()
        if page in ("ours", "foreign"):
            saved["model_id"] = self._widget.model_id
        if page == "foreign":
            view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
            return {VIEW: view, SAVED: saved, **data}, metadata
        return {SAVED: saved, **data}, metadata

    def show(self) -> None:
        """Show the widget in the cell that runs."""
        self._display_id = self._display_id or secrets.token_hex(8)
        publish_display_data(*self.bundle(), transient={"display_id": self._display_id})

    def close(self) -> None:
        """Put the last picture in the widget's place."""
        if self._display_id is not None:
            shown, self._display_id = self._display_id, None
            publish_display_data(
                *kept(self._consoles, "when the console was closed"),
                transient={"display_id": shown},
                update=True,
            )


def kept(consoles: Sequence[Console], when: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what stays in a saved notebook: text and a picture of the screens, and their metadata."""
    width = WIDTH if len(consoles) == 1 else WIDTH_BESIDE
    at = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}, {when}"
    texts, shots = [], []
    for console in consoles:
        name, machine = console.machine, console._machine
        try:
            state = machine.state
            if console.kind == "serial":
                texts.append(f"{machine.serial(SERIAL_LINES).rstrip()}\n")
                what = "Serial line"
            else:
                what = "Screen"
                with contextlib.suppress(WrongState):
                    shots.append(machine.screenshot().thumbnail(width))
        except VMLabError as error:
            texts.append(f"{name}: {error.message}")
            continue
        texts.append(f"{what} of {name} ({state}) at {at}.")
    option = " --serial" if consoles[0].kind == "serial" else ""
    words = " ".join(console.machine for console in consoles) + option
    alt = "\n".join(texts)
    texts.append(f"Live: run this cell, or %vm console {words}; in a terminal: vmlab console {words}")
    data = {"text/plain": "\n".join(texts)}
    if not shots:
        return data, {}
    picture = _beside(shots)
    data["image/png"] = _png(picture)
    return data, {"image/png": {"width": picture.width, "height": picture.height, "alt": alt}}


def _beside(shots: list[Screenshot]) -> PillowImage.Image:
    """Return pictures as one, from left to right."""
    if len(shots) == 1:
        return shots[0].image
    gap = 8
    width = sum(shot.width for shot in shots) + gap * (len(shots) - 1)
    whole = PillowImage.new("RGB", (width, max(shot.height for shot in shots)), "white")
    left = 0
    for shot in shots:
        whole.paste(shot.image, (left, 0))
        left += shot.width + gap
    return whole


def _png(image: PillowImage.Image) -> str:
    """Return a small PNG file as a notebook holds it: in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _serial_text(machine: Machine) -> str:
    log = SerialLog.of(machine.domain)
    return strip_ansi(log.read(max(0, log.position - SERIAL)).decode(errors="replace"))
