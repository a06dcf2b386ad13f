"""The page: build_ui() creates every component and wires its events; nothing else does.

Gradio carries the form and its events. Four parts are our own elements inside gr.HTML: the drop zone, the estimate,
the queue, which asks the server itself, and the player. Their scripts and styles come from our static folder by
addresses relative to the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import LocalFont

from seedvr_ui.client_api import ClientApi
from seedvr_ui.fields import DEFAULT_SIZE, SIZES, make_input, option_infos
from seedvr_ui.handlers import FORM, Handlers

TITLE = "SeedVR Studio"
_FORM_KEY = "seedvr_form"
_FORM_SECRET = "not a secret: what the form says"  # a fixed one, or a restart could not read it

HEAD = """
<link rel="stylesheet" href="studio/static/studio.css">
<link rel="icon" type="image/svg+xml" href="studio/static/icon.svg">
<meta name="color-scheme" content="light dark">
"""

_ATTACH = """
import(new URL('studio/static/{script}.js', document.baseURI)).then(
    (script) => script.attach(element, props, trigger, watch));
"""

_START = """async (...values) => {
    const drop = await import(new URL('studio/static/drop.js', document.baseURI));
    values[0] = await drop.settled();
    return values;
}"""
"""Runs in the page before `submit`: a Start that is pressed during an upload waits for it."""


_REFRESH = "() => { window.dispatchEvent(new Event('studio:refresh')); }"
"""Runs in the page after a handler has changed something: the queue is looked at now."""

_REMEMBER = f"(...values) => Object.fromEntries({json.dumps(FORM)}.map((name, index) => [name, values[index]]))"
"""Runs in the page when a field changes: the browser remembers the form, the server hears nothing of it."""


def make_theme() -> gr.Theme:
    """Colours and fonts; the font files are Gradio's own, served by this process."""
    sans = (LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
    mono = (LocalFont("IBM Plex Mono"), "ui-monospace", "monospace")
    hues: dict[str, Any] = {"primary_hue": "teal", "secondary_hue": "teal", "neutral_hue": "slate"}
    return gr.themes.Default(**hues, font=sans, font_mono=mono).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill_dark="#172033",
        block_radius="10px",
        block_border_color="#d5dce6",
        block_border_color_dark="*neutral_700",
        button_large_radius="10px",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def build_ui(handlers: Handlers, models: Sequence[tuple[str, str]], client_api: ClientApi | None = None) -> gr.Blocks:
    """The page. `models` are (label, name) pairs, the first one chosen; `client_api` serves `gradio_client`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Restore and enlarge videos and photos</p><div class='studio-account'></div>",
            elem_id="masthead", js_on_load=_ATTACH.format(script="account"), apply_default_css=False,
        )  # fmt: skip
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="setup"):
                drop = _element("drop", elem_id="drop")
                size = gr.Radio(list(SIZES), value=DEFAULT_SIZE, label="Size", elem_id="size")
                model = gr.Dropdown(
                    list(models), value=models[0][1], label="Model", filterable=False, elem_id="model"
                )  # fmt: skip
                with gr.Accordion("More options", open=False, elem_id="options"):
                    options = [make_input(info) for info in option_infos()]
                with gr.Column(elem_id="go"):
                    about = _element("estimate", elem_id="estimate")
                    start = gr.Button("Start", variant="primary", elem_id="start")
            with gr.Column(elem_id="work"):
                queue = _element("queue", elem_id="queue")
                _element("compare", elem_id="result")

        form: list[Any] = [size, model, *options]
        names = [name for _, name in models]
        memory = gr.BrowserState({}, storage_key=_FORM_KEY, secret=_FORM_SECRET)
        private: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        start.click(handlers.submit, [drop, *form], drop, js=_START, **private).then(None, js=_REFRESH)
        queue.click(handlers.use(names), form, form, **private).then(None, js=_REFRESH)
        page.load(handlers.recall(names), memory, form, **private)
        for field in form:
            field.change(None, form, memory, js=_REMEMBER, show_progress="hidden")
        asks = [drop.change, about.click, *(field.change for field in form)]
        gr.on(asks, handlers.estimate, [drop, *form], about, trigger_mode="always_last", **private)
        if client_api is not None:
            client_api.attach()
    return page


def _element(script: str, elem_id: str) -> gr.HTML:
    """An element that `static/<script>.js` fills; the template stays constant, so Gradio never rewrites its content."""
    return gr.HTML(
        {}, html_template=f"<div class='studio-{script}'></div>", js_on_load=_ATTACH.format(script=script),
        apply_default_css=False, elem_id=elem_id,
    )  # fmt: skip
