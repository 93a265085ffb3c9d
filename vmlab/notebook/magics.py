"""``%vm VERB ...`` and ``%%vm NAME [NAME ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Unicode

from vmlab import commands, language
from vmlab.commands import HelpAsked
from vmlab.errors import UsageError
from vmlab.notebook import completion
from vmlab.notebook.cellline import cell_parser
from vmlab.notebook.completion import PREFIX
from vmlab.notebook.ui import for_shell
from vmlab.views.commands import Results
from vmlab.views.help import VerbHelp

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from vmlab.lab import Lab


class Interrupted(KeyboardInterrupt):
    """A verb was interrupted; shown in one line."""

    def _render_traceback_(self) -> list[str]:
        return ["KeyboardInterrupt: interrupted."]


@magics_class
class VMMagics(Magics):
    """The magics; ``%config VMMagics.home = "..."`` chooses another store."""

    home = Unicode("", help="Folder of the store; empty for your own.").tag(config=True)

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell, **options: Any) -> None:
        super().__init__(shell, **options)
        self._lab: Lab | None = None
        self._lab_home: str | None = None

    @property
    def lab(self) -> Lab:
        """The lab that the verbs act on, opened when it is first needed."""
        if self._lab is None or self._lab_home != self.home:
            from vmlab.lab import Lab

            self._lab = Lab(home=Path(self.home).expanduser()) if self.home else Lab()
            self._lab_home = self.home
        return self._lab

    @no_var_expand  # $HOME and {x} may belong to the guest; commands/_lines.py tells which do not
    @needs_local_scope
    @line_cell_magic
    def vm(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        """Do something with machines; ``%vm`` alone shows what there is."""
        names = {**self.shell.user_ns, **(local_ns or {})}
        try:
            return self._verb(line, names) if cell is None else self._script(line, cell, names)
        except HelpAsked as asked:
            return VerbHelp(asked.parser.format_help())
        except KeyboardInterrupt:
            raise Interrupted from None  # where in vmlab it happened helps nobody

    def _verb(self, line: str, names: dict[str, Any]) -> Any:
        ui = for_shell(self.shell)
        name, rest = commands.verb_of(line, names)
        if name in ("", "-h", "--help", "?"):
            name, rest = "help", ""
        verb = commands.verb(name, PREFIX)
        if rest.strip() == "?":
            rest = "--help"
        args = commands.parse_line(verb, rest, PREFIX, names)
        shown = verb.run(self.lab if verb.needs_lab else None, args, ui)
        return None if args.silent else shown

    def _script(self, line: str, cell: str, names: dict[str, Any]) -> Any:
        parser = cell_parser()
        read = commands.read(line, parser, names)
        if not read.words:
            raise UsageError(
                "In which machine shall this run?",
                hint="write its name: %%vm web",
                usage="%%vm NAME [NAME ...]",
            )
        args = parser.parse_args(read.texts)
        args.body = commands.fill(cell, names) if read.expand else cell
        out: str | None = args.out
        try:
            shown = commands.verb("script").run(self.lab, args, for_shell(self.shell))
        finally:
            # Also when a status was not 0: the result is most wanted then.
            if out and (results := getattr(args, "results", None)):
                self.shell.user_ns[out] = (
                    next(iter(results.values())) if len(results) == 1 else Results(results)
                )
        return None if out or read.silent else shown


def load(ip: Any) -> None:
    """Register the magics and completion; twice does no harm."""
    if getattr(ip, "_vmlab", None) is not None:
        unload(ip)
    magics = VMMagics(ip)
    ip.register_magics(magics)
    language.speak("notebook")
    matcher = completion.matcher(lambda: magics.lab)
    ip.Completer.custom_matchers.append(matcher)
    ip._vmlab = (magics, matcher)


def unload(ip: Any) -> None:
    """Undo :func:`load` wholly."""
    registered = getattr(ip, "_vmlab", None)
    if registered is None:
        return
    magics, matcher = registered
    if matcher in ip.Completer.custom_matchers:
        ip.Completer.custom_matchers.remove(matcher)
    manager = ip.magics_manager
    for kind in ("line", "cell"):
        function = manager.magics[kind].get("vm")
        if getattr(function, "__self__", None) is magics:
            del manager.magics[kind]["vm"]
    manager.registry.pop(type(magics).__name__, None)
    if magics in ip.configurables:
        ip.configurables.remove(magics)
    del ip._vmlab
    language.speak("python")
