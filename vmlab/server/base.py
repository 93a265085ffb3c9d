"""What all REST handlers have in common: who may, what may come in, and how errors go out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from http.client import responses
from pathlib import Path
from typing import Any, TypeVar, cast

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from vmlab import errors
from vmlab.errors import MachineErrors, UsageError, VMLabError
from vmlab.server.service import Service

#: What Jupyter's authorizer is asked about.
RESOURCE = "vmlab"
#: Where the service is kept in the settings of the web application.
SERVICE = "vmlab_service"

#: The HTTP status of each error; a class that is not named here has that of its base.
STATUS: dict[type[VMLabError], int] = {
    errors.VMLabError: 500,
    errors.UsageError: 400,
    errors.BadName: 400,
    errors.NotFound: 404,
    errors.ImageMissing: 404,
    errors.AlreadyExists: 409,
    errors.Busy: 409,
    errors.WrongState: 409,
    errors.GuestPanicked: 409,
    errors.Overtaken: 409,
    errors.RecordDamaged: 422,
    errors.SnapshotDamaged: 422,
    errors.DiskUnreadable: 422,
    errors.SnapshotIncompatible: 422,
    errors.OutputTooLarge: 422,
    errors.AgentError: 502,
    errors.CommandFailed: 502,
    errors.HypervisorError: 502,
    errors.BuildFailed: 502,
    errors.HostError: 503,
    errors.AgentTimeout: 504,
    errors.WaitTimeout: 504,
    errors.NoSpace: 507,
    errors.NoMemory: 507,
}

F = TypeVar("F", bound=Callable[..., Any])


def status_of(error: VMLabError) -> int:
    """Return the HTTP status for an error of ours; for one of many machines, that of the first."""
    if isinstance(error, MachineErrors):
        inner = next((e for e in error.errors.values() if isinstance(e, VMLabError)), None)
        return status_of(inner) if inner else 500
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_model(error: VMLabError) -> dict[str, Any]:
    """Return an error as JSON; ``message`` stands outside too, where JupyterLab's own client looks for it."""
    said = error.to_json()
    said["type"] = said.pop("error")
    return {"error": said, "message": said["message"]}


def protected(method: F) -> F:
    """Let a method be called only by who has logged in and may do that (by Jupyter's authorizer)."""
    return cast("F", web.authenticated(authorized(resource=RESOURCE)(method)))


def executing(method: F) -> F:
    """Let a method be called only by who may *execute*: a GET that has guests run for its answer."""
    return cast("F", web.authenticated(authorized(action="execute", resource=RESOURCE)(method)))


@cache
def document() -> dict[str, Any]:
    """Return the API's description, ``openapi.yaml``."""
    import yaml  # type: ignore[import-untyped]  # ships no types

    found: dict[str, Any] = yaml.safe_load((Path(__file__).with_name("openapi.yaml")).read_text("utf-8"))
    return found


@cache
def _validator(model: str) -> Any:
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # ships no types

    # The models refer to each other by their place in the document.
    schemas = document()["components"]["schemas"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{model}", "components": {"schemas": schemas}})


def check(model: str, body: Any) -> None:
    """Refuse a request's body that is not what ``openapi.yaml`` says.

    Raises
    ------
    UsageError
        Says what is wrong with what.
    """
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]  # ships no types

    wrong = best_match(_validator(model).iter_errors(body))
    if wrong is not None:
        where = ".".join(str(part) for part in wrong.absolute_path)
        known = sorted(document()["components"]["schemas"][model].get("properties", {}))
        raise UsageError(
            f"The request cannot be used: {where + ': ' if where else ''}{wrong.message}",
            hint=f"it may have: {', '.join(known)}" if known else None,
        )


class Handler(APIHandler):
    """A REST handler: JSON in and out; what is raised in it becomes a status and an ``Error`` of ``openapi.yaml``."""

    auth_resource = RESOURCE
    # A panel that only looks must not keep JupyterHub from culling a forgotten server; `write` handlers do count.
    _track_activity = False

    async def prepare(self) -> None:  # type: ignore[override]  # as in APIHandler
        """Count what changes something as activity of the user."""
        await super().prepare()
        if self.current_user is not None:
            self.service.touch()
        self._track_activity = self.request.method not in ("GET", "HEAD", "OPTIONS")

    @property
    def service(self) -> Service:
        """The lab and its threads."""
        return cast("Service", self.settings[SERVICE])

    def body(self, model: str) -> dict[str, Any]:
        """Return the request's JSON object, which must be a ``model`` of ``openapi.yaml``; nothing counts as ``{}``.

        Raises
        ------
        UsageError
            It is not.
        """
        try:
            found = json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise UsageError(f"The request's body is no JSON: {error}.") from error
        if isinstance(found, dict):
            # A form's empty field: as if it were not there.
            found = {key: value for key, value in found.items() if value is not None}
        check(model, found)
        return cast("dict[str, Any]", found)

    def answer(self, model: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.finish(json.dumps(model))

    def answer_nothing(self) -> None:
        """Say that it is done, and that there is nothing to tell."""
        self.set_status(204)
        self.finish()

    def picture(self, png: bytes) -> None:
        """Answer with a PNG picture; 304 where the client has it."""
        # Tornado makes the ETag from what is written, and compares.
        self.finish(png, set_content_type="image/png")

    def width(self) -> int | None:
        """Return the ``width=`` of the request, in pixels.

        Raises
        ------
        UsageError
            It makes no sense.
        """
        text = self.get_query_argument("width", "")
        if not text:
            return None
        if not text.isdecimal() or not 16 <= int(text) <= 4096:
            raise UsageError(f"'{text}' is no width of a picture.", hint="use 16 to 4096 pixels")
        return int(text)

    # -- errors --------------------------------------------------------------------------------------------------

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log an error of ours in a line: it says what happened, and goes to who asked."""
        if isinstance(value, VMLabError):
            self.log.info("vmlab: %s %s: %s", self.request.method, self.request.path, value.message)
        else:
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Choose the status of an error of ours."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        super().send_error(status_of(error) if isinstance(error, VMLabError) else status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with an ``Error``, whatever went wrong."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        if not isinstance(error, VMLabError):
            message, kind = responses.get(status_code, "Unknown error"), "HTTPError"
            if isinstance(error, web.HTTPError):
                message = error.log_message or error.reason or message
            elif error is not None:
                message, kind = (
                    "Something went wrong in vmlab; the server's log shows where.",
                    "InternalError",
                )
            error = VMLabError(str(message))
            model = error_model(error)
            model["error"]["type"] = kind
        else:
            model = error_model(error)
        self.finish(json.dumps(model))
