"""The map to touch: hover over a user, select a region, read its profiles, draw users of it, let them talk.

explore(sampler)                                                  # in JupyterLab; pip install "usp-lab[explore]"
explore(sampler, simulator=usp, assistant=scripted("good"))       # with a button that simulates whom you drew
"""

import html
from collections.abc import Sequence

import numpy as np

from usp_lab.errors import UspError


class Explorer:
    """A map, what is selected on it, and what those users say.

    Attributes:
        widget: what JupyterLab shows.
        selected: indices of profiles, those selected on the map.
        drawn: indices of users drawn from them.
        dialogues: what was simulated last.
    """

    def __init__(self, sampler, simulator=None, assistant=None, max_turns: int = 5) -> None:
        import ipywidgets as w
        import jscatter
        import pandas as pd

        self.sampler, self.simulator, self.assistant = sampler, simulator, assistant
        self.max_turns, self.drawn, self.dialogues = max_turns, [], []
        x, y = sampler.coordinates_[:, :2].T
        table = pd.DataFrame({"x": x, "y": y, "log density": sampler.log_density()})
        table["profile"] = [_short(t) for t in sampler.texts_]
        self.scatter = jscatter.Scatter(
            data=table, x="x", y="y", color_by="log density", height=420
        )
        self.scatter.tooltip(True, properties=["log density", "profile"])
        self.scatter.widget.observe(lambda _: self.show(self.selected), names="selection")
        self.number = w.BoundedIntText(3, min=1, max=50, description="users")
        again = w.Button(description="draw of the region")
        again.on_click(lambda _: self.draw(self.number.value))
        talk = w.Button(description="simulate", disabled=simulator is None or assistant is None)
        talk.on_click(lambda _: self.simulate())
        self.out = w.HTML("Select profiles on the map (hold shift and draw around them).")
        buttons = w.HBox([self.number, again, talk])
        self.widget = w.VBox([self.scatter.show(), buttons, self.out])

    @property
    def selected(self) -> list[int]:
        """Indices of the profiles selected; all of them where nothing is."""
        chosen = self.scatter.selection()
        return list(range(len(self.sampler.texts_))) if chosen is None or not len(chosen) else [int(i) for i in chosen]  # fmt: skip

    def draw(self, n: int, seed: int | None = None) -> list[int]:
        """Draw n users of the selection, show their profiles, and return their indices."""
        among = self.selected
        rng = np.random.default_rng(seed)
        self.drawn = rng.choice(among, min(n, len(among)), replace=False).tolist()
        self.show(self.drawn)
        return self.drawn

    def simulate(self) -> list:
        """Let the users drawn (three of the selection where none is) talk; show and return the dialogues."""
        from usp_lab.bubbles import show_dialogue, side_by_side
        from usp_lab.simulate import simulate

        drawn = self.drawn or self.draw(3)
        texts = [self.sampler.texts_[i] for i in drawn]
        self.out.value = f"{len(texts)} users are talking ..."
        try:
            self.dialogues = simulate(
                self.simulator, self.assistant, texts, max_turns=self.max_turns
            )
        except UspError as error:
            self.out.value = html.escape(str(error))
            return []
        shown = [
            show_dialogue(d.messages, f"user {i}", t, stop=d.stop)
            for i, t, d in zip(drawn, texts, self.dialogues, strict=True)
        ]
        self.out.value = side_by_side(shown)._repr_html_()
        return self.dialogues

    def show(self, indices: Sequence[int], most: int = 12) -> None:
        """Show profiles below the map; profiles are text, and shown as such."""
        rows = "".join(
            f"<tr><td>{i}</td><td>{self.sampler.log_density()[i]:.2f}</td>"
            f"<td style='text-align:left'>{html.escape(self.sampler.texts_[i])}</td></tr>"
            for i in indices[:most]
        )
        head = f"{len(indices):,} profiles" + (f", the first {most}" if len(indices) > most else "")
        self.out.value = f"<p>{head}</p><table><tr><th>#</th><th>log density</th><th>profile</th></tr>{rows}</table>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


def explore(sampler, simulator=None, assistant=None, max_turns: int = 5) -> Explorer:
    """Return a map to explore in JupyterLab.

    Args:
        sampler: a fitted `ProfileSampler` that has texts, in two dimensions or more (the first two are shown).
        simulator, assistant: who speaks when "simulate" is pressed; without them the button is off.
        max_turns: user turns of a simulated dialogue at most.

    Raises:
        UspError: jupyter-scatter is not installed; a sampler of one dimension, or without texts.
    """
    try:
        import jscatter  # noqa: F401
    except ImportError as e:
        raise UspError('the map needs jupyter-scatter; pip install "usp-lab[explore]"') from e
    if sampler.texts_ is None or sampler.coordinates_.shape[1] < 2:
        raise UspError("the map shows profiles in two dimensions; fit on texts with n_components=2")
    return Explorer(sampler, simulator, assistant, max_turns)


def _short(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."
