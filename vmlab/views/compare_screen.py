"""Two screens over each other: swiped, blinking, side by side, or with what changed marked. CSS only.

A notebook that is not trusted runs no scripts, nor does an exported page in many viewers; so the tabs are
radio buttons, the swipe follows the pointer by thin strips that each have a rule, and the blinking is an
animation. Where not even style sheets are let through, the pictures stand below each other.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from vmlab.compare.screen import ScreenDiff
from vmlab.render import page
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Steps of the swipe: how exactly it follows the pointer.
STRIPS = 60

_VIEWS = (("swipe", "Swipe"), ("blink", "Blink"), ("side", "Side by side"), ("marked", "What changed"))

_RULES = """
.vml.vml .cmp{max-width:1024px}
.vml.vml .cmp>input{position:absolute;opacity:0;pointer-events:none}
.vml.vml .cmp>label{display:inline-block;padding:3px 11px;margin:0 4px 8px 0;border:1px solid var(--v-line);
 border-radius:12px;cursor:pointer;font-size:12px;color:var(--v-dim)}
.vml.vml .cmp>input:checked+label{color:var(--v-bg);background:var(--v-brand);border-color:var(--v-brand)}
.vml.vml .cmp>input:focus-visible+label{outline:2px solid var(--v-brand);outline-offset:2px}
.vml.vml .cmp .both{position:relative;display:grid;grid-template-columns:1fr;overflow:hidden;--at:50%;
 border:1px solid var(--v-line);border-radius:4px;line-height:0}
.vml.vml .cmp figure{grid-area:1/1;min-width:0;line-height:normal}
.vml.vml .cmp figure img{display:block;height:auto;margin:0;border:0;border-radius:0;max-width:none}
.vml.vml .cmp figcaption{position:absolute;top:6px;padding:1px 8px;border-radius:3px;background:var(--v-bg);
 color:var(--v-fg);opacity:.85;z-index:3;pointer-events:none;max-width:45%;overflow:hidden;text-overflow:ellipsis;
 white-space:nowrap}
.vml.vml .cmp .before figcaption{left:6px}.vml.vml .cmp .after figcaption{right:6px}
.vml.vml .cmp .strips{position:absolute;inset:0;display:flex;z-index:4}
.vml.vml .cmp .strips i{flex:1;cursor:ew-resize}
.vml.vml .cmp .line{position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;z-index:2;
 background:var(--v-brand);pointer-events:none}
.vml.vml .cmp .marked{display:none}
.vml.vml .cmp .after{clip-path:inset(0 0 0 var(--at))}
.vml.vml .cmp .after figcaption{clip-path:none}
.vml.vml .cmp>.v-blink:checked~.both .after,.vml.vml .cmp>.v-side:checked~.both .after{clip-path:none}
.vml.vml .cmp>.v-blink:checked~.both .after{animation:vml-blink 1.6s steps(1) infinite}
@keyframes vml-blink{0%{opacity:1}50%{opacity:0}}
.vml.vml .cmp>.v-side:checked~.both{grid-template-columns:1fr 1fr;gap:2px}
.vml.vml .cmp>.v-side:checked~.both .before{grid-area:1/1;position:relative}
.vml.vml .cmp>.v-side:checked~.both .after{grid-area:1/2;position:relative}
.vml.vml .cmp>.v-marked:checked~.both .marked{display:block}
.vml.vml .cmp>.v-marked:checked~.both :is(.before,.after){display:none}
.vml.vml .cmp>:is(.v-blink,.v-side,.v-marked):checked~.both :is(.strips,.line){display:none}
@media (prefers-reduced-motion:reduce){.vml.vml .cmp>.v-blink:checked~.both .after{animation-duration:4s}}
""".strip()


def _steps() -> str:
    return "".join(
        f".vml.vml .cmp .both:has(.strips i:nth-child({n + 1}):hover){{--at:{(n + 0.5) * 100 / STRIPS:.1f}%}}"
        for n in range(STRIPS)
    )


class ScreensView(View):
    """Two screens compared."""

    label = "Screens compared"

    def __init__(self, screen: ScreenDiff) -> None:
        self.screen = screen

    def rich(self) -> RenderableType:
        """Return one line."""
        from rich.text import Text

        return Text(self.screen.summary)

    def body(self) -> str:
        """Return both over each other."""
        return compared(self.screen)

    def to_json(self) -> Any:
        """Return plain values, without the pictures."""
        return self.screen.to_json()


def compared(screen: ScreenDiff) -> str:
    """Return the HTML of two screens compared, without the style sheet."""
    return screens(
        screen.before_png,
        screen.after_png,
        screen.diff_png if screen.pixels else None,
        before=screen.before,
        after=screen.after,
        sizes=screen.sizes,
        summary=screen.summary,
    )


def screens(
    before_png: bytes,
    after_png: bytes,
    diff_png: bytes | None,
    *,
    before: str,
    after: str,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    summary: str = "",
) -> str:
    """Return the HTML of two screens compared, without the style sheet of :func:`vmlab.render.page.page`.

    Parameters
    ----------
    before_png, after_png, diff_png
        PNG files; the last shows what changed, or is None.
    before, after
        What the two are called.
    sizes
        ``(width, height)`` of the two. The smaller one is shown smaller.
    summary
        A sentence below.
    """
    note = f'<p class="note">{page.esc(summary)}</p>' if summary else ""
    if diff_png is None:
        only = page.picture(after_png, alt=f"screen of {before} and {after}")
        return f"<figure>{only}</figure>{note}"
    # Several results on one page must not share their buttons.
    name = "c" + hashlib.sha256(before_png + after_png + f"{before}\0{after}".encode()).hexdigest()[:12]
    buttons = []
    for number, (view, title) in enumerate(_VIEWS):
        checked = " checked" if number == 0 else ""
        identity = f"{name}-{view}"
        buttons.append(
            f'<input type="radio" name="{name}" id="{identity}" class="v-{view}"{checked}>'
            f'<label for="{identity}">{title}</label>'
        )
    width = max(size[0] for size in sizes) or 1
    figures = [
        _figure("before", before_png, before, sizes[0][0] / width),
        _figure("after", after_png, after, sizes[1][0] / width),
        f'<figure class="marked">{_image(diff_png, f"what changed from {before} to {after}", 1)}</figure>',
    ]
    strips = f'<div class="strips" aria-hidden="true">{"<i></i>" * STRIPS}</div><div class="line"></div>'
    return (
        f"<style>{_RULES}{_steps()}</style>"
        f'<div class="cmp" role="group" aria-label="{page.esc(f"screens of {before} and {after}")}">'
        f'{"".join(buttons)}<div class="both">{"".join(figures)}{strips}</div></div>{note}'
    )


def _figure(kind: str, png: bytes, title: str, share: float) -> str:
    caption = f"<figcaption>{page.esc(title)}</figcaption>"
    return f'<figure class="{kind}">{_image(png, f"screen of {title}", share)}{caption}</figure>'


def _image(png: bytes, alt: str, share: float) -> str:
    shown = page.picture(png, alt=alt, kind="")
    return shown.replace("<img ", f'<img style="width:{share * 100:.2f}%" ', 1)
