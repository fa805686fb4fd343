"""The rollouts of a step are written while the next one begins, one file a node.

The ranks of a node bring the texts that they own to its first one, and a thread of that rank writes the file. What goes
wrong there is raised on all ranks at the next step, at a checkpoint or at the end, whichever is first: `settle` waits
for the file that is under way, so whatever a run goes on from, the rollouts before it are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch.distributed as dist

from megatron_rlpr.rollout.owned import Decode
from megatron_rlpr.rollout.store import Nodes, write_rollouts
from megatron_rlpr.system.decisions import gather_or_raise
from megatron_rlpr.system.shares import Array, Shares, node_shape, shares_of_node
from megatron_rlpr.types import Response, RolloutGroup, ScoredGroup


class RolloutWriter:
    """Writes the rollouts of this rank's node. All ranks call it together."""

    def __init__(self, folder: Path, decode: Decode) -> None:
        """folder: of the run's rollouts. decode: for prompts and reference answers. Collective."""
        self._folder = folder
        self._decode = decode
        self._world, self._of_node = Shares.of_world(), shares_of_node()
        node, self._ranks_of_node = node_shape(self._world.rank, self._world.size)
        self._nodes = Nodes(node, -(-self._world.size // self._ranks_of_node))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout writer")
        self._under_way: Future[Path] | None = None

    def begin(
        self,
        step: int,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[Sequence[float] | None],
        kept: Sequence[bool],
    ) -> None:
        """Start to write a step; the one before is complete then. Arguments as `write_rollouts` has them."""
        self.settle()
        numbers = [n for n, g in enumerate(groups) if g.group.owner // self._ranks_of_node == self._nodes.number]
        complete = self._with_texts([groups[number] for number in numbers])
        if self._of_node.rank:
            return
        self._under_way = self._thread.submit(
            write_rollouts,
            self._folder,
            step,
            complete,
            advantages=[advantages[number] for number in numbers],
            kept=[kept[number] for number in numbers],
            decode=self._decode,
            numbers=numbers,
            nodes=self._nodes,
        )

    def settle(self) -> None:
        """Wait for what is under way; its error is raised on all ranks."""
        under_way, self._under_way = self._under_way, None
        group = None if self._world.alone else dist.group.WORLD

        def finish() -> None:
            if under_way is not None:
                under_way.result()

        gather_or_raise(finish, group, "writing the rollouts")

    def __enter__(self) -> RolloutWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for this rank's file; whoever fails elsewhere has something more urgent to say than it."""
        self._thread.shutdown()

    def _with_texts(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """On the node's first rank: the groups with all texts."""
        if self._of_node.alone:
            return groups

        def work() -> list[Array]:
            mine = [group for group in groups if group.group.owner == self._world.rank]
            texts = [text for group in mine for text in _texts(group)]
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            lengths = np.array([len(text) for text in encoded], dtype=np.int32)
            return [lengths, np.frombuffer(b"".join(encoded), dtype=np.uint8)]

        brought = self._of_node.gather(work, "bringing texts to the node's first rank", first_only=True)
        if self._of_node.rank:
            return groups
        first = self._nodes.number * self._ranks_of_node
        texts = [_decoded(*arrays) for arrays in brought]
        return [_complete(group, texts[group.group.owner - first]) for group in groups]


def _texts(group: ScoredGroup) -> list[str]:
    """Of every response its text and the extracted answer."""
    pairs = zip(group.group.responses, group.rewards, strict=True)
    return list(chain.from_iterable((response.text, reward.extracted_answer) for response, reward in pairs))


def _decoded(lengths: Array, content: Array) -> Callable[[], str]:
    """Gives the texts one after the other."""
    ends = np.cumsum(lengths)
    whole = content.tobytes()
    each = (whole[end - size : end].decode("utf-8", "surrogatepass") for end, size in zip(ends, lengths, strict=True))
    return lambda: next(each)


def _complete(group: ScoredGroup, next_text: Callable[[], str]) -> ScoredGroup:
    responses, rewards = [], []
    for r, reward in zip(group.group.responses, group.rewards, strict=True):
        numbers = (r.engine_log_probs, r.finish_reason, r.seed, r.weight_versions)
        responses.append(Response(r.token_ids, next_text(), *numbers))
        rewards.append(replace(reward, extracted_answer=next_text()))
    whole = RolloutGroup(group.group.prompt, tuple(responses), group.group.owner)
    return replace(group, group=whole, rewards=tuple(rewards))
