"""The page that ``paddle-dense app`` serves: what stands where, and what happens when something is dropped on it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.report.contents import entry
from paddle_dense.commands.info import report
from paddle_dense.commands.page_words import LANGUAGES, preferred, say
from paddle_dense.commands.uploads import (
    EXAMPLES_OF,
    TOP,
    Conversion,
    Prediction,
    convert_uploads,
    examples,
    networks,
    predict_upload,
)
from paddle_dense.errors import listed, printable

if TYPE_CHECKING:
    import gradio

_OFTEN, _KEPT = 600, 3600  # seconds between two looks for old files, and that a file is kept
_MOST_WAITING = 32


def build_page(folder: Path) -> gradio.Blocks:
    """The page, to be launched.

    Args:
        folder: where Gradio keeps uploaded files, and the page what it writes.
    """
    import gradio as gr

    with gr.Blocks(title="paddle_dense", analytics_enabled=False, delete_cache=(_OFTEN, _KEPT)) as blocks:
        page = Page(gr, folder)
        page.connect(blocks)
    # One at a time: each may need the memory and the processor whole.
    return blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)


class Page:
    """The components, and what the events do to them.

    Attributes:
        worded: the components with words, and which words of `WORDS` each has, by the name of its property.
    """

    def __init__(self, gr: Any, folder: Path) -> None:
        self.gr, self.folder = gr, folder
        self.worded: list[tuple[Any, dict[str, str]]] = []
        choices = [(name, key) for key, name in LANGUAGES.items()]
        self.language = gr.Radio(choices, value="en", show_label=False, container=False, elem_classes="languages")
        gr.Markdown("# paddle_dense")
        self._add(gr.Markdown, {"value": "intro"})
        with self._add(gr.Tab, {"label": "convert_tab"}):
            with gr.Row():
                self._add_converting()
            with self._add(gr.Accordion, {"label": "info"}, open=False, visible=False) as self.about:
                self.info = gr.HTML(elem_classes="info")
            with self._add(gr.Accordion, {"label": "report"}, open=False, visible=False) as self.proof:
                self.report = gr.HTML(elem_classes="report")
        with self._add(gr.Tab, {"label": "predict_tab"}), gr.Row():
            self._add_predicting()

    def _add(self, kind: Any, words: dict[str, str], **properties: Any) -> Any:
        """A component with words, in English until the browser says otherwise."""
        made = kind(**{name: say(key, "en") for name, key in words.items()}, **properties)
        self.worded.append((made, words))
        return made

    def _add_converting(self) -> None:
        gr = self.gr
        with gr.Column():
            self.checkpoint = self._add_files({"label": "checkpoint"}, height=150)
            with self._add(gr.Accordion, {"label": "more_options"}, open=False):
                options = {"label": "options"}
                self.options = self._add(gr.Textbox, options, placeholder="--arch cdnv2_a --config dropout_rate=0.2")
            self.start = self._add(gr.Button, {"value": "convert"}, variant="primary")
        with gr.Column():
            self.summary = gr.HTML(elem_classes="summary")
            self.files = self._add(gr.File, {"label": "files"}, visible=False, interactive=False, elem_classes="files")
        self.converted = gr.State(time_to_live=_KEPT)

    def _add_predicting(self) -> None:
        gr, choices = self.gr, _choices()
        with gr.Column():
            words = {"label": "image", "placeholder": "drop_image"}
            self.image = self._add(gr.Image, words, sources=["upload", "clipboard"], type="filepath", height=300)
            # Pillow would open it as any of its formats; the library reads it, and says what is wrong.
            self.image.preprocess = lambda payload: payload and payload.path
            _only_uploads(gr, self.image)
            self.samples = [[str(path)] for path in examples(self.folder)] if EXAMPLES_OF in networks() else []
            # As images of this very component: Gradio then keeps them when it deletes old files.
            shown = {"samples": self.samples, "components": [self.image], "visible": bool(self.samples)}
            self.examples = self._add(gr.Dataset, {"label": "examples"}, type="index", **shown)
            self.model = self._add(gr.Dropdown, {"label": "model"}, choices=choices, value=choices[0][1])
            self.weights = self._add_files({"label": "own_weights"}, height=150)
            self.ask = self._add(gr.Button, {"value": "predict"}, variant="primary")
        with gr.Column():
            self.message = gr.HTML(visible=False, elem_classes="summary")
            self.answer = self._add(gr.Label, {"label": "answer"}, num_top_classes=TOP)
            self.heat = self._add(gr.Image, {"label": "heat"}, interactive=False, format="png", buttons=["download"])
        self.predicted = gr.State(time_to_live=_KEPT)

    def _add_files(self, words: dict[str, str], **properties: Any) -> Any:
        added = self._add(self.gr.File, words, file_count="multiple", **properties)
        _only_uploads(self.gr, added)
        return added

    def connect(self, blocks: Any) -> None:
        """Say which event calls what."""
        gr, worded = self.gr, [part for part, _ in self.worded]
        results = [self.summary, self.message, self.answer]

        def begin(request: Any) -> list[Any]:
            return self.begin(request.headers.get("accept-language", ""))

        begin.__annotations__["request"] = gr.Request  # by which Gradio knows what to hand over
        blocks.load(begin, None, [self.language, self.model, *worded], api_name=False)
        words = {"inputs": [self.language, self.converted, self.predicted], "outputs": [*worded, *results]}
        self.language.change(self.speak, **words, api_name=False, show_progress="hidden")
        gr.on(
            [self.checkpoint.upload, self.start.click],
            self.convert,
            [self.checkpoint, self.options, self.language],
            [self.converted, self.summary, self.files, self.about, self.info, self.proof, self.report],
            api_name="convert",
            concurrency_id="work",
        )
        asked: dict[str, Any] = {
            "fn": self.predict,
            "inputs": [self.image, self.model, self.weights, self.language],
            "outputs": [self.predicted, self.message, self.answer, self.heat],
            "concurrency_id": "work",
        }
        events = [self.image.upload, self.ask.click, self.model.input, self.weights.upload]
        gr.on(events, **asked, api_name="predict")
        picked = [self.image, self.model, self.weights]
        self.examples.click(self.pick, self.examples, picked, api_name=False).then(**asked, api_name=False)

    # What the events call

    def begin(self, accepted: str) -> list[Any]:
        """The page in the language of a browser that accepts these, with the networks that there are now."""
        language = preferred(accepted)
        return [language, self.gr.update(choices=_choices()), *self._words(language)]

    def speak(self, language: str, converted: Conversion | None, predicted: Prediction | None) -> list[Any]:
        """The page and what it shows in another language."""
        answer = (predicted and predicted.named(language)) or None
        summary, message = conversion_html(converted, language), self._shown(note_html(predicted, language))
        return [*self._words(language), summary, message, answer]

    def convert(self, uploads: Sequence[str] | None, options: str | None, language: str) -> list[Any]:
        """Convert what was dropped."""
        gr = self.gr
        if not uploads:
            hidden = gr.update(visible=False)
            return [None, _paragraph(say("no_checkpoint", language)), hidden, hidden, "", hidden, ""]
        done = convert_uploads(uploads, self.folder, options or "")
        return [
            done,
            conversion_html(done, language),
            gr.update(value=[str(path) for path in done.files] or None, visible=bool(done.files)),
            gr.update(visible=bool(done.info)),
            f"<pre>{escape(report(done.info))}</pre>" if done.info else "",
            gr.update(visible=bool(done.report)),
            # Without any rights: it is drawn up of a stranger's names.
            f'<iframe sandbox srcdoc="{escape(done.report)}"></iframe>' if done.report else "",
        ]

    def predict(self, image: str | None, model: str, weights: Sequence[str] | None, language: str) -> list[Any]:
        """Tell what the image shows."""
        if not image:
            return [None, self._shown(_paragraph(say("no_image", language))), None, None]
        found = predict_upload(image, model, self.folder, weights or ())
        return [found, self._shown(note_html(found, language)), found.named(language) or None, found.heat]

    def pick(self, number: int) -> list[Any]:
        """The example of this number, and the network that it is for."""
        return [self.samples[number][0], EXAMPLES_OF, None]

    def _shown(self, html: str) -> Any:
        return self.gr.update(value=html, visible=bool(html))

    def _words(self, language: str) -> list[Any]:
        return [self.gr.update(**{name: say(key, language) for name, key in words.items()}) for _, words in self.worded]


def conversion_html(done: Conversion | None, language: str) -> str:
    """What a file is and what became of it; whatever it says itself is harmless."""
    if done is None:
        return ""
    told = entry(done.result, 0)
    verdict, badge = ("bad", say("failed", language)) if done.error else (told.verdict, getattr(told.said, language))
    lines = [f'<h3><span class="badge {verdict}">{escape(badge)}</span>{_safe(done.name)}</h3>']
    if done.error:
        lines.append(_paragraph(done.error))
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{_safe(value)}</td></tr>" for name, value in _facts(done, language))
    lines.append(f"<table>{rows}</table>" if rows else "")
    notes = done.result.warnings or (done.info.warnings if done.info else [])
    return "".join(lines) + _notes(notes, language)


def _facts(done: Conversion, language: str) -> list[tuple[str, str]]:
    """Names and values of what is known of a file and its conversion."""
    result, info, facts = done.result, done.info, {}
    arch, params = result.arch or (info and info.arch), result.params or (info and info.params)
    if arch:
        facts["network"] = arch if not info or info.network in (None, arch) else f"{arch} ({info.network})"
    if params:
        facts["parameters"] = f"{params:,}"
    if info and info.condensed is not None:
        condensed_now = result.output and result.config.get("condensed")
        form = "condensed" if info.condensed else "was_condensed" if condensed_now else "trained"
        facts["form"] = say(form, language)
    if info and info.macs is not None:
        facts["macs"] = say("for_size", language).format(macs=info.macs / 1e6, size=info.input_size)
    if result.verified and result.parity:
        agreement = say("agreement", language)
        facts["agreement"] = agreement.format(what=result.parity.what, difference=result.parity.max_rel_diff)
    if result.assumed:
        facts["assumed"] = ", ".join(f"{name}={value}" for name, value in result.assumed.items())
    if result.left_out:
        facts["left_out"] = listed(result.left_out)
    if result.seconds is not None:
        facts["seconds"] = f"{result.seconds:.1f} s"
    return [(say(f"{key}_label" if key == "agreement" else key, language), value) for key, value in facts.items()]


def note_html(found: Prediction | None, language: str) -> str:
    """Why there is no answer, or what the user should know of the weights that gave it."""
    if found is None:
        return ""
    if found.error:
        return f'<h3><span class="badge bad">{say("not_predicted", language)}</span></h3>{_paragraph(found.error)}'
    return _notes(found.notes, language)


def _notes(notes: Sequence[str], language: str) -> str:
    items = "".join(f"<li>{_safe(note)}</li>" for note in notes)
    return f'<div class="notes"><strong>{say("warnings", language)}</strong><ul>{items}</ul></div>' if notes else ""


def _paragraph(text: str) -> str:
    return f"<p>{_safe(text)}</p>"


def _safe(text: object) -> str:
    return escape(printable(text))


def _choices() -> list[tuple[str, str]]:
    """The networks that need no upload, as Gradio takes choices."""
    return [(called, name) for name, called in networks().items()]


def _only_uploads(gr: Any, part: Any) -> None:
    """Refuse an address in place of an uploaded file: Gradio would download it, however large it is."""
    move = part.async_move_resource_to_block_cache

    async def moved(path: str | Path | None) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            raise gr.Error("an address is no upload: download the file and upload it", print_exception=False)
        return await move(path)

    part.async_move_resource_to_block_cache = moved
