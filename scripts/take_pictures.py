"""Take the pictures of the README: a notebook on real guests, in a real JupyterLab, in its light and its dark theme.

    python scripts/take_pictures.py FOLDER

Started by scripts/pictures, which sets up what it needs.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from vmlab.errors import VMLabError
from vmlab.hypervisor import domain
from vmlab.lab import Lab

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from help.jupyter_page import Console, Notebook, browser_page, server, write_notebook  # noqa: E402

#: The most bytes of a picture: they are part of every clone.
LIMIT = 300_000
#: Size of the page, and device pixels for each of its pixels: readable also where GitHub shows it smaller.
WIDTH, HEIGHT, SCALE = 1060, 1230, 1.2

APP_WIDTH, APP_HEIGHT = 1560, 790

#: The notebooks: one that makes a machine, one for the picture of a tree and a table, one for that of the whole window.
LOAD = "%load_ext vmlab\nfrom vmlab import Lab\n\nlab = Lab()"
DESK = {
    "load": LOAD,
    "create": "%vm create desk desktop",
    "work": (
        'desk = lab["desk"]\ndesk.type("echo \'page 1\' > thesis.txt; ls\\n")\ndesk.pointer.move(610, 330)\n'
        "desk.wait_for_screen(settle=1, tolerance=0.01)"
    ),
    "snapshot": '%vm snapshot desk tidy -d "all windows in place"',
}
TREE = {
    "load": LOAD,
    "wreck": "%%vm desk\nrm -rf /home/user/* /usr/share/fonts\npkill xclock; pkill xeyes",
    "keep": 'desk = lab["desk"]\ndesk.wait_for_screen(settle=1, tolerance=0.01)\n'
    'desk.snapshot("wrecked", "no clock, no eyes, no thesis")',
    "back": "%vm revert desk tidy",
    "other": (
        "desk.pointer.drag((300, 42), (420, 300))\ndesk.wait_for_screen(settle=1, tolerance=0.02)\n"
        'desk.snapshot("moved", "the terminal elsewhere")'
    ),
    "again": "%vm revert desk tidy",
    "fork": "%vm fork desk desk-a desk-b --snapshot tidy",
    "more": "%vm create web --forward 8080:80\n%vm create game invaders",
    "rest": "import time; time.sleep(8)",
    "tree": "%vm tree desk",
    "list": "%vm list",
}
DIFF = {
    "load": LOAD,
    "edit": (
        "%%vm desk\necho 'Welcome back.' >> /etc/motd\nuseradd -m eve\n"
        "mkdir -p /opt/.kit && echo 'not a virus' > /opt/.kit/tool && chmod 4755 /opt/.kit/tool"
    ),
    "diff": "%vm diff desk tidy",
}
SHOP = {
    "load": LOAD,
    "up": "%vm up shop",
    "snapshot": "%vm snapshot shop works",
    "link": "%vm link shop.web dmz --delay 200ms --loss 5%",
    "rest": "import time; time.sleep(4)",
    "list": "%vm list shop",
}
APP = {
    "load": LOAD,
    "consoles": "%vm console desk web game",
    "act": 'desk = lab["desk"]\ndesk.type("free -m\\n")\nlab["web"].type("httpd -h /var/www; uptime\\n")',
    "snapshot": '%vm snapshot desk calm -d "before the next lesson"',
}


@contextlib.contextmanager
def own_lab() -> Iterator[Lab]:
    """Make a store that shares the images and their ready states with ours, by hard links; delete it at the end.

    So the pictures show no machine of whoever makes them, and no image is built or booted again.
    """
    ours = Lab()
    for name in ("desktop", "tiny", "invaders"):
        # Nobody should see an image being made.
        if not ours.image(name).ready:
            ours.image(name).bake()
    home = ours.home.with_name(f"pictures-{uuid.uuid4().hex[:8]}")
    lab = Lab(home)
    try:
        for folder in ("images", "bases", "layers"):
            link_tree(ours, ours.home / folder, home / folder)
        for record in (ours.store.snapshot(s) for s in ours.store.snapshot_ids()):
            if record.kind == "ready":
                link_tree(ours, ours.store.snapshot_folder(record.id), lab.store.snapshot_folder(record.id))
        lab.collect()
        yield lab
    finally:
        for scenario in lab.scenarios:
            scenario.delete()
        for machine in lab.machines:
            with contextlib.suppress(VMLabError):
                machine.delete()
        shutil.rmtree(home, ignore_errors=True)


def link_tree(lab: Lab, source: Path, target: Path) -> None:
    """Make the folders of ``source`` again, with links to the same files."""
    for folder, _, files in os.walk(source):
        place = lab.account.make_dir(target / Path(folder).relative_to(source))
        for name in files:
            # Somebody else may just be deleting it.
            with contextlib.suppress(FileNotFoundError):
                (place / name).hardlink_to(Path(folder, name))


def palette(image: Image.Image) -> Image.Image:
    """Return 256 colours for a picture: most by how often they occur, the rest such that rare ones are among them.

    A green dot beside a large wallpaper stays green, and white stays white.
    """
    colours: list[int] = []
    for count, method in ((176, Image.Quantize.MEDIANCUT), (80, Image.Quantize.MAXCOVERAGE)):
        found = image.quantize(count, method=method).getpalette() or []
        colours += found[: 3 * count]
    holder = Image.new("P", (1, 1))
    holder.putpalette(colours)
    return holder


def save(png: bytes, path: Path, *, width: int | None = None) -> None:
    """Write a picture, with fewer colours only if it would be too large."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if width is not None and image.width > width:
        image = image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)
    few = palette(image)
    for picture in (
        image,
        image.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG),
        image.quantize(palette=few, dither=Image.Dither.NONE),
    ):
        out = io.BytesIO()
        picture.save(out, "PNG", optimize=True)
        if out.tell() < LIMIT:
            path.write_bytes(out.getvalue())
            print(f"{path.name}: {image.width}x{image.height}, {out.tell() / 1000:.0f} kB", flush=True)
            return
    raise SystemExit(f"{path.name} would have {out.tell()} bytes; the limit is {LIMIT}.")


def take(theme: str, lab: Lab, folder: Path, work: Path) -> None:
    """Run the notebooks in that theme, and keep what they look like."""
    notebooks, own = work / theme / "notebooks", work / theme / "own"
    notebooks.mkdir(parents=True)
    own.mkdir()
    write_notebook(notebooks / "desk.ipynb", *DESK.values())
    write_notebook(notebooks / "tree.ipynb", *TREE.values())
    write_notebook(notebooks / "app.ipynb", *APP.values())
    write_notebook(notebooks / "diff.ipynb", *DIFF.values())
    write_notebook(notebooks / "shop.ipynb", *SHOP.values())
    shutil.copytree(ROOT / "notebooks" / "shop", notebooks / "shop")
    environment = {"VMLAB_HOME": str(lab.home)}
    with (
        server(notebooks, own, theme=theme, environment=environment) as jupyter,
        browser_page(width=WIDTH, height=HEIGHT, scale=SCALE, dark=theme == "dark") as page,
    ):
        nb = open_wide(page, jupyter.url("desk.ipynb"))
        for index in range(len(DESK)):
            nb.run(index)

        nb = open_wide(page, jupyter.url("tree.ipynb"))
        for index in range(len(TREE)):
            nb.run(index)
        first = list(TREE).index("tree")
        settle(nb, first)
        save(page.screenshot(clip=around(nb, first, len(TREE) - 1)), folder / f"tree-{theme}.png")

        nb = open_wide(page, jupyter.url("diff.ipynb"))
        for index in range(len(DIFF)):
            nb.run(index)
        first = list(DIFF).index("diff")
        nb.cell(first).locator("label", has_text="Files").first.click()
        settle(nb, first)
        save(page.screenshot(clip=around(nb, first, first)), folder / f"diff-{theme}.png")

        nb = open_wide(page, jupyter.url("shop.ipynb"))
        for index in range(len(SHOP)):
            nb.run(index)
        first = list(SHOP).index("list")
        settle(nb, first)
        save(page.screenshot(clip=around(nb, first, first)), folder / f"scenario-{theme}.png")
        lab.scenario("shop").delete()

        page.set_viewport_size({"width": APP_WIDTH, "height": APP_HEIGHT})
        nb = Notebook(page, jupyter.url("app.ipynb"))
        page.locator('.jp-SideBar .lm-TabBar-tab[data-id="vmlab-panel"]').click()
        for index in range(len(APP)):
            nb.run(index)
        page.get_by_role("button", name="Show the snapshots of desk", exact=True).click()
        for name in ("desk", "web", "game"):
            Console(nb.cell(1), name).expect_live()
        # The pictures of the panel follow within some seconds.
        page.wait_for_timeout(4000)
        settle(nb, first=list(APP).index("consoles"))
        save(page.screenshot(), folder / f"jupyterlab-{theme}.png")


def open_wide(page: Page, url: str) -> Notebook:
    """Open a notebook, without the file browser beside it."""
    nb = Notebook(page, url)
    page.locator(".jp-SideBar.jp-mod-left .lm-TabBar-tab.lm-mod-current").click()
    expect(page.locator("#jp-left-stack")).to_be_hidden()
    return nb


def settle(nb: Notebook, first: int) -> None:
    """Bring a cell to the top; the pointer away, and no cell marked as selected."""
    page = nb.page
    page.keyboard.press("Escape")
    page.mouse.move(WIDTH - 3, HEIGHT - 3)
    page.add_style_tag(
        content=".jp-Collapser,.jp-cell-toolbar,.jp-cell-menu{visibility:hidden!important}"
        ".jp-Notebook .jp-Cell{border-color:transparent!important;box-shadow:none!important}"
    )
    nb.cell(first).evaluate("cell => cell.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(800)


def around(nb: Notebook, first: int, last: int) -> FloatRect:
    """Return the area of the cells from ``first`` to ``last``."""
    top, bottom = (nb.cell(n).bounding_box() for n in (first, last))
    assert top is not None
    assert bottom is not None
    height = bottom["y"] + bottom["height"] - top["y"]
    return {"x": top["x"], "y": top["y"], "width": top["width"], "height": height}


def main(folder: Path) -> int:
    """Write the pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"desk", "desk-a", "desk-b", "web", "game"}
    if taken := wanted & set(domain.names(Lab().account)):
        raise SystemExit(
            f"There are machines of these names already: {', '.join(sorted(taken))}.\n  Next: rename them"
        )
    with tempfile.TemporaryDirectory() as temporary, own_lab() as lab:
        for theme in ("light", "dark"):
            take(theme, lab, folder, Path(temporary))
            if theme == "dark":
                save(lab["desk-a"].screenshot().png, folder / "desktop.png", width=800)
                game = lab["game"]
                game.keys("ret")
                game.keys(*["spc", "left"] * 6, *["spc", "right"] * 9)
                save(game.screenshot().png, folder / "invaders.png")
            for machine in lab.machines:
                machine.delete()
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
