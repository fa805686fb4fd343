"""One micro-batch: a forest of prefixes in depth-first order, and the rows wanted from it.

Sorted sequences are laid down one after the other, each adding only what it does not share with its predecessor
("segment"). That is depth-first order: what comes after a token and lies deeper, up to the first sequence that
branches off at or above it, is exactly the token's subtree.

Invariants (tests/unit/packing/test_packing_tree.py):
1. Following nodes.parent from a sequence's last input token to its root spells token_ids[: stop - 1], and the token at
   index t of it has position t.
2. Nodes partition the tokens; the descendants of node i are exactly the tokens [stop[i], subtree_stop[i]).
3. Every node is a maximal run of tokens with the same set of sequences through it.
4. Every wanted (request, offset) occurs once and points at a row whose source token is the sequence's token
   start + offset - 1 and whose target is its token start + offset; rows are distinct (source, target) pairs.
5. Padding tokens are one root of their own, behind everything else, that no row points at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_rlpr.packing.sequences import SortedSequences
from megatron_rlpr.types import IntArray

PADDING_TOKEN_ID = 0


@dataclass(frozen=True)
class Nodes:
    """The N nodes of a forest in depth-first order, int64 [N] each.

    start, stop: token range; parent: -1 for roots; subtree_stop: end of the tokens of the node and all below it.
    """

    start: IntArray
    stop: IntArray
    parent: IntArray
    subtree_stop: IntArray

    @cached_property
    def paths(self) -> list[IntArray]:
        """Of every node the tokens of its path: from its root's first to its own last."""
        paths: list[IntArray] = []
        for start, stop, parent in zip(self.start, self.stop, self.parent, strict=True):
            own = np.arange(start, stop)
            paths.append(np.concatenate([paths[parent], own]) if parent >= 0 else own)
        return paths


@dataclass(frozen=True)
class ContextShare:
    """Which tokens of a forest each of C context-parallel ranks has, in increasing order: int64 [C, T]; this one's."""

    tokens_of_ranks: IntArray
    rank: int

    @property
    def tokens(self) -> IntArray:
        """This rank's."""
        return self.tokens_of_ranks[self.rank]


@dataclass(frozen=True)
class TreeMicroBatch:
    """A forest of T tokens in N nodes, U distinct rows, W wanted rows. All arrays are int64.

    token_ids, positions: [T]; a position is the depth in the tree, that is the index in the sequence.
    source_row, target: [U]; the hidden state of token source_row predicts token id target.
    want_request, want_offset, row_of_want: [W]; row row_of_want[w] answers token start + want_offset[w] of request
    want_request[w]. Several wants may point at one row: gather its value for each, and their gradients add.
    padding: how many of the T tokens only fill up to the sequence multiple.
    share: of a context-parallel rank (`context.share_of`): everything is of its T tokens then, but nodes, which are
    those of the whole forest. None: of all tokens.
    """

    token_ids: IntArray
    positions: IntArray
    nodes: Nodes
    source_row: IntArray
    target: IntArray
    want_request: IntArray
    want_offset: IntArray
    row_of_want: IntArray
    padding: int
    share: ContextShare | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, padding included."""
        return len(self.token_ids)

    @property
    def is_filler(self) -> bool:
        """Whether it is padding alone: it takes part in collectives and adds nothing."""
        return self.padding == self.num_tokens

    @property
    def attention_pairs(self) -> int:
        """Query-key pairs of causal attention over the forest: every token sees its ancestors and itself."""
        return int(self.positions.sum()) + len(self.positions)

    @property
    def head_rows(self) -> int:
        """Rows the output head computes."""
        return len(self.source_row)


def build_tree(sequences: SortedSequences, sequence_multiple: int = 1) -> TreeMicroBatch:
    """The forest of some sequences; none make a micro-batch of padding alone (one root, no rows)."""
    segments = sequences.length - sequences.shared
    first_token = np.cumsum(segments) - segments
    num_tokens = int(segments.sum())
    padding = -max(num_tokens, 1) % sequence_multiple + (num_tokens == 0)

    token_ids = np.full(num_tokens + padding, PADDING_TOKEN_ID, dtype=np.int64)
    positions = np.empty(num_tokens + padding, dtype=np.int64)
    positions[num_tokens:] = np.arange(padding)
    for tokens, shared, length, first in zip(
        sequences.tokens, sequences.shared, sequences.length, first_token, strict=True
    ):
        token_ids[first : first + length - shared] = tokens[shared:length]
        positions[first : first + length - shared] = np.arange(shared, length)

    node_start, branch_token = _node_starts(sequences, first_token)
    if padding:
        node_start = np.append(node_start, num_tokens)
        branch_token[num_tokens] = -1
    node_stop = np.append(node_start[1:], num_tokens + padding)
    # A node starts either inside a segment, after its parent's last token, or with a segment, which knows its branch.
    parent_token = np.array([branch_token.get(start, start - 1) for start in node_start.tolist()], dtype=np.int64)
    node_parent = np.searchsorted(node_start, parent_token, side="right") - 1
    source_row, target, want_request, want_offset, row_of_want = _rows(sequences, first_token)
    return TreeMicroBatch(
        token_ids,
        positions,
        Nodes(node_start, node_stop, node_parent, _subtree_stops(node_stop, node_parent)),
        source_row,
        target,
        want_request,
        want_offset,
        row_of_want,
        int(padding),
    )


def _node_starts(sequences: SortedSequences, first_token: IntArray) -> tuple[IntArray, dict[int, int]]:
    """Where nodes start (ascending), and for every segment's first token the token it hangs from (-1: a root).

    A segment is cut wherever a later sequence leaves it or ends in it.
    """
    starts: set[int] = set()
    branch_token: dict[int, int] = {}
    path: list[tuple[int, int, int]] = []  # open segments: depth and token index of the first token, depth of the end
    triples = zip(sequences.shared.tolist(), sequences.length.tolist(), first_token.tolist(), strict=True)
    for shared, length, first in triples:
        while path and path[-1][0] >= shared:
            path.pop()
        parent = -1
        if path:
            depth, token, end = path[-1]
            parent = token + shared - 1 - depth
            if shared < end:
                starts.add(parent + 1)
        if length > shared:
            starts.add(first)
            branch_token[first] = parent
            path.append((shared, first, length))
    return np.array(sorted(starts), dtype=np.int64), branch_token


def _subtree_stops(node_stop: IntArray, node_parent: IntArray) -> IntArray:
    """The end of every node's subtree: int64 [N]."""
    stops = node_stop.tolist()
    parents = node_parent.tolist()
    for node in range(len(stops) - 1, -1, -1):
        parent = parents[node]
        if parent >= 0:
            stops[parent] = max(stops[parent], stops[node])
    return np.array(stops, dtype=np.int64)


def _rows(sequences: SortedSequences, first_token: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """(source_row [U], target [U], want_request [W], want_offset [W], row_of_want [W])."""
    depth = int(sequences.stop.max()) if len(sequences) else 0
    token_at = np.empty(depth, dtype=np.int64)  # of the current sequence: token index at every depth
    row_at = np.full(depth, -1, dtype=np.int64)  # of the current sequence: row that predicts the token at every depth
    sources, targets, rows, offsets = [], [], [], []
    num_rows = 0
    columns = (sequences.start, sequences.stop, sequences.shared, sequences.shared_with_targets, first_token)
    for tokens, start, stop, shared, shared_with_targets, first in zip(
        sequences.tokens, *(c.tolist() for c in columns), strict=True
    ):
        token_at[shared : stop - 1] = np.arange(first, first + stop - 1 - shared)
        row_at[shared_with_targets:] = -1
        new = start + np.flatnonzero(row_at[start:stop] < 0)
        row_at[new] = np.arange(num_rows, num_rows + len(new))
        num_rows += len(new)
        sources.append(token_at[new - 1])
        targets.append(tokens[new])
        rows.append(row_at[start:stop].copy())
        offsets.append(np.arange(stop - start))
    request = np.repeat(sequences.request, sequences.stop - sequences.start)
    return _joined(sources), _joined(targets), request, _joined(offsets), _joined(rows)


def _joined(parts: list[IntArray]) -> IntArray:
    return np.concatenate(parts).astype(np.int64, copy=False) if parts else np.empty(0, dtype=np.int64)
