"""From a session's view to the words and the table of "Make it fit". Pure, like `presenters`."""

from __future__ import annotations

from surgery.errors import InputError
from surgery.search.make_it_fit import Option
from surgery.session.view import View
from ui.presenters.status import bytes_text, count_text, escape, number_text
from ui.presenters.suggest import note


def room_text(view: View) -> str:
    """How much must go, or that nothing must."""
    if view.room is None or view.fit is None:
        return ""
    if view.fit.fits:
        return note(
            f"It fits {view.device.name} with {bytes_text(view.fit.spare_bytes)} to spare. "
            "Looking for options shows what a smaller or a larger type would cost."
        )
    return note(f"It does not fit {view.device.name}. {view.room.words()}", "ms-error")


def options_text(view: View) -> str:
    """What was found, the smallest loss first."""
    if view.fitted is None:
        return ""
    fitting, target = view.fitted.fitting, view.fitted.target
    refused = "".join(note(sentence) for sentence in fitting.refused)
    if not fitting.options:
        words = "Nothing that was tried fits." if fitting.complete else "Nothing has been measured yet."
        return note(words, "ms-error" if fitting.complete else "") + refused
    rows = "".join(_row(number, option) for number, option in enumerate(fitting.options, 1))
    tokens = fitting.options[0].estimate.tokens
    basis = (
        f"Perplexity measured on {tokens:,} tokens, on the weights as they would be stored; bytes are arithmetic, for "
        f"{target.context:,} tokens of context with a KV cache in {target.kv_type}; speeds are estimated."
    )
    unfinished = "" if fitting.complete else " Not all candidates have been measured."
    return (
        '<div class="ms-scroll ms-wide"><table class="ms-types"><thead><tr><th>option</th><th>perplexity</th>'
        "<th>parameters</th><th>weights</th><th>to spare</th><th>tokens/s</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note(basis + unfinished)}{refused}"
    )


def _row(number: int, option: Option) -> str:
    error = option.estimate.standard_error
    exact = "" if error is None else f' title="± {error:.2f}"'
    return (
        f"<tr><td>{number}. {escape(option.how)}, {escape(option.type)}</td>"
        f"<td{exact}>{number_text(option.estimate.perplexity)}</td><td>{count_text(option.parameters)}</td>"
        f'<td title="{option.fit.weights_bytes:,} bytes">{bytes_text(option.fit.weights_bytes)}</td>'
        f"<td>{bytes_text(option.fit.spare_bytes)}</td><td>{option.fit.decode_tokens_per_second:,.1f}</td></tr>"
    )


def choices(view: View) -> list[tuple[str, str]]:
    """The options for the list: words and number."""
    options = view.fitted.fitting.options if view.fitted is not None else ()
    return [
        (f"{number}. {option.how}, {option.type}: perplexity {number_text(option.estimate.perplexity)}", str(number))
        for number, option in enumerate(options, 1)
    ]


def number_of(chosen: object) -> int:
    """The number that the list sent.

    Raises:
        InputError: it is not one.
    """
    text = str(chosen or "")
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise InputError("Choose one of the options from the list.")
    return int(text)
