"""The bottom line: keys that do something now. Knows which it shows; all else is Textual's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Footer

if TYPE_CHECKING:
    from textual.screen import Screen


class KeyLine(Footer):
    """Textual's footer makes its widgets anew whenever the focus moves; this one when its keys are others."""

    def __init__(self) -> None:
        super().__init__(compact=True)
        self._shown: list[tuple[str, str, bool]] | None = None

    def bindings_changed(self, screen: Screen[object]) -> None:
        """Called when the keys may have changed."""
        keys = [
            (self.app.get_key_display(binding), binding.description, enabled)
            for _, binding, enabled, _ in screen.active_bindings.values()
            if binding.show
        ]
        if screen is self.screen and screen.app.app_focus and keys != self._shown:
            self._shown = keys
            super().bindings_changed(screen)
