"""REST handlers of the lab as a whole: what there is, what it takes, its images, and this API's description."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.server.base import Handler, protected

if TYPE_CHECKING:
    from vmlab.lab import Lab


class LabState(Handler):
    """``lab``."""

    @protected
    async def get(self) -> None:
        """Tell everything that a panel shows first."""
        service = self.service

        def ask(lab: Lab) -> dict[str, Any]:
            from vmlab.hypervisor.accelerator import best_accelerator

            need_qemu()
            return {
                "version": version("vmlab"),
                "accelerator": best_accelerator(),
                "limits": lab.limits().to_json(),
                "machines": service.machines(lab),
                "images": [image.to_json() for image in lab.images],
            }

        self.answer(await service.read(ask))


def need_qemu() -> None:
    """Refuse where no guest can be run.

    Raises
    ------
    HostError
        QEMU is not installed.
    """
    from vmlab.errors import HostError
    from vmlab.hypervisor.account import find_program

    if find_program("qemu-system-x86_64") is None:
        raise HostError(
            "QEMU is not installed on this host, so no machine can run.",
            hint="run scripts/lab once, it installs what is needed; `%vm doctor` shows what is missing",
        )


class Usages(Handler):
    """``usage``."""

    @protected
    async def get(self) -> None:
        """Tell what each machine takes now."""
        service = self.service
        self.answer(await service.read(lambda lab: [u.to_json() for u in service.usage(lab)]))


class Images(Handler):
    """``images``."""

    @protected
    async def get(self) -> None:
        """List the images."""
        self.answer(await self.service.read(lambda lab: [image.to_json() for image in lab.images]))


class Build(Handler):
    """``images/<name>/build``."""

    @protected
    async def post(self, name: str) -> None:
        """Build a built-in image; progress comes as events."""
        self.body("Nothing")
        service = self.service

        def work(lab: Lab) -> dict[str, Any]:
            image = lab.image(name)
            try:
                lab.build(name, progress=service.progress(image=name))
            finally:
                service.done(image=name)
            return image.to_json()

        self.answer(await service.work(work))


class Description(Handler):
    """``openapi.yaml``."""

    @protected
    async def get(self) -> None:
        """Send the description of this API."""
        text = Path(__file__).with_name("openapi.yaml").read_bytes()
        self.finish(text, set_content_type="application/yaml")
