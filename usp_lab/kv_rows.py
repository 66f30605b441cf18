"""Keys and values of many dialogues, a row each, which stay in their place from turn to turn."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from usp_lab.errors import UspError


class KeyValueRows(Cache):
    """A table of keys and values, rows filled from the left: no holes between turns.

    A forward pass computes the rows given to `look_at`. The last column is a waste bin: place -1 of
    a new token that is padding. A row may have an owner, who alone finds it again; what is in the
    others is used by whose text begins alike.

    Attributes:
        held: ids of the tokens whose keys and values are there, shape (rows, columns + 1), -1 for
            none; its last column is the waste bin's.
        busy: rows under way, shape (rows,).
        owners: who owns each row, None for nobody.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(layers=[])
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        layers = model(token, use_cache=True).past_key_values.layers  # to learn their shapes
        if not all(isinstance(getattr(x, "keys", None), torch.Tensor) for x in layers):
            raise UspError(
                f"{type(model).__name__} keeps other states than keys and values; serve it and use "
                "the endpoint engine"
            )
        self.keys = [x.keys[:0, :, :1] for x in layers]
        self.values = [x.values[:0, :, :1] for x in layers]
        self.held = np.full((0, 1), -1)
        self.busy, self.owners = np.zeros(0, dtype=bool), []
        self._used, self._claims = np.zeros(0, dtype=np.int64), 0  # the claim that used a row last

    @property
    def columns(self) -> int:
        """Tokens that a row has room for."""
        return self.held.shape[1] - 1

    # --- as a model sees it ---

    def look_at(self, rows: slice | list[int], places: torch.LongTensor, width: int) -> None:
        """Choose what the next forward pass computes.

        Args:
            rows: a slice is viewed where it is, a list is copied.
            places: the column of each new token, shape (rows, new), -1 for padding.
            width: columns that are attended to.
        """
        every = range(len(self.held))[rows] if isinstance(rows, slice) else rows
        self._rows, self._places, self._width = rows, places, width
        self._each = torch.tensor(every, device=places.device)[:, None]

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """Store what is new and return all that is attended to (the interface of `Cache`)."""
        seen = []
        for table, new in ((self.keys, key_states), (self.values, value_states)):
            table[layer_idx][self._each, :, self._places] = new.transpose(1, 2)
            seen.append(table[layer_idx][:, :, : self._width][self._rows])
        return tuple(seen)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are given with each call."""
        return 0

    # --- who has which row ---

    def claim(
        self, owners: Sequence[Hashable], texts: Sequence[Sequence[int]], most: int
    ) -> list[tuple[int, int]]:
        """Give each owner a row, and return it with the number of its text's tokens that are there.

        A new owner's is the free row whose text begins most alike, the longest common beginnings
        being served first. The last token always counts as not there, since its scores are wanted.
        Where rows lack, there will be ``most``, or as many as are under way; then whoever has
        waited longest loses his.
        """
        self._claims += 1
        texts = [np.asarray(text) for text in texts]
        mine = {owner: row for row, owner in enumerate(self.owners) if owner is not None}
        rows = {i: mine[owner] for i, owner in enumerate(owners) if owner in mine}
        for i, row in rows.items():
            self._take(row, owners[i])
        new = [i for i in range(len(owners)) if i not in rows]
        free = self._free(len(new), most) if new else []
        common = np.array([self._common(free, texts[i]) for i in new]).ravel()
        last_used = np.tile(self._used[free], len(new))
        for pair in np.lexsort((last_used, -common)):
            i, row = new[pair // len(free)], free[pair % len(free)]
            if i not in rows and self.owners[row] is None:
                rows[i] = row
                self._take(row, owners[i])
        out = [(rows[i], int(self._common([rows[i]], text)[0])) for i, text in enumerate(texts)]
        for row, kept in out:
            self.held[row, kept:] = -1  # about to be overwritten
        return out

    def _take(self, row: int, owner: Hashable) -> None:
        self.owners[row], self.busy[row], self._used[row] = owner, True, self._claims

    def _common(self, rows: list[int], text: np.ndarray) -> np.ndarray:
        differs = self.held[rows, : len(text)] != text
        differs[:, -1] = True
        return differs.argmax(axis=1)

    def _free(self, n: int, most: int) -> list[int]:
        """Return rows that nobody owns, at least ``n``."""
        owned = len(self.owners) - self.owners.count(None)
        self.reserve(min(owned + n, max(most, int(self.busy.sum()) + n)), 0)
        idle = [r for r, owner in enumerate(self.owners) if owner is not None and not self.busy[r]]
        idle.sort(key=self._used.__getitem__)
        for row in idle[: max(0, n - self.owners.count(None))]:
            self.owners[row] = None
        return [r for r, owner in enumerate(self.owners) if owner is None]

    def leave(self, owner: Hashable) -> None:
        """Make an owner's row free; what is in it stays until another one needs the room."""
        for row, one in enumerate(self.owners):
            if one == owner:
                self.owners[row], self.busy[row] = None, False

    # --- where they lie ---

    def reserve(self, rows: int, columns: int) -> None:
        """Make the table at least so large, keeping what is in it."""
        old_rows, old_columns = len(self.held), self.columns
        rows, columns = max(rows, old_rows), max(columns, old_columns)
        if (rows, columns) == (old_rows, old_columns):
            return
        for table in (self.keys, self.values):
            for i, old in enumerate(table):  # one after the other: little memory is held twice
                table[i] = old.new_zeros(rows, old.shape[1], columns + 1, old.shape[3])
                table[i][:old_rows, :, :old_columns] = old[:old_rows, :, :old_columns]
        held, more = np.full((rows, columns + 1), -1), rows - old_rows
        held[:old_rows, :old_columns] = self.held[:, :-1]
        self.held = held
        self.busy, self._used = np.pad(self.busy, (0, more)), np.pad(self._used, (0, more))
        self.owners += [None] * more

    def swap(self, some: list[int], others: list[int]) -> None:
        """Exchange rows pairwise."""
        to, source = [*some, *others], [*others, *some]
        held = self.held[source]
        columns = (held[:, :-1] >= 0).sum(1).max(initial=0)
        self.held[to] = -1  # so that nothing is taken for whole when Ctrl-C comes meanwhile
        for x in (*self.keys, *self.values):
            x[to, :, :columns] = x[source, :, :columns]
        self.held[to] = held
        self.busy[to], self._used[to] = self.busy[source], self._used[source]
        for row, owner in zip(to, [self.owners[r] for r in source], strict=True):
            self.owners[row] = owner
