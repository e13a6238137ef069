"""All statistics of a dense model that is streamed: two sweeps over its blocks, one of them in memory at a time.

Forward, from the first block to the last, all windows go through one block after the other, and the statistics of its
inputs are summed on the way. Backward, from the last to the first, each block runs again from the hidden states that
entered it, and the gradient of what left it is taken through it: to its layers, for their statistics, and to what
entered, for the block before. These states, and the gradients at one block's exit, wait in files.

A block's statistics are left on the shelves as soon as they are whole. A sweep that was killed goes on at the block
that it was at.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from svdexp.calibration.collector import Collector, shared_inputs
from svdexp.calibration.loss import next_token_loss
from svdexp.calibration.needs import distinct, of_backward, of_forward, only
from svdexp.calibration.states import States
from svdexp.calibration.statistics import pack
from svdexp.data.windows import at_once
from svdexp.models.behaviour import frozen
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.path import Replay, first_states
from svdexp.models.residency import at_hand
from svdexp.runtime.errors import require
from svdexp.runtime.processes import Alone, Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Shelf

log = logging.getLogger(__name__)

# Stands behind the last block for all that follows it: the norm, the head, the loss.
EXIT = "exit"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within this context no other run is at what waits in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("calibration: another run takes the same statistics; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_of(folder: Path) -> FileLock:
    """What a run holds that is at what waits in `folder`."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def discard(folder: Path) -> None:
    """Remove the states that a killed run left in `folder`, unless another run is at them."""
    if folder.is_dir():
        with suppress(OSError), lock_of(folder).acquire(timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


class Sweep:
    """The windows on their way, in both directions. Places are the blocks by their names, in order, and EXIT.

    Forward they go in batches, as through a model in memory, and one by one where gradients are wanted. Of several
    processes each has the windows whose indices are in `mine`; all go from place to place together.

    Args:
        model: streamed.
        layers: whose statistics are wanted.
        windows: (N, L).
        shelves: where each statistic is left, by its name.
        folder: where states wait.
        needs: which statistics each layer wants, by its name.
        processes: all of them must make this and carry it out; by default this one does it alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Matrix],
        windows: torch.Tensor,
        shelves: Mapping[str, Shelf],
        folder: Path,
        needs: Mapping[str, Sequence[str]],
        processes: Processes | None = None,
    ):
        self.model, self.shelves, self.needs, self.folder = model, shelves, needs, folder
        self.processes = Alone() if processes is None else processes
        size = 1 if of_backward(distinct(needs)) else at_once(windows)
        indices = range(len(windows))
        shares = self.processes.share([indices[start : start + size] for start in indices[::size]])
        self.mine = [index for share in shares for index in share]
        self.windows = windows[self.mine]
        self.batches = [slice(start, start + size) for start in range(0, len(self.mine), size)]
        self.replay = Replay(model, windows, {len(share) for share in shares})
        self.places = [*self.replay.blocks, EXIT]
        self.members: dict[str, list[Matrix]] = {place: [] for place in self.places}
        for layer in layers:
            self.members[layer.group if layer.group in self.replay.blocks else EXIT].append(layer)
        first = first_states(model, windows[:1])[0]
        shape = (max(len(self.mine), 1), *first.shape[1:])  # there are no empty files
        own = folder / f"{self.processes.index}-of-{self.processes.count}" if self.processes.count > 1 else folder
        self.entering = States(own / "entering", shape, first.dtype)
        self.gradients = States(own / "gradients", shape, first.dtype)  # at the exit of a block

    def carry_out(self) -> None:
        """Both sweeps, as far as something is missing on the shelves, which the main process fills.

        A second run that has the same to do waits until the first one is done.

        Raises:
            UserError: an activation or a gradient is not finite, or the disk has no room.
        """
        with alone(self.folder) if self.processes.main else nullcontext():
            self.processes.wait()  # the main one has the lock
            self._forward_and_back()
            self.processes.wait()
            if self.processes.main:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _forward_and_back(self) -> None:
        inputs, gradients = of_forward(self.shelves), of_backward(self.shelves)
        forward = self.processes.agree([k for k in range(len(self.places)) if self._lacks(k, inputs)])
        backward = self.processes.agree([k for k in range(len(self.places)) if self._lacks(k, gradients)])
        self._forget_what_others_lack()
        # an earlier run's gradients may wait above all that is missing: then the way back starts there, not at EXIT
        exit_ = len(self.places) - 1
        start = min(
            (k for k in range(max(backward, default=0), exit_) if self.places[k] in self.gradients), default=exit_
        )
        wanted = range(min(backward), start + 1) if backward else range(0)
        self._require_room(len(wanted))
        self._forward(forward, inputs, wanted)
        if backward:
            self._backward(range(start, min(backward) - 1, -1), backward, gradients)

    def _lacks(self, k: int, needs: Sequence[str]) -> bool:
        return any(
            layer.group not in self.shelves[need]
            for layer in self.members[self.places[k]]
            for need in needs
            if need in self.needs[layer.name]
        )

    def _forget_what_others_lack(self) -> None:
        """Drop what waits of an earlier run and not in every process: all go on at one place."""
        for states in (self.entering, self.gradients):
            here = torch.tensor([float(place in states) for place in self.places])
            everywhere = self.processes.add_up(here) / self.processes.count
            for place, share in zip(self.places, everywhere.tolist(), strict=True):
                if share < 1:
                    states.drop(place)

    def _require_room(self, kept: int) -> None:
        """Raise UserError where the disk is too small for the states at `kept` places, and what is under way."""
        folder = self.entering.folder
        folder.mkdir(parents=True, exist_ok=True)
        there = sum(place in self.entering for place in self.places)
        needed = (max(kept - there, 0) + 3) * self.entering.bytes * self.processes.count
        free = shutil.disk_usage(folder).free
        require(
            free >= needed,
            f"cache: {folder} has {free / 1e9:.2f} GB left, but the hidden states of all windows take "
            f"{needed / 1e9:.2f}; name another folder with cache=FOLDER, or take fewer calibration.samples",
        )

    @torch.no_grad()
    def _forward(self, measured: Sequence[int], needs: Sequence[str], wanted: Sequence[int]) -> None:
        """Take statistics at the places `measured`, and leave the states that enter those `wanted`."""
        todo = {*measured, *(k for k in wanted if self.places[k] not in self.entering)}
        if not todo:
            return
        known = [k for k in range(min(todo) + 1) if self.places[k] in self.entering]
        if not known:
            with self.entering.write(self.places[0]) as states:
                for index, window in enumerate(self.windows):
                    states[index] = first_states(self.model, window[None])[0][0]
        for k in range(max(known, default=0), max(todo) + 1):
            self._pass(k, needs if k in measured else [], on=k < max(todo))
            if k not in wanted:
                self.entering.drop(self.places[k])

    def _pass(self, k: int, needs: Sequence[str], on: bool) -> None:
        """All windows through the block at place `k`, with statistics of its inputs, `on` to the next one or not."""
        place = self.places[k]
        if not needs and not on:
            return
        states = self.entering.read(place)
        with at_hand(self.model, place, then=self.places[k + 1] if on else ""):
            members = self.members[place] if needs else []
            layers = layers_of(self.model, members)
            # one process's word: which experts saw a token may differ
            leaders = self.processes.agree(shared_inputs(layers, lambda: self._run(place, slice(0, 1), states[:1])))
            collector = Collector(self.model, members, leaders, only(self.needs, needs))
            with collector.listen(), self.entering.write(self.places[k + 1]) if on else nullcontext() as following:
                for batch in progress(self.batches, f"calibration {place}"):
                    collector.window = self.mine[batch.start]
                    output = self._run(place, batch, states[batch])
                    if following is not None:
                        following[batch] = output
            self._put(members, needs, collector)

    def _run(self, place: str, batch: slice, state: torch.Tensor) -> torch.Tensor:
        """What becomes of the states (b, L, d) of some windows in a block, or at EXIT, where it is logits (b, L, v).

        Of a copy: some blocks change in place what enters, be it a file, or what gradients start at.
        """
        state = state.to(self.model.device).clone()
        if place != EXIT:
            return self.replay.run(place, state)
        logits: torch.Tensor = self.replay.leave(self.windows[batch], state).logits
        return logits

    def _backward(self, way: Sequence[int], measured: Sequence[int], needs: Sequence[str]) -> None:
        """Gradients from place to place along `way`, downwards, with their statistics at the places `measured`."""
        for k in way:
            place = self.places[k]
            taken = needs if k in measured else []
            members = self.members[place] if taken else []
            below = self.gradients.write(self.places[k - 1]) if k > way[-1] else nullcontext()
            with at_hand(self.model, place, then=self.places[k - 1] if k > way[-1] else ""), below as following:
                themselves = {layer.name: layer.name for layer in members}
                collector = Collector(self.model, members, themselves, only(self.needs, taken))
                with collector.listen(), frozen(self.model), torch.enable_grad():
                    for batch in progress(self.batches, f"calibration {place}, backwards"):
                        collector.window = self.mine[batch.start]
                        gradient = self._gradient(place, batch)
                        if following is not None:
                            following[batch] = gradient
                self._put(members, taken, collector)
            self.entering.drop(place)
            self.gradients.drop(place)

    def _gradient(self, place: str, batch: slice) -> torch.Tensor:
        """The gradient (b, L, d) of the loss of some windows at the entrance of a place."""
        state = self.entering.read(place)[batch].requires_grad_()
        output = self._run(place, batch, state)
        if place == EXIT:
            next_token_loss(output, self.windows[batch].to(output.device)).backward()  # type: ignore[no-untyped-call]
        else:
            gradient = self.gradients.read(place)[batch].to(output.device)
            output.backward(gradient)  # type: ignore[no-untyped-call]
        assert state.grad is not None
        return state.grad

    def _put(self, members: Sequence[Matrix], needs: Sequence[str], collector: Collector) -> None:
        collector.pool(self.processes)
        if not self.processes.main:
            return
        results = collector.results()
        for group in dict.fromkeys(layer.group for layer in members):
            for need in needs:
                wanting = [x.name for x in members if x.group == group and need in self.needs[x.name]]
                if wanting:
                    self.shelves[need].put(group, pack({name: results[name][need] for name in wanting}))
